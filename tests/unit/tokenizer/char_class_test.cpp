#include "char_class.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <string_view>

namespace dsv3 {
namespace {

CharClass expected_class(char32_t c, std::string_view category) {
  if (c == '\r' || c == '\n') return CharClass::kNewline;
  if ((c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
      c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000) {
    return CharClass::kSpace;
  }
  switch (category[0]) {
    case 'L':
    case 'M':
      return CharClass::kLetterOrMark;
    case 'N':
      return CharClass::kNumber;
    case 'P':
    case 'S':
      return CharClass::kPunctuationOrSymbol;
    default:
      return CharClass::kOther;
  }
}

// utf8proc may know another version of Unicode: characters that only one of the two has are not compared.
TEST(CharClasses, AgreeWithUtf8procOnEveryCharacterThatBothKnow) {
  const CharClasses classes;
  int compared = 0;
  int only_here = 0;
  int only_there = 0;
  for (utf8proc_int32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string_view category = utf8proc_category_string(c);
    const CharClass ours = classes(static_cast<uint32_t>(c));
    if (category == "Cn" && ours != CharClass::kOther) {
      ++only_here;
      continue;
    }
    const CharClass theirs = expected_class(static_cast<char32_t>(c), category);
    if (ours == CharClass::kOther && theirs != CharClass::kOther) {
      ++only_there;
      continue;
    }
    ++compared;
    ASSERT_EQ(ours, theirs) << std::hex << c;
  }
  EXPECT_GT(compared, 1'090'000);
  EXPECT_LT(only_here, 6'000);
  const std::string_view version = utf8proc_unicode_version();
  if (version == "15.0.0" || version == "15.1.0" || version == "16.0.0") {
    EXPECT_EQ(only_there, 0);
  }
}

TEST(CharClasses, KnowWhatUnicode16Added) {
  const CharClasses classes;
  EXPECT_EQ(classes(0x1FAE9), CharClass::kPunctuationOrSymbol);  // 16.0: face with bags under eyes
  EXPECT_EQ(classes(0x16D40), CharClass::kLetterOrMark);         // 16.0: Kirat Rai
  EXPECT_EQ(classes(0x2EBF0), CharClass::kLetterOrMark);         // 15.1: CJK extension I
  EXPECT_EQ(classes(0x10D40), CharClass::kNumber);               // 16.0: Garay digit
  EXPECT_EQ(classes(0xFEFF), CharClass::kOther);
  EXPECT_EQ(classes(0x10FFFF), CharClass::kOther);
}

}  // namespace
}  // namespace dsv3
