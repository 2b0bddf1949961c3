// Random FP8 operands on the device and their product in float64: shared by the tests of FP8 products.
#pragma once

#include <algorithm>
#include <vector>

#include "harness.h"
#include "kernels/cuda/common/types.h"

namespace dsv3::cuda::testing {

__device__ inline uint32_t hashed_bits(uint64_t i, uint32_t seed) {
  uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>(z >> 32);
}
/// About normal, about the width that quantization leaves: |max| near 448 in a group.
static __global__ void fill_e4m3_kernel(uint8_t* p, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const uint32_t bits = hashed_bits(i, seed);
    const float sum = static_cast<float>((bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24));
    p[i] = __nv_fp8_e4m3((sum - 510.0f) * 0.8f).__x;
  }
}
/// 2^-9 times 0.5 to 1.5.
static __global__ void fill_scale_kernel(float* p, int64_t groups, int64_t stride, int64_t rows, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < groups * rows; i += int64_t{gridDim.x} * blockDim.x) {
    p[i / rows * stride + i % rows] = (0.5f + static_cast<float>(hashed_bits(i, seed) >> 8) * 0x1p-24f) * 0x1p-9f;
  }
}
/// One warp an element; expert_of_row (null: 0) < 0 leaves a row at zero.
static __global__ void product_kernel(Fp8Rows x, Fp8Weight w, const int* expert_of_row, int64_t rows, double* y) {
  const int64_t element = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / 32;
  if (element >= rows * w.n) return;
  const int64_t row = element / w.n, col = element % w.n, groups = w.k / 128;
  const int64_t expert = expert_of_row == nullptr ? 0 : expert_of_row[row];
  double sum = 0;
  if (expert >= 0) {
    for (int64_t k = threadIdx.x % 32; k < w.k; k += 32) {
      __nv_fp8_e4m3 a, b;
      a.__x = x.data[row * w.k + k];
      b.__x = w.data[(expert * w.n + col) * w.k + k];
      const double scale = static_cast<double>(x.scales[k / 128 * x.scale_stride + row]) *
                           static_cast<double>(w.scales[(expert * ((w.n + 127) / 128) + col / 128) * groups + k / 128]);
      sum += scale * static_cast<double>(static_cast<float>(a)) * static_cast<double>(static_cast<float>(b));
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) y[element] = sum;
}

/// Activations [rows, k]; what lies behind the rows and in the padding of the scales is NaN.
struct RandomRows {
  Guarded<uint8_t> data;
  Guarded<float> scales;
  Fp8Rows rows;
  /// `poisoned_rows` more rows belong to the matrix and stay NaN.
  RandomRows(int64_t m, int64_t k, uint32_t seed, int64_t poisoned_rows = 0)
      : data((m + poisoned_rows) * k), scales((m + poisoned_rows + 3) / 4 * 4 * (k / 128)) {
    rows = {data.get(), scales.get(), m + poisoned_rows, k, (m + poisoned_rows + 3) / 4 * 4};
    fill_e4m3_kernel<<<256, 256>>>(data.get(), m * k, seed);
    fill_scale_kernel<<<64, 256>>>(scales.get(), k / 128, rows.scale_stride, m, seed + 1);
    expect_synced();
  }
  /// The first m rows.
  Fp8Rows first(int64_t m) const {
    Fp8Rows some = rows;
    some.rows = m;
    return some;
  }
};

struct RandomWeight {
  Guarded<uint8_t> data;
  Guarded<float> scales;
  Fp8Weight weight;
  RandomWeight(int64_t n, int64_t k, uint32_t seed, int64_t count = 1)
      : data(count * n * k), scales(count * ((n + 127) / 128) * (k / 128)) {
    weight = {data.get(), scales.get(), n, k, count};
    fill_e4m3_kernel<<<1024, 256>>>(data.get(), count * n * k, seed);
    fill_scale_kernel<<<64, 256>>>(scales.get(), count * ((n + 127) / 128), k / 128, k / 128, seed + 1);
    expect_synced();
  }
};

inline std::vector<double> product_f64(const Fp8Rows& x, const Fp8Weight& w, int64_t rows, const int* expert_of_row = nullptr) {
  Guarded<double> y(rows * w.n);
  const int64_t threads = rows * w.n * 32;
  product_kernel<<<static_cast<unsigned>((threads + 255) / 256), 256>>>(x, w, expert_of_row, rows, y.get());
  expect_synced();
  return y.download();
}

inline bool same_bits(const std::vector<Bf16>& a, const std::vector<Bf16>& b, size_t count) {
  return std::equal(a.begin(), a.begin() + static_cast<int64_t>(count), b.begin(),
                    [](Bf16 p, Bf16 q) { return __bfloat16_as_ushort(p) == __bfloat16_as_ushort(q); });
}
inline bool is_poison(Bf16 value) { return __bfloat16_as_ushort(value) == 0xFFFF; }

}  // namespace dsv3::cuda::testing
