#include "dsv3/kernels/cpu/quantize.h"

#include <algorithm>
#include <cmath>

#include "dsv3/tensor/dtype.h"

namespace dsv3::cpu {

void round_to_fp8(float* x, int64_t n, int64_t group, bool ue8m0) {
  for (int64_t begin = 0; begin < n; begin += group) {
    const int64_t end = std::min(begin + group, n);
    float amax = 1e-4f;
    for (int64_t i = begin; i < end; ++i) amax = std::max(amax, std::fabs(x[i]));
    float scale = amax / 448.0f;
    if (ue8m0) scale = std::exp2(std::ceil(std::log2(scale)));
    for (int64_t i = begin; i < end; ++i) x[i] = e4m3_to_f32(f32_to_e4m3(x[i] / scale)) * scale;
  }
}

}  // namespace dsv3::cpu
