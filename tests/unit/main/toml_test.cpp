#include "toml.h"

#include <gtest/gtest.h>

#include <string>

namespace dsv3 {
namespace {

std::string one(const std::string& text) {
  const auto entries = parse_toml(text);
  if (!entries.ok()) return "error: " + entries.status().message();
  std::string out;
  for (const TomlEntry& entry : *entries) {
    out += entry.key;
    for (const std::string& value : entry.values) out += "|" + value;
    out += ";";
  }
  return out;
}

TEST(Toml, ValuesOfEveryKind) {
  EXPECT_EQ(one("tp = 8"), "tp|8;");
  EXPECT_EQ(one("a=1_000\nb = -2.5e3\r\nc = true # why\n\n# note\nd = \"x # y\"\ne = 'C:\\n'"),
            "a|1000;b|-2.5e3;c|true;d|x # y;e|C:\\n;");
  EXPECT_EQ(one("s = \"q\\\" b\\\\ n\\n t\\t\""), "s|q\" b\\ n\n t\t;");
  EXPECT_EQ(one("k = [\"a,b\", 'c', # first\n  3,\n]"), "k|a,b|c|3;");
  EXPECT_EQ(one("[server]\nport = 1\n[ memory ] # x\ntp = 2"), "port|1;tp|2;");
  EXPECT_EQ(one("e = \"\""), "e|;");
  EXPECT_EQ(one(""), "");
}

TEST(Toml, FaultsNameTheLine) {
  for (const char* text : {"tp", "tp 8", "= 8", "tp =", "tp = eight", "tp = 1 2", "tp = [1", "tp = [1 2]", "tp = []", "tp = \"8",
                           "tp = '8", "tp = \"a\\x\"", "[a.b]", "[]", "[a", "tp = [[1]]", "tp = {a = 1}", "tp = 1979-05-27T07:32",
                           "tp = 8\ntp = 9", "\"tp\" = 8", "tp = -", "tp = \"a\nb\"", "tp = \"\\"}) {
    EXPECT_EQ(one(text).rfind("error: line ", 0), 0u) << text << " gave " << one(text);
  }
  EXPECT_EQ(one("a = 1\n\nb = x"), "error: line 3: 'x' needs quotes");
}

TEST(Toml, AnyBytesAreSurvived) {
  const std::string alphabet = "[]=\"'\\#,\n\r\t aA0-_.+{\x80";
  uint64_t state = 1;
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (int i = 0; i < 24; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      text += alphabet[(state >> 33) % alphabet.size()];
    }
    (void)parse_toml(text);
  }
  (void)parse_toml(std::string(100000, '['));
  (void)parse_toml(std::string("a = \0", 5));
}

}  // namespace
}  // namespace dsv3
