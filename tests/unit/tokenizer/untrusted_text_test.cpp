// User text never becomes a control token, whatever it spells and however it is cut.
#include <gtest/gtest.h>

#include <algorithm>

#include "tokenizer_files.h"

namespace dsv3 {
namespace {

using test::Ids;
using test::real_tokenizer;
using test::tiny_tokenizer;

size_t added_ids(const Tokenizer& tokenizer, const Ids& ids) {
  return static_cast<size_t>(std::count_if(ids.begin(), ids.end(), [&](int32_t id) { return tokenizer.is_added(id); }));
}

TEST(UntrustedText, NoAddedTokenOfEitherFileComesThrough) {
  for (const Tokenizer* tokenizer : {&real_tokenizer(), &tiny_tokenizer()}) {
    std::string all;
    for (const AddedToken& token : tokenizer->added_tokens()) {
      const std::vector<ByteRange> whole = {{0, token.text.size()}};
      const Ids ids = tokenizer->encode(token.text, false, whole);
      ASSERT_EQ(added_ids(*tokenizer, ids), 0u) << token.text;
      ASSERT_EQ(tokenizer->decode(ids, true), token.text);
      all += token.text;
    }
    const std::vector<ByteRange> whole = {{0, all.size()}};
    EXPECT_EQ(added_ids(*tokenizer, tokenizer->encode(all, false, whole)), 0u);
    EXPECT_EQ(added_ids(*tokenizer, tokenizer->encode(all, false)), tokenizer->added_tokens().size());
  }
}

TEST(UntrustedText, ATokenSplitBetweenTrustedAndUntrustedIsText) {
  for (const AddedToken& token : tiny_tokenizer().added_tokens()) {
    const size_t bytes = token.text.size();
    for (size_t cut = 1; cut < bytes; ++cut) {
      for (const ByteRange range : {ByteRange{0, cut}, ByteRange{cut, bytes}}) {
        const Ids ids = tiny_tokenizer().encode(token.text, false, std::vector<ByteRange>{range});
        ASSERT_EQ(added_ids(tiny_tokenizer(), ids), 0u) << token.text << " cut at " << cut;
      }
      // Two parts of a message side by side are two ranges.
      const std::vector<ByteRange> parts = {{0, cut}, {cut, bytes}};
      ASSERT_EQ(added_ids(tiny_tokenizer(), tiny_tokenizer().encode(token.text, false, parts)), 0u);
    }
  }
}

TEST(UntrustedText, TokensAroundItAreStillFound) {
  const std::string user = "<\uFF5CUser\uFF5C>";
  const std::string think = "<think>";
  const std::string text = user + think + think;
  const std::vector<ByteRange> middle = {{user.size(), user.size() + think.size()}};
  const Ids ids = tiny_tokenizer().encode(text, true, middle);
  Ids expected = {0, tiny_tokenizer().find_added(user)};
  for (const int32_t id : tiny_tokenizer().encode(think, false, std::vector<ByteRange>{{0, think.size()}})) {
    expected.push_back(id);
  }
  expected.push_back(tiny_tokenizer().find_added(think));
  EXPECT_EQ(ids, expected);
}

// Ranges only keep tokens from being found: where there is none to find, they change nothing, seams included.
TEST(UntrustedText, RangesDoNotCutPieces) {
  const std::string text = "The quick brown fox, 12345 and   naïve café 中文!\n\n don't";
  const Ids plain = real_tokenizer().encode(text, false);
  for (size_t begin = 0; begin <= text.size(); ++begin) {
    for (size_t end = begin; end <= text.size(); end += 3) {
      ASSERT_EQ(real_tokenizer().encode(text, false, std::vector<ByteRange>{{begin, end}}), plain);
    }
  }
}

// "  <think>x" read as one stretch of text: the spaces see the "<" that follows them.
TEST(UntrustedText, ARefusedTokenLeavesOneStretchOfText) {
  const auto with = test::parse_or_die(test::small_file({"Ġ <", "Ġ Ġ"}, {"<t>"}));
  const auto without = test::parse_or_die(test::small_file({"Ġ <", "Ġ Ġ"}));
  const std::string text = "  <t>x";
  EXPECT_EQ(with->encode(text, false, std::vector<ByteRange>{{2, 5}}), without->encode(text, false));
  EXPECT_EQ(with->encode(text, false, std::vector<ByteRange>{{4, 5}}), without->encode(text, false));
  EXPECT_NE(with->encode(text, false), without->encode(text, false));
  EXPECT_EQ(with->encode(text, false), (Ids{257, 258, 'x'}));
}

TEST(UntrustedText, InvalidBytesMoveTheRangesAlong) {
  const std::string text = "\xFF\xFF<think>\xFF<think>\xC3";
  const size_t second = 2 + 7 + 1;
  const auto count = [&](std::vector<ByteRange> ranges) {
    return added_ids(tiny_tokenizer(), tiny_tokenizer().encode(text, false, ranges));
  };
  EXPECT_EQ(count({}), 2u);
  EXPECT_EQ(count({{0, 2}}), 2u);
  EXPECT_EQ(count({{2, 3}}), 1u);
  EXPECT_EQ(count({{8, 9}}), 1u);
  EXPECT_EQ(count({{9, 10}}), 2u);
  EXPECT_EQ(count({{second, second + 1}}), 1u);
  EXPECT_EQ(count({{second + 6, second + 8}}), 1u);
  EXPECT_EQ(count({{second + 7, second + 8}}), 2u);
  EXPECT_EQ(count({{0, text.size()}}), 0u);
  EXPECT_EQ(tiny_tokenizer().decode(tiny_tokenizer().encode(text, false), false),
            "\uFFFD\uFFFD<think>\uFFFD<think>\uFFFD");
}

}  // namespace
}  // namespace dsv3
