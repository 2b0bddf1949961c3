#include "merges.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>

namespace dsv3 {
namespace {

std::array<int32_t, 256> identity_bytes() {
  std::array<int32_t, 256> ids{};
  for (size_t i = 0; i < 256; ++i) ids[i] = static_cast<int32_t>(i);
  return ids;
}

Merges build_or_die(const std::vector<Merge>& merges) {
  auto built = Merges::build(identity_bytes(), merges);
  DSV3_CHECK(built.ok(), built.status().message().c_str());
  return std::move(built).value();
}

// The definition, word for word.
std::vector<int32_t> reference_encode(const std::vector<Merge>& merges, std::string_view piece) {
  std::vector<int32_t> ids;
  for (const char c : piece) ids.push_back(static_cast<unsigned char>(c));
  while (true) {
    size_t best_rank = merges.size();
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left == ids[i] && merges[rank].right == ids[i + 1]) {
          best_rank = rank;
          best_at = i;
        }
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best_at] = merges[best_rank].merged;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best_at) + 1);
  }
}

std::vector<int32_t> encode(const Merges& merges, std::string_view piece) {
  Merges::Scratch scratch;
  std::vector<int32_t> ids;
  merges.encode(piece, scratch, ids);
  return ids;
}

// Rules over three letters in an order that no training would give: a rule may come before those that make its parts.
std::vector<Merge> random_rules(std::mt19937& random, size_t count) {
  std::vector<std::string> texts = {"a", "b", "c"};
  std::map<std::string, int32_t> ids = {{"a", 'a'}, {"b", 'b'}, {"c", 'c'}};
  std::set<std::pair<int32_t, int32_t>> pairs;
  std::vector<Merge> merges;
  while (merges.size() < count) {
    const std::string left = texts[random() % texts.size()];
    const std::string right = texts[random() % texts.size()];
    if (left.size() + right.size() > 12 || !pairs.emplace(ids[left], ids[right]).second) continue;
    const std::string joined = left + right;
    const auto [place, fresh] = ids.emplace(joined, static_cast<int32_t>(256 + ids.size()));
    if (fresh) texts.push_back(joined);
    merges.push_back({ids[left], ids[right], place->second});
  }
  std::shuffle(merges.begin(), merges.end(), random);
  return merges;
}

TEST(Merges, EqualTheDefinitionForAnyRulesAndLengths) {
  std::mt19937 random(1);
  for (int round = 0; round < 150; ++round) {
    const std::vector<Merge> rules = random_rules(random, 1 + random() % 60);
    const Merges merges = build_or_die(rules);
    for (const size_t length : {1u, 2u, 3u, 5u, 8u, 20u, 47u, 48u, 49u, 50u, 64u, 120u}) {
      const unsigned letters = 1 + random() % 3;
      std::string piece;
      for (size_t i = 0; i < length; ++i) piece += static_cast<char>('a' + random() % letters);
      ASSERT_EQ(encode(merges, piece), reference_encode(rules, piece)) << "round " << round << ", " << piece;
    }
  }
}

TEST(Merges, LeftmostFirstOnEqualRank) {
  const Merges merges = build_or_die({{'a', 'a', 256}});
  EXPECT_EQ(encode(merges, "aaa"), (std::vector<int32_t>{256, 'a'}));
  std::vector<int32_t> expected(50, 256);
  expected.push_back('a');
  EXPECT_EQ(encode(merges, std::string(101, 'a')), expected);
}

TEST(Merges, WithoutRulesBytesStay) {
  const Merges merges = build_or_die({});
  EXPECT_EQ(encode(merges, "\xFF\x01"), (std::vector<int32_t>{255, 1}));
  EXPECT_EQ(encode(merges, std::string(100, 'q')), std::vector<int32_t>(100, 'q'));
  EXPECT_TRUE(encode(merges, "").empty());
}

TEST(Merges, RefuseASecondRuleForAPair) {
  const auto built = Merges::build(identity_bytes(), std::vector<Merge>{{1, 2, 300}, {2, 1, 301}, {1, 2, 302}});
  ASSERT_FALSE(built.ok());
  EXPECT_EQ(built.status().code(), Code::kBadModelFile);
  EXPECT_EQ(built.status().message(), "tokenizer.json: model.merges[2] merges a pair a second time");
}

TEST(Merges, LargestIdsAndEveryRuleAreFound) {
  std::vector<Merge> rules;
  for (int32_t i = 0; i < 200'000; ++i) rules.push_back({kMaxTokens - 1 - i, kMaxTokens - 1 - i / 7, i});
  const Merges merges = build_or_die(rules);
  for (size_t i = 0; i < rules.size(); ++i) ASSERT_EQ(merges.rank(rules[i].left, rules[i].right), i);
  EXPECT_EQ(merges.rank(0, 0), Merges::kNoRank);
  EXPECT_EQ(merges.rank(kMaxTokens - 1, 0), Merges::kNoRank);
}

// Pairs that all begin their search at one slot of the first table tried. Built all the same, and no look-up is slow.
TEST(Merges, PairsChosenToCollide) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;  // the first of merges.cpp
  constexpr size_t kRules = 1024;
  constexpr int kShift = 64 - 11;  // twice as many slots as rules
  std::vector<Merge> rules;
  for (int32_t pair = 0; rules.size() < kRules; ++pair) {
    const int32_t left = pair % 4096;
    const int32_t right = 300 + pair / 4096;
    uint64_t key = (static_cast<uint64_t>(left) << 20 | static_cast<uint64_t>(right)) * kMultiplier;
    key = (key ^ key >> 32) * kMultiplier;
    if (key >> kShift == 5) rules.push_back({left, right, 7});
  }
  const Merges merges = build_or_die(rules);
  for (size_t i = 0; i < rules.size(); ++i) ASSERT_EQ(merges.rank(rules[i].left, rules[i].right), i);
}

}  // namespace
}  // namespace dsv3
