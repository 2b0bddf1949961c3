// The hash against its published vectors; the chain against its own definition.
#include "prefix_hash.h"

#include <gtest/gtest.h>

#include <numeric>

namespace dsv3::scheduling {
namespace {

// Key 00 01 .. 0f, input 00 01 02 ...: the vectors published with the algorithm.
TEST(SipHash, AgreesWithThePublishedVectors) {
  const HashKey key{0x0706050403020100ull, 0x0f0e0d0c0b0a0908ull};
  unsigned char input[16];
  std::iota(input, input + 16, static_cast<unsigned char>(0));
  EXPECT_EQ(siphash24(key, input, 0), 0x726fdb47dd0e0e31ull);
  EXPECT_EQ(siphash24(key, input, 1), 0x74f839c593dc67fdull);
  EXPECT_EQ(siphash24(key, input, 2), 0x0d6c8009d9a94f5aull);
  EXPECT_EQ(siphash24(key, input, 3), 0x85676696d7fb7e2dull);
  EXPECT_EQ(siphash24(key, input, 8), 0x93f5f5799a932462ull);
  EXPECT_EQ(siphash24(key, input, 15), 0xa129ca6149be45e5ull);
}

TEST(HashKey, IsNewEachTime) {
  const HashKey a = HashKey::random(), b = HashKey::random();
  EXPECT_TRUE(a.k0 != b.k0 || a.k1 != b.k1);
}

TEST(PrefixHasher, ChainsFullBlocksOnly) {
  const PrefixHasher hasher({1, 2}, 4);
  const std::vector<int32_t> ids{1, 2, 3, 4, 5, 6, 7, 8, 9};
  const auto chain = hasher.chain("", ids);
  ASSERT_EQ(chain.size(), 2u);
  EXPECT_EQ(chain[0], hasher.block(hasher.root(""), std::span(ids).first(4)));
  EXPECT_EQ(chain[1], hasher.block(chain[0], std::span(ids).subspan(4, 4)));
  EXPECT_TRUE(hasher.chain("", std::span(ids).first(3)).empty());
}

TEST(PrefixHasher, DependsOnKeySaltAndHistory) {
  const std::vector<int32_t> ids{1, 2, 3, 4, 1, 2, 3, 4};
  const auto plain = PrefixHasher({1, 2}, 4).chain("", ids);
  EXPECT_NE(plain[0], plain[1]);  // same ids, another parent
  EXPECT_NE(plain, PrefixHasher({1, 2}, 4).chain("tenant", ids));
  EXPECT_NE(plain, PrefixHasher({1, 3}, 4).chain("", ids));
}

TEST(PrefixHasher, MaskCutsTheHash) {
  const std::vector<int32_t> ids{1, 2, 3, 4, 5, 6, 7, 8};
  for (uint64_t hash : PrefixHasher({1, 2}, 4, 0xff).chain("x", ids)) EXPECT_LE(hash, 0xffu);
}

}  // namespace
}  // namespace dsv3::scheduling
