#include "dsv3/tensor/dtype.h"

#include <array>
#include <cmath>

namespace dsv3 {
namespace {

struct Name {
  DType dtype;
  std::string_view text;
};
constexpr Name kNames[] = {{DType::kF32, "F32"},        {DType::kBF16, "BF16"}, {DType::kF16, "F16"},
                           {DType::kF8E4M3, "F8_E4M3"}, {DType::kI8, "I8"},     {DType::kU8, "U8"},
                           {DType::kI32, "I32"},        {DType::kI64, "I64"}};

float decode_e4m3(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  float magnitude;
  if (exponent == 15 && mantissa == 7) {
    magnitude = std::nanf("");
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -9);
  } else {
    magnitude = std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  }
  return (bits & 0x80) ? -magnitude : magnitude;
}

const std::array<float, 256> kE4M3 = [] {
  std::array<float, 256> table{};
  for (int i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = decode_e4m3(static_cast<uint8_t>(i));
  return table;
}();

}  // namespace

std::string_view dtype_name(DType dtype) {
  for (const auto& name : kNames) {
    if (name.dtype == dtype) return name.text;
  }
  return "?";
}

bool parse_dtype(std::string_view name, DType* out) {
  for (const auto& entry : kNames) {
    if (entry.text == name) {
      *out = entry.dtype;
      return true;
    }
  }
  return false;
}

float f16_to_f32(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa ? std::nanf("") : INFINITY;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return (bits & 0x8000) ? -magnitude : magnitude;
}

float e4m3_to_f32(uint8_t bits) { return kE4M3[bits]; }

uint8_t f32_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
  if (std::isnan(value)) return 0x7f;
  if (magnitude >= 448.0f) return sign | 0x7e;
  if (magnitude < 0.015625f) {  // below 2^-6: subnormal, steps of 2^-9; rounding up to 2^-6 gives the right code
    return sign | static_cast<uint8_t>(std::nearbyintf(magnitude * 512.0f));
  }
  uint32_t rounded = std::bit_cast<uint32_t>(magnitude);
  rounded += 0x7ffffu + ((rounded >> 20) & 1u);  // keep 3 of 23 mantissa bits, ties to even
  const uint32_t exponent = (rounded >> 23) - 127 + 7;
  const uint32_t code = (exponent << 3) | ((rounded >> 20) & 7u);
  return sign | static_cast<uint8_t>(code > 0x7e ? 0x7e : code);
}

}  // namespace dsv3
