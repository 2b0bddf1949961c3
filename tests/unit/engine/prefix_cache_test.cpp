// The index alone, with one hash for everything: it must not trust hashes.
#include "prefix_cache.h"

#include <gtest/gtest.h>

namespace dsv3::scheduling {
namespace {

constexpr uint64_t kHash = 5;  // one for all: the index must not trust it
using Ids = std::vector<int32_t>;

TEST(PrefixCache, ComparesIdsParentAndSaltNotOnlyTheHash) {
  PrefixCache cache(8, 2);
  cache.insert(3, PrefixCache::kRoot, "a", kHash, Ids{1, 2});
  cache.insert(4, 3, "a", kHash, Ids{1, 2});
  EXPECT_EQ(cache.find(PrefixCache::kRoot, "a", kHash, Ids{1, 2}), 3);
  EXPECT_EQ(cache.find(3, "a", kHash, Ids{1, 2}), 4);
  EXPECT_EQ(cache.find(PrefixCache::kRoot, "a", kHash, Ids{1, 3}), PrefixCache::kNone);
  EXPECT_EQ(cache.find(PrefixCache::kRoot, "b", kHash, Ids{1, 2}), PrefixCache::kNone);
  EXPECT_EQ(cache.find(PrefixCache::kRoot, "", kHash, Ids{1, 2}), PrefixCache::kNone);
  EXPECT_EQ(cache.find(4, "a", kHash, Ids{1, 2}), PrefixCache::kNone);
  EXPECT_EQ(cache.find(PrefixCache::kRoot, "a", kHash + 8, Ids{1, 2}), PrefixCache::kNone);
}

TEST(PrefixCache, ForgetsErasedNodesInAnyOrderOfTheBucket) {
  PrefixCache cache(8, 2);
  for (int32_t block = 0; block < 5; ++block) cache.insert(block, PrefixCache::kRoot, "", kHash, Ids{block, 0});
  for (int32_t block : {2, 4, 0, 1, 3}) {
    cache.erase(block);
    EXPECT_FALSE(cache.contains(block));
    EXPECT_EQ(cache.find(PrefixCache::kRoot, "", kHash, Ids{block, 0}), PrefixCache::kNone);
  }
  EXPECT_EQ(cache.size(), 0);
}

TEST(PrefixCache, SubtreeListsChildrenBeforeParents) {
  PrefixCache cache(16, 1);
  cache.insert(9, PrefixCache::kRoot, "", 1, Ids{1});
  cache.insert(2, 9, "", 2, Ids{2});
  cache.insert(7, 9, "", 3, Ids{3});
  cache.insert(1, 2, "", 4, Ids{4});
  cache.insert(5, PrefixCache::kRoot, "", 5, Ids{5});
  const auto below = cache.subtree(9);
  ASSERT_EQ(below.size(), 4u);
  EXPECT_EQ(below.front(), 1);
  EXPECT_EQ(below.back(), 9);
  EXPECT_EQ(cache.subtree(5), Ids{5});
  for (int32_t block : below) cache.erase(block);  // legal only from the leaves up
  EXPECT_EQ(cache.size(), 1);
}

TEST(PrefixCacheDeathTest, RefusesToLoseAParent) {
  PrefixCache cache(4, 1);
  cache.insert(0, PrefixCache::kRoot, "", 1, Ids{1});
  cache.insert(1, 0, "", 2, Ids{2});
  EXPECT_DEATH(cache.erase(0), "only leaves");
  EXPECT_DEATH(cache.insert(1, 0, "", 2, Ids{2}), "published once");
}

}  // namespace
}  // namespace dsv3::scheduling
