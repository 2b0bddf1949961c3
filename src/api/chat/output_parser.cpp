// OutputParser: token ids -> whole characters -> reasoning or content -> tool calls -> stop strings -> events.
// One object a choice, one thread at a time.
#include "dsv3/api/output_parser.h"

#include <algorithm>
#include <utility>

#include "chat/stop_matcher.h"
#include "chat/tool_call_parser.h"

namespace dsv3 {
namespace {

constexpr std::string_view kThinkOpen = "<think>";
constexpr std::string_view kThinkClose = "</think>";

// Length of the longest end of `text` that `word` begins with, less than the whole word.
size_t held_prefix(std::string_view text, std::string_view word) {
  for (size_t n = std::min(word.size() - 1, text.size()); n > 0; --n) {
    if (text.ends_with(word.substr(0, n))) return n;
  }
  return 0;
}

class Parser : public OutputParser, private ToolCallSink {
 public:
  Parser(const Tokenizer& tokenizer, OutputParserOptions options)
      : tokenizer_(tokenizer),
        options_(std::move(options)),
        detokenizer_(tokenizer, options_.skip_special_tokens),
        tool_tokens_(tokenizer),
        tools_(*this),
        stops_(options_.stop, options_.include_stop),
        open_id_(tokenizer.find_added(kThinkOpen)),
        close_id_(tokenizer.find_added(kThinkClose)) {
    if (options_.reasoning == ReasoningStart::kInside) phase_ = Phase::kReasoning;
    if (options_.reasoning == ReasoningStart::kUndecided) phase_ = Phase::kUndecided;
    parses_tools_ = options_.parse_tools && tool_tokens_.complete();
  }

  std::vector<OutputEvent> push(int32_t id) override {
    events_.clear();
    if (!done_) {
      if (phase_ != Phase::kContent) ++reasoning_tokens_;
      token(id);
    }
    return std::exchange(events_, {});
  }

  std::vector<OutputEvent> finish() override {
    events_.clear();
    if (!done_) {
      text(detokenizer_.finish());
      if (phase_ == Phase::kUndecided) {
        answered_at_once();
      } else if (phase_ == Phase::kReasoning) {
        reasoning_text(std::exchange(pending_, {}));
        flush_reasoning();
      }
      tools_.finish();
      if (!done_) emit(OutputEvent::Kind::kContent, stops_.flush(), -1);
      done_ = true;
    }
    return std::exchange(events_, {});
  }

  bool wants_stop() const override { return wants_stop_; }
  const std::string& matched_stop() const override { return stops_.match(); }
  bool has_tool_calls() const override { return has_tool_calls_; }
  int reasoning_tokens() const override { return reasoning_tokens_; }

 private:
  enum class Phase { kUndecided, kReasoning, kContent };

  bool tags_are_text() const { return open_id_ < 0 || close_id_ < 0; }

  std::string_view shown(int32_t id) const {
    if (options_.skip_special_tokens && tokenizer_.is_special(id)) return {};
    return tokenizer_.token_bytes(id);
  }

  void token(int32_t id) {
    if (phase_ != Phase::kContent && !tags_are_text()) {
      if (id == open_id_ && at_start_) {
        text(detokenizer_.finish());
        if (phase_ != Phase::kContent && at_start_) return opened(pending_.size());
      } else if (id == close_id_ && phase_ == Phase::kReasoning) {
        text(detokenizer_.finish());
        reasoning_text(std::exchange(pending_, {}));
        return closed();
      }
    }
    const ToolMark mark = phase_ != Phase::kReasoning && parses_tools_ ? tool_tokens_.mark(id) : ToolMark::kText;
    if (mark == ToolMark::kText) return text(detokenizer_.push(id));
    text(detokenizer_.finish());
    if (phase_ == Phase::kUndecided) answered_at_once();
    drop_newlines_ = false;
    if (!done_) tools_.push_mark(mark, shown(id));
  }

  // Whole characters of ordinary tokens.
  void text(std::string_view text) {
    if (text.empty() || done_) return;
    if (phase_ == Phase::kContent) return content_text(text);
    pending_.append(text);
    think();
  }

  // Takes from pending_ what is decided.
  void think() {
    if (at_start_) {
      const size_t blank = std::min(pending_.find_first_not_of(" \t\r\n"), pending_.size());
      const std::string_view rest = std::string_view(pending_).substr(blank);
      if (rest.empty()) return;
      if (tags_are_text()) {
        if (rest.starts_with(kThinkOpen)) return opened(blank + kThinkOpen.size());
        if (kThinkOpen.starts_with(rest)) return;
      }
      at_start_ = false;
      if (phase_ == Phase::kUndecided) return answered_at_once();
    }
    if (!tags_are_text()) return reasoning_text(std::exchange(pending_, {}));
    const size_t close = pending_.find(kThinkClose);
    if (close != std::string::npos) {
      const std::string all = std::exchange(pending_, {});
      reasoning_text(all.substr(0, close));
      closed();
      return text(std::string_view(all).substr(close + kThinkClose.size()));
    }
    const size_t keep = held_prefix(pending_, kThinkClose);
    const std::string decided = pending_.substr(0, pending_.size() - keep);
    pending_.erase(0, decided.size());
    reasoning_text(decided);
  }

