// Sums and running sums over a block, of integers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dsv3::cuda {

/// Sum over the block, in every thread. `scratch` [kThreads / 32] is shared memory.
template <int kThreads>
__device__ inline uint64_t block_sum(uint64_t value, uint64_t* scratch) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();  // the scratch of the call before has been read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  uint64_t sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += scratch[w];
  return sum;
}

/// Sum of the values of lower threads.
template <int kThreads>
__device__ inline uint64_t block_sum_before(uint64_t value, uint64_t* scratch) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t inclusive = value;
  for (unsigned step = 1; step < 32; step *= 2) {
    const uint64_t lower = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += lower;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = inclusive;
  __syncthreads();
  uint64_t before = 0;
  for (unsigned w = 0; w < warp; ++w) before += scratch[w];
  return before + inclusive - value;
}

}  // namespace dsv3::cuda
