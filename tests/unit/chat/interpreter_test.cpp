// Where bytes come from, and what bounds a template. What templates compute is compared with jinja2 in
// tests/golden/chat.
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "dsv3/api/chat_template.h"

namespace dsv3 {
namespace {

Result<RenderedPrompt> render(std::string_view source, const char* kwargs = "{}", TemplateLimits limits = {}) {
  auto made = ChatTemplate::compile(source, "<bos>", "<eos>", limits);
  if (!made.ok()) return made.status();
  const Json values = *parse_json(kwargs), messages = Json::array(), tools;
  return (*made)->render({.messages = messages, .tools = tools, .kwargs = values});
}

// The rendering with the client's bytes in brackets.
std::string marked(std::string_view source, const char* kwargs = R"({"c":"Ab,c","n":7,"d":{"k":["v\"\n"]}})") {
  const auto prompt = render(source, kwargs);
  if (!prompt.ok()) return "error: " + prompt.status().message();
  std::string out;
  size_t at = 0;
  for (const ByteRange& range : prompt->untrusted) {
    out += prompt->text.substr(at, range.begin - at) + "[" + prompt->text.substr(range.begin, range.end - range.begin) +
           "]";
    at = range.end;
  }
  return out + prompt->text.substr(at);
}

TEST(Sources, FollowEveryOperation) {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ c }}", "[Ab,c]"},
      {"{{ bos_token + c ~ 'x' }}", "<bos>[Ab,c]x"},
      {"{{ 'x' * 2 + c * 2 }}", "xx[Ab,cAb,c]"},
      {"{{ ('x' + c + 'y')[1:3] }}", "[Ab]"},
      {"{{ ('x' + c)[::-1] }}", "[c,bA]x"},
      {"{{ ('x' + c)[0] + c[-1] }}", "x[c]"},
      {"{{ c.split(',') | join('+') }}", "[Ab]+[c]"},
      {"{{ ('x,' + c).split(',') }}", "['x', '[Ab]', '[c]']"},
      {"{{ ('  ' + c + ' ') | trim }}", "[Ab,c]"},
      {"{{ ('x' + c).upper() + c | lower }}", "X[AB,Cab,c]"},
      {"{{ ('ß' + c) | upper }}", "SS[AB,C]"},
      {"{{ c.replace(',', '-') }}", "[Ab]-[c]"},
      {"{{ 'a,b' | replace(',', c) }}", "a[Ab,c]b"},
      {"{{ c.replace('', '.') }}", ".[A].[b].[,].[c]."},
      {"{{ '%s|%s' % (c, 'y') }}", "[Ab,c]|y"},
      {"{{ '{}-{}'.format('q', c) }}", "q-[Ab,c]"},
      {"{{ d | tojson }}", "{\"[k]\": [\"[v\\\"\\n]\"]}"},
      {"{{ d }}", "{'[k]': ['[v\"\\n]']}"},
      {"{{ {'own': c} | tojson }}", "{\"own\": \"[Ab,c]\"}"},
      {"{{ n }}{{ n + 1 }}", "78"},
      {"{{ 'l\nm' | indent(c) }}", "l\n[Ab,c]m"},
      {"{{ c.center(8, '*') }}", "**[Ab,c]**"},
      {"{{ c | truncate(3, true, '..', 0) }}", "[A].."},
      {"{{ [c, 'b'] | sort | join }}", "[Ab,c]b"},
      {"{{ [c] | map('upper') | first }}", "[AB,C]"},
      {"{% set x %}a{{ c }}{% endset %}{{ x + x }}", "a[Ab,c]a[Ab,c]"},
      {"{% macro m(p) %}<{{ p }}>{% endmacro %}{{ m(c) }}", "<[Ab,c]>"},
      {"{% filter upper %}a{{ c }}{% endfilter %}", "A[AB,C]"},
      {"{% set ns = namespace(t='') %}{% for x in c.split(',') %}{% set ns.t = ns.t + x + ';' %}{% endfor %}{{ ns.t }}",
       "[Ab];[c];"},
      {"{{ missing | default(c) }}{{ c | default('x') }}", "[Ab,cAb,c]"},
      {"{% for k in d %}{{ k }}{% endfor %}{% for k, v in d.items() %}{{ k }}{{ v[0] }}{% endfor %}", "[kkv\"\n]"},
      {"{{ c | reverse }}{{ c | title }}{{ c | capitalize }}", "[c,bAAb,cAb,c]"},
      {"{{ strftime_now('') }}{{ c | string | length }}", "4"}};
  for (const auto& [source, want] : cases) EXPECT_EQ(marked(source), want) << source;
}

TEST(Errors, NameTheLine) {
  const auto bad = ChatTemplate::compile("a\n{{ 1 }}\n{% if %}", "", "");
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.status().code(), Code::kBadModelFile);
  EXPECT_NE(bad.status().message().find("line 3"), std::string::npos) << bad.status().message();
  const auto raised = render("x\n\n{{ raise_exception('no ' ~ c) }}", R"({"c":"pets"})");
  ASSERT_FALSE(raised.ok());
  EXPECT_EQ(raised.status().code(), Code::kInvalidArgument);
  EXPECT_EQ(raised.status().param(), "messages");
  EXPECT_NE(raised.status().message().find("no pets (line 3"), std::string::npos) << raised.status().message();
  EXPECT_FALSE(ChatTemplate::compile("a\xff", "", "").ok());
  EXPECT_FALSE(ChatTemplate::compile(std::string(2 << 20, 'a'), "", "").ok());
  const auto included = ChatTemplate::compile("{% include 'x' %}", "", "");
  EXPECT_NE(included.status().message().find("'include' is not supported"), std::string::npos);
}

