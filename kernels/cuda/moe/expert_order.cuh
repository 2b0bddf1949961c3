// Pieces of the sort of (row, k) by expert: ranks in a chunk of kThreads * kRounds entries, places of experts, the scatter.
#pragma once

#include "../norm/rows.cuh"
#include "moe.h"

namespace dsv3::cuda {

struct OrderParams {
  const int32_t* ids;  // [entries]
  int32_t* position;   // [entries]
  int32_t* source;     // [capacity]
  ExpertTile* tiles;
  int32_t* num_tiles;
  int32_t* scratch;  // [chunks][experts] counts, then first rows; [1] rows in use
  int64_t capacity;
  int32_t entries, top_k, experts, tile_rows, chunks;
};

struct OrderShared {
  uint16_t* counts;  // [warps][experts]: entries of the warps before, after rank_chunk()
  int32_t* starts;   // [experts]
};
__device__ inline OrderShared shared_of(int experts) {
  extern __shared__ int32_t memory[];
  return {reinterpret_cast<uint16_t*>(memory + experts), memory};
}
inline size_t order_shared_bytes(int64_t experts, int threads) {
  return static_cast<size_t>(experts) * (sizeof(int32_t) + static_cast<size_t>(threads / 32) * sizeof(uint16_t));
}

template <int kRounds>
struct Ranked {
  int32_t id[kRounds];    // -1: nowhere
  int32_t rank[kRounds];  // among the entries of the same expert and warp
};
template <int kThreads, int kRounds>
__device__ inline int entry_of(int chunk, int round) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  return chunk * (kThreads * kRounds) + warp * (kRounds * 32) + round * 32 + lane;
}

/// Ranks a chunk's entries; thread e < experts gets how many entries expert e has in the chunk. Ends with a barrier.
template <int kThreads, int kRounds>
__device__ int rank_chunk(const OrderParams& p, int chunk, const OrderShared& shared, Ranked<kRounds>& ranked) {
  constexpr unsigned kAll = 0xffffffffu;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  // Warps behind the last entry have nothing to count.
  const int warps = min(kThreads / 32, (p.entries - chunk * (kThreads * kRounds) + kRounds * 32 - 1) / (kRounds * 32));
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int entry = entry_of<kThreads, kRounds>(chunk, round);
    const int id = entry < p.entries ? __ldcg(p.ids + entry) : -1;  // other blocks of a cluster may just have written it
    ranked.id[round] = id >= 0 && id < p.experts ? id : -1;
    ranked.rank[round] = 0;
  }
  for (int i = thread; i < (p.experts * warps + 1) / 2; i += kThreads) reinterpret_cast<uint32_t*>(shared.counts)[i] = 0;
  __syncthreads();
  uint16_t* mine = shared.counts + warp * p.experts;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    if (warp >= warps) break;
    const int id = ranked.id[round];
    const unsigned same = __match_any_sync(kAll, id);
    const unsigned before = same & ((1u << lane) - 1);
    const int base = id >= 0 ? mine[id] : 0;
    ranked.rank[round] = base + __popc(before);
    __syncwarp();
    if (id >= 0 && before == 0) mine[id] = static_cast<uint16_t>(base + __popc(same));
    __syncwarp();
  }
  __syncthreads();
  int total = 0;
  if (thread < p.experts) {
    constexpr int kAhead = 8;  // loads before stores, which might be to the same place for all the compiler knows
    for (int begin = 0; begin < warps; begin += kAhead) {
      int here[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) here[i] = begin + i < warps ? shared.counts[(begin + i) * p.experts + thread] : 0;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i < warps) shared.counts[(begin + i) * p.experts + thread] = static_cast<uint16_t>(total);
        total += here[i];
      }
    }
  }
  __syncthreads();
  return total;
}

/// Sum of x over the threads before; *all: over the block.
template <int kThreads>
__device__ int2 scan_before(int2 x, int2* all) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kWarps = kThreads / 32;
  __shared__ int2 sums[kWarps];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  int2 upto = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int a = __shfl_up_sync(kAll, upto.x, step), b = __shfl_up_sync(kAll, upto.y, step);
    if (lane >= step) upto.x += a, upto.y += b;
  }
  if (lane == 31) sums[warp] = upto;
  __syncthreads();
  int2 other = lane < kWarps ? sums[lane] : int2{0, 0};  // every warp sums all of them
  const int2 own = other;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int a = __shfl_up_sync(kAll, other.x, step), b = __shfl_up_sync(kAll, other.y, step);
    if (lane >= step) other.x += a, other.y += b;
  }
  *all = {__shfl_sync(kAll, other.x, 31), __shfl_sync(kAll, other.y, 31)};
  const int before_x = __shfl_sync(kAll, other.x - own.x, warp), before_y = __shfl_sync(kAll, other.y - own.y, warp);
  return {before_x + upto.x - x.x, before_y + upto.y - x.y};
}

/// Thread e places expert e with `total` rows: tiles, padding behind its rows. Returns its first row; *used: rows of all experts.
template <int kThreads>
__device__ int place_experts(const OrderParams& p, int total, int* used) {
  const int expert = static_cast<int>(threadIdx.x);
  const int aligned_rows = (total + kExpertRowAlign - 1) / kExpertRowAlign * kExpertRowAlign;
  const int num_tiles = (total + p.tile_rows - 1) / p.tile_rows;
  int2 all;
  const int2 first = scan_before<kThreads>({aligned_rows, num_tiles}, &all);
  *used = all.x;
  for (int i = 0; i < num_tiles; ++i) {
    const int done = i * p.tile_rows;
    p.tiles[first.y + i] = {expert, first.x + done, min(p.tile_rows, total - done), 0};
  }
  for (int i = total; i < aligned_rows; ++i) p.source[first.x + i] = -1;
  if (expert == 0) *p.num_tiles = all.y;
  return first.x;
}

/// shared.starts[e]: first row of the chunk's entries of expert e.
template <int kThreads, int kRounds>
__device__ void scatter(const OrderParams& p, int chunk, const OrderShared& shared, const Ranked<kRounds>& ranked) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int entry = entry_of<kThreads, kRounds>(chunk, round), id = ranked.id[round];
    if (entry >= p.entries) continue;
    if (id < 0) {
      p.position[entry] = -1;
      continue;
    }
    const int at = shared.starts[id] + shared.counts[warp * p.experts + id] + ranked.rank[round];
    p.position[entry] = at;
    p.source[at] = entry / p.top_k;
  }
}

/// The whole order by one block. After wait_for_previous().
template <int kThreads, int kRounds>
__device__ void order_in_a_block(const OrderParams& p) {
  const OrderShared shared = shared_of(p.experts);
  Ranked<kRounds> ranked;
  const int total = rank_chunk<kThreads, kRounds>(p, 0, shared, ranked);
  int used;
  const int start = place_experts<kThreads>(p, total, &used);  // threads past the experts have a total of 0
  if (threadIdx.x < p.experts) shared.starts[threadIdx.x] = start;
  __syncthreads();
  scatter<kThreads, kRounds>(p, 0, shared, ranked);
  for (int64_t i = used + static_cast<int>(threadIdx.x); i < p.capacity; i += kThreads) p.source[i] = -1;
}

/// The launcher's checks; fills `params`.
Status check_order(const char* name, int64_t rows, int64_t top_k, int64_t experts, const int32_t* ids, int tile_rows,
                   const ExpertOrder& order, OrderParams* params);

}  // namespace dsv3::cuda
