// The kernel of fp8_tiles.cu: y = x W^T in block-scaled e4m3 by wgmma, persistent, in clusters of two blocks.
//
// A cluster takes a tile of kRows rows x 2 kCols columns: block `rank` computes columns rank * kCols and on. Both need the same
// rows of x: each loads every second box of them and multicasts it to both; W and the scales of x each block loads for itself.
// Boxes without any row of the tile are not loaded.
// Warpgroups 0 and 1 do the arithmetic, one thread of warpgroup 2 the loads. Stage = 128 of K = one scale block.
//
// Tile of 64 rows: warpgroup w takes columns w * kCols / 2 and on. Otherwise it takes kRows / 2 rows from w * kRows / 2, in waves of 64
// that share one accumulator. One warpgroup promotes while the other's instructions run (kernels.md finding 5). They share the
// tensor core as it comes: with strict turns (named barriers) nearly every shape was measured slower, by 1 or 2%.
//
// kSkipWaves (lists of 256 rows): warpgroup w takes rows 64 w and on and rows 128 + 64 w and on, boxes of x have 64 rows, and only
// waves with rows are multiplied: an expert with 140 rows costs three waves, not four, and its weights are read once. For dense
// products that is 6 to 9% slower, so that they have a kernel without these branches.
//
// Every output is one float32 chain, ascending in K: sum = fma(scale_x * scale_w, product of 128, sum). It is the same in every
// tile shape and at every place in a tile, so the bits of a row depend neither on the tile nor on the other rows.
//
// Rows of x past the tensor arrive as zeros; rows of a tile past its count are whatever lies there, or what the stage held before
// (NaN included), and reach only outputs that are not stored.
#pragma once

#include "../common/ptx.cuh"
#include "../common/types.h"
#include "../common/wgmma.cuh"
#include "tiles_choice.h"

