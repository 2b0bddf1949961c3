// States of blocks: taken, shared, cached, evicted, forgotten.
#include "block_manager.h"

#include <gtest/gtest.h>

#include <numeric>

namespace dsv3::scheduling {
namespace {

using Table = std::vector<int32_t>;
constexpr int32_t kTokens = 2;

/// Ids and hash of the block number `index` of stem `stem`.
Table ids(int32_t stem, int32_t index) {
  return {stem, index};
}
uint64_t hash(int32_t stem, int32_t index) {
  return static_cast<uint64_t>(stem * 1000 + index);
}

bool publish(BlockManager* blocks, const Table& table, size_t index, int32_t stem) {
  const int32_t parent = index == 0 ? PrefixCache::kRoot : table[index - 1];
  const auto i = static_cast<int32_t>(index);
  return blocks->publish(table[index], parent, "", hash(stem, i), ids(stem, i));
}

Table match(const BlockManager& blocks, int32_t stem, int32_t count) {
  Table path;
  int32_t parent = PrefixCache::kRoot;
  for (int32_t i = 0; i < count; ++i) {
    parent = blocks.child(parent, "", hash(stem, i), ids(stem, i));
    if (parent == PrefixCache::kNone) break;
    path.push_back(parent);
  }
  return path;
}

Status check(const BlockManager& blocks, std::vector<const Table*> tables) {
  return blocks.check_books(tables);
}

TEST(BlockManager, GivesEachBlockOnceAndAllOrNothing) {
  BlockManager blocks(5, kTokens, true);
  Table a, b;
  ASSERT_TRUE(blocks.allocate(3, &a));
  EXPECT_FALSE(blocks.allocate(3, &b));
  EXPECT_TRUE(b.empty());
  ASSERT_TRUE(blocks.allocate(2, &b));
  Table all = a;
  all.insert(all.end(), b.begin(), b.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, (Table{0, 1, 2, 3, 4}));
  EXPECT_TRUE(check(blocks, {&a, &b}).ok());
  EXPECT_FALSE(check(blocks, {&a}).ok());  // the check sees a lost holder
  blocks.release(&a);
  EXPECT_EQ(blocks.available(), 3);
  blocks.release(&b);
  EXPECT_EQ(blocks.counts().free, 5);
  EXPECT_TRUE(check(blocks, {}).ok());
}

TEST(BlockManager, CachesPublishedBlocksAndSharesThem) {
  BlockManager blocks(6, kTokens, true);
  Table a;
  ASSERT_TRUE(blocks.allocate(3, &a));
  const Table first = a;
  ASSERT_TRUE(publish(&blocks, a, 0, 7));
  ASSERT_TRUE(publish(&blocks, a, 1, 7));
  blocks.release(&a);
  EXPECT_EQ(blocks.counts().cached, 2);
  EXPECT_EQ(blocks.counts().free, 4);
  EXPECT_EQ(match(blocks, 7, 3), (Table{first[0], first[1]}));
  EXPECT_TRUE(match(blocks, 8, 3).empty());

  Table b = match(blocks, 7, 1), c = match(blocks, 7, 2);
  blocks.acquire(b);
  blocks.acquire(c);
  EXPECT_EQ(blocks.counts().used, 2);
  EXPECT_EQ(blocks.counts().cached, 0);
  EXPECT_TRUE(check(blocks, {&b, &c}).ok());
  blocks.release(&c);
  EXPECT_EQ(blocks.counts().used, 1);
  blocks.release(&b);
  EXPECT_EQ(blocks.counts().cached, 2);
  EXPECT_TRUE(check(blocks, {}).ok());
}

TEST(BlockManager, EvictsTheLeastRecentlyUsedAndLeavesFirst) {
  BlockManager blocks(6, kTokens, true);
  for (int32_t stem : {1, 2, 3}) {
    Table table;
    ASSERT_TRUE(blocks.allocate(2, &table));
    ASSERT_TRUE(publish(&blocks, table, 0, stem));
    ASSERT_TRUE(publish(&blocks, table, 1, stem));
    blocks.release(&table);
  }
  Table used = match(blocks, 1, 2);  // stem 1 becomes the most recent
  blocks.acquire(used);
  blocks.release(&used);

  Table table;
  ASSERT_TRUE(blocks.allocate(1, &table));
  EXPECT_EQ(match(blocks, 2, 2).size(), 1u);  // its leaf went
  ASSERT_TRUE(blocks.allocate(2, &table));
  EXPECT_EQ(match(blocks, 2, 2).size(), 0u);
  EXPECT_EQ(match(blocks, 3, 2).size(), 1u);
  EXPECT_EQ(match(blocks, 1, 2).size(), 2u);
  EXPECT_TRUE(check(blocks, {&table}).ok());
}

TEST(BlockManager, SecondPublisherOfEqualContentStaysPrivate) {
  BlockManager blocks(6, kTokens, true);
  Table a, b;
  ASSERT_TRUE(blocks.allocate(2, &a));
  ASSERT_TRUE(blocks.allocate(2, &b));
  EXPECT_TRUE(publish(&blocks, a, 0, 1));
  EXPECT_FALSE(publish(&blocks, b, 0, 1));
  EXPECT_FALSE(publish(&blocks, b, 1, 1));  // its parent is not in the tree
  blocks.release(&b);
  EXPECT_EQ(blocks.counts().free, 4);
  EXPECT_TRUE(check(blocks, {&a}).ok());
}

TEST(BlockManager, WithoutCacheABlockIsFreedWithItsLastHolder) {
  BlockManager blocks(4, kTokens, false);
  Table a;
  ASSERT_TRUE(blocks.allocate(2, &a));
  ASSERT_TRUE(publish(&blocks, a, 0, 1));
  ASSERT_TRUE(publish(&blocks, a, 1, 1));
  Table b = match(blocks, 1, 2);
  blocks.acquire(b);
  blocks.release(&a);
  EXPECT_EQ(match(blocks, 1, 2).size(), 2u);
  blocks.release(&b);
  EXPECT_EQ(blocks.counts().free, 4);
  EXPECT_TRUE(match(blocks, 1, 2).empty());
}

TEST(BlockManager, ForgetDropsATreeEvenWhileHeld) {
  BlockManager blocks(6, kTokens, true);
  Table a;
  ASSERT_TRUE(blocks.allocate(3, &a));
  for (size_t i : {0, 1, 2}) ASSERT_TRUE(publish(&blocks, a, i, 1));
  Table b = match(blocks, 1, 1);
  blocks.acquire(b);
  blocks.release(&a);  // two cached behind a held one
  blocks.forget(b[0]);
  EXPECT_TRUE(match(blocks, 1, 3).empty());
  EXPECT_EQ(blocks.counts().used, 1);
  EXPECT_EQ(blocks.counts().free, 5);
  EXPECT_TRUE(check(blocks, {&b}).ok());
  blocks.release(&b);
  EXPECT_EQ(blocks.counts().free, 6);
}

TEST(BlockManager, FlushFreesWhatNobodyHolds) {
  BlockManager blocks(6, kTokens, true);
  Table a, b;
  ASSERT_TRUE(blocks.allocate(2, &a));
  ASSERT_TRUE(blocks.allocate(2, &b));
  for (size_t i : {0, 1}) ASSERT_TRUE(publish(&blocks, a, i, 1) && publish(&blocks, b, i, 2));
  blocks.release(&a);
  EXPECT_EQ(blocks.flush(), 2);
  EXPECT_TRUE(match(blocks, 1, 2).empty());
  EXPECT_EQ(match(blocks, 2, 2).size(), 2u);
  EXPECT_TRUE(check(blocks, {&b}).ok());
}

TEST(BlockManagerDeathTest, AbortsOnABlockFreedTwice) {
  BlockManager blocks(2, kTokens, true);
  Table a;
  ASSERT_TRUE(blocks.allocate(1, &a));
  Table copy = a;
  blocks.release(&a);
  EXPECT_DEATH(blocks.release(&copy), "as often as it was taken");
}

}  // namespace
}  // namespace dsv3::scheduling
