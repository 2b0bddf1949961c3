// What the blocks of fp8_tiles.cuh work on and where it lies in shared memory, and the thread that loads it.
#pragma once

#include "../common/ptx.cuh"
#include "../common/ring.cuh"
#include "../common/types.h"
#include "tiles_choice.h"

namespace dsv3::cuda::tiles {

struct Params {
  CUtensorMap x_map;                ///< [x.rows, k], box kBoxRows x 128
  CUtensorMap w_map;                ///< [experts * n, k], box kCols x 128
  CUtensorMap scales_map;           ///< of x: [k_blocks][x.rows], box 1 x kRows
  const float* w_scales = nullptr;  ///< [experts][n_blocks][k_blocks]
  Bf16* y = nullptr;
  int64_t y_stride = 0;
  const ExpertTile* list = nullptr;  ///< grouped: the tiles; null: dense
  const int32_t* count = nullptr;    ///< grouped: how many
  int m = 0, n = 0, k_blocks = 0;
  int n_blocks = 0;  ///< ceil(n / 128): scale rows of a weight
  int n_groups = 0;  ///< ceil(n / (kCluster kCols))
  int band = 0;      ///< row tiles that are done for all columns before the next
  bool evict_first = false;  ///< weights: gemm_choice.h
};

inline constexpr int kMathThreads = 256, kThreads = 384;
inline constexpr int kStageK = 128;  // = kQuantGroup; bytes of a row of a stage: the span of the swizzle
inline constexpr int kMathWarps = kMathThreads / 32;

/// Columns that a warp turns over at a time when it stores.
constexpr int slab_cols(int cols) {
  return cols % 64 == 0 ? 64 : cols % 32 == 0 ? 32 : 16;
}

template <int kRows, int kCols, int kCluster, bool kSkipWaves>
struct Layout {
  static_assert(kCluster == 1 || kCluster == 2);
  static_assert(!kSkipWaves || kRows == 256);
  static constexpr bool kSplitCols = kRows == 64;
  static constexpr int kN = kSplitCols ? kCols / 2 : kCols;  // columns of a warpgroup
  static constexpr int kWaves = kSplitCols ? 1 : kRows / 128;
  /// Products under way at once (multiply_alone()). Of 32 columns four are better than two (H200, us): 512x7168, 1024 rows 12.2 and 11.8;
  /// 4608x7168, 64 rows 13.2 and 12.4; 4096x7168, 128 rows 12.7 and 12.4.
  static constexpr int kDepth = kCluster == 2 ? 1 : kN <= 32 ? 4 : 2;
  static constexpr int kBoxRows = kSkipWaves ? 64 : kRows / kCluster, kBoxBytes = kBoxRows * kStageK;  // of x
  static constexpr int kXBytes = kRows * kStageK, kWBytes = kCols * kStageK, kScaleBytes = kRows * 4;
  static constexpr int kSlabCols = slab_cols(kN),
                       kSlabBytes = 16 * kSlabCols * 2;  // a warp's output staging: 16 rows of BF16
  static constexpr int kFixedBytes = kMathWarps * kSlabBytes + 1024 /* alignment */ + 256 /* barriers */;
  static constexpr int kFit = (232448 - kFixedBytes) / (kXBytes + kWBytes + kScaleBytes);
  static constexpr int kStages = kFit < 12 ? kFit : 12;
  // Offsets from a base on 1024 bytes.
  static constexpr int kX = 0, kW = kX + kStages * kXBytes, kOut = kW + kStages * kWBytes,
                       kScales = kOut + kMathWarps * kSlabBytes;
  static constexpr int kBarriers = kScales + kStages * kScaleBytes;  // full[kStages], empty[kStages]
  static constexpr int kBytes = kBarriers + 256 + 1024;
  static_assert(kBytes <= 232448 && kStages >= 3 && 16 * kStages <= 256);
  static_assert(kBoxBytes % 1024 == 0 && kWBytes % 1024 == 0, "boxes of x and W start on 1024 bytes");
};

/// What a cluster does next.
struct Work {
  int first_row = 0, expert = 0;
  uint32_t packed = 0;  // group * 512 + rows: a register less for tiles that have none to spare
  __device__ int rows() const { return static_cast<int>(packed % 512); }
  __device__ int group() const { return static_cast<int>(packed / 512); }
};

/// Tiles in bands of p.band row tiles, rows first: a wave of clusters covers a near square, whose operands fit L2.
///
/// Clusters drift apart where memory limits them (by whole tiles over a long list): what two tiles share is then read
/// from HBM twice. So lists for many experts should have one tile for most experts, whose weights nobody else reads
/// (grouped_tile_rows()).
template <int kRows>
__device__ inline Work locate(const Params& p, int index, int row_tiles) {
  const int band = index / (p.band * p.n_groups);
  const int in_band = index - band * p.band * p.n_groups;
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

/// The loading thread. `unit0`, `step`: this cluster's first tile and the count of clusters.
///
/// Its instructions for a small stage take longer than the stage's copies would: what they need is made ready outside
/// of the loop over K.
template <int kRows, int kCols, int kCluster, bool kSkipWaves>
__device__ inline void load(const Params& p, uint8_t* base, int unit0, int step, int rank) {
  using L = Layout<kRows, kCols, kCluster, kSkipWaves>;
  const uint32_t shared = fixed_shared_address(base), full = shared + L::kBarriers, empty = full + 8 * L::kStages;
  const bool grouped = p.list != nullptr;
  const auto count_boxes = [&](const Work& work) {
    return kCluster == 1 ? 1 : (work.rows() + L::kBoxRows - 1) / L::kBoxRows;
  };
  const auto stage_bytes = [](int boxes) {
    return static_cast<uint32_t>(boxes * L::kBoxBytes + L::kWBytes + L::kScaleBytes);
  };
  const auto w_row = [&](const Work& work) { return work.expert * p.n + (kCluster * work.group() + rank) * kCols; };
  const uint64_t w_hint = p.evict_first ? kEvictFirst : kEvictNormal;
  const auto load_w = [&](int stage, int kb, int row, uint32_t bytes) {
    barrier_expect(full + 8 * stage, bytes);
    tma_load_2d(shared + L::kW + stage * L::kWBytes, &p.w_map, full + 8 * stage, kb * kStageK, row, w_hint);
  };
  const auto load_x = [&](int stage, int kb, int first_row, int boxes) {
    const uint32_t x = shared + L::kX + stage * L::kXBytes, barrier = full + 8 * stage;
    if constexpr (kCluster == 1) {
      tma_load_2d(x, &p.x_map, barrier, kb * kStageK, first_row);
    } else {
#pragma unroll
      for (int i = 0; i < kRows / L::kBoxRows; i += kCluster) {
        const int box = i + rank;
        if (box >= boxes) break;
        tma_load_2d_multicast(x + box * L::kBoxBytes, &p.x_map, barrier, kb * kStageK, first_row + box * L::kBoxRows,
                              0b11);
      }
    }
    tma_load_2d(shared + L::kScales + stage * L::kScaleBytes, &p.scales_map, barrier, first_row, kb);
  };

  // Dense: the first stages' weights are known and constant, so they go before the wait. Stages are fresh: nothing to
  // wait for.
  int early = 0;
  if (!grouped) {
    const int row_tiles = (p.m + kRows - 1) / kRows;
    if (unit0 < row_tiles * p.n_groups) {
      const Work work = locate<kRows>(p, unit0, row_tiles);
      early = min(L::kStages, p.k_blocks);
      const int row = w_row(work);
      const uint32_t bytes = stage_bytes(count_boxes(work));
      for (int kb = 0; kb < early; ++kb) load_w(kb, kb, row, bytes);
    }
  }
  wait_for_previous();
  const int row_tiles = grouped ? *p.count : (p.m + kRows - 1) / kRows;
  const int units = row_tiles * p.n_groups;

  Cursor<L::kStages> ring;
  for (int unit = unit0; unit < units; unit += step) {
    const Work work = locate<kRows>(p, unit, row_tiles);
    const int boxes = count_boxes(work), row = w_row(work), first_row = work.first_row;
    const uint32_t bytes = stage_bytes(boxes);
    int kb = 0;
    for (; kb < early; ++kb, ring.advance()) load_x(ring.stage, kb, first_row, boxes);
    early = 0;
    for (; kb < p.k_blocks; ++kb, ring.advance()) {
      barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);  // both blocks have read it: x goes to both
      load_w(ring.stage, kb, row, bytes);
      load_x(ring.stage, kb, first_row, boxes);
    }
  }
}

}  // namespace dsv3::cuda::tiles