namespace dsv3::cuda::tiles {

struct Params {
  CUtensorMap x_map;  ///< [x.rows, k], box kBoxRows x 128
  CUtensorMap w_map;  ///< [experts * n, k], box kCols x 128
  const float* x_scales = nullptr;   ///< [k_blocks][scale_stride]
  const float* w_scales = nullptr;   ///< [experts][n_blocks][k_blocks]
  Bf16* y = nullptr;
  int64_t y_stride = 0;
  const ExpertTile* list = nullptr;  ///< grouped: the tiles; null: dense
  const int32_t* count = nullptr;    ///< grouped: how many
  int m = 0, n = 0, k_blocks = 0;
  int n_blocks = 0;                  ///< ceil(n / 128): scale rows of a weight
  int n_pairs = 0;                   ///< ceil(n / (2 kCols))
  int scale_stride = 0;
  int band = 0;                      ///< row tiles that are done for all columns before the next
};

inline constexpr int kMathThreads = 256, kThreads = 384;
inline constexpr int kStageK = 128;  // = kQuantGroup; bytes of a row of a stage: the span of the swizzle
inline constexpr int kMathWarps = kMathThreads / 32;
inline constexpr int kStageSlab = 16 * 128;  // bytes of a warp's output staging: 16 rows x 64 BF16

template <int kRows, int kCols, bool kSkipWaves>
struct Layout {
  static_assert(!kSkipWaves || kRows == 256);
  static constexpr int kBoxRows = kSkipWaves ? 64 : kRows / 2, kBoxBytes = kBoxRows * kStageK;  // of x
  static constexpr int kXBytes = kRows * kStageK, kWBytes = kCols * kStageK, kScaleBytes = kRows * 4;
  static constexpr int kFixedBytes = kMathWarps * kStageSlab + 1024 /* alignment */ + 256 /* barriers */;
  static constexpr int kFit = (232448 - kFixedBytes) / (kXBytes + kWBytes + kScaleBytes);
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  // Offsets from a base on 1024 bytes.
  static constexpr int kX = 0, kW = kX + kStages * kXBytes, kOut = kW + kStages * kWBytes, kScales = kOut + kMathWarps * kStageSlab;
  static constexpr int kBarriers = kScales + kStages * kScaleBytes;  // full[kStages], empty[kStages]
  static constexpr int kBytes = kBarriers + 256 + 1024;
  static_assert(kBytes <= 232448 && kStages >= 3 && 16 * kStages <= 256);
  static_assert(kBoxBytes % 1024 == 0 && kWBytes % 1024 == 0, "boxes of x and W start on 1024 bytes");
};

/// What a cluster does next. `first_row` is a multiple of 8, also the offset into the scales of x (16 bytes aligned).
struct Work {
  int first_row = 0, expert = 0;
  uint32_t packed = 0;  // pair * 512 + rows: a register less for tiles that have none to spare
  __device__ int rows() const { return static_cast<int>(packed % 512); }
  __device__ int pair() const { return static_cast<int>(packed / 512); }
};

/// Tiles in bands of p.band row tiles, rows first: a wave of clusters covers a near square, whose operands fit L2.
///
/// Clusters drift apart where memory limits them (by whole tiles over a long list): what two tiles share is then read from HBM twice. So
/// lists for many experts should have one tile for most experts, whose weights nobody else reads (grouped_tile_rows()).
template <int kRows>
__device__ inline Work locate(const Params& p, int index, int row_tiles) {
  const int band = index / (p.band * p.n_pairs);
  const int in_band = index - band * p.band * p.n_pairs;
  const int band_rows = min(p.band, row_tiles - band * p.band);
  const int row_tile = band * p.band + in_band % band_rows;
  Work work;
  work.packed = in_band / band_rows * 512;
  if (p.list != nullptr) {
    const int4 tile = *reinterpret_cast<const int4*>(p.list + row_tile);
    work.expert = tile.x;
    work.first_row = tile.y;
    work.packed += tile.z;
  } else {
    work.first_row = row_tile * kRows;
    work.packed += min(kRows, p.m - work.first_row);
  }
  return work;
}

/// Position in the ring of stages.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// The loading thread. `unit0`, `step`: this cluster's first tile and the count of clusters.
template <int kRows, int kCols, bool kSkipWaves>
__device__ inline void load(const Params& p, uint8_t* base, int unit0, int step, int rank) {
  using L = Layout<kRows, kCols, kSkipWaves>;
  auto* full = reinterpret_cast<uint64_t*>(base + L::kBarriers);
  auto* empty = full + L::kStages;
  const bool grouped = p.list != nullptr;
  const auto count_boxes = [&](const Work& work) { return (work.rows() + L::kBoxRows - 1) / L::kBoxRows; };
  // Scales of rows past scale_stride do not exist; the count stays a multiple of 4 floats.
  const auto scale_bytes = [&](const Work& work) {
    return static_cast<uint32_t>(min(count_boxes(work) * L::kBoxRows, p.scale_stride - work.first_row)) * 4;
  };
  const auto w_row = [&](const Work& work) { return work.expert * p.n + (2 * work.pair() + rank) * kCols; };
  const auto load_w = [&](const Work& work, int stage, int kb) {
    barrier_expect(&full[stage], count_boxes(work) * L::kBoxBytes + L::kWBytes + scale_bytes(work));
    tma_load_2d(base + L::kW + stage * L::kWBytes, &p.w_map, &full[stage], kb * kStageK, w_row(work));
  };

  // Dense: the first stages' weights are known and constant, so they go before the wait. Stages are fresh: nothing to wait for.
  int early = 0;
  if (!grouped) {
    const int row_tiles = (p.m + kRows - 1) / kRows;
    if (unit0 < row_tiles * p.n_pairs) {
      const Work work = locate<kRows>(p, unit0, row_tiles);
      early = min(L::kStages, p.k_blocks);
      for (int kb = 0; kb < early; ++kb) load_w(work, kb, kb);
    }
  }
  wait_for_previous();
  const int row_tiles = grouped ? *p.count : (p.m + kRows - 1) / kRows;
  const int units = row_tiles * p.n_pairs;

  Ring<L::kStages> ring;
  for (int unit = unit0; unit < units; unit += step) {
    const Work work = locate<kRows>(p, unit, row_tiles);
    const int boxes = count_boxes(work);
    for (int kb = 0; kb < p.k_blocks; ++kb) {
      const int stage = ring.stage;
      if (early > 0) {
        --early;  // expectation and weights are under way
      } else {
        barrier_wait(&empty[stage], ring.phase ^ 1);  // both blocks have read it: x goes to both
        load_w(work, stage, kb);
      }
#pragma unroll
      for (int i = 0; i < kRows / L::kBoxRows; i += 2) {
        const int box = i + rank;
        if (box >= boxes) break;
        tma_load_2d_multicast(base + L::kX + stage * L::kXBytes + box * L::kBoxBytes, &p.x_map, &full[stage], kb * kStageK,
                              work.first_row + box * L::kBoxRows, 0b11);
      }
      bulk_load(base + L::kScales + stage * L::kScaleBytes, p.x_scales + static_cast<int64_t>(kb) * p.scale_stride + work.first_row,
                scale_bytes(work), &full[stage]);
      ring.advance();
    }
  }
}

/// One warp's 16 rows x kN columns (fragments of wgmma) to y: through shared memory, in slabs of 64 columns, so that whole
/// 128-byte lines are written. Rows >= rows and columns >= n are not.
template <int kN>
__device__ inline void store(const Params& p, uint8_t* slab, const float (&sum)[kN / 2], int64_t first_row, int rows, int first_col) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int put_row = lane % 16;  // stmatrix: lanes 0-15 name rows of 8 columns, 16-31 rows of the next 8
  const int get_row = lane / 8, get_chunk = lane % 8;  // and 4, 8, 12 rows below
  Bf16* out = p.y + (first_row + get_row) * p.y_stride + first_col + 8 * get_chunk;
#pragma unroll
  for (int s = 0; s < kN / 64; ++s) {
    __syncwarp();  // the slab before has been read
#pragma unroll
    for (int c = 0; c < 8; c += 2) {
      const int i = 4 * (8 * s + c);
      const int chunk = (c + lane / 16) ^ (put_row & 7);  // 16-byte chunks, swizzled against bank conflicts
      stmatrix_x4(slab + put_row * 128 + chunk * 16, pack_bf16(sum[i], sum[i + 1]), pack_bf16(sum[i + 2], sum[i + 3]),
                  pack_bf16(sum[i + 4], sum[i + 5]), pack_bf16(sum[i + 6], sum[i + 7]));
    }
    __syncwarp();
    const bool in_columns = first_col + 64 * s + 8 * get_chunk < p.n;  // n is a multiple of 8
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = 4 * j + get_row;
      const uint4 value = *reinterpret_cast<const uint4*>(slab + row * 128 + ((get_chunk ^ (row & 7)) * 16));
      if (in_columns && row < rows) *reinterpret_cast<uint4*>(out + 4 * j * p.y_stride + 64 * s) = value;
    }
  }
}

