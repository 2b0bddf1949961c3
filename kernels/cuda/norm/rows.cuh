// What row-wise kernels share: 8 values a thread (16 bytes of BF16), sums in one fixed order, e4m3 with a scale per 128 columns,
// and the checks of launchers.
#pragma once

#include <string>
#include <type_traits>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "../common/types.h"
#include "dsv3/base/status.h"

namespace dsv3::cuda {

inline constexpr int kVector = 8;                            ///< BF16 values of a 16-byte access
inline constexpr int kGroupVectors = kQuantGroup / kVector;  ///< neighbouring lanes that share a scale: 16

__device__ inline uint4 load_vector(const Bf16* p) {
  return *reinterpret_cast<const uint4*>(p);
}
__device__ inline void unpack_bf16(const uint4& raw, float (&v)[8]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ inline uint4 pack_bf16_vector(const float (&v)[8]) {
  return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}
__device__ inline void store_vector(Bf16* p, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(p) = pack_bf16_vector(v);
}

/// 8 float32 values as loaded: what uint4 is to BF16.
struct F32Vector {
  float4 low, high;
};
__device__ inline F32Vector load_vector(const float* p) {
  return {*reinterpret_cast<const float4*>(p), *reinterpret_cast<const float4*>(p + 4)};
}
__device__ inline void store_vector(float* p, const float (&v)[8]) {
  *reinterpret_cast<float4*>(p) = float4{v[0], v[1], v[2], v[3]};
  *reinterpret_cast<float4*>(p + 4) = float4{v[4], v[5], v[6], v[7]};
}
/// 8 values of T as they were loaded, and as float32.
template <class T>
using VectorOf = std::conditional_t<std::is_same_v<T, float>, F32Vector, uint4>;
__device__ inline void unpack(const uint4& raw, float (&v)[8]) {
  unpack_bf16(raw, v);
}
__device__ inline void unpack(const F32Vector& raw, float (&v)[8]) {
  v[0] = raw.low.x, v[1] = raw.low.y, v[2] = raw.low.z, v[3] = raw.low.w;
  v[4] = raw.high.x, v[5] = raw.high.y, v[6] = raw.high.z, v[7] = raw.high.w;
}
__device__ inline void load_floats(const float* p, float (&v)[8]) {
  unpack(load_vector(p), v);
}

/// Sum over a warp. Addition commutes, so every lane gets the same bits.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ inline float sum_of_squares(const float (&v)[8]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(v[i], v[i], sum);
  return sum;
}
__device__ inline float silu(float x) {
  return x / (1.0f + expf(-x));
}

/// s of model.md 8.2 for the 128 columns of 16 neighbouring lanes, of which this lane holds v. All 32 lanes call it.
/// fmaxf skips NaN, as the CPU does: the NaN itself becomes the e4m3 NaN.
__device__ inline float group_scale(const float (&v)[8], bool ue8m0) {
  float amax = 1e-4f;
#pragma unroll
  for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v[i]));
#pragma unroll
  for (int step = kGroupVectors / 2; step > 0; step /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, step));
  const float scale = amax / 448.0f;
  if (!ue8m0) return scale;
  const uint32_t bits = __float_as_uint(scale);  // positive and normal: the next power of two is a carry into the exponent
  return __uint_as_float((bits + 0x7fffffu) & 0x7f800000u);
}
/// e4m3(v / scale), saturating, to nearest even. The quotient is corrected once, so it is that of a division (one in millions
/// may differ in its last float32 bit, which e4m3 drops) at a third of the cost.
__device__ inline uint2 to_e4m3(const float (&v)[8], float scale) {
  const float inverse = __frcp_rn(scale);
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float q[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float x = v[2 * i + j], first = x * inverse;
      q[j] = fmaf(fmaf(-first, scale, x), inverse, first);
    }
    pairs[i] = __nv_cvt_float2_to_fp8x2({q[0], q[1]}, __NV_SATFINITE, __NV_E4M3);
  }
  return {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
}

// ---- launchers -----------------------------------------------------------------------------------------------------------------

inline bool aligned(const void* p, uintptr_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

/// A Bf16Matrix or F32Matrix that is read or written in pieces of 16 bytes, 8 columns a thread.
template <class Matrix>
Status check_matrix(const char* kernel, const char* name, const Matrix& x, int64_t rows, int64_t cols) {
  if (x.data == nullptr || !aligned(x.data)) return wrong(kernel, std::string(name) + " is null or not on 16 bytes");
  if (x.rows < rows || x.cols != cols) {
    return wrong(kernel, std::string(name) + " is " + std::to_string(x.rows) + " x " + std::to_string(x.cols) + ", wanted " +
                             std::to_string(rows) + " x " + std::to_string(cols));
  }
  if (cols <= 0 || cols % kVector != 0 || x.stride % kVector != 0 || x.stride < cols) {
    return wrong(kernel, std::string(name) + " has " + std::to_string(cols) + " columns, stride " + std::to_string(x.stride) +
                             ": wanted multiples of 8, stride >= columns");
  }
  return {};
}
inline Status check_fp8(const char* kernel, const char* name, const Fp8Rows& x, int64_t rows, int64_t cols) {
  if (!aligned(x.data) || x.data == nullptr || x.scales == nullptr) return wrong(kernel, std::string(name) + " is null or not on 16 bytes");
  if (x.rows < rows || x.cols != cols || cols % kQuantGroup != 0 || x.scale_stride < rows) {
    return wrong(kernel, std::string(name) + " is " + std::to_string(x.rows) + " x " + std::to_string(x.cols) + ", scale stride " +
                             std::to_string(x.scale_stride) + ", wanted " + std::to_string(rows) + " x " + std::to_string(cols) +
                             " (a multiple of 128)");
  }
  return {};
}

/// One thread per 8 columns: y = x or silu(gate) * up, to BF16, e4m3 or both. Rows whose source is negative are left alone.
struct Activation {
  const Bf16* x = nullptr;          ///< [rows, vectors * 8], or twice as many columns with silu: gate, then up
  const int32_t* source = nullptr;  ///< [rows] or null
  const int32_t* place = nullptr;   ///< [rows] or null: the row of x and of the results that is meant; negative: none
  Bf16* out = nullptr;              ///< or null
  uint8_t* quantised = nullptr;     ///< or null; rows packed
  float* scales = nullptr;
  int64_t x_stride = 0, out_stride = 0, scale_stride = 0;
  int64_t rows = 0;
  uint32_t vectors = 0;  ///< of a row; a multiple of 16 where quantised is set
  bool ue8m0 = false;
};
Status launch_activation(const char* name, const Activation& p, bool with_silu, Stream stream);

}  // namespace dsv3::cuda
