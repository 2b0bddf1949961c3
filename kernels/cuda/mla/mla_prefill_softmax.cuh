// Online softmax on the score fragments of a math warpgroup: S[64, 128] as wgmma leaves it, 64 floats a thread (wgmma.cuh).
#pragma once

#include <math_constants.h>

#include <cstdint>

#include "../common/ptx.cuh"
#include "../common/wgmma.cuh"

namespace dsv3::cuda {

__device__ inline void pin(float (&d)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) wgmma_pin(d[i]);
}
__device__ inline void pin(uint32_t (&a)[8][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma_pin(a[i][j]);
  }
}

/// Running softmax of a thread's two rows (l/4 and l/4 + 8 of its warp's 16). `total` is the sum over this thread's columns only.
struct Softmax {
  float max[2], total[2], keep[2];
};

/// -inf where column c of the step (key first_key + c) is not among the first visible[half] keys.
__device__ inline void mask_scores(float (&s)[64], int first_key, const int (&visible)[2], int lane) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = first_key + 8 * i + 2 * (lane % 4) + j % 2;
      if (key >= visible[j / 2]) s[4 * i + j] = -CUDART_INF_F;
    }
  }
}

/// s = 2^(scale * (s - max)) with the new maximum; `keep` is what earlier sums have to be multiplied by.
__device__ inline void soften(float (&s)[64], Softmax& r, float scale) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float max = r.max[half];
#pragma unroll
    for (int i = 0; i < 16; ++i) max = fmaxf(max, fmaxf(s[4 * i + 2 * half], s[4 * i + 2 * half + 1]));
    max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFFu, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFFu, max, 2));
    const float base = max == -CUDART_INF_F ? 0.0f : max * scale;  // a row that has seen no key yet: weights 0, not NaN
    r.keep[half] = exp2_approximate(r.max[half] * scale - base);
    r.max[half] = max;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
#pragma unroll
      for (int j = 2 * half; j < 2 * half + 2; ++j) {
        s[4 * i + j] = exp2_approximate(s[4 * i + j] * scale - base);
        sum += s[4 * i + j];
      }
    }
    r.total[half] = r.total[half] * r.keep[half] + sum;
  }
}

/// The D fragment of two 8-column blocks is the A fragment of 16 keys.
__device__ inline void pack_weights(uint32_t (&weights)[8][4], const float (&s)[64]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) weights[i][j] = pack_bf16(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
  }
}

}  // namespace dsv3::cuda