/// A math warpgroup (128 threads). kGroup, 0 or 1, is a constant so that descriptors and barriers stay in uniform registers.
///
/// From the end of its product to its next a warpgroup has only the time of the other's product (256 cycles for 64 x 128), so all that
/// a product needs is made ready while the one before still runs: the wait for the next stage and its scales of x there,
/// descriptors, the scale of W.
template <int kRows, int kCols, bool kSkipWaves, int kGroup>
__device__ inline void multiply(const Params& p, uint8_t* base, int unit0, int step, int rank) {
  using L = Layout<kRows, kCols, kSkipWaves>;
  constexpr bool kSplitCols = kRows == 64;
  constexpr int kN = kSplitCols ? kCols / 2 : kCols;
  constexpr int kWaves = kSplitCols ? 1 : kRows / 128;
  constexpr int kWaveRows = kSkipWaves ? 128 : 64;  // from a wave's first row to the next one's
  constexpr int kParts = kCols % 128 == 0 ? 1 : 3;  // scales of W by 64 columns: a tile of 192 touches two scale blocks
  static_assert(kParts == 1 || kCols == 192);
  auto* full = reinterpret_cast<uint64_t*>(base + L::kBarriers);
  auto* empty = full + L::kStages;
  const int thread = static_cast<int>(threadIdx.x % 128), warp = thread / 32, lane = thread % 32;
  constexpr int kGroupRow = kSplitCols ? 0 : kGroup * (kSkipWaves ? 64 : kRows / 2);
  constexpr int kGroupCol = kSplitCols ? kGroup * kN : 0;
  const int fragment_row = kGroupRow + 16 * warp + lane / 4;  // and + 8, and + kWaveRows per wave
  const uint64_t x_base = wgmma_descriptor_128(shared_address(base + L::kX) + kGroupRow * kStageK);
  const uint64_t w_base = wgmma_descriptor_128(shared_address(base + L::kW) + kGroupCol * kStageK);
  uint8_t* slab = base + L::kOut + (4 * kGroup + warp) * kStageSlab;

  wait_for_previous();
  const int row_tiles = p.list != nullptr ? *p.count : (p.m + kRows - 1) / kRows;
  const int units = row_tiles * p.n_pairs;

  Ring<L::kStages> ring;
  uint64_t x_next = x_base, w_next = w_base;  // descriptors at ring.stage
  float product[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) product[i] = 0.0f;
  float x_scale[kWaves][2];  // of the stage to come. [wave][upper or lower row of the fragment]
  const auto await_stage = [&] {
    barrier_wait(&full[ring.stage], ring.phase);
    const auto* from = reinterpret_cast<const float*>(base + L::kScales + ring.stage * L::kScaleBytes) + fragment_row;
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
      x_scale[wave][0] = from[kWaveRows * wave];
      x_scale[wave][1] = from[kWaveRows * wave + 8];
    }
  };
  const auto tile_column = [&](const Work& work) { return (2 * work.pair() + rank) * kCols; };
  // Scales of W: lane l holds those of stages 32 c + l and 32 (c + 1) + l. [chunk][lower or higher scale block; higher: kParts 3 only]
  float w_chunk[2][2] = {};
  const auto load_w_chunk = [&](const Work& work, int first_kb, float (&to)[2]) {
    const int block = min(tile_column(work) / 128, p.n_blocks - 1);
    const int index = (work.expert * p.n_blocks + block) * p.k_blocks + min(first_kb + lane, p.k_blocks - 1);  // the launcher checked: fits
    to[0] = __ldg(p.w_scales + index);
    if constexpr (kParts == 3) to[1] = __ldg(p.w_scales + index + (block + 1 < p.n_blocks ? p.k_blocks : 0));
  };
  float w_scale[2] = {};  // of the stage to come
  const auto get_w_scale = [&](int kb) {
    w_scale[0] = __shfl_sync(0xffffffff, w_chunk[0][0], kb % 32);
    if constexpr (kParts == 3) w_scale[1] = __shfl_sync(0xffffffff, w_chunk[0][1], kb % 32);
  };

  Work next;
  if (unit0 < units) {
    next = locate<kRows>(p, unit0, row_tiles);
    load_w_chunk(next, 0, w_chunk[0]);
  }
  for (int unit = unit0; unit < units; unit += step) {
    const Work work = next;
    if (unit + step < units) next = locate<kRows>(p, unit + step, row_tiles);  // read early: nobody waits for the list later
    const int tile_col = tile_column(work);  // >= n in the empty half of the last pair: computed, not stored
    const bool middle_is_high = tile_col % 128 != 0;
    int waves = kWaves;  // ours with rows: 0 to 2. The shuffle tells the compiler that whole warps branch on it
    if constexpr (kSkipWaves) waves = __shfl_sync(0xffffffff, (work.rows() - kGroupRow + kWaveRows - 1) / kWaveRows, 0);

    float sum[kWaves][kN / 2];
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sum[wave][i] = 0.0f;
    }

    get_w_scale(0);
    await_stage();
    for (int kb = 0; kb < p.k_blocks; ++kb) {
      const int stage = ring.stage;
      float scale[kWaves][2][kParts];  // [wave][row][part of the columns]
#pragma unroll
      for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          scale[wave][half][0] = x_scale[wave][half] * w_scale[0];
          if constexpr (kParts == 3) {
            scale[wave][half][1] = x_scale[wave][half] * (middle_is_high ? w_scale[1] : w_scale[0]);
            scale[wave][half][2] = x_scale[wave][half] * w_scale[1];
          }
        }
      }
      const uint64_t x_stage = x_next, w_stage = w_next;
      const auto load_ahead = [&] {
        if (kb % 32 == 8 && kb + 24 < p.k_blocks) load_w_chunk(work, kb + 24, w_chunk[1]);
      };
      const auto prepare_next = [&] {
        ring.advance();
        x_next = ring.stage == 0 ? x_base : x_next + (L::kXBytes >> 4);
        w_next = ring.stage == 0 ? w_base : w_next + (L::kWBytes >> 4);
        if (kb + 1 < p.k_blocks) {
          if ((kb + 1) % 32 == 0) {
            w_chunk[0][0] = w_chunk[1][0];
            w_chunk[0][1] = w_chunk[1][1];
          }
          get_w_scale(kb + 1);
          // Nobody waits in a circle: this stage is not yet released, but the next does not need that (kStages >= 3), and of two
          // blocks the one behind always finds its next stage released by the one ahead.
          await_stage();
        }
      };
      const auto release_stage = [&] {
        __syncwarp();  // all lanes have read their scales
        if (lane < 2) barrier_arrive_cluster(cluster_address(&empty[stage], lane));  // in both blocks
        __syncwarp();
      };
