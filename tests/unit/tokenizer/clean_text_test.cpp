#include "clean_text.h"

#include <gtest/gtest.h>

namespace dsv3 {
namespace {

std::vector<ByteRange> moved(std::string_view text, std::vector<ByteRange> ranges) {
  const CleanText clean(text, ranges);
  return {clean.untrusted().begin(), clean.untrusted().end()};
}

TEST(CleanText, ValidTextIsNotCopied) {
  const std::string text = "héllo";
  const std::vector<ByteRange> ranges = {{1, 3}};
  const CleanText clean(text, ranges);
  EXPECT_EQ(clean.text().data(), text.data());
  EXPECT_EQ(clean.untrusted().data(), ranges.data());
}

TEST(CleanText, RangesMoveWithTheText) {
  const std::string_view text =
      "a\xFF"
      "b\xE2\x82"
      "cé";  // a ? b ?? c é: bytes 0 1 2 3-4 5 6-7
  const CleanText clean(text, {});
  EXPECT_EQ(clean.text(), "a\uFFFDb\uFFFDcé");  // 0 1-3 4 5-7 8 9-10
  EXPECT_EQ(moved(text, {{0, 1}}), (std::vector<ByteRange>{{0, 1}}));
  EXPECT_EQ(moved(text, {{1, 2}}), (std::vector<ByteRange>{{1, 4}}));
  EXPECT_EQ(moved(text, {{2, 3}}), (std::vector<ByteRange>{{4, 5}}));
  EXPECT_EQ(moved(text, {{3, 4}}), (std::vector<ByteRange>{{5, 8}}));
  EXPECT_EQ(moved(text, {{4, 5}}), (std::vector<ByteRange>{{5, 8}}));
  EXPECT_EQ(moved(text, {{5, 7}}), (std::vector<ByteRange>{{8, 10}}));  // half of é stays half
  EXPECT_EQ(moved(text, {{0, 2}, {2, 6}, {7, 8}}), (std::vector<ByteRange>{{0, 4}, {4, 9}, {10, 11}}));
  EXPECT_EQ(moved(text, {{3, 4}, {4, 5}}), (std::vector<ByteRange>{{5, 8}, {5, 8}}));
  EXPECT_EQ(moved(text, {{0, 8}}), (std::vector<ByteRange>{{0, 11}}));
}

TEST(CleanText, EmptyRangesAreDropped) {
  EXPECT_TRUE(moved("\xFF\xFF", {{0, 0}, {1, 1}, {2, 2}}).empty());
}

}  // namespace
}  // namespace dsv3
