#include "decode.h"

#include <array>
#include <bit>
#include <cstring>

#include "dsv3/base/status.h"

namespace dsv3::weights {
namespace {

// Built at the first use: e4m3_to_f32() has a table of its own, which may be built after the globals of this file.
const float* e4m3_table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values{};
    for (size_t i = 0; i < values.size(); ++i) values[i] = e4m3_to_f32(static_cast<uint8_t>(i));
    return values;
  }();
  return table.data();
}

// As f16_to_f32(), without branches that would keep the loop from being vectorised.
inline float f16(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t tiny = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t special = magnitude > 0x7c00u ? 0x7fc00000u : 0x7f800000u;
  const uint32_t value = magnitude < 0x400u ? tiny : magnitude >= 0x7c00u ? special : normal;
  return std::bit_cast<float>(value | static_cast<uint32_t>(bits & 0x8000u) << 16);
}

inline uint16_t load16(const uint8_t* source) {
  uint16_t bits;
  std::memcpy(&bits, source, sizeof bits);
  return bits;
}

}  // namespace

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF8E4M3;
}

void decode(DType dtype, const uint8_t* source, size_t n, float* out) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, source, n * sizeof(float));
      return;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) out[i] = bf16_to_f32(load16(source + 2 * i));
      return;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) out[i] = f16(load16(source + 2 * i));
      return;
    default:
      DSV3_CHECK(false, "decode() of a dtype that is no plain float");
  }
}

void decode_e4m3(const uint8_t* source, size_t n, float scale, float* out) {
  const float* const table = e4m3_table();
  for (size_t i = 0; i < n; ++i) out[i] = table[source[i]] * scale;
}

}  // namespace dsv3::weights