#pragma unroll
      for (int wave = 0; wave < kWaves; ++wave) {
        if (kSkipWaves && wave >= waves) {  // no rows: the stages go on
          if (wave == 0) {
            load_ahead();
            prepare_next();
            release_stage();
          }
          continue;
        }
        const bool last = wave == kWaves - 1 || (kSkipWaves && wave == waves - 1);
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) wgmma_pin(product[i]);
        wgmma_fence();
#pragma unroll
        for (int step_k = 0; step_k < 4; ++step_k) {  // 32 of K each: 2 in units of 16 bytes; 8 rows: 64
          wgmma_e4m3<kN>(product, x_stage + 8 * kWaveRows * wave + 2 * step_k, w_stage + 2 * step_k, step_k > 0 ? 1 : 0);
        }
        wgmma_commit();
        if (wave == 0) load_ahead();
        if (last) prepare_next();
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) wgmma_pin(product[i]);
        if (last) release_stage();
#pragma unroll
        for (int i = 0; i < kN / 8; ++i) {
          const int part = kParts == 1 ? 0 : i / 8;
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[wave][4 * i + j] = fmaf(scale[wave][j / 2][part], product[4 * i + j], sum[wave][4 * i + j]);
        }
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) wgmma_pin(sum[wave][i]);  // promoted now, while the other works, not before our next product
      }
    }
    if (unit + step < units) load_w_chunk(next, 0, w_chunk[0]);  // arrive during the stores

