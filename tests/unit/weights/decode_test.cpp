#include "decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

namespace dsv3::weights {
namespace {

bool same_bits(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

TEST(Decode, AgreesWithTheSingleConversionsOnEveryBitPattern) {
  std::vector<uint8_t> source(1 + 2 * 65536);  // one byte in front: unaligned
  std::vector<float> out(65536);
  for (uint32_t i = 0; i < 65536; ++i) {
    source[1 + 2 * i] = static_cast<uint8_t>(i);
    source[2 + 2 * i] = static_cast<uint8_t>(i >> 8);
  }
  decode(DType::kF16, source.data() + 1, out.size(), out.data());
  for (uint32_t i = 0; i < 65536; ++i) {
    const float want = f16_to_f32(static_cast<uint16_t>(i));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(out[i])) << i;
    } else {
      ASSERT_TRUE(same_bits(out[i], want)) << i;
    }
  }
  decode(DType::kBF16, source.data() + 1, out.size(), out.data());
  for (uint32_t i = 0; i < 65536; ++i) ASSERT_TRUE(same_bits(out[i], bf16_to_f32(static_cast<uint16_t>(i)))) << i;
}

TEST(Decode, E4M3TimesScale) {
  std::vector<uint8_t> source(256);
  std::vector<float> out(256);
  for (size_t i = 0; i < 256; ++i) source[i] = static_cast<uint8_t>(i);
  for (const float scale : {1.0f, 3.7e-4f, -2.0f}) {
    decode_e4m3(source.data(), 256, scale, out.data());
    for (size_t i = 0; i < 256; ++i) {
      const float want = e4m3_to_f32(static_cast<uint8_t>(i)) * scale;
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(out[i]));
      } else {
        ASSERT_TRUE(same_bits(out[i], want)) << i;
      }
    }
  }
  EXPECT_EQ(out[0x7e], -896.0f);
}

TEST(Decode, F32CopiesUnaligned) {
  const float values[] = {1.5f, -0.0f, 1e-40f, INFINITY};
  std::vector<uint8_t> source(1 + sizeof values);
  std::memcpy(source.data() + 1, values, sizeof values);
  float out[4];
  decode(DType::kF32, source.data() + 1, 4, out);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(same_bits(out[i], values[i]));
}

}  // namespace
}  // namespace dsv3::weights