TEST(Errors, AreCutAtACharacter) {
  const auto raised = render("{{ raise_exception(c * 1000) }}", R"({"c":"漢字"})");
  ASSERT_FALSE(raised.ok());
  EXPECT_LT(raised.status().message().size(), 700u);
  EXPECT_EQ(raised.status().message().find("\xEF\xBF\xBD"), std::string::npos);
}

TEST(Limits, HoldAgainstHostileTemplates) {
  const std::string deep_parentheses = "{{ " + std::string(100'000, '(') + "1" + std::string(100'000, ')') + " }}";
  const std::string deep_minus = "{{ " + std::string(100'000, '-') + "1 }}";
  const std::string deep_lists = "{{ " + std::string(100'000, '[') + std::string(100'000, ']') + " }}";
  std::string deep_ifs, long_sum = "{{ 1", long_chain = "{{ x", long_not = "{{ ", long_if = "{{ 1";
  for (int i = 0; i < 1000; ++i) deep_ifs += "{% if 1 %}";
  for (int i = 0; i < 20'000; ++i) long_sum += " + 1";
  for (int i = 0; i < 20'000; ++i) long_chain += "|default({})|default({})";
  for (int i = 0; i < 20'000; ++i) long_not += "not ";
  for (int i = 0; i < 100'000; ++i) long_if += " if 1";
  EXPECT_NE(render(long_if + " }}").status().message().find("inline ifs in a row"), std::string::npos);
  for (const std::string& source : {deep_parentheses, deep_minus, deep_lists, deep_ifs}) {
    const auto made = ChatTemplate::compile(source, "", "");
    ASSERT_FALSE(made.ok());
    EXPECT_NE(made.status().message().find("nested deeper"), std::string::npos) << made.status().message();
  }
  EXPECT_EQ(render(long_sum + " }}")->text, "20001");  // long is not deep
  EXPECT_EQ(render(long_chain + " }}")->text, "{}");
  EXPECT_EQ(render(long_not + "1 }}")->text, "True");

  const char* greedy[] = {
      "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% "
      "endfor %}",
      "{{ 'x' * 100000000000 }}",
      "{{ [1] * 100000000000 }}",
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | "
      "length }}",
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(100) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
      "{% set ns = namespace(a=[], b=[]) %}{% for i in range(100) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, "
      "ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
      "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
      "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson "
      "}}",
      "{% set ns = namespace(l=[]) %}{% for i in range(50000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
      "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
      "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me | tojson }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro m(n) %}{% call m(n + 1) %}{{ caller() }}{% endcall %}{{ caller() }}{% endmacro %}{% call m(1) %}{% "
      "endcall %}",
      "{{ 'a' | center(99999999999999) }}",
      "{{ 'a\nb' | indent(99999999999999) }}",
      "{{ 2 ** 100000 }}",
      "{{ 170141183460469231731687303715884105727 + 1 }}",
      "{{ -170141183460469231731687303715884105727 - 2 }}",
      "{{ range(-9223372036854775807, 9223372036854775807) }}",
      "{% for i in range(100000) %}{{ "
      "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 100 }}{% "
      "endfor %}",
  };
  for (const char* source : greedy) {
    const auto begin = std::chrono::steady_clock::now();
    const auto prompt = render(source, "{}", {.max_output_bytes = 8 << 20});
    EXPECT_FALSE(prompt.ok()) << source;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20)) << source;
  }
  // Values that end in themselves are left without a trace.
  EXPECT_TRUE(render("{% set ns = namespace() %}{% set ns.me = [ns, {'a': ns}] %}ok").ok());
  EXPECT_EQ(render("{{ (-170141183460469231731687303715884105727 - 1) // -1 }}").status().code(),
            Code::kInvalidArgument);
}

TEST(Limits, AreTheCallers) {
  EXPECT_TRUE(render("{{ 'abc' }}", "{}", {.max_output_bytes = 3}).ok());
  EXPECT_FALSE(render("{{ 'abcd' }}", "{}", {.max_output_bytes = 3}).ok());
  EXPECT_TRUE(render("{% for i in range(10) %}x{% endfor %}", "{}", {.max_steps = 100}).ok());
  EXPECT_FALSE(render("{% for i in range(90) %}x{% endfor %}", "{}", {.max_steps = 100}).ok());
  EXPECT_FALSE(render("{% if 1 %}{% if 1 %}{% if 1 %}{% endif %}{% endif %}{% endif %}", "{}", {.max_depth = 3}).ok());
}

TEST(Sandbox, HasNoWayOut) {
  for (const char* source : {"{{ c.__class__.__mro__ }}", "{{ d.update({}) }}", "{{ l.append(1) }}", "{{ l.pop() }}",
                             "{{ cycler.__init__.__globals__.os }}", "{{ self.__init__ }}", "{{ c.format.__self__.x }}",
                             "{{ '{0.__class__}'.format(c) }}"}) {
    const auto prompt = render(source, R"({"c":"x","d":{},"l":[]})");
    EXPECT_FALSE(prompt.ok()) << source << " gave " << prompt->text;
  }
}

TEST(Kwargs, MayNotReplaceWhatTheServerSets) {
  for (const char* kwargs :
       {R"({"messages":[]})", R"({"bos_token":"x"})", R"({"add_generation_prompt":true})", R"({"tools":[]})"}) {
    const auto prompt = render("x", kwargs);
    ASSERT_FALSE(prompt.ok()) << kwargs;
    EXPECT_EQ(prompt.status().param(), "chat_template_kwargs");
  }
  EXPECT_EQ(render("{{ documents[0] }}", R"({"documents":["d"]})")->text, "d");
  // A client's value in place of a function is only a value.
  EXPECT_FALSE(render("{{ raise_exception('x') }}", R"({"raise_exception":"y"})").ok());
}

}  // namespace
}  // namespace dsv3
