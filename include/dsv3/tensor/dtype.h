// Number formats of tensors, and their exact host conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace dsv3 {

enum class DType : uint8_t { kF32, kBF16, kF16, kF8E4M3, kI8, kU8, kI32, kI64 };

constexpr size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kI64: return 8;
    case DType::kF8E4M3:
    case DType::kI8:
    case DType::kU8: return 1;
  }
  return 0;
}

/// The spelling of safetensors headers: "F32", "BF16", "F16", "F8_E4M3", "I8", "U8", "I32", "I64".
std::string_view dtype_name(DType dtype);
/// False if `name` is none of the above.
bool parse_dtype(std::string_view name, DType* out);

inline float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

/// Round to nearest even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>(bits >> 16);
}

float f16_to_f32(uint16_t bits);

/// e4m3fn: bias 7, 3 mantissa bits, largest 448, no infinities, NaN = 0x7f / 0xff.
float e4m3_to_f32(uint8_t bits);
/// Round to nearest even, saturate at 448; NaN gives 0x7f.
uint8_t f32_to_e4m3(float value);

}  // namespace dsv3
