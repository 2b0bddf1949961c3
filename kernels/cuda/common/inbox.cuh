// Shared memory of a block into which the blocks of its cluster send: stores that count their bytes on a barrier
// (store_cluster_async()). Cheaper than leaving sums for others to fetch, which takes the cluster two barriers.
#pragma once

#include "ptx.cuh"

namespace dsv3::cuda {

/// Opens this block's inbox for `bytes`, by all its threads. Who sends calls cluster_wait() before, once: then all inboxes of
/// the cluster are open. Who receives waits for phase 0 of `full`, and for nobody else; a block that expects 0 bytes may leave at any time.
__device__ inline void open_inbox(uint64_t* full, int bytes) {
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    fence_barrier_init();
  }
  __syncwarp();
  if (threadIdx.x == 0 && bytes > 0) barrier_expect(full, static_cast<uint32_t>(bytes));
  __syncwarp();
  cluster_arrive_relaxed();
}

}  // namespace dsv3::cuda
