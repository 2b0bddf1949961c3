#include "chat/tool_call_parser.h"

#include <algorithm>
#include <utility>

namespace dsv3 {
namespace {

constexpr std::string_view kOpeningFence = "\n```json\n";
constexpr std::string_view kClosingFence = "\n```";
constexpr std::string_view kType = "function";
constexpr std::string_view kBlanks = " \t\r\n";
constexpr size_t kMaxNameBytes = 64;

bool is_blank(std::string_view text) {
  return text.find_first_not_of(kBlanks) == std::string_view::npos;
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
}

// Whether `text` is a name, or, while it may still grow, the beginning of one.
bool is_name(std::string_view text, bool may_grow) {
  return (may_grow || !text.empty()) && text.size() <= kMaxNameBytes &&
         std::all_of(text.begin(), text.end(), is_name_char);
}

}  // namespace

ToolTokens::ToolTokens(const Tokenizer& tokenizer)
    : calls_begin_(tokenizer.find_added("<｜tool▁calls▁begin｜>")),
      calls_end_(tokenizer.find_added("<｜tool▁calls▁end｜>")),
      call_begin_(tokenizer.find_added("<｜tool▁call▁begin｜>")),
      call_end_(tokenizer.find_added("<｜tool▁call▁end｜>")),
      sep_(tokenizer.find_added("<｜tool▁sep｜>")) {}

bool ToolTokens::complete() const {
  return calls_begin_ >= 0 && calls_end_ >= 0 && call_begin_ >= 0 && call_end_ >= 0 && sep_ >= 0;
}

ToolMark ToolTokens::mark(int32_t id) const {
  if (id < 0) return ToolMark::kText;
  if (id == calls_begin_) return ToolMark::kCallsBegin;
  if (id == calls_end_) return ToolMark::kCallsEnd;
  if (id == call_begin_) return ToolMark::kCallBegin;
  if (id == call_end_) return ToolMark::kCallEnd;
  if (id == sep_) return ToolMark::kSep;
  return ToolMark::kText;
}

// Not a call after all: the text since the last settled point is content.
void ToolCallParser::give_up() {
  state_ = State::kOutside;
  head_.clear();
  sink_.content(std::exchange(raw_, {}));
}

void ToolCallParser::begin_call(std::string_view name, bool fenced) {
  sink_.call_begin(calls_++, name);
  state_ = State::kArguments;
  fenced_ = fenced;
  fence_.clear();
  raw_.clear();
}

// The closing fence, with white space behind it, is not part of the arguments; anything else that was held is.
void ToolCallParser::end_call() {
  const std::string held = std::exchange(fence_, {});
  if (!held.empty() && !held.starts_with(kClosingFence)) sink_.call_arguments(calls_ - 1, held);
  head_.clear();
  state_ = State::kBetween;
  ++calls_in_block_;
  sink_.call_end(calls_ - 1);
}

void ToolCallParser::arguments(std::string_view text) {
  if (!fenced_) {
    if (!text.empty()) sink_.call_arguments(calls_ - 1, text);
    return;
  }
  fence_.append(text);
  const std::string_view all = fence_;
  const size_t solid = all.find_last_not_of(kBlanks) + 1;  // without white space at the end
  size_t keep = 0;
  if (all.substr(0, solid).ends_with(kClosingFence)) {
    keep = all.size() - (solid - kClosingFence.size());
  } else {
    for (size_t n = kClosingFence.size() - 1; n > 0 && keep == 0; --n) {
      if (all.ends_with(kClosingFence.substr(0, n))) keep = n;
    }
  }
  const std::string done = fence_.substr(0, fence_.size() - keep);
  fence_.erase(0, done.size());
  if (!done.empty()) sink_.call_arguments(calls_ - 1, done);
}

// Behind "function" SEP: NAME and the opening fence, or the arguments of a function whose name is "function".
void ToolCallParser::decide_body() {
  const std::string body = head_;
  const auto end = std::find_if_not(body.begin(), body.end(), is_name_char);
  const std::string_view name = std::string_view(body).substr(0, static_cast<size_t>(end - body.begin()));
  const std::string_view rest = std::string_view(body).substr(name.size());
  if (name.size() > kMaxNameBytes) return give_up();
  if (name.empty()) {
    const std::string_view text = trimmed(rest);
    if (text.empty()) return;
    if (text.front() != '{') return give_up();
    begin_call(kType, false);
    arguments(body);
  } else if (rest.starts_with(kOpeningFence)) {
    begin_call(name, true);
    arguments(rest.substr(kOpeningFence.size()));
  } else if (!kOpeningFence.starts_with(rest)) {
    give_up();
  }
}

void ToolCallParser::push_text(std::string_view text) {
  if (text.empty()) return;
  switch (state_) {
    case State::kOutside:
      sink_.content(text);
      return;
    case State::kBetween:
      raw_.append(text);
      if (!is_blank(text)) give_up();
      return;
    case State::kHead:
      raw_.append(text);
      head_.append(text);
      if (!is_name(trimmed(head_), true)) give_up();
      return;
    case State::kBody:
      raw_.append(text);
      head_.append(text);
      decide_body();
      return;
    case State::kArguments:
      arguments(text);
      return;
  }
}

void ToolCallParser::mark_between(ToolMark mark, std::string_view text) {
  raw_.append(text);
  if (mark == ToolMark::kCallBegin) {
    head_.clear();
    state_ = State::kHead;
  } else if (mark == ToolMark::kCallsEnd && calls_in_block_ > 0) {
    raw_.clear();
    state_ = State::kOutside;
  } else {
    give_up();
  }
}

void ToolCallParser::push_mark(ToolMark mark, std::string_view text) {
  if (state_ == State::kArguments) {
    if (mark == ToolMark::kCallEnd) return end_call();
    if (mark == ToolMark::kSep || mark == ToolMark::kCallsBegin) return arguments(text);
    end_call();  // the model forgot to end the call
  }
  if (state_ == State::kHead && mark == ToolMark::kSep) {
    const std::string name(trimmed(head_));
    raw_.append(text);
    if (!is_name(name, false)) return give_up();
    if (name != kType) return begin_call(name, false);
    head_.clear();
    state_ = State::kBody;
    return;
  }
  if (mark == ToolMark::kCallsBegin) {
    if (state_ == State::kBetween && calls_in_block_ > 0)
      raw_.clear();  // a new block right behind a call
    else if (state_ != State::kOutside)
      give_up();
    state_ = State::kBetween;
    calls_in_block_ = 0;
    raw_ = text;
    return;
  }
  if (state_ == State::kBetween) return mark_between(mark, text);
  if (state_ != State::kOutside) {
    raw_.append(text);
    return give_up();
  }
  sink_.content(text);
}

void ToolCallParser::finish() {
  // White space behind a call is nobody's; a closing fence that was cut short is not an argument.
  if (state_ == State::kBetween && calls_in_block_ > 0) raw_.clear();
  if (state_ != State::kOutside && state_ != State::kArguments) give_up();
  state_ = State::kOutside;
  fence_.clear();
}

}  // namespace dsv3
