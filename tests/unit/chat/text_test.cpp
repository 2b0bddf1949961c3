#include "chat/jinja/text.h"

#include <gtest/gtest.h>

namespace dsv3::jinja {
namespace {

TEST(Text, MergesTouchingMarksOfOneSource) {
  Text text("a");
  text.append("bc", Source::kClient);
  text.append("", Source::kClient);
  text.append("d", Source::kClient);
  text.append("e", Source::kTemplate);
  text.append("f", Source::kEndMark);
  EXPECT_EQ(text.bytes(), "abcdef");
  EXPECT_EQ(text.marks(), (std::vector<Mark>{{1, 4, Source::kClient}, {5, 6, Source::kEndMark}}));
}

TEST(Text, SlicesKeepSources) {
  Text text("aa");
  text.append("bbbb", Source::kClient);
  text.append("cc", Source::kTemplate);
  const Text middle = text.slice(1, 4);
  EXPECT_EQ(middle.bytes(), "abb");
  EXPECT_EQ(middle.marks(), (std::vector<Mark>{{1, 3, Source::kClient}}));
  EXPECT_TRUE(text.slice(6, 99).marks().empty());
  EXPECT_EQ(text.slice(6, 99).bytes(), "cc");
  EXPECT_EQ(text.slice(5, 5).size(), 0u);
  Text twice = middle;
  twice.append(text, 2, 6);
  EXPECT_EQ(twice.marks(), (std::vector<Mark>{{1, 7, Source::kClient}}));
  EXPECT_EQ(text.source_at(1), Source::kTemplate);
  EXPECT_EQ(text.source_at(2), Source::kClient);
  EXPECT_EQ(text.source_at(6), Source::kTemplate);
}

TEST(Utf8, CountsAndFindsCharacters) {
  const std::string text = "aé漢😀b";
  EXPECT_EQ(count_chars(text), 5u);
  EXPECT_EQ(char_offset(text, 3), 6u);
  EXPECT_EQ(char_offset(text, 99), text.size());
  EXPECT_EQ(previous_char(text, 10), 6u);
  EXPECT_EQ(previous_char(text, 11), 10u);
  EXPECT_TRUE(is_valid_utf8(text));
  for (const char* bad : {"\x80", "\xc3", "\xe2\x82", "\xf5\x80\x80\x80", "\xed\xa0\x80", "\xc0\x80", "a\xff"}) {
    EXPECT_FALSE(is_valid_utf8(bad)) << bad;
  }
}

TEST(Trim, UsesPythonsWhiteSpace) {
  const std::string text = "\u00a0\u2003\x1c x \u3000\n";
  const Trimmed range = trim(text, true, true);
  EXPECT_EQ(text.substr(range.begin, range.end - range.begin), "x");
  const std::string_view chars = "é-";
  const Trimmed accents = trim("é-aé", true, true, &chars);
  EXPECT_EQ(accents.begin, 3u);
  EXPECT_EQ(accents.end, 4u);
  EXPECT_EQ(trim("   ", false, true).end, 0u);
  EXPECT_EQ(trim("\u200bx", true, true).begin, 0u);  // not white space in Python
}

}  // namespace
}  // namespace dsv3::jinja
