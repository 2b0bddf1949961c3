// A stable sort of (row, k) by expert. A chunk of 4096 entries is ranked by one block: each of its 32 warps takes 128 entries in a
// row, so (warp, round, lane) is the order of entries and ranks never depend on timing. Up to one chunk everything is one kernel;
// beyond that, chunks are counted, the counts are summed by one block, and the chunks are ranked again and scattered.
#include <algorithm>

#include "../norm/rows.cuh"
#include "moe.h"

namespace dsv3::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32, kRounds = 4, kChunk = kThreads * kRounds;
constexpr unsigned kAll = 0xffffffffu;

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

struct Shared {
  uint16_t* counts;  // [warps][experts]: entries of the warps before, after rank_chunk()
  int32_t* starts;   // [experts]
};
__device__ inline Shared shared_of(int experts) {
  extern __shared__ int32_t memory[];
  return {reinterpret_cast<uint16_t*>(memory + experts), memory};
}
size_t shared_bytes(int64_t experts) {
  return static_cast<size_t>(experts) * (sizeof(int32_t) + kWarps * sizeof(uint16_t));
}

struct Ranked {
  int32_t id[kRounds];    // -1: nowhere
  int32_t rank[kRounds];  // among the entries of the same expert and warp
};
__device__ inline int entry_of(int chunk, int round) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  return chunk * kChunk + warp * (kRounds * 32) + round * 32 + lane;
}

/// Ranks a chunk's entries; thread e < experts gets how many entries expert e has in the chunk. Ends with a barrier.
__device__ int rank_chunk(const OrderParams& p, int chunk, const Shared& shared, Ranked& ranked) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < p.experts * kWarps / 2; i += kThreads) reinterpret_cast<uint32_t*>(shared.counts)[i] = 0;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int entry = entry_of(chunk, round);
    const int id = entry < p.entries ? p.ids[entry] : -1;
    ranked.id[round] = id >= 0 && id < p.experts ? id : -1;
  }
  __syncthreads();
  uint16_t* mine = shared.counts + warp * p.experts;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
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
#pragma unroll 8
    for (int w = 0; w < kWarps; ++w) {
      uint16_t& count = shared.counts[w * p.experts + thread];
      const int here = count;
      count = static_cast<uint16_t>(total);
      total += here;
    }
  }
  __syncthreads();
  return total;
}

/// Sum of x over the threads before; *all: over the block.
__device__ int2 scan_before(int2 x, int2* all) {
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
  int2 other = sums[lane];  // kWarps = 32: every warp sums all of them
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
__device__ int place_experts(const OrderParams& p, int total, int* used) {
  const int expert = static_cast<int>(threadIdx.x);
  const int aligned_rows = (total + kExpertRowAlign - 1) / kExpertRowAlign * kExpertRowAlign;
  const int num_tiles = (total + p.tile_rows - 1) / p.tile_rows;
  int2 all;
  const int2 first = scan_before({aligned_rows, num_tiles}, &all);
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
__device__ void scatter(const OrderParams& p, int chunk, const Shared& shared, const Ranked& ranked) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int entry = entry_of(chunk, round), id = ranked.id[round];
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

__global__ __launch_bounds__(kThreads) void order_kernel(const __grid_constant__ OrderParams p) {
  launch_dependents();
  wait_for_previous();
  const Shared shared = shared_of(p.experts);
  Ranked ranked;
  const int total = rank_chunk(p, 0, shared, ranked);
  int used;
  const int start = place_experts(p, total, &used);  // threads past the experts have a total of 0
  if (threadIdx.x < p.experts) shared.starts[threadIdx.x] = start;
  __syncthreads();
  scatter(p, 0, shared, ranked);
  for (int64_t i = used + static_cast<int>(threadIdx.x); i < p.capacity; i += kThreads) p.source[i] = -1;
}

__global__ __launch_bounds__(kThreads) void count_kernel(const __grid_constant__ OrderParams p) {
  launch_dependents();
  wait_for_previous();
  Ranked ranked;
  const int chunk = static_cast<int>(blockIdx.x);
  const int total = rank_chunk(p, chunk, shared_of(p.experts), ranked);
  if (threadIdx.x < p.experts) p.scratch[chunk * p.experts + static_cast<int>(threadIdx.x)] = total;
}

__global__ __launch_bounds__(kThreads) void place_kernel(const __grid_constant__ OrderParams p) {
  launch_dependents();
  wait_for_previous();
  const int expert = static_cast<int>(threadIdx.x);
  int total = 0;
  if (expert < p.experts) {
#pragma unroll 4
    for (int chunk = 0; chunk < p.chunks; ++chunk) total += p.scratch[chunk * p.experts + expert];
  }
  int used;
  int start = place_experts(p, total, &used);
  if (expert < p.experts) {
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      int32_t& count = p.scratch[chunk * p.experts + expert];
      const int here = count;
      count = start;
      start += here;
    }
  }
  if (expert == 0) p.scratch[p.chunks * p.experts] = used;
}

__global__ __launch_bounds__(kThreads) void scatter_kernel(const __grid_constant__ OrderParams p) {
  launch_dependents();
  wait_for_previous();
  const Shared shared = shared_of(p.experts);
  const int chunk = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (thread < p.experts) shared.starts[thread] = p.scratch[chunk * p.experts + thread];
  Ranked ranked;
  rank_chunk(p, chunk, shared, ranked);
  scatter(p, chunk, shared, ranked);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = p.scratch[p.chunks * p.experts] + static_cast<int64_t>(chunk) * kThreads + thread; i < p.capacity; i += step) {
    p.source[i] = -1;
  }
}

}  // namespace

