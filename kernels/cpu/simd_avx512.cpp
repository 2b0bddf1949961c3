// The inner loops with the compiler flags of one instruction set (kernels/CMakeLists.txt).
#include <cmath>

#include "simd.h"

namespace dsv3::cpu {
namespace {
#include "simd_kernels.inc"
}  // namespace

const SimdKernels& simd_avx512() {
  static constexpr SimdKernels kKernels{"avx512", panel, dots, exp_sum, scale, axpy, sum_squares, silu_mul};
  return kKernels;
}

}  // namespace dsv3::cpu
