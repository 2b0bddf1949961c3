#include "dsv3/api/output_parser.h"

#include <gtest/gtest.h>

#include "fake_tokenizer.h"

namespace dsv3 {
namespace {

using Kind = OutputEvent::Kind;

// What a client has at the end: reasoning, content, and the calls as "name(arguments)".
struct Answer {
  std::string reasoning, content;
  std::vector<std::string> calls;
  std::string matched_stop;
  int reasoning_tokens = 0;
  bool wants_stop = false;
  size_t reasoning_events = 0;

  std::string text() const {
    std::string out = "R[" + reasoning + "] C[" + content + "]";
    for (const std::string& call : calls) out += " " + call + ")";
    return out;
  }
};

Answer run(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, OutputParserOptions options) {
  const auto parser = OutputParser::create(tokenizer, std::move(options));
  Answer answer;
  const auto take = [&](const std::vector<OutputEvent>& events) {
    for (const OutputEvent& event : events) {
      if (event.kind == Kind::kReasoning) {
        answer.reasoning += event.text;
        ++answer.reasoning_events;
      } else if (event.kind == Kind::kContent) {
        answer.content += event.text;
      } else if (event.kind == Kind::kToolCallBegin) {
        EXPECT_EQ(event.tool_index, static_cast<int>(answer.calls.size()));
        answer.calls.push_back(event.text + "(");
      } else {
        EXPECT_EQ(event.tool_index, static_cast<int>(answer.calls.size()) - 1);
        answer.calls.back() += event.text;
      }
      EXPECT_TRUE(event.kind == Kind::kToolCallBegin || !event.text.empty());
    }
  };
  for (const int32_t id : ids) {
    take(parser->push(id));
    if (parser->wants_stop()) break;
  }
  take(parser->finish());
  EXPECT_TRUE(parser->push(65).empty());
  EXPECT_TRUE(parser->finish().empty());
  EXPECT_EQ(parser->has_tool_calls(), !answer.calls.empty());
  answer.matched_stop = parser->matched_stop();
  answer.reasoning_tokens = parser->reasoning_tokens();
  answer.wants_stop = parser->wants_stop();
  return answer;
}

// `text` in the short notation TCS TCE tcb tce SEP.
std::string long_form(std::string text) {
  const std::pair<std::string, std::string> names[] = {{"TCS", "<｜tool▁calls▁begin｜>"},
                                                       {"TCE", "<｜tool▁calls▁end｜>"},
                                                       {"tcb", "<｜tool▁call▁begin｜>"},
                                                       {"tce", "<｜tool▁call▁end｜>"},
                                                       {"SEP", "<｜tool▁sep｜>"}};
  for (const auto& [name, token] : names) {
    for (size_t at = text.find(name); at != std::string::npos; at = text.find(name))
      text.replace(at, name.size(), token);
  }
  return text;
}

Answer run(const std::string& text, OutputParserOptions options) {
  const FakeTokenizer tokenizer;
  return run(tokenizer, tokenizer.encode(long_form(text), false, {}), std::move(options));
}

std::string tools(const std::string& text) {
  return run(text, {.parse_tools = true}).text();
}

TEST(Reasoning, InsideUntilTheClosingTag) {
  const OutputParserOptions inside{.reasoning = ReasoningStart::kInside};
  const Answer answer = run("because</think>\n\nyes\n", inside);
  EXPECT_EQ(answer.text(), "R[because] C[yes\n]");
  EXPECT_EQ(answer.reasoning_tokens, 8);
  EXPECT_EQ(run("<think>because</think>yes", inside).text(), "R[because] C[yes]");
  EXPECT_EQ(run("\n<think>\nbecause</think>yes", inside).text(), "R[\nbecause] C[yes]");
  EXPECT_EQ(run("a<think>b</think>c</think>d", inside).text(), "R[a<think>b] C[c</think>d]");
  EXPECT_EQ(run("never ends", inside).text(), "R[never ends] C[]");
  EXPECT_EQ(run("never ends", inside).reasoning_tokens, 10);
  EXPECT_EQ(run("</think>", inside).text(), "R[] C[]");
  EXPECT_EQ(run("", inside).text(), "R[] C[]");
}

TEST(Reasoning, UndecidedLooksAtTheFirstVisibleToken) {
  const OutputParserOptions undecided{.reasoning = ReasoningStart::kUndecided};
  EXPECT_EQ(run("<think>why</think>\n\nso", undecided).text(), "R[why] C[so]");
  EXPECT_EQ(run(" \n<think>why</think>so", undecided).text(), "R[why] C[so]");
  EXPECT_EQ(run(" \n<think>why</think>so", undecided).reasoning_tokens, 7);
  EXPECT_EQ(run("\nso<think>x</think>", undecided).text(), "R[] C[\nso<think>x</think>]");
  EXPECT_EQ(run("\nso", undecided).reasoning_tokens, 0);
  EXPECT_EQ(run("  ", undecided).text(), "R[] C[  ]");
}

TEST(Reasoning, NoSplittingAtAll) {
  EXPECT_EQ(run("\n<think>a</think>\n\nb", {}).text(), "R[] C[\n<think>a</think>\n\nb]");
  EXPECT_EQ(run("\n<think>a</think>b", {}).reasoning_tokens, 0);
}

TEST(Reasoning, UnseparatedKeepsTheTags) {
  for (const ReasoningStart start : {ReasoningStart::kInside, ReasoningStart::kUndecided}) {
    const Answer answer = run("\n<think>a</think>\n\nb", {.reasoning = start, .separate_reasoning = false});
    EXPECT_EQ(answer.text(), "R[] C[\n<think>a</think>\n\nb]");
    EXPECT_EQ(answer.reasoning_tokens, 4);
  }
}

TEST(Reasoning, ComesAsOneEventWhereNotStreamed) {
  OutputParserOptions options{.reasoning = ReasoningStart::kInside, .stream_reasoning = false};
  EXPECT_EQ(run("abc</think>d", options).reasoning_events, 1u);
  EXPECT_EQ(run("abc", options).reasoning_events, 1u);
  EXPECT_EQ(run("abc</think>d", options).text(), "R[abc] C[d]");
  EXPECT_EQ(run("</think>d", options).reasoning_events, 0u);
}

TEST(Reasoning, MatchesTextWhereTheTokenizerHasNoTags) {
  const FakeTokenizer tokenizer({.think_tokens = false});
  const OutputParserOptions inside{.reasoning = ReasoningStart::kInside},
      undecided{.reasoning = ReasoningStart::kUndecided};
  const auto bytes = [&](std::string_view text) { return tokenizer.encode(text, false, {}); };
  EXPECT_EQ(run(tokenizer, bytes("a < b</thin</think>\n\nso"), inside).text(), "R[a < b</thin] C[so]");
  EXPECT_EQ(run(tokenizer, bytes("<think>why</think>so"), inside).text(), "R[why] C[so]");
  EXPECT_EQ(run(tokenizer, bytes("\n<think>why</think>so"), undecided).text(), "R[why] C[so]");
  EXPECT_EQ(run(tokenizer, bytes("\n<thinking>"), undecided).text(), "R[] C[\n<thinking>]");
  EXPECT_EQ(run(tokenizer, bytes("<thin"), undecided).text(), "R[] C[<thin]");
  EXPECT_EQ(run(tokenizer, bytes("x</thin"), inside).text(), "R[x</thin] C[]");
}

TEST(Reasoning, MatchesTextAcrossTokens) {
  const FakeTokenizer tokenizer({.think_tokens = false, .pieces = {"<th", "ink>why", "</thin", "k>\n\nso"}});
  const Answer answer = run(tokenizer, {256, 257, 258, 259}, {.reasoning = ReasoningStart::kUndecided});
  EXPECT_EQ(answer.text(), "R[why] C[so]");
  EXPECT_EQ(answer.reasoning_tokens, 4);
}

TEST(Tools, BothForms) {
  EXPECT_EQ(tools("TCStcbfunctionSEPget_x\n```json\n{\"a\": 1}\n```tceTCE"), "R[] C[] get_x({\"a\": 1})");
  EXPECT_EQ(tools("TCStcbget_xSEP{\"a\": 1}tceTCE"), "R[] C[] get_x({\"a\": 1})");
  EXPECT_EQ(tools("I look.\n\nTCStcbfunctionSEPf\n```json\n{}\n```tce\ntcbfunctionSEPg\n```json\n[]\n```tceTCE"),
            "R[] C[I look.\n\n] f({}) g([])");
  EXPECT_EQ(tools("TCStcbfSEP{}tcetcbgSEP[]tceTCE"), "R[] C[] f({}) g([])");
  EXPECT_EQ(tools("TCS\ntcb f \nSEP{}tceTCEbye"), "R[] C[bye] f({})");
  EXPECT_EQ(tools("TCStcbfSEP{}tceTCETCStcbgSEP{}tceTCE"), "R[] C[] f({}) g({})");
  EXPECT_EQ(tools("TCStcbfSEPtceTCE"), "R[] C[] f()");
}

TEST(Tools, AFunctionMayBeCalledFunction) {
  EXPECT_EQ(tools("TCStcbfunctionSEP{\"a\":1}tceTCE"), "R[] C[] function({\"a\":1})");
  EXPECT_EQ(tools("TCStcbfunctionSEP\n{}tceTCE"), "R[] C[] function(\n{})");
  EXPECT_EQ(tools("TCStcbfunctionSEPfunction\n```json\n{}\n```tceTCE"), "R[] C[] function({})");
}

TEST(Tools, ArgumentsAreLeftAsTheyAre) {
  EXPECT_EQ(tools("TCStcbfunctionSEPf\n```json\n{\"code\": \"\n```\nx\n```y\"} \n\n```\ntceTCE"),
            "R[] C[] f({\"code\": \"\n```\nx\n```y\"} \n)");
  EXPECT_EQ(tools("TCStcbfSEP {not json\u00e9\n```tceTCE"), "R[] C[] f( {not json\u00e9\n```)");
  EXPECT_EQ(tools("TCStcbfunctionSEPf\n```json\n{}tceTCE"), "R[] C[] f({})");
  EXPECT_EQ(tools("TCStcbfSEP{\"a\": \"SEP\"}tceTCE"), "R[] C[] f({\"a\": \"<｜tool▁sep｜>\"})");
}

TEST(Tools, EndsThatAreMissing) {
  EXPECT_EQ(tools("TCStcbfSEP{}tce"), "R[] C[] f({})");
  EXPECT_EQ(tools("TCStcbfSEP{}"), "R[] C[] f({})");
  EXPECT_EQ(tools("TCStcbfSEP{\"a\": "), "R[] C[] f({\"a\": )");
  EXPECT_EQ(tools("TCStcbfunctionSEPf\n```json\n{}\n``"), "R[] C[] f({})");
  EXPECT_EQ(tools("TCStcbfSEP{}TCE"), "R[] C[] f({})");
  EXPECT_EQ(tools("TCStcbfSEP{}tcbgSEP[]tceTCE"), "R[] C[] f({}) g([])");
}

TEST(Tools, MalformedCallsComeOutAsContent) {
  for (const char* text :
       {"xTCSnot a callTCEy", "TCSTCE", "TCS", "TCStcb", "TCStcbf", "TCStcbfTCE", "TCStcbftceTCE", "TCStcbSEP{}tceTCE",
        "TCStcbtwo wordsSEP{}tceTCE", "TCStcbfunctionSEPname {}tceTCE",
        "TCStcbfunctionSEPname\n```python\n{}\n```tceTCE", "TCStcbfunctionSEP", "TCStcbfunctionSEPname\n```js",
        "TCStcbfunctionSEP[1]tceTCE", "tcbfSEP{}tce", "SEP", "TCE", "TCSTCSTCE", "TCStcbtcb"}) {
    EXPECT_EQ(tools(text), "R[] C[" + long_form(text) + "]") << text;
  }
  const std::string long_name(65, 'n');
  EXPECT_EQ(tools("TCStcb" + long_name + "SEP{}tceTCE"),
            "R[] C[" + long_form("TCStcb" + long_name + "SEP{}tceTCE") + "]");
  EXPECT_EQ(tools("TCStcb" + long_name.substr(1) + "SEP{}tceTCE"), "R[] C[] " + long_name.substr(1) + "({})");
}

TEST(Tools, WhatFollowsAMalformedCallIsReadAnew) {
  EXPECT_EQ(tools("TCSoops TCStcbfSEP{}tceTCE"), long_form("R[] C[TCSoops ] f({})"));
  EXPECT_EQ(tools("TCStcbfSEP{}tce and TCStcbbad nameSEP"), long_form("R[] C[ and TCStcbbad nameSEP] f({})"));
  EXPECT_EQ(tools("TCStcbfSEP{}tcetcbbad nameSEP{}tceTCE"), long_form("R[] C[tcbbad nameSEP{}tceTCE] f({})"));
}

TEST(Tools, AreTextWhereNotAskedForOrNotKnown) {
  const std::string text = "TCStcbfSEP{}tceTCE";
  EXPECT_EQ(run(text, {.parse_tools = false}).content, long_form(text));
  const FakeTokenizer without({.tool_tokens = false});
  EXPECT_EQ(run(without, without.encode(long_form(text), false, {}), {.parse_tools = true}).content, long_form(text));
}

TEST(Tools, ComeAfterReasoningOnly) {
  const OutputParserOptions options{.reasoning = ReasoningStart::kInside, .parse_tools = true};
  EXPECT_EQ(run("TCStcb</think>\n\nTCStcbfSEP{}tceTCE", options).text(), long_form("R[TCStcb] C[] f({})"));
}

TEST(Tools, MayComeFirstWhereReasoningCould) {
  const OutputParserOptions options{.reasoning = ReasoningStart::kUndecided, .parse_tools = true};
  EXPECT_EQ(run("\nTCStcbfSEP{}tceTCE", options).text(), "R[] C[\n] f({})");
  EXPECT_EQ(run("TCStcbfSEP{}tceTCE", options).reasoning_tokens, 0);
}

TEST(Tools, OneCallIsEnoughWithoutParallelCalls) {
  const Answer answer = run("TCStcbfSEP{}tcetcbgSEP{}tceTCE", {.parse_tools = true, .parallel_tool_calls = false});
  EXPECT_EQ(answer.text(), "R[] C[] f({})");
  EXPECT_TRUE(answer.wants_stop);
}

TEST(Tools, ArgumentsStreamOnceTheNameIsKnown) {
  const FakeTokenizer tokenizer;
  const auto parser = OutputParser::create(tokenizer, {.parse_tools = true});
  std::vector<std::string> seen;
  for (const int32_t id : tokenizer.encode(long_form("TCStcbfSEP{12}tce"), false, {})) {
    std::string step;
    for (const OutputEvent& event : parser->push(id))
      step += (event.kind == Kind::kToolCallBegin ? "begin " : "") + event.text + ";";
    seen.push_back(step);
  }
  EXPECT_EQ(seen, (std::vector<std::string>{"", "", "", "begin f;", "{;", "1;", "2;", "};", ""}));
}

TEST(Stop, CutsContentAndAsksToStop) {
  const Answer answer = run("one END two", {.stop = {"END"}});
  EXPECT_EQ(answer.text(), "R[] C[one ]");
  EXPECT_EQ(answer.matched_stop, "END");
  EXPECT_TRUE(answer.wants_stop);
  EXPECT_EQ(run("one END two", {.stop = {"END"}, .include_stop = true}).content, "one END");
  EXPECT_EQ(run("one EN", {.stop = {"END"}}).content, "one EN");
  EXPECT_FALSE(run("one EN", {.stop = {"END"}}).wants_stop);
}

TEST(Stop, DoesNotLookIntoReasoningThatIsSplitOff) {
  OutputParserOptions options{.reasoning = ReasoningStart::kInside, .stop = {"END", "</think>"}};
  EXPECT_EQ(run("the END</think>an END.", options).text(), "R[the END] C[an ]");
  options.separate_reasoning = false;
  EXPECT_EQ(run("the END</think>an END.", options).text(), "R[] C[the ]");
}

TEST(Stop, HeldTextIsReleasedBeforeACall) {
  const OutputParserOptions options{.parse_tools = true, .stop = {"\n\nUser", "{}"}};
  EXPECT_EQ(run("ok\n\nTCStcbfSEP{}tceTCE", options).text(), "R[] C[ok\n\n] f({})");
  // Of a call that is none, the text counts.
  EXPECT_EQ(run("ok\n\nTCStcbf {}", options).text(), long_form("R[] C[ok\n\nTCStcbf ]"));
  EXPECT_EQ(run("ok\n\nTCSx", {.parse_tools = true, .stop = {long_form("\nTCS")}}).text(), "R[] C[ok\n]");
}

TEST(Characters, AreNeverCut) {
  const FakeTokenizer tokenizer;
  const auto parser = OutputParser::create(tokenizer, {.stop = {"字"}});
  std::vector<std::string> seen;
  for (const int32_t id : tokenizer.encode("é漢字x", false, {})) {
    std::string step;
    for (const OutputEvent& event : parser->push(id)) step += event.text;
    seen.push_back(step);
  }
  EXPECT_EQ(seen, (std::vector<std::string>{"", "é", "", "", "漢", "", "", "", ""}));
  EXPECT_EQ(parser->matched_stop(), "字");
}

TEST(Characters, HalvesBecomeReplacementCharacters) {
  EXPECT_EQ(run("a\xe6\xbc", {}).content, "a\xEF\xBF\xBD");
  EXPECT_EQ(run("a\xe6\xbc</think>b", {.reasoning = ReasoningStart::kInside}).text(), "R[a\xEF\xBF\xBD] C[b]");
  EXPECT_EQ(run("\xe6TCStcbfSEP\"\xc3tceTCE\xf0\x9f", {.parse_tools = true}).text(),
            "R[] C[\xEF\xBF\xBD\xEF\xBF\xBD] f(\"\xEF\xBF\xBD)");
}

TEST(SpecialTokens, AreLeftOutUnlessKept) {
  const std::string text = "a<｜begin▁of▁sentence｜>b<｜User｜>";
  EXPECT_EQ(run(text, {}).content, "ab<｜User｜>");
  EXPECT_EQ(run(text, {.skip_special_tokens = false}).content, text);
}

TEST(ReasoningStart, IsReadFromThePrompt) {
  const auto start = [](const std::string& prompt, std::string_view parser, bool think_tokens = true) {
    const FakeTokenizer tokenizer({.think_tokens = think_tokens});
    return reasoning_start(tokenizer, tokenizer.encode(prompt, true, {}), parser);
  };
  for (const bool tokens : {true, false}) {
    EXPECT_EQ(start("<｜User｜>u<｜Assistant｜><think>\n", "deepseek-r1", tokens), ReasoningStart::kInside);
    EXPECT_EQ(start("<｜User｜>u<｜Assistant｜><think>", "", tokens), ReasoningStart::kInside);
    EXPECT_EQ(start("<｜User｜>u<｜Assistant｜></think>", "deepseek-v3.1", tokens), ReasoningStart::kNone);
    EXPECT_EQ(start("<｜User｜>u<｜Assistant｜>", "deepseek-v3.1", tokens), ReasoningStart::kNone);
    EXPECT_EQ(start("<｜User｜>u<｜Assistant｜>", "deepseek-r1-0528", tokens), ReasoningStart::kUndecided);
    EXPECT_EQ(start("<｜User｜>u<｜Assistant｜>", "", tokens), ReasoningStart::kNone);
    EXPECT_EQ(start("<｜User｜>say <think><｜Assistant｜>", "", tokens), ReasoningStart::kNone);
    EXPECT_EQ(start("<｜User｜>say <think>", "", tokens), ReasoningStart::kNone);
    EXPECT_EQ(start("<｜Assistant｜><think>a</think>b<｜end▁of▁sentence｜><｜User｜>u<｜Assistant｜><think>so far", "",
                    tokens),
              ReasoningStart::kInside);
    EXPECT_EQ(start("<｜User｜>u<｜Assistant｜><think>a</think>so far", "deepseek-r1-0528", tokens),
              ReasoningStart::kNone);
    EXPECT_EQ(start("<｜Assistant｜></think>x<｜end▁of▁sentence｜>o<｜tool▁output▁end｜>", "deepseek-v3.1", tokens),
              ReasoningStart::kNone);
  }
  const FakeTokenizer tokenizer;
  EXPECT_EQ(reasoning_start(tokenizer, {}, ""), ReasoningStart::kNone);
}

}  // namespace
}  // namespace dsv3