#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
      if (kSkipWaves && wave >= waves) continue;
      const int tile_row = kGroupRow + kWaveRows * wave + 16 * warp;
      store<kN>(p, slab, sum[wave], static_cast<int64_t>(work.first_row) + tile_row, work.rows() - tile_row, tile_col + kGroupCol);
    }
  }
}

template <int kRows, int kCols, bool kSkipWaves>
__global__ void __launch_bounds__(kThreads, 1) fp8_tiles_kernel(const __grid_constant__ Params p) {
  using L = Layout<kRows, kCols, kSkipWaves>;
  // At the same place in both blocks (multicasts and releases name the peer's memory by our own offsets): a constant, so that
  // addresses and descriptors are cheap.
  extern __shared__ __align__(1024) uint8_t base[];
  launch_dependents();
  const int rank = static_cast<int>(cluster_rank());
  const int unit0 = static_cast<int>(blockIdx.x / 2), step = static_cast<int>(gridDim.x / 2);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&p.x_map);
    prefetch_tensor_map(&p.w_map);
    auto* full = reinterpret_cast<uint64_t*>(base + L::kBarriers);
    for (int i = 0; i < L::kStages; ++i) {
      barrier_init(&full[i], 1);                             // the loader; bytes from both blocks
      barrier_init(&full[L::kStages + i], 2 * kMathWarps);   // math warps of both blocks
    }
    fence_barrier_init();
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();

  if (threadIdx.x >= kMathThreads) {
    shrink_registers<40>();
    if (threadIdx.x < kMathThreads + 32 && elect_one()) {
      load<kRows, kCols, kSkipWaves>(p, base, unit0, step, rank);
    } else {
      wait_for_previous();
    }
    __syncwarp();
  } else {
    grow_registers<232>();
    // The shuffle tells the compiler that whole warps branch here.
    if (__shfl_sync(0xffffffff, threadIdx.x / 128, 0) == 0) {
      multiply<kRows, kCols, kSkipWaves, 0>(p, base, unit0, step, rank);
    } else {
      multiply<kRows, kCols, kSkipWaves, 1>(p, base, unit0, step, rank);
    }
    __syncwarp();
  }
  // No block leaves while the other may still write into it: its last releases go to both.
  cluster_arrive();
  cluster_wait();
}

}  // namespace dsv3::cuda::tiles
