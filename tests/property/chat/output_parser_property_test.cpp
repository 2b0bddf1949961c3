// Random answers, well formed and not: what streams out, joined, is what a simple reading of the whole answer gives.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "chat/jinja/text.h"
#include "dsv3/api/output_parser.h"
#include "unit/chat/fake_tokenizer.h"

namespace dsv3 {
namespace {

using Kind = OutputEvent::Kind;

const std::string kTcs = "<｜tool▁calls▁begin｜>", kTce = "<｜tool▁calls▁end｜>", kTcb = "<｜tool▁call▁begin｜>",
                  kEnd = "<｜tool▁call▁end｜>", kSep = "<｜tool▁sep｜>", kOpen = "<think>", kClose = "</think>";

struct Answer {
  std::string reasoning, content, stop;
  std::vector<std::pair<std::string, std::string>> calls;
  bool operator==(const Answer&) const = default;
};

std::string show(const Answer& a) {
  std::string out = "R[" + a.reasoning + "] C[" + a.content + "] stop[" + a.stop + "]";
  for (const auto& [name, arguments] : a.calls) out += " " + name + "(" + arguments + ")";
  return out;
}

// Cuts `text` at the stop string that ends first; true if there is one.
bool cut(std::string* text, const std::vector<std::string>& stops, std::string* stop) {
  for (size_t end = 1; end <= text->size(); ++end) {
    const std::string_view head = std::string_view(*text).substr(0, end);
    for (const std::string& candidate : stops) {
      if (head.ends_with(candidate) && candidate.size() > stop->size()) *stop = candidate;
    }
    if (!stop->empty()) {
      text->resize(end - stop->size());
      return true;
    }
  }
  return false;
}

bool name_ok(const std::string& name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '-' || c == '.';
  });
}

