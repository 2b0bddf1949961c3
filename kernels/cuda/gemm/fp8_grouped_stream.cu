// Grouped y = x W_e^T over a list of tiles of few rows: experts of decode batches, at the speed at which weights come
// from HBM.
//
// Which experts are hit is device memory's knowledge (ExpertTiles), so nothing can be requested before the predecessor
// ends. A persistent grid: an item is kRows weight rows of one tile, block b takes items b, b + grid, ...; the producer
// runs through the stages of all its items without a pause, as far ahead as the ring allows, so that neither the
// epilogues nor the look-ups of short items (K = 128: one stage) leave the memory idle. No split of K: a row's bits
// depend on the row and W_e alone.
//
// Predictions, H100, microseconds for 256 experts with a tile of 8 rows each (bytes / 3.1 TB/s; DeepGEMM's masked
// form):
//   4096 x 7168  2434 (2765)   7168 x 2048  1224 (1377)   512 x 7168  305 (367)   7168 x 256  163 (264)   256 x 7168
//   154 (206) 7168 x 128   86 + output 10 (177)
#include <algorithm>
#include <string>

#include "gemm.h"
#include "gemm_choice.h"
#include "stream_tile.cuh"

namespace dsv3::cuda {
namespace {

using stream::Memory;
using stream::Shape;

struct GroupedParams {
  stream::Maps maps;           // weights: [count * n][k]
  const float* weight_scales;  // [count][scale_rows][k_blocks]
  const ExpertTile* tiles;
  const int32_t* count;
  __nv_bfloat16* y;
  int64_t y_stride;
  int max_tiles, n, k_blocks, row_tiles, scale_rows;
};

/// Items of the whole grid. After wait_for_previous().
__device__ int count_items(const GroupedParams& p) {
  return min(max(__ldcg(p.count), 0), p.max_tiles) * p.row_tiles;
}

/// What one stage loads, and its weight scale.
struct Load {
  int token_row = 0, weight_row = 0, k_block = 0;
  float weight_scale = 0;
};

/// Stage q of this block's sequence: all K blocks of its first item, then of its second, ...
__device__ Load find_load(const GroupedParams& p, int q, int stages, int rows_of_block) {
  Load load;
  if (q >= stages) return load;
  const int item = static_cast<int>(blockIdx.x) + q / p.k_blocks * static_cast<int>(gridDim.x);
  const int row = item % p.row_tiles * rows_of_block;
  const ExpertTile* tile = p.tiles + item / p.row_tiles;
  const int expert = __ldcg(&tile->expert);
  load.token_row = __ldcg(&tile->row_begin);
  load.k_block = q % p.k_blocks;
  load.weight_row = expert * p.n + row;  // rows past n belong to the next expert (or are zeros): computed, never stored
  load.weight_scale =
      __ldg(p.weight_scales + (static_cast<int64_t>(expert) * p.scale_rows + row / 128) * p.k_blocks + load.k_block);
  return load;
}

/// The producer warp. Its lanes look up 32 stages at a time, the next 32 while the copies of these are issued.
template <int kTokens>
__device__ void produce(const GroupedParams& p, const Memory<kTokens>& memory, int items, int lane) {
  using S = Shape<kTokens>;
  const int grid = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int stages = block < items ? ((items - block - 1) / grid + 1) * p.k_blocks : 0;
  const auto to = memory.slots();
  Cursor<S::kStages> at;
  Load next = find_load(p, lane, stages, S::kRows);
  for (int base = 0; base < stages; base += 32) {
    const Load now = next;
    next = find_load(p, base + 32 + lane, stages, S::kRows);
    const int end = min(32, stages - base);
    for (int j = 0; j < end; ++j, at.advance()) {
      const int token_row = __shfl_sync(~0u, now.token_row, j), weight_row = __shfl_sync(~0u, now.weight_row, j);
      const int k_block = __shfl_sync(~0u, now.k_block, j);
      const float weight_scale = __shfl_sync(~0u, now.weight_scale, j);
      if (lane == 0) {
        const uint32_t full = to.full(at.stage);
        barrier_wait(to.empty(at.stage), at.parity ^ 1);  // the first round passes at once
        memory.weight_scales()[at.stage] = weight_scale;  // the arrival below publishes it with the copies
        barrier_expect(full, S::kCopyBytes);
        // No evict-first: an expert with several tiles reads its weights again.
        tma_load_2d(to.weights(at.stage), &p.maps.weights, full, k_block * 128, weight_row);
        tma_load_2d(to.tokens(at.stage), &p.maps.tokens, full, k_block * 128, token_row);
        tma_load_2d(to.scales(at.stage), &p.maps.scales, full, token_row, k_block);
      }
      __syncwarp();
    }
  }
}

/// A warp's 16 weight rows of all tokens, turned over through its own staging memory: 32 bytes of each token's row.
template <int kTokens>
__device__ void store(const float (&sum)[kTokens / 2], float* staging, __nv_bfloat16* y, int64_t y_stride, int tokens,
                      int rows, int lane) {
  using S = Shape<kTokens>;
  constexpr int kPass = S::kPassTokens, kPitch = S::kWarpPitch;
  float* mine = staging + 2 * (lane % 4) * kPitch + lane / 4;
  const int token = lane / 2, row = lane % 2 * 8;
#pragma unroll
  for (int begin = 0; begin < kTokens; begin += kPass) {
    if (begin < tokens) {
#pragma unroll
      for (int i = 0; i < kPass / 8; ++i) {
        const int from = begin / 2 + 4 * i;
        mine[8 * i * kPitch] = sum[from];
        mine[(8 * i + 1) * kPitch] = sum[from + 1];
        mine[8 * i * kPitch + 8] = sum[from + 2];
        mine[(8 * i + 1) * kPitch + 8] = sum[from + 3];
      }
      __syncwarp();
      if (token < kPass && begin + token < tokens && row < rows) {
        const float4* from = reinterpret_cast<const float4*>(staging + token * kPitch + row);
        stream::store_bf16x8(y + (begin + token) * y_stride + row, from[0], from[1]);
      }
      __syncwarp();
    }
  }
}

template <int kTokens>
__global__ void __launch_bounds__(Shape<kTokens>::kThreads, Shape<kTokens>::kBlocksPerSm)
    grouped_stream_kernel(const __grid_constant__ GroupedParams p) {
  using S = Shape<kTokens>;
  launch_dependents();
  extern __shared__ __align__(1024) uint8_t raw_memory[];
  const Memory<kTokens> memory(raw_memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = threadIdx.x / 128;
  if (threadIdx.x == S::kConsumers) stream::prefetch(p.maps);
  memory.init_barriers();
  wait_for_previous(p);
  const int items = count_items(p);
  if (threadIdx.x >= S::kConsumers) {
    produce<kTokens>(p, memory, items, lane);
    return;
  }
  const int grid = static_cast<int>(gridDim.x);
  int item = static_cast<int>(blockIdx.x);
  if (item >= items) return;
  int row_begin = __ldcg(&p.tiles[item / p.row_tiles].row_begin), tokens = __ldcg(&p.tiles[item / p.row_tiles].rows);
  stream::Consumer<S> consumer{.row = group * 64};
  Cursor<S::kStages> at;
  while (item < items) {
    const int weight_row = item % p.row_tiles * S::kRows + warp * 16;  // of the warp, within the expert
    const int next = item + grid;
    const ExpertTile* next_tile =
        p.tiles + min(next, items - 1) / p.row_tiles;  // asked for now, needed after this item
    const int next_begin = __ldcg(&next_tile->row_begin), next_tokens = __ldcg(&next_tile->rows);
#pragma unroll
    for (float& sum : consumer.sum) sum = 0;
    // Lane 0 reads, the one that also releases the stage: racecheck follows orders of single threads only.
    consumer.add_all(memory, at, p.k_blocks, true, [&](int, int stage) {
      return __shfl_sync(~0u, lane == 0 ? memory.weight_scales()[stage] : 0.0f, 0);
    });
    __nv_bfloat16* y = p.y + row_begin * p.y_stride + weight_row;
    store<kTokens>(consumer.sum, memory.staging(warp), y, p.y_stride, tokens, p.n - weight_row, lane);
    item = next;
    row_begin = next_begin;
    tokens = next_tokens;
  }
}

template <int kTokens>
Status start(GroupedParams& p, Stream stream) {
  using S = Shape<kTokens>;
  p.row_tiles = (p.n + S::kRows - 1) / S::kRows;
  if (Status s = allow_shared_bytes("fp8_grouped_gemm_stream", grouped_stream_kernel<kTokens>, S::kSharedBytes);
      !s.ok())
    return s;
  const int64_t grid = std::min(int64_t{sm_count()} * S::kBlocksPerSm, int64_t{p.max_tiles} * p.row_tiles);
  return launch("fp8_grouped_gemm_stream", grouped_stream_kernel<kTokens>,
                {dim3(static_cast<unsigned>(grid)), dim3(S::kThreads), S::kSharedBytes, 1}, stream, p);
}

}  // namespace

Status fp8_grouped_gemm_stream(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y,
                               Stream stream) {
  if (x.rows == 0 || tiles.max_tiles == 0) return {};
  const char* what = stream::fault(x, w, y);
  if (what == nullptr && (tiles.tiles == nullptr || tiles.count == nullptr || tiles.max_tiles < 0))
    what = "no list of tiles";
  if (what == nullptr && static_cast<int64_t>(tiles.max_tiles) * ((w.n + 63) / 64) * (w.k / 128) > INT32_MAX)
    what = "too many tiles";
  if (what == nullptr && tiles.tile_rows != stream_tokens(tiles.tile_rows))
    what = "tile_rows is none of 8, 16, 32, 64, 128";
  if (what != nullptr) {
    return wrong("fp8_grouped_gemm_stream", std::string(what) + " (rows " + std::to_string(x.rows) + ", tile_rows " +
                                                std::to_string(tiles.tile_rows) + ", n " + std::to_string(w.n) +
                                                ", k " + std::to_string(w.k) + ")");
  }
  GroupedParams p{};
  const int tokens = tiles.tile_rows;
  if (Status s = stream::make_maps(x, w, stream_weight_rows(tokens), tokens, &p.maps); !s.ok()) return s;
  p.weight_scales = w.scales;
  p.tiles = tiles.tiles;
  p.count = tiles.count;
  p.y = y.data;
  p.y_stride = y.stride;
  p.max_tiles = tiles.max_tiles;
  p.n = static_cast<int>(w.n);
  p.k_blocks = static_cast<int>(w.k / 128);
  p.scale_rows = static_cast<int>((w.n + 127) / 128);
  switch (tokens) {
    case 8:
      return start<8>(p, stream);
    case 16:
      return start<16>(p, stream);
    case 32:
      return start<32>(p, stream);
    case 64:
      return start<64>(p, stream);
    default:
      return start<128>(p, stream);
  }
}

}  // namespace dsv3::cuda
