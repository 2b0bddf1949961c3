#include "dsv3/kernels/random.h"

#include <gtest/gtest.h>

namespace dsv3 {
namespace {

TEST(Philox, MatchesThePublishedVectors) {  // Random123's kat_vectors, philox4x32 10 rounds
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, {0xffffffffu, 0xffffffffu}),
            (std::array<uint32_t, 4>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
            (std::array<uint32_t, 4>{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(UniformDraw, IsUniform) {
  int counts[10] = {};
  for (uint64_t i = 0; i < 100'000; ++i) {
    const double u = uniform_draw(42, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<int>(u * 10)];
  }
  for (int count : counts) EXPECT_NEAR(count, 10'000, 500);  // 5 standard deviations
}

}  // namespace
}  // namespace dsv3
