// A stable sort of (row, k) by expert. A chunk of 4096 entries is ranked by one block: each of its 32 warps takes 128 entries in a
// row, so (warp, round, lane) is the order of entries and ranks never depend on timing. Up to one chunk everything is one kernel;
// beyond that, chunks are counted, the counts are summed by one block, and the chunks are ranked again and scattered.
#include <algorithm>

#include "expert_order.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kThreads = 1024, kRounds = 4, kChunk = kThreads * kRounds;
constexpr int kFewThreads = 512;  // one entry a thread, and one expert

template <int kThreads, int kRounds>
__global__ __launch_bounds__(kThreads) void order_kernel(const __grid_constant__ OrderParams p) {
  launch_dependents();
  wait_for_previous();
  order_in_a_block<kThreads, kRounds>(p);
}

__global__ __launch_bounds__(kThreads) void count_kernel(const __grid_constant__ OrderParams p) {
  launch_dependents();
  wait_for_previous();
  Ranked<kRounds> ranked;
  const int chunk = static_cast<int>(blockIdx.x);
  const int total = rank_chunk<kThreads, kRounds>(p, chunk, shared_of(p.experts), ranked);
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
  int start = place_experts<kThreads>(p, total, &used);
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
  const OrderShared shared = shared_of(p.experts);
  const int chunk = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (thread < p.experts) shared.starts[thread] = p.scratch[chunk * p.experts + thread];
  Ranked<kRounds> ranked;
  rank_chunk<kThreads, kRounds>(p, chunk, shared, ranked);
  scatter<kThreads, kRounds>(p, chunk, shared, ranked);
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

Status check_order(const char* name, int64_t rows, int64_t top_k, int64_t experts, const int32_t* ids, int tile_rows,
                   const ExpertOrder& order, OrderParams* params) {
  const int64_t entries = rows * top_k;
  if (experts < 1 || experts > kThreads || top_k < 1) return wrong(name, std::to_string(experts) + " experts, allowed 1 to 1024");
  if (rows < 0 || entries > int64_t{1} << 30) return wrong(name, std::to_string(rows) + " rows");
  if (tile_rows < kExpertRowAlign || tile_rows % kExpertRowAlign != 0) return wrong(name, "tile_rows is " + std::to_string(tile_rows));
  if (order.capacity < expert_order_rows(rows, top_k, experts) || order.max_tiles < expert_order_tiles(rows, top_k, experts, tile_rows)) {
    return wrong(name,
                 "buffers for " + std::to_string(order.capacity) + " rows and " + std::to_string(order.max_tiles) + " tiles are short");
  }
  if (entries == 0 && order.num_tiles == nullptr) return {};
  // With 0 rows the kernel still runs where there is a list: the products behind it read num_tiles.
  if (order.num_tiles == nullptr || (order.capacity > 0 && order.source == nullptr) ||
      (entries > 0 && (ids == nullptr || order.position == nullptr || order.tiles == nullptr))) {
    return wrong(name, "a buffer is null");
  }
  *params = {ids,
             order.position,
             order.source,
             order.tiles,
             order.num_tiles,
             nullptr,
             order.capacity,
             static_cast<int32_t>(entries),
             static_cast<int32_t>(top_k),
             static_cast<int32_t>(experts),
             tile_rows,
             static_cast<int32_t>((entries + kChunk - 1) / kChunk)};
  return {};
}

Status order_by_expert(int64_t rows, int64_t top_k, int64_t experts, const int32_t* ids, int tile_rows, const ExpertOrder& order,
                       int32_t* scratch, Stream stream) {
  constexpr const char* kName = "order_by_expert";
  OrderParams p{};
  DSV3_TRY(check_order(kName, rows, top_k, experts, ids, tile_rows, order, &p));
  if (p.num_tiles == nullptr) return {};  // no rows, no list
  if (p.chunks > 1 && scratch == nullptr) return wrong(kName, "scratch is null");
  p.scratch = scratch;
  // Few entries in few warps: a decode step waits for the latency of this kernel.
  if (p.entries <= kFewThreads && experts <= kFewThreads) {
    const LaunchShape few{dim3(1), dim3(kFewThreads), order_shared_bytes(experts, kFewThreads)};
    return launch(kName, order_kernel<kFewThreads, 1>, few, stream, p);
  }
  const size_t bytes = order_shared_bytes(experts, kThreads);
  const LaunchShape one{dim3(1), dim3(kThreads), bytes};
  if (p.entries <= 2 * kThreads) {
    DSV3_TRY(allow_shared_bytes(kName, order_kernel<kThreads, 2>, bytes));
    return launch(kName, order_kernel<kThreads, 2>, one, stream, p);
  }
  if (p.chunks <= 1) {
    DSV3_TRY(allow_shared_bytes(kName, order_kernel<kThreads, kRounds>, bytes));
    return launch(kName, order_kernel<kThreads, kRounds>, one, stream, p);
  }
  const LaunchShape many{dim3(static_cast<unsigned>(p.chunks)), dim3(kThreads), bytes};
  DSV3_TRY(allow_shared_bytes(kName, count_kernel, bytes));
  DSV3_TRY(allow_shared_bytes(kName, scatter_kernel, bytes));
  DSV3_TRY(launch(kName, count_kernel, many, stream, p));
  DSV3_TRY(launch(kName, place_kernel, {dim3(1), dim3(kThreads)}, stream, p));
  return launch(kName, scatter_kernel, many, stream, p);
}

}  // namespace dsv3::cuda