  // No opening tag came first: there is no reasoning.
  void answered_at_once() {
    phase_ = Phase::kContent;
    reasoning_tokens_ = 0;
    content_text(std::exchange(pending_, {}));
  }

  // The opening tag came first; `consumed` bytes of pending_ are it and the white space before it.
  void opened(size_t consumed) {
    if (!options_.separate_reasoning) {
      std::string before = pending_.substr(0, consumed);
      if (!tags_are_text()) before.append(shown(open_id_));
      reasoning_text(before);
    }
    pending_.erase(0, consumed);
    at_start_ = false;
    phase_ = Phase::kReasoning;
    if (!pending_.empty()) think();
  }

  void closed() {
    if (options_.separate_reasoning) {
      flush_reasoning();
      drop_newlines_ = true;
    } else {
      reasoning_text(tags_are_text() ? kThinkClose : shown(close_id_));
    }
    at_start_ = false;
    phase_ = Phase::kContent;
  }

  void reasoning_text(std::string_view text) {
    if (!options_.separate_reasoning) return content(text);
    if (options_.stream_reasoning)
      emit(OutputEvent::Kind::kReasoning, text, -1);
    else
      reasoning_.append(text);
  }

  void flush_reasoning() { emit(OutputEvent::Kind::kReasoning, std::exchange(reasoning_, {}), -1); }

  void content_text(std::string_view text) {
    if (drop_newlines_) {
      text.remove_prefix(std::min(text.find_first_not_of("\r\n"), text.size()));
      if (text.empty()) return;
      drop_newlines_ = false;
    }
    if (parses_tools_)
      tools_.push_text(text);
    else
      content(text);
  }

  // ToolCallSink
  void content(std::string_view text) override {
    if (done_ || text.empty()) return;
    emit(OutputEvent::Kind::kContent, stops_.push(text), -1);
    if (stops_.matched()) done_ = wants_stop_ = true;
  }
  void call_begin(int index, std::string_view name) override {
    if (done_) return;
    emit(OutputEvent::Kind::kContent, stops_.flush(), -1);
    has_tool_calls_ = true;
    events_.push_back({OutputEvent::Kind::kToolCallBegin, std::string(name), index});
  }
  void call_arguments(int index, std::string_view text) override {
    if (!done_) emit(OutputEvent::Kind::kToolCallArguments, text, index);
  }
  void call_end(int) override {
    if (!options_.parallel_tool_calls) done_ = wants_stop_ = true;
  }

  void emit(OutputEvent::Kind kind, std::string_view text, int index) {
    if (text.empty()) return;
    if (!events_.empty() && events_.back().kind == kind && events_.back().tool_index == index)
      events_.back().text.append(text);
    else
      events_.push_back({kind, std::string(text), index});
  }

  const Tokenizer& tokenizer_;
  const OutputParserOptions options_;
  IncrementalDetokenizer detokenizer_;
  const ToolTokens tool_tokens_;
  ToolCallParser tools_;
  StopMatcher stops_;
  const int32_t open_id_, close_id_;
  bool parses_tools_ = false;

  Phase phase_ = Phase::kContent;
  bool at_start_ = true;        // only white space so far: the opening tag may still come
  std::string pending_;         // outside of kContent: text that is not decided yet
  std::string reasoning_;       // without stream_reasoning: all of it so far
  bool drop_newlines_ = false;  // directly behind the closing tag
  bool done_ = false;           // nothing more comes out
  bool wants_stop_ = false;
  bool has_tool_calls_ = false;
  int reasoning_tokens_ = 0;
  std::vector<OutputEvent> events_;
};

}  // namespace

std::unique_ptr<OutputParser> OutputParser::create(const Tokenizer& tokenizer, OutputParserOptions options) {
  return std::make_unique<Parser>(tokenizer, std::move(options));
}

ReasoningStart reasoning_start(const Tokenizer& tokenizer, std::span<const int32_t> prompt_ids,
                               std::string_view reasoning_parser) {
  // What the template wrote behind the last mark of a turn; a client's text stands there only in a message that is to
  // be continued, and that message says itself whether it is still thinking.
  const int32_t assistant = tokenizer.find_added("<｜Assistant｜>");
  const int32_t user = tokenizer.find_added("<｜User｜>");
  const int32_t output_end = tokenizer.find_added("<｜tool▁output▁end｜>");
  size_t begin = prompt_ids.size();
  while (begin > 0) {
    const int32_t id = prompt_ids[begin - 1];
    if (id >= 0 && (id == assistant || id == user || id == output_end || id == tokenizer.eos_id())) break;
    --begin;
  }
  const bool turn_is_open = begin > 0 && prompt_ids[begin - 1] == assistant;
  const std::string tail = tokenizer.decode(prompt_ids.subspan(begin), false);
  const size_t open = tail.rfind(kThinkOpen), close = tail.rfind(kThinkClose);
  const bool has_open = open != std::string::npos, has_close = close != std::string::npos;
  if (turn_is_open || assistant < 0) {
    if (has_open && (!has_close || close < open)) return ReasoningStart::kInside;
    if (has_close) return ReasoningStart::kNone;
  }
  const bool opens_itself = reasoning_parser == "deepseek-r1" || reasoning_parser == "deepseek-r1-0528";
  return opens_itself ? ReasoningStart::kUndecided : ReasoningStart::kNone;
}

}  // namespace dsv3
