#include "utf8.h"

#include <gtest/gtest.h>

namespace dsv3 {
namespace {

std::string replaced(std::string_view text) {
  std::string out;
  if (append_replacing_invalid(text, out) < text.size()) out.append(kReplacementCharacter);
  return out;
}

TEST(Utf8, ReplacesEachMaximalInvalidSubsequence) {
  // Unicode 16.0, tables 3-8 to 3-11, and the ends of every range.
  EXPECT_EQ(replaced("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(replaced("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(replaced("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41\uFFFD\uFFFD\x42");
  EXPECT_EQ(replaced("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(replaced("\xF0\x9F\x99"), "\uFFFD");
  EXPECT_EQ(replaced("a\xC3"), "a\uFFFD");
  EXPECT_EQ(replaced("\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80\xC2\x80\xE0\xA0\x80\xF0\x90\x80\x80"),
            "\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80\xC2\x80\xE0\xA0\x80\xF0\x90\x80\x80");
}

TEST(Utf8, HoldsAnUnfinishedCharacterBack) {
  const std::string_view smile = "\xF0\x9F\x99\x82";
  for (size_t bytes = 1; bytes < 4; ++bytes) {
    std::string out;
    EXPECT_EQ(append_replacing_invalid(std::string("ab") + std::string(smile.substr(0, bytes)), out), 2u);
    EXPECT_EQ(out, "ab");
  }
  std::string out;
  EXPECT_EQ(append_replacing_invalid("\xF0\x80", out), 2u);  // already wrong: nothing can complete it
  EXPECT_EQ(out, "\uFFFD\uFFFD");
}

TEST(Utf8, EveryScalarValueSurvives) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(c, text);
    ASSERT_EQ(valid_utf8_prefix(text), text.size()) << c;
    const DecodedChar decoded = decode_valid_utf8(text, 0);
    ASSERT_EQ(decoded.code_point, c);
    ASSERT_EQ(decoded.bytes, text.size());
  }
}

TEST(Utf8, ValidPrefixStopsAtTheFirstFaultWhereverItIs) {
  for (size_t at = 0; at < 40; ++at) {
    std::string text(40, 'x');
    text[at] = '\x80';
    EXPECT_EQ(valid_utf8_prefix(text), at);
  }
}

}  // namespace
}  // namespace dsv3
