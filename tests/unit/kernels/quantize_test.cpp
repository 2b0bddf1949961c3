#include "dsv3/kernels/cpu/quantize.h"

#include <gtest/gtest.h>

#include <cmath>

#include "dsv3/tensor/dtype.h"
#include "support/numbers.h"

namespace dsv3::cpu {
namespace {

TEST(E4M3, EveryCodeSurvivesARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    const auto bits = static_cast<uint8_t>(code);
    const float value = e4m3_to_f32(bits);
    if (std::isnan(value)) {
      EXPECT_EQ(bits & 0x7f, 0x7f);
      EXPECT_EQ(f32_to_e4m3(value), 0x7f);
    } else {
      EXPECT_EQ(f32_to_e4m3(value), bits);
    }
  }
  EXPECT_EQ(e4m3_to_f32(0x7e), 448.0f);
  EXPECT_EQ(e4m3_to_f32(0x01), 0x1p-9f);
}

TEST(E4M3, RoundsToTheNearestAndTiesToEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = e4m3_to_f32(static_cast<uint8_t>(code)), high = e4m3_to_f32(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(f32_to_e4m3(middle), code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(f32_to_e4m3(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(f32_to_e4m3(std::nextafter(middle, 1e9f)), code + 1);
    EXPECT_EQ(f32_to_e4m3(-middle) & 0x7f, f32_to_e4m3(middle));
  }
  for (float big : {448.0f, 460.0f, 1e30f, INFINITY}) EXPECT_EQ(f32_to_e4m3(big), 0x7e);
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie, even below
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // tie, even above
  EXPECT_EQ(bf16_to_f32(0xc040), -3.0f);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(NAN))));
}

TEST(F16, DecodesNormalSubnormalAndSpecial) {
  EXPECT_EQ(f16_to_f32(0x3c00), 1.0f);
  EXPECT_EQ(f16_to_f32(0xc000), -2.0f);
  EXPECT_EQ(f16_to_f32(0x0001), 0x1p-24f);
  EXPECT_EQ(f16_to_f32(0x7bff), 65504.0f);
  EXPECT_TRUE(std::isinf(f16_to_f32(0x7c00)));
  EXPECT_TRUE(std::isnan(f16_to_f32(0x7e00)));
}

TEST(RoundToFp8, ErrorIsHalfAStepOfTheGroup) {
  auto x = testing::normal_floats(1000, 1, 3.0f);  // the last group is short
  const auto input = x;
  round_to_fp8(x.data(), 1000, 128, false);
  for (size_t begin = 0; begin < x.size(); begin += 128) {
    const size_t end = std::min<size_t>(begin + 128, x.size());
    float amax = 0;
    for (size_t i = begin; i < end; ++i) amax = std::max(amax, std::fabs(input[i]));
    for (size_t i = begin; i < end; ++i) {
      // 3 mantissa bits: relative 2^-4, or half a subnormal step of the group's scale.
      EXPECT_LE(std::fabs(x[i] - input[i]), std::max(std::fabs(input[i]) / 16, amax / 448 / 1024) * 1.0001f);
    }
  }
}

TEST(RoundToFp8, PowerOfTwoScalesAndZeros) {
  std::vector<float> x(128, 0.0f);
  round_to_fp8(x.data(), 128, 128, false);
  EXPECT_EQ(x, std::vector<float>(128, 0.0f));
  x[5] = 3.0f;  // amax 3 / 448 -> scale 2^-7: 3 * 128 = 384 is an e4m3 number
  round_to_fp8(x.data(), 128, 128, true);
  EXPECT_EQ(x[5], 3.0f);
}

}  // namespace
}  // namespace dsv3::cpu
