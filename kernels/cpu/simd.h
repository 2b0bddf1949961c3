// The inner loops of the CPU backend, compiled once per instruction set and chosen at start. Each output number is
// summed in one fixed order that depends on nothing but its own inputs: not on how many rows or columns are computed
// with it. That is what makes the whole backend batch-invariant, bit for bit.
#pragma once

#include <cstdint>

namespace dsv3::cpu {

inline constexpr int64_t kPanelCols = 32;  ///< output columns of one packed panel
inline constexpr int64_t kRowBlock = 12;   ///< rows that one inner loop computes together

struct SimdKernels {
  const char* name;
  /// c[r][j] (+)= sum over k of a[r][k] * b[k * b_stride + j], k ascending, for rows r < rows <= kRowBlock and
  /// kPanelCols columns j. Strides in elements.
  void (*panel)(int64_t rows, int64_t depth, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                float* c, int64_t c_stride, bool accumulate);
  /// out[r] = sum over i < n of q[r][i] * key[i], for rows <= kRowBlock.
  void (*dots)(int64_t rows, int64_t n, const float* q, int64_t q_stride, const float* key, float* out,
               int64_t out_stride);
  /// x[i] = exp(x[i] - shift), returns their sum. n a multiple of 16; -inf gives exactly 0. Relative error < 3e-7.
  float (*exp_sum)(float* x, int64_t n, float shift);
  /// y[i] = alpha * y[i]
  void (*scale)(float alpha, float* y, int64_t n);
  /// y[i] += alpha * x[i]
  void (*axpy)(float alpha, const float* x, float* y, int64_t n);
  /// sum of x[i]^2
  float (*sum_squares)(const float* x, int64_t n);
  /// out[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const float* gate, const float* up, float* out, int64_t n);
};

/// The best set that this processor runs.
const SimdKernels& simd();

const SimdKernels& simd_generic();
#if defined(__x86_64__)
const SimdKernels& simd_avx2();
const SimdKernels& simd_avx512();
#endif

}  // namespace dsv3::cpu
