// Columns of wgmma and mma results moved between the four lanes of a quad, so that a lane has neighbouring ones and stores 16 bytes at
// once, whole sectors a quad. In a D fragment (wgmma.cuh) lane q of a quad holds columns 8 i + 2 q and + 1 of a row.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dsv3::cuda {

/// Swaps b of the lanes without `bit` with a of their partners, lane ^ bit. By whole warps, as all here.
__device__ __forceinline__ void swap_lanes(uint32_t& a, uint32_t& b, int bit) {
  const bool upper = (threadIdx.x & bit) != 0;
  const uint32_t got = __shfl_xor_sync(~0u, upper ? a : b, bit);
  (upper ? a : b) = got;
}
/// Words i of lanes q become words q of lanes i: with words that are the BF16 pairs of four neighbouring groups i of 8 columns, lane q
/// then has all 8 columns of group q.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&words)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) swap_lanes(words[i], words[i + 1], 1);
#pragma unroll
  for (int i = 0; i < 2; ++i) swap_lanes(words[i], words[i + 2], 2);
}

}  // namespace dsv3::cuda
