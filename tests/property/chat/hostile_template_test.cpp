// Random templates, from noise to almost valid, must be refused or rendered, quickly, and never bring the process down.
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "dsv3/api/chat_template.h"

namespace dsv3 {
namespace {

constexpr const char* kFragments[] = {
    "{{", "}}", "{%", "%}", "{#", "#}", "{%-", "-%}", "{{-", "-}}", "+%}", " ", "\n", "a", "if", "else", "elif", "endif", "for", "in", "endfor", "set", "endset", "macro", "endmacro", "call", "endcall",
    "filter", "endfilter", "with", "endwith", "raw", "endraw", "break", "continue", "generation", "endgeneration", "is", "not", "and", "or", "defined", "none", "true", "x", "m", "l", "d", "s", "n", "loop", "namespace", "range", "dict",
    "caller", "varargs", "raise_exception", "messages", "(", ")", "[", "]", "{", "}", ",", ":", ".", "|", "~", "+", "-", "*", "**", "/", "//", "%", "==", "!=", "<", ">=", "=", "'a'", "\"b\"", "'\\u00e9'", "'\\x'", "'", "1", "0", "2", "-1",
    "1.5", "1e9", "99999999999999999999999999999999999999999", "0x", "upper", "tojson", "join", "map", "select", "sort", "length", "indent", "replace", "default", "first", "batch", "groupby", "round", "int", "split", "items", "strip",
    "append", "__class__", "\xff", "é", "😀", "\u2028"};

constexpr const char* kStatements[] = {
    "{% for x in l %}", "{% for k, v in d.items() if v %}", "{% endfor %}", "{% if s %}", "{% else %}", "{% endif %}", "{% set ns = namespace(a=1) %}", "{% set ns.a = [ns.a, l] %}", "{% macro m(p, q=2) %}", "{% endmacro %}", "{{ m(s) }}",
    "{{ loop.last }}{{ loop.length }}", "{% break %}", "{% set t %}", "{% endset %}", "{{ ns.a | tojson }}", "{{ s[1:-1:n] }}", "{{ s | replace('', s) }}", "{{ s * n ~ l }}", "{{ d | dictsort }}", "{{ l | sort | map('string') | join(s) }}",
    "{% with a = s %}", "{% endwith %}", "{% call m(1) %}", "{% endcall %}", "{{ caller() }}", "{{ (l + l) | batch(n) | list }}", "{{ s % l }}", "{{ '%s %d' % (s, n) }}", "{{ n ** n // n % 7 }}", "{{ s.split(s[0]) }}", "{{ x.y.z }}"};

void try_template(const std::string& source, uint32_t seed) {
  const auto begin = std::chrono::steady_clock::now();
  const auto made = ChatTemplate::compile(source, "<b>", "<e>", {.max_steps = 20'000, .max_output_bytes = 1 << 20});
  if (made.ok()) {
    const Json messages = *parse_json(R"([{"role":"user","content":"hé"}])"), tools;
    const Json kwargs = *parse_json(R"({"s":"añ\nb","n":3,"l":[3,"x",null,[1.5],{"k":true}],"d":{"b":1,"a":[]},"x":{"y":{"z":"deep"}}})");
    const auto prompt = (*made)->render({.messages = messages, .tools = tools, .kwargs = kwargs});
    if (prompt.ok()) {
      size_t at = 0;
      for (const ByteRange& range : prompt->untrusted) {
        ASSERT_LE(at, range.begin) << "seed " << seed;
        ASSERT_LT(range.begin, range.end) << "seed " << seed;
        at = range.end;
      }
      ASSERT_LE(at, prompt->text.size()) << "seed " << seed;
    } else {
      ASSERT_FALSE(prompt.status().message().empty());
    }
  } else {
    ASSERT_EQ(made.status().code(), Code::kBadModelFile);
  }
  ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10)) << "seed " << seed << "\n" << source;
}

TEST(HostileTemplates, Fragments) {
  for (uint32_t seed = 0; seed < 20'000; ++seed) {
    std::mt19937 rng(seed);
    std::string source;
    for (uint32_t n = rng() % 40 + 1; n > 0; --n) {
      source += kFragments[rng() % std::size(kFragments)];
      if (rng() % 3 == 0) source += ' ';
    }
    try_template(source, seed);
    try_template("{{ " + source + " }}", seed);
    if (HasFatalFailure()) return;
  }
}

TEST(HostileTemplates, Statements) {
  for (uint32_t seed = 0; seed < 10'000; ++seed) {
    std::mt19937 rng(seed);
    std::string source;
    for (uint32_t n = rng() % 30 + 1; n > 0; --n) source += kStatements[rng() % std::size(kStatements)];
    // Closing what is open makes many of them compile.
    std::string closed;
    for (size_t i = 0; i < source.size(); ++i) closed += source[i];
    try_template(closed, seed);
    if (HasFatalFailure()) return;
  }
}

TEST(HostileTemplates, Bytes) {
  for (uint32_t seed = 0; seed < 5'000; ++seed) {
    std::mt19937 rng(seed);
    std::string source;
    for (uint32_t n = rng() % 200; n > 0; --n) source += rng() % 4 != 0 ? "{}%#-| '\"\\()[]ax1."[rng() % 18] : static_cast<char>(rng() % 256);
    try_template(source, seed);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace dsv3
