// Random templates, from noise to almost valid, must be refused or rendered, quickly, and never bring the process down.
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "dsv3/api/chat_template.h"

namespace dsv3 {
namespace {

constexpr const char* kFragments[] = {"{{",
                                      "}}",
                                      "{%",
                                      "%}",
                                      "{#",
                                      "#}",
                                      "{%-",
                                      "-%}",
                                      "{{-",
                                      "-}}",
                                      "+%}",
                                      " ",
                                      "\n",
                                      "a",
                                      "if",
                                      "else",
                                      "elif",
                                      "endif",
                                      "for",
                                      "in",
                                      "endfor",
                                      "set",
                                      "endset",
                                      "macro",
                                      "endmacro",
                                      "call",
                                      "endcall",
                                      "filter",
                                      "endfilter",
                                      "with",
                                      "endwith",
                                      "raw",
                                      "endraw",
                                      "break",
                                      "continue",
                                      "generation",
                                      "endgeneration",
                                      "is",
                                      "not",
                                      "and",
                                      "or",
                                      "defined",
                                      "none",
                                      "true",
                                      "x",
                                      "m",
                                      "l",
                                      "d",
                                      "s",
                                      "n",
                                      "loop",
                                      "namespace",
                                      "range",
                                      "dict",
                                      "caller",
                                      "varargs",
                                      "raise_exception",
                                      "messages",
                                      "(",
                                      ")",
                                      "[",
                                      "]",
                                      "{",
                                      "}",
                                      ",",
                                      ":",
                                      ".",
                                      "|",
                                      "~",
                                      "+",
                                      "-",
                                      "*",
                                      "**",
                                      "/",
                                      "//",
                                      "%",
                                      "==",
                                      "!=",
                                      "<",
                                      ">=",
                                      "=",
                                      "'a'",
                                      "\"b\"",
                                      "'\\u00e9'",
                                      "'\\x'",
                                      "'",
                                      "1",
                                      "0",
                                      "2",
                                      "-1",
                                      "1.5",
                                      "1e9",
                                      "99999999999999999999999999999999999999999",
                                      "0x",
                                      "upper",
                                      "tojson",
                                      "join",
                                      "map",
                                      "select",
                                      "sort",
                                      "length",
                                      "indent",
                                      "replace",
                                      "default",
                                      "first",
                                      "batch",
                                      "groupby",
                                      "round",
                                      "int",
                                      "split",
                                      "items",
                                      "strip",
                                      "append",
                                      "__class__",
                                      "\xff",
                                      "é",
                                      "😀",
                                      "\u2028"};

struct Statement {
  const char* open;
  const char* close;  ///< null: it stands alone
};

constexpr Statement kStatements[] = {{"{% for x in l %}", "{% endfor %}"},
                                     {"{% for k, v in d.items() if v %}", "{% else %}none{% endfor %}"},
                                     {"{% if s %}", "{% endif %}"},
                                     {"{% if x is not mapping %}", "{% elif n > 2 %}a{% else %}b{% endif %}"},
                                     {"{% macro m(p, q=2) %}{{ p }}", "{{ varargs }}{% endmacro %}"},
                                     {"{% set t %}", "{% endset %}"},
                                     {"{% set t | upper %}", "{% endset %}{{ t }}"},
                                     {"{% with a = s %}", "{% endwith %}"},
                                     {"{% call(z) m(1) %}", "{{ z }}{% endcall %}"},
                                     {"{% filter replace('a', s) %}", "{% endfilter %}"},
                                     {"{% generation %}", "{% endgeneration %}"},
                                     {"{% set ns = namespace(a=1) %}", nullptr},
                                     {"{% set ns.a = [ns.a, l] %}", nullptr},
                                     {"{% set ns.a = ns.a + ns.a %}", nullptr},
                                     {"{% set s = s + s %}", nullptr},
                                     {"{% set l = [l, l, s] %}", nullptr},
                                     {"{{ m(s) }}", nullptr},
                                     {"{{ m(l, 2, 3) }}", nullptr},
                                     {"{{ loop.last }}{{ loop.length }}{{ loop.nextitem }}", nullptr},
                                     {"{{ loop.previtem }}{{ loop.changed(s) }}{{ loop.cycle(1, 2) }}", nullptr},
                                     {"{{ caller(s) }}", nullptr},
                                     {"{{ ns.a | tojson }}", nullptr},
                                     {"{{ s[1:-1:n] }}{{ s[::-n] }}{{ l[-9:9] }}", nullptr},
                                     {"{{ s | replace('', s) }}", nullptr},
                                     {"{{ s * n ~ l }}", nullptr},
                                     {"{{ d | dictsort }}{{ d | tojson(indent=n) }}", nullptr},
                                     {"{{ l | map('string') | sort | join(s) }}", nullptr},
                                     {"{{ (l + l) | batch(n) | list }}", nullptr},
                                     {"{{ '%s %d' % (s, n) }}{{ '{} {}'.format(s, l) }}", nullptr},
                                     {"{{ n ** n // n % 7 }}{{ n / 2 }}", nullptr},
                                     {"{{ s.split(s[0]) }}{{ s.rsplit(none, 1) }}{{ s.partition('b') }}", nullptr},
                                     {"{{ x.y.z }}", nullptr},
                                     {"{{ s | indent(n) | truncate(4) | title | center(n * 9) }}", nullptr}};

// Fails the test where a promise is broken.
void check_template(const std::string& source, uint32_t seed, bool* rendered) {
  const auto begin = std::chrono::steady_clock::now();
  const auto made = ChatTemplate::compile(source, "<b>", "<e>", {.max_steps = 20'000, .max_output_bytes = 1 << 20});
  if (made.ok()) {
    const Json messages = *parse_json(R"([{"role":"user","content":"hé"}])"), tools;
    const Json kwargs = *parse_json(
        R"({"s":"añ\nb","n":3,"l":[3,"x",null,[1.5],{"k":true}],"d":{"b":1,"a":[]},"x":{"y":{"z":"deep"}}})");
    const auto prompt = (*made)->render({.messages = messages, .tools = tools, .kwargs = kwargs});
    if (prompt.ok()) {
      size_t at = 0;
      for (const ByteRange& range : prompt->untrusted) {
        ASSERT_LE(at, range.begin) << "seed " << seed;
        ASSERT_LT(range.begin, range.end) << "seed " << seed;
        at = range.end;
      }
      ASSERT_LE(at, prompt->text.size()) << "seed " << seed;
      *rendered = true;
    } else {
      ASSERT_FALSE(prompt.status().message().empty());
    }
  } else {
    ASSERT_EQ(made.status().code(), Code::kBadModelFile);
  }
  ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10)) << "seed " << seed << "\n" << source;
}

// True if the template was rendered to its end.
bool try_template(const std::string& source, uint32_t seed) {
  bool rendered = false;
  check_template(source, seed, &rendered);
  return rendered;
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
  int rendered = 0;
  for (uint32_t seed = 0; seed < 20'000; ++seed) {
    std::mt19937 rng(seed);
    std::string source;
    std::vector<const char*> open;
    for (uint32_t n = rng() % 40 + 1; n > 0; --n) {
      if (!open.empty() && rng() % 3 == 0) {
        source += open.back();
        open.pop_back();
        continue;
      }
      const Statement& statement = kStatements[rng() % std::size(kStatements)];
      source += statement.open;
      if (statement.close != nullptr) open.push_back(statement.close);
    }
    for (; !open.empty(); open.pop_back()) source += open.back();
    rendered += try_template(source, seed);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(rendered, 1'000);  // enough of them get to the end
}

TEST(HostileTemplates, Bytes) {
  for (uint32_t seed = 0; seed < 5'000; ++seed) {
    std::mt19937 rng(seed);
    std::string source;
    for (uint32_t n = rng() % 200; n > 0; --n)
      source += rng() % 4 != 0 ? "{}%#-| '\"\\()[]ax1."[rng() % 18] : static_cast<char>(rng() % 256);
    try_template(source, seed);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace dsv3