int64_t expert_order_rows(int64_t rows, int64_t top_k, int64_t experts) {
  const int64_t entries = rows * top_k;
  return entries + std::min(entries, experts) * (kExpertRowAlign - 1);
}

int64_t expert_order_tiles(int64_t rows, int64_t top_k, int64_t experts, int tile_rows) {
  const int64_t entries = rows * top_k;
  return entries / tile_rows + std::min(entries, experts);  // ceil(c / t) <= (c - 1) / t + 1 for each expert in use
}

int64_t expert_order_scratch(int64_t rows, int64_t top_k, int64_t experts) {
  return (rows * top_k + kChunk - 1) / kChunk * experts + 1;
}

Status order_by_expert(int64_t rows, int64_t top_k, int64_t experts, const int32_t* ids, int tile_rows, const ExpertOrder& order,
                       int32_t* scratch, Stream stream) {
  constexpr const char* kName = "order_by_expert";
  const int64_t entries = rows * top_k;
  if (experts < 1 || experts > kThreads || top_k < 1) return wrong(kName, std::to_string(experts) + " experts, allowed 1 to 1024");
  if (rows < 0 || entries > int64_t{1} << 30) return wrong(kName, std::to_string(rows) + " rows");
  if (tile_rows < kExpertRowAlign || tile_rows % kExpertRowAlign != 0) return wrong(kName, "tile_rows is " + std::to_string(tile_rows));
  if (order.capacity < expert_order_rows(rows, top_k, experts) || order.max_tiles < expert_order_tiles(rows, top_k, experts, tile_rows)) {
    return wrong(kName,
                 "buffers for " + std::to_string(order.capacity) + " rows and " + std::to_string(order.max_tiles) + " tiles are short");
  }
  if (entries == 0 && order.num_tiles == nullptr) return {};
  // With 0 rows the kernel still runs where there is a list: the products behind it read num_tiles.
  if (order.num_tiles == nullptr || (order.capacity > 0 && order.source == nullptr) ||
      (entries > 0 && (ids == nullptr || order.position == nullptr || order.tiles == nullptr))) {
    return wrong(kName, "a buffer is null");
  }
  const int64_t chunks = (entries + kChunk - 1) / kChunk;
  if (chunks > 1 && scratch == nullptr) return wrong(kName, "scratch is null");
  const OrderParams p{ids,
                      order.position,
                      order.source,
                      order.tiles,
                      order.num_tiles,
                      scratch,
                      order.capacity,
                      static_cast<int32_t>(entries),
                      static_cast<int32_t>(top_k),
                      static_cast<int32_t>(experts),
                      tile_rows,
                      static_cast<int32_t>(chunks)};
  const size_t bytes = shared_bytes(experts);
  const LaunchShape one{dim3(1), dim3(kThreads), bytes};
  if (chunks <= 1) {
    DSV3_TRY(allow_shared_bytes(kName, order_kernel, bytes));
    return launch(kName, order_kernel, one, stream, p);
  }
  const LaunchShape many{dim3(static_cast<unsigned>(chunks)), dim3(kThreads), bytes};
  DSV3_TRY(allow_shared_bytes(kName, count_kernel, bytes));
  DSV3_TRY(allow_shared_bytes(kName, scatter_kernel, bytes));
  DSV3_TRY(launch(kName, count_kernel, many, stream, p));
  DSV3_TRY(launch(kName, place_kernel, {dim3(1), dim3(kThreads)}, stream, p));
  return launch(kName, scatter_kernel, many, stream, p);
}

}  // namespace dsv3::cuda
