// The kernel of fp8_tiles.cu: y = x W^T in block-scaled e4m3 by wgmma, persistent, in clusters of two blocks or in
// blocks alone.
//
// A cluster takes a tile of kRows rows x kCluster kCols columns: block `rank` computes columns rank * kCols and on. Two
// blocks need the same rows of x: each loads every second box of them and multicasts it to both; W and the scales of x
// each block loads for itself. Boxes without any row of the tile are not loaded. Pairs halve the traffic of x, and wait
// for each other: for large tiles, and many. Warpgroups 0 and 1 do the arithmetic, one thread of warpgroup 2 the loads.
// Stage = 128 of K = one scale block.
//
// Tile of 64 rows: warpgroup w takes columns w * kCols / 2 and on. Otherwise it takes kRows / 2 rows from w * kRows /
// 2, in waves of 64 that share one accumulator. One warpgroup promotes while the other's instructions run (kernels.md
// finding 5). They share the tensor core as it comes: with strict turns (named barriers) nearly every shape was
// measured slower, by 1 or 2%.
//
// kSkipWaves (lists of 256 rows): warpgroup w takes rows 64 w and on and rows 128 + 64 w and on, boxes of x have 64
// rows, and only waves with rows are multiplied: an expert with 140 rows costs three waves, not four, and its weights
// are read once. For dense products that is 6 to 9% slower, so that they have a kernel without these branches.
//
// Every output is one float32 chain, ascending in K: sum = fma(scale_x * scale_w, product of 128, sum). It is the same
// in every tile shape and at every place in a tile, so the bits of a row depend neither on the tile nor on the other
// rows.
//
// Rows of x past the tensor arrive as zeros; rows of a tile past its count are whatever lies there, or what the stage
// held before (NaN included), and reach only outputs that are not stored.
//
// Asking for the weights of later stages in L2 (cp.async.bulk.prefetch) made every product slower, by 5 to 30%.
#pragma once

#include "fp8_tiles_load.cuh"
#include "fp8_tiles_multiply.cuh"

namespace dsv3::cuda::tiles {

template <int kRows, int kCols, int kCluster, bool kSkipWaves>
__global__ void __launch_bounds__(kThreads, 1) fp8_tiles_kernel(const __grid_constant__ Params p) {
  using L = Layout<kRows, kCols, kCluster, kSkipWaves>;
  // At the same place in both blocks (multicasts and releases name the peer's memory by our own offsets): a constant,
  // so that addresses and descriptors are cheap.
  extern __shared__ __align__(1024) uint8_t base[];
  launch_dependents();
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
  const int unit0 = static_cast<int>(blockIdx.x / kCluster), step = static_cast<int>(gridDim.x / kCluster);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&p.x_map);
    prefetch_tensor_map(&p.w_map);
    auto* full = reinterpret_cast<uint64_t*>(base + L::kBarriers);
    for (int i = 0; i < L::kStages; ++i) {
      barrier_init(&full[i], 1);                                   // the loader; bytes from both blocks
      barrier_init(&full[L::kStages + i], kCluster * kMathWarps);  // math warps of both blocks
    }
    fence_barrier_init();
  }
  __syncwarp();
  if constexpr (kCluster == 2) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }

  if (threadIdx.x >= kMathThreads) {
    shrink_registers<40>();
    if (threadIdx.x < kMathThreads + 32 && elect_one()) {
      load<kRows, kCols, kCluster, kSkipWaves>(p, base, unit0, step, rank);
    } else {
      wait_for_previous();
    }
    __syncwarp();
  } else {
    grow_registers<232>();
    // The shuffle tells the compiler that whole warps branch here.
    if (__shfl_sync(0xffffffff, threadIdx.x / 128, 0) == 0) {
      if constexpr (kCluster == 1) {
        multiply_alone<kRows, kCols, 0>(p, base, unit0, step);
      } else {
        multiply_pair<kRows, kCols, kSkipWaves, 0>(p, base, unit0, step, rank);
      }
    } else {
      if constexpr (kCluster == 1) {
        multiply_alone<kRows, kCols, 1>(p, base, unit0, step);
      } else {
        multiply_pair<kRows, kCols, kSkipWaves, 1>(p, base, unit0, step, rank);
      }
    }
    __syncwarp();
  }
  // No block leaves while the other may still write into it: its last releases go to both.
  if constexpr (kCluster == 2) {
    cluster_arrive();
    cluster_wait();
  }
}

}  // namespace dsv3::cuda::tiles
