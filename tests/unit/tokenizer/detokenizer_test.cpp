#include <gtest/gtest.h>

#include <random>

#include "tokenizer_files.h"
#include "utf8.h"

namespace dsv3 {
namespace {

using test::Ids;

// Pushes ids one by one; every part must be whole characters, and joined they must equal decode().
void expect_same_as_decode(const Tokenizer& tokenizer, const Ids& ids, bool skip_special_tokens) {
  IncrementalDetokenizer detokenizer(tokenizer, skip_special_tokens);
  std::string joined;
  for (const int32_t id : ids) {
    const std::string part = detokenizer.push(id);
    ASSERT_EQ(valid_utf8_prefix(part), part.size());
    joined += part;
  }
  joined += detokenizer.finish();
  ASSERT_EQ(joined, tokenizer.decode(ids, skip_special_tokens));
  ASSERT_EQ(detokenizer.finish(), "");  // finishing leaves nothing behind
}

TEST(IncrementalDetokenizer, JoinedItEqualsDecodeForAnyIds) {
  std::mt19937 random(3);
  for (const Tokenizer* tokenizer : {&test::real_tokenizer(), &test::tiny_tokenizer()}) {
    for (int round = 0; round < 5000; ++round) {
      Ids ids(random() % 24);
      // Mostly ids of single bytes, which lie low: halves of characters; some special, unknown and negative ones.
      for (int32_t& id : ids) {
        const auto kind = random() % 10;
        const auto vocab = static_cast<unsigned>(tokenizer->vocab_size());
        id = static_cast<int32_t>(kind < 7 ? random() % 300 : kind < 9 ? random() % vocab : vocab - 20 + random() % 40);
        if (random() % 50 == 0) id = -id;
      }
      expect_same_as_decode(*tokenizer, ids, round % 2 == 0);
    }
  }
}

TEST(IncrementalDetokenizer, JoinedItEqualsDecodeForAllPairsAndTriplesOfCertainBytes) {
  const auto tokenizer = test::parse_or_die(test::small_file());  // id = byte
  const Ids bytes = {0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0,
                     0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF};
  for (const int32_t a : bytes) {
    for (const int32_t b : bytes) {
      for (const int32_t c : bytes) {
        for (const int32_t d : bytes) expect_same_as_decode(*tokenizer, {a, b, c, d}, false);
      }
    }
  }
}

TEST(IncrementalDetokenizer, HoldsACharacterUntilItIsWhole) {
  const auto tokenizer = test::parse_or_die(test::small_file());
  IncrementalDetokenizer detokenizer(*tokenizer, false);
  EXPECT_EQ(detokenizer.push(0xF0), "");
  EXPECT_EQ(detokenizer.push(0x9F), "");
  EXPECT_EQ(detokenizer.push(0x99), "");
  EXPECT_EQ(detokenizer.push(0x82), "🙂");
  EXPECT_EQ(detokenizer.push(0xE2), "");
  EXPECT_EQ(detokenizer.push('a'), "\uFFFDa");  // it cannot become whole any more
  EXPECT_EQ(detokenizer.push(0xE2), "");
  EXPECT_EQ(detokenizer.push(0x82), "");
  EXPECT_EQ(detokenizer.finish(), "\uFFFD");
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(IncrementalDetokenizer, SpecialTokens) {
  const auto& tokenizer = test::tiny_tokenizer();
  IncrementalDetokenizer skipping(tokenizer, true);
  EXPECT_EQ(skipping.push(tokenizer.eos_id()), "");
  EXPECT_EQ(skipping.push(tokenizer.find_added("</think>")), "</think>");  // added, but not special
  IncrementalDetokenizer showing(tokenizer, false);
  EXPECT_EQ(showing.push(tokenizer.eos_id()), tokenizer.token_bytes(tokenizer.eos_id()));
}

TEST(Decode, ASkippedTokenDoesNotPartACharacter) {
  Json file = test::small_file();
  file["added_tokens"].push_back(test::added_token(256, "<s>", true));
  const auto tokenizer = test::parse_or_die(file);
  EXPECT_EQ(tokenizer->decode(Ids{0xC3, 256, 0xA9}, true), "é");
  EXPECT_EQ(tokenizer->decode(Ids{0xC3, 256, 0xA9}, false), "\uFFFD<s>\uFFFD");
  expect_same_as_decode(*tokenizer, {0xC3, 256, 0xA9}, true);
  expect_same_as_decode(*tokenizer, {0xC3, 256, 0xA9}, false);
}

TEST(Decode, EncodeThenDecodeGivesValidTextBack) {
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (auto i = random() % 40; i > 0; --i) {
      const uint32_t c =
          random() % 3 == 0 ? static_cast<uint32_t>(random() % 0x110000) : static_cast<uint32_t>(random() % 128);
      if (c < 0xD800 || c >= 0xE000) append_utf8(c, text);
    }
    for (const Tokenizer* tokenizer : {&test::real_tokenizer(), &test::tiny_tokenizer()}) {
      ASSERT_EQ(tokenizer->decode(tokenizer->encode(text, false), false), text);
    }
  }
}

}  // namespace
}  // namespace dsv3