std::string strip(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// The whole answer read at once. `items`: texts and control tokens in turn.
class Oracle {
 public:
  Oracle(const std::vector<std::string>& items, std::vector<std::string> stops)
      : items_(items), stops_(std::move(stops)) {}

  Answer read(ReasoningStart start, bool tools) {
    size_t i = 0;
    if (start != ReasoningStart::kNone) {
      std::string before;
      while (i < items_.size() && !is_mark(items_[i])) before += items_[i++];
      const bool opened = i < items_.size() && items_[i] == kOpen && strip(before).empty();
      if (opened) ++i;
      if (!opened && start == ReasoningStart::kUndecided) {
        i = 0;
      } else {
        answer_.reasoning = opened ? "" : before;
        while (i < items_.size() && items_[i] != kClose) answer_.reasoning += items_[i++];
        if (i == items_.size()) return answer_;
        drop_newlines_ = true;
        ++i;
      }
    }
    while (i < items_.size() && !done_) {
      if (!tools || items_[i] != kTcs) {
        content(items_[i++]);
        continue;
      }
      i = block(i);
    }
    flush();
    return answer_;
  }

 private:
  static bool is_mark(const std::string& item) {
    static const std::set<std::string> kMarks{kTcs, kTce, kTcb, kEnd, kSep, kOpen, kClose};
    return kMarks.count(item) > 0;
  }
  static bool is_tool_mark(const std::string& item) { return is_mark(item) && item != kOpen && item != kClose; }

  void content(std::string text) {
    if (drop_newlines_) {
      text.erase(0, std::min(text.find_first_not_of("\r\n"), text.size()));
      if (text.empty()) return;
    }
    drop_newlines_ = false;
    run_ += text;
    std::string copy = run_;
    std::string stop;
    if (!done_ && cut(&copy, stops_, &stop)) {
      run_ = copy;
      answer_.stop = stop;
      flush();
      done_ = true;
    }
  }
  void flush() {
    if (!done_) answer_.content += run_;
    run_.clear();
  }

  // Text items between two control tokens, joined; leaves *i at the control token or the end.
  std::string text_at(size_t* i) const {
    std::string text;
    while (*i < items_.size() && !is_tool_mark(items_[*i])) text += items_[(*i)++];
    return text;
  }
  std::string mark_at(size_t i) const { return i < items_.size() ? items_[i] : ""; }

  // Reads from the TCS at `begin`; returns where content goes on.
  size_t block(size_t begin) {
    size_t settled = begin, i = begin + 1;
    int calls = 0;
    for (;;) {
      // Whatever is not a call from here on: everything since `settled`, up to `end`, is content.
      const auto give_up = [&](size_t end) {
        for (size_t k = settled; k < end; ++k) content(items_[k]);
        return end;
      };
      const size_t gap_begin = i;
      const std::string gap = text_at(&i);
      if (!strip(gap).empty()) {
        size_t end = gap_begin;
        while (end < items_.size() && strip(items_[end]).empty()) ++end;
        return give_up(end + 1);
      }
      if (i == items_.size()) return calls > 0 ? i : give_up(i);
      if (mark_at(i) == kTcs) return calls > 0 ? i : give_up(i);
      if (mark_at(i) == kTce && calls > 0) return i + 1;
      if (mark_at(i) != kTcb) return give_up(i + 1);
      ++i;
      // The head: items are added one by one, as a stream would.
      std::string head;
      for (; i < items_.size() && !is_tool_mark(items_[i]); ++i) {
        head += items_[i];
        if (!strip(head).empty() && !name_ok(strip(head))) return give_up(i + 1);
      }
      if (mark_at(i) == kTcs) return give_up(i);
      if (mark_at(i) != kSep || !name_ok(strip(head))) return give_up(std::min(i + 1, items_.size()));
      ++i;
      std::string name = strip(head), arguments;
      bool fenced = false;
      if (name == "function") {
        std::string body;
        bool decided = false;
        for (; i < items_.size() && !is_tool_mark(items_[i]) && !decided; ++i) {
          body += items_[i];
          const size_t end = std::min(
              body.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."), body.size());
          const std::string rest = body.substr(end), fence = "\n```json\n";
          if (end > 64) return give_up(i + 1);
          if (end == 0) {
            if (strip(rest).empty()) continue;
            if (strip(rest)[0] != '{') return give_up(i + 1);
            arguments = body;
            decided = true;
          } else if (rest.starts_with(fence)) {
            name = body.substr(0, end);
            arguments = rest.substr(fence.size());
            decided = fenced = true;
          } else if (!fence.starts_with(rest)) {
            return give_up(i + 1);
          }
        }
        if (!decided) return give_up(mark_at(i) == kTcs ? i : std::min(i + 1, items_.size()));
      }
      flush();
      if (done_) return items_.size();
      drop_newlines_ = false;
      while (i < items_.size() && items_[i] != kEnd && items_[i] != kTcb && items_[i] != kTce) arguments += items_[i++];
      if (fenced) {
        const size_t solid = arguments.find_last_not_of(" \t\r\n") + 1;
        if (arguments.substr(0, solid).ends_with("\n```"))
          arguments.resize(solid - 4);
        else if (i == items_.size()) {
          for (const char* part : {"\n``", "\n`", "\n"}) {
            if (arguments.ends_with(part)) {
              arguments.resize(arguments.size() - std::string(part).size());
              break;
            }
          }
        }
      }
      answer_.calls.emplace_back(name, arguments);
      ++calls;
      if (mark_at(i) == kEnd) ++i;
      settled = i;
    }
  }

  const std::vector<std::string>& items_;
  const std::vector<std::string> stops_;
  Answer answer_;
  std::string run_;  // content since the last call
  bool drop_newlines_ = false;
  bool done_ = false;
};

std::vector<std::string> random_answer(std::mt19937& rng, bool well_formed) {
  const char* words[] = {"a",    "{}",       "{\"k\": ", "\n",          "\n\n",  " ",     "```", "`",
                         "json", "STOP",     "ST",       "OP",          "é",     "漢",    "字",  "😀",
                         "f",    "function", "name",     "\n```json\n", "\n```", "get_x", "x y", "</thi"};
  const auto word = [&] { return std::string(words[rng() % std::size(words)]); };
  std::vector<std::string> items;
  const auto add = [&](const std::string& item) {
    if (well_formed || rng() % 12 != 0) items.push_back(item);
    if (!well_formed && rng() % 12 == 0) {
      const std::string* marks[] = {&kTcs, &kTce, &kTcb, &kEnd, &kSep, &kOpen, &kClose};
      items.push_back(rng() % 2 ? *marks[rng() % 7] : word());
    }
  };
  if (rng() % 2) {
    if (rng() % 3 == 0) add("\n");
    if (rng() % 2) add(kOpen);
    for (uint32_t n = rng() % 5; n > 0; --n) add(word());
    if (well_formed || rng() % 4) add(kClose);
  }
  for (uint32_t n = rng() % 6; n > 0; --n) add(word());
  for (uint32_t blocks = rng() % 3; blocks > 0; --blocks) {
    add(kTcs);
    for (uint32_t calls = rng() % 3 + 1; calls > 0; --calls) {
      add(kTcb);
      const bool fenced = rng() % 2;
      add(fenced ? "function" : "get_x");
      add(kSep);
      if (fenced) {
        add("name");
        add("\n```json\n");
      }
      add("{");
      for (uint32_t n = rng() % 5; n > 0; --n) add(word());
      if (fenced) add("\n```");
      add(kEnd);
      if (rng() % 2) add("\n");
    }
    add(kTce);
    for (uint32_t n = rng() % 3; n > 0; --n) add(word());
  }
  return items;
}

// Ids of the items: control tokens as themselves, texts cut into tokens at random, characters cut too.
std::vector<int32_t> tokens_of(const FakeTokenizer& tokenizer, const std::vector<std::string>& items) {
  std::vector<int32_t> ids;
  for (const std::string& item : items) {
    const int32_t added = tokenizer.find_added(item);
    if (added >= 0)
      ids.push_back(added);
    else
      for (const char c : item) ids.push_back(static_cast<unsigned char>(c));
  }
  return ids;
}

Answer stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, const OutputParserOptions& options,
              uint32_t seed) {
  const auto parser = OutputParser::create(tokenizer, options);
  Answer answer;
  const auto take = [&](const std::vector<OutputEvent>& events) {
    for (const OutputEvent& event : events) {
      EXPECT_TRUE(jinja::is_valid_utf8(event.text)) << "seed " << seed;
      if (event.kind == Kind::kReasoning)
        answer.reasoning += event.text;
      else if (event.kind == Kind::kContent)
        answer.content += event.text;
      else if (event.kind == Kind::kToolCallBegin)
        answer.calls.emplace_back(event.text, "");
      else
        answer.calls.at(static_cast<size_t>(event.tool_index)).second += event.text;
    }
  };
  for (const int32_t id : ids) take(parser->push(id));
  take(parser->finish());
  answer.stop = parser->matched_stop();
  return answer;
}

// One character a token, so that the oracle, which adds item by item, gives up where the stream does.
std::vector<std::string> single_characters(const FakeTokenizer& tokenizer, const std::vector<std::string>& items) {
  std::vector<std::string> out;
  for (const std::string& item : items) {
    if (tokenizer.find_added(item) >= 0) {
      out.push_back(item);
      continue;
    }
    for (size_t i = 0; i < item.size();) {
      char32_t c = 0;
      const size_t length = jinja::decode_char(item, i, &c);
      out.push_back(item.substr(i, length));
      i += length;
    }
  }
  return out;
}

TEST(OutputParserProperty, StreamEqualsTheWholeAnswerRead) {
  const FakeTokenizer tokenizer;
  int with_calls = 0, with_stop = 0, with_reasoning = 0;
  for (uint32_t seed = 0; seed < 60'000; ++seed) {
    std::mt19937 rng(seed);
    const std::vector<std::string> items = random_answer(rng, rng() % 3 == 0);
    OutputParserOptions options;
    options.reasoning = static_cast<ReasoningStart>(rng() % 3);
    options.parse_tools = rng() % 4 != 0;
    options.stream_reasoning = rng() % 2;
    if (rng() % 3 == 0) options.stop = {"STOP", "\n\n{", "漢字"};
    const Answer got = stream(tokenizer, tokens_of(tokenizer, items), options, seed);
    const Answer want =
        Oracle(single_characters(tokenizer, items), options.stop).read(options.reasoning, options.parse_tools);
    std::string all;
    for (const std::string& item : items) all += item;
    ASSERT_EQ(show(got), show(want)) << "seed " << seed << ", start " << static_cast<int>(options.reasoning)
                                     << ", answer " << all;
    with_calls += !got.calls.empty();
    with_stop += !got.stop.empty();
    with_reasoning += !got.reasoning.empty();
  }
  EXPECT_GT(with_calls, 10'000);
  EXPECT_GT(with_stop, 1'000);
  EXPECT_GT(with_reasoning, 10'000);
}

TEST(OutputParserProperty, WellFormedCallsLeaveNoControlText) {
  const FakeTokenizer tokenizer;
  for (uint32_t seed = 0; seed < 20'000; ++seed) {
    std::mt19937 rng(seed);
    const std::vector<std::string> items = random_answer(rng, true);
    const Answer got = stream(tokenizer, tokens_of(tokenizer, items), {.parse_tools = true}, seed);
    for (const std::string_view mark : kToolTokens) {
      ASSERT_EQ(got.content.find(mark), std::string::npos) << "seed " << seed << ": " << show(got);
      for (const auto& [name, arguments] : got.calls)
        ASSERT_EQ(arguments.find(mark), std::string::npos) << "seed " << seed;
    }
  }
}

// Where tags are text, or stop strings are looked for, it must not matter how the text is cut into tokens.
TEST(OutputParserProperty, TheCutIntoTokensDoesNotMatter) {
  const std::vector<std::string> pieces = {"<thi",     "nk>",      "</",       "think>", "</think>\n\n",
                                           "a<",       "ST",       "OP",       "TOP",    "hello ",
                                           "\xe6\xbc", "\xa2\xe5", "\xad\x97", "\n\n",   "\nSTO"};
  const FakeTokenizer tokenizer({.think_tokens = false, .pieces = pieces});
  for (uint32_t seed = 0; seed < 30'000; ++seed) {
    std::mt19937 rng(seed);
    std::vector<int32_t> ids, bytes;
    for (uint32_t n = rng() % 12; n > 0; --n) {
      const uint32_t pick = rng() % static_cast<uint32_t>(pieces.size() + 2);
      const int32_t id = pick < pieces.size() ? 256 + static_cast<int32_t>(pick) : static_cast<int32_t>(rng() % 256);
      ids.push_back(id);
      for (const char c : tokenizer.token_bytes(id)) bytes.push_back(static_cast<unsigned char>(c));
    }
    OutputParserOptions options;
    options.reasoning = static_cast<ReasoningStart>(rng() % 3);
    options.separate_reasoning = rng() % 4 != 0;
    options.include_stop = rng() % 4 == 0;
    options.stop = {"STOP", "OP\n", "漢字", "\n\n\n"};
    const Answer whole = stream(tokenizer, ids, options, seed), cut_up = stream(tokenizer, bytes, options, seed);
    ASSERT_EQ(show(whole), show(cut_up)) << "seed " << seed;
    if (whole.stop.empty() && !options.separate_reasoning) {
      ASSERT_EQ(whole.content, tokenizer.decode(ids, true)) << "seed " << seed;
    }
  }
}

TEST(OutputParserProperty, RandomTokensAreTakenWithoutHarm) {
  const FakeTokenizer tokenizer;
  for (uint32_t seed = 0; seed < 20'000; ++seed) {
    std::mt19937 rng(seed);
    std::vector<int32_t> ids;
    for (uint32_t n = rng() % 40; n > 0; --n) {
      ids.push_back(rng() % 2 ? static_cast<int32_t>(256 + rng() % 14) : static_cast<int32_t>(rng() % 256));
    }
    ids.push_back(-1);
    ids.push_back(1 << 30);
    OutputParserOptions options;
    options.reasoning = static_cast<ReasoningStart>(rng() % 3);
    options.separate_reasoning = rng() % 2;
    options.parse_tools = rng() % 2;
    options.parallel_tool_calls = rng() % 2;
    options.skip_special_tokens = rng() % 2;
    stream(tokenizer, ids, options, seed);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace dsv3
