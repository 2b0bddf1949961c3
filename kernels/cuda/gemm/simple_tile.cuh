// The one kernel of simple.cu: a block computes a tile of y = x W^T with mma.sync on BF16 operands in shared memory.
//
// The sum over K of an output element has one fixed order: ascending steps of 16 inside one accumulator (FP8: promoted by the two
// scales after every 128). It depends neither on the number of rows nor on the tile or the grid, so a row's bits are the same in
// any batch (batch-invariant).
#pragma once

#include "../common/ptx.cuh"
#include "../common/types.h"

namespace dsv3::cuda::simple {

inline constexpr int kDepth = 64;  ///< columns of K per step: a row of a stage is 128 bytes, eight 16-byte chunks

/// Tile shapes. A warp computes (rows / warps_m) x (cols / warps_n).
struct SmallTile {
  static constexpr int rows = 64, cols = 64, warps_m = 2, warps_n = 2, stages = 4, min_blocks = 3;
  static constexpr bool skip_empty_rows = true;  ///< few rows are common: leave out fragments without any
};
struct LargeTile {
  static constexpr int rows = 128, cols = 128, warps_m = 2, warps_n = 4, stages = 3, min_blocks = 2;
  static constexpr bool skip_empty_rows = false;
};

/// Whether `tiles` runs of up to `rows` rows each make enough large tiles to fill the device. Free to choose: bits do not depend on
/// the tile.
inline bool prefer_large_tile(int64_t rows, int64_t tiles, int64_t n, int multiprocessors) {
  if (rows <= SmallTile::rows) return false;
  const int64_t blocks = tiles * ((rows + LargeTile::rows - 1) / LargeTile::rows) * ((n + LargeTile::cols - 1) / LargeTile::cols);
  return blocks >= multiprocessors;
}

/// How x and W lie: BF16 with W [n, k]; BF16 with W [k, n]; e4m3 with W [n, k] and scales.
enum class Operands { kBf16, kBf16Transposed, kFp8 };

template <class Tile, Operands kOperands>
constexpr int stage_count() {
  return kOperands == Operands::kFp8 ? 2 : Tile::stages;
}
template <class Tile, Operands kOperands>
constexpr int shared_bytes() {
  return stage_count<Tile, kOperands>() * (Tile::rows + Tile::cols) * kDepth * 2;
}

struct Params {
  const void* x = nullptr;
  int64_t x_row = 0, x_batch = 0;  ///< elements from row to row, from head to head
  const void* w = nullptr;
  int64_t w_row = 0, w_batch = 0;  ///< the same; w_batch also from expert to expert
  void* y = nullptr;
  int64_t y_row = 0, y_batch = 0;
  const float* x_scales = nullptr;  ///< FP8: [k / 128][x_scale_stride]
  int64_t x_scale_stride = 0;
  const float* w_scales = nullptr;  ///< FP8: [expert][ceil(n / 128)][k / 128]
  int64_t rows = 0;
  int n = 0, k = 0;
  int m_blocks = 0, n_blocks = 0;     ///< the grid is (m_blocks * n_blocks, heads)
  const ExpertTile* tiles = nullptr;  ///< grouped: m block b is part b % blocks_per_tile of tile b / blocks_per_tile
  const int32_t* tile_count = nullptr;
  int blocks_per_tile = 1;
  bool y_is_f32 = false;
  bool y_in_pairs = false;  ///< stores of two columns are aligned
};

/// Which part of the product a block computes.
struct Place {
  int64_t row_begin = 0;
  int rows = 0;  ///< valid rows of the tile; <= 0: nothing to do
  int expert = 0;
  int col_begin = 0;
};

/// Blocks run along m first, in bands of 16 m blocks: a wave then covers a square-like part of y and reuses x and W in L2.
template <class Tile>
__device__ inline Place place_of_block(const Params& p) {
  constexpr int kBand = 16;
  const int band = static_cast<int>(blockIdx.x / (kBand * static_cast<unsigned>(p.n_blocks)));
  const int in_band = static_cast<int>(blockIdx.x - static_cast<unsigned>(band) * kBand * static_cast<unsigned>(p.n_blocks));
  const int band_blocks = min(kBand, p.m_blocks - band * kBand);
  const int m_block = band * kBand + in_band % band_blocks;
  Place place;
  place.col_begin = in_band / band_blocks * Tile::cols;
  if (p.tiles == nullptr) {
    place.row_begin = static_cast<int64_t>(m_block) * Tile::rows;
    place.rows = static_cast<int>(min(static_cast<int64_t>(Tile::rows), p.rows - place.row_begin));
    return place;
  }
  const int tile_index = m_block / p.blocks_per_tile, part = m_block % p.blocks_per_tile;
  if (tile_index >= *p.tile_count) return place;
  const ExpertTile tile = p.tiles[tile_index];
  place.row_begin = tile.row_begin + part * Tile::rows;
  place.rows = min(Tile::rows, tile.rows - part * Tile::rows);
  place.expert = tile.expert;
  return place;
}

/// Byte offset of 16-byte chunk `chunk` (0..7) of a stage's row: chunks are swapped so that eight rows hit all banks.
__device__ inline int chunk_offset(int row, int chunk) { return row * kDepth * 2 + (chunk ^ (row & 7)) * 16; }

/// Starts the copy of kRows rows of kDepth BF16 from (row 0, column col) of `from`; zeros beyond `rows` and `cols`.
template <int kRows, int kThreads>
__device__ inline void copy_bf16(uint8_t* stage, const __nv_bfloat16* from, int64_t stride, int col, int rows, int cols) {
  static_assert(kRows * 8 % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * 8 / kThreads; ++i) {
    const int piece = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = piece >> 3, chunk = piece & 7;
    const bool valid = row < rows && col + chunk * 8 < cols;
    cp_async_16(stage + chunk_offset(row, chunk), valid ? from + row * stride + col + chunk * 8 : from, valid);
  }
}

/// kRows rows of kDepth e4m3 on their way: four 16-byte pieces a row, in registers.
template <int kRows, int kThreads>
struct Fp8Pieces {
  static constexpr int kCount = kRows * 4 / kThreads;
  static_assert(kRows * 4 % kThreads == 0);
  uint4 pieces[kCount];

  __device__ void fetch(const uint8_t* from, int64_t stride, int col, int rows) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int piece = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = piece >> 2;
      pieces[i] = row < rows ? *reinterpret_cast<const uint4*>(from + row * stride + col + (piece & 3) * 16) : uint4{0, 0, 0, 0};
    }
  }
  /// Four e4m3 as four BF16: exact, by way of FP16.
  __device__ static uint2 widen(uint32_t four) {
    uint32_t pair[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __half2_raw half = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(four >> (16 * i)), __NV_E4M3);
      const float2 wide = __half22float2(__half2(half));
      pair[i] = pack_bf16(wide.x, wide.y);
    }
    return {pair[0], pair[1]};
  }
  __device__ void store(uint8_t* stage) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int piece = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = piece >> 2, chunk = (piece & 3) * 2;
      const uint2 a = widen(pieces[i].x), b = widen(pieces[i].y), c = widen(pieces[i].z), d = widen(pieces[i].w);
      *reinterpret_cast<uint4*>(stage + chunk_offset(row, chunk)) = uint4{a.x, a.y, b.x, b.y};
      *reinterpret_cast<uint4*>(stage + chunk_offset(row, chunk + 1)) = uint4{c.x, c.y, d.x, d.y};
    }
  }
};

__device__ inline void store_pair(const Params& p, int64_t head, int64_t row, int col, float low, float high) {
  const int64_t at = head * p.y_batch + row * p.y_row + col;
  if (p.y_is_f32) {
    float* y = static_cast<float*>(p.y) + at;
    if (p.y_in_pairs && col + 1 < p.n) {
      *reinterpret_cast<float2*>(y) = float2{low, high};
      return;
    }
    if (col < p.n) y[0] = low;
    if (col + 1 < p.n) y[1] = high;
    return;
  }
  __nv_bfloat16* y = static_cast<__nv_bfloat16*>(p.y) + at;
  if (p.y_in_pairs && col + 1 < p.n) {
    *reinterpret_cast<uint32_t*>(y) = pack_bf16(low, high);
    return;
  }
  if (col < p.n) y[0] = __float2bfloat16_rn(low);
  if (col + 1 < p.n) y[1] = __float2bfloat16_rn(high);
}

template <class Tile, Operands kOperands>
__global__ void __launch_bounds__(Tile::warps_m* Tile::warps_n * 32, Tile::min_blocks) product_kernel(const __grid_constant__ Params p) {
  constexpr int kThreads = Tile::warps_m * Tile::warps_n * 32;
  constexpr int kStages = stage_count<Tile, kOperands>();
  constexpr int kWarpRows = Tile::rows / Tile::warps_m, kWarpCols = Tile::cols / Tile::warps_n;
  constexpr int kM = kWarpRows / 16, kN = kWarpCols / 8;  // fragments of a warp
  constexpr int kXBytes = Tile::rows * kDepth * 2, kStageBytes = kXBytes + Tile::cols * kDepth * 2;
  constexpr bool kFp8 = kOperands == Operands::kFp8, kTransposed = kOperands == Operands::kBf16Transposed;
  static_assert(!kTransposed || Tile::cols == kDepth, "a stage of W^T has rows of kDepth columns");
  static_assert(!kFp8 || kQuantGroup % Tile::cols == 0, "a block has one weight scale per 128 of K");
  extern __shared__ __align__(128) uint8_t stages[];

  launch_dependents();
  wait_for_previous();
  const Place place = place_of_block<Tile>(p);
  if (place.rows <= 0) return;

  const int64_t head = blockIdx.y;
  const int cols = min(Tile::cols, p.n - place.col_begin);
  const int steps = (p.k + kDepth - 1) / kDepth;
  const int64_t x_offset = head * p.x_batch + place.row_begin * p.x_row;
  const int64_t w_offset =
      (p.tiles != nullptr ? place.expert : head) * p.w_batch + (kTransposed ? place.col_begin : place.col_begin * p.w_row);
  Fp8Pieces<Tile::rows, kThreads> x_pieces;
  Fp8Pieces<Tile::cols, kThreads> w_pieces;

  // BF16: starts the copies of a step into its stage (an empty group beyond the last, so that counts stay in step).
  const auto copy_step = [&](int step) {
    if (step < steps) {
      uint8_t* stage = stages + step % kStages * kStageBytes;
      const auto* x = static_cast<const __nv_bfloat16*>(p.x) + x_offset;
      const auto* w = static_cast<const __nv_bfloat16*>(p.w) + w_offset;
      const int col = step * kDepth;
      copy_bf16<Tile::rows, kThreads>(stage, x, p.x_row, col, place.rows, p.k);
      if constexpr (kTransposed) {  // kDepth rows of k by Tile::cols columns of n
        copy_bf16<kDepth, kThreads>(stage + kXBytes, w + col * p.w_row, p.w_row, 0, p.k - col, cols);
      } else {
        copy_bf16<Tile::cols, kThreads>(stage + kXBytes, w, p.w_row, col, cols, p.k);
      }
    }
    cp_async_commit();
  };
  // FP8: loads a step into registers.
  const auto fetch_step = [&](int step) {
    if (step >= steps) return;
    x_pieces.fetch(static_cast<const uint8_t*>(p.x) + x_offset, p.x_row, step * kDepth, place.rows);
    w_pieces.fetch(static_cast<const uint8_t*>(p.w) + w_offset, p.w_row, step * kDepth, cols);
  };

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = warp / Tile::warps_n * kWarpRows, warp_col = warp % Tile::warps_n * kWarpCols;
  float sums[kM][kN][4] = {};      // of all of K; FP8: of this group of 128
  float promoted[kM][kN][4] = {};  // FP8: scaled sums of the groups before
  float scales[kM][2] = {};        // FP8: of this thread's rows, in this group

  const auto multiply_step = [&](const uint8_t* stage) {
#pragma unroll
    for (int k16 = 0; k16 < kDepth / 16; ++k16) {
      uint32_t b[kN / 2][4];  // two fragments of 8 columns each: {b0, b1} of the first, {b0, b1} of the second
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) {
        const int matrix = lane >> 3;
        if constexpr (kTransposed) {
          const int row = k16 * 16 + (lane & 7) + (matrix & 1) * 8, chunk = (warp_col + j * 16) / 8 + (matrix >> 1);
          ldmatrix_x4_transposed(b[j], stage + kXBytes + chunk_offset(row, chunk));
        } else {
          const int row = warp_col + j * 16 + (lane & 7) + (matrix >> 1) * 8, chunk = k16 * 2 + (matrix & 1);
          ldmatrix_x4(b[j], stage + kXBytes + chunk_offset(row, chunk));
        }
      }
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        if (Tile::skip_empty_rows && warp_row + i * 16 >= place.rows) continue;
        uint32_t a[4];
        ldmatrix_x4(a, stage + chunk_offset(warp_row + i * 16 + (lane & 15), k16 * 2 + (lane >> 4)));
#pragma unroll
        for (int j = 0; j < kN; ++j) mma_bf16_16816(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  };

  // The scales of 128 columns are requested with the first of their two steps and used after the second.
  const auto fetch_scales = [&](int group) {
    const int groups = p.k / kQuantGroup;
    const int64_t bands = (p.n + kQuantGroup - 1) / kQuantGroup;
    const float w_scale = p.w_scales[(place.expert * bands + place.col_begin / kQuantGroup) * groups + group];
    const float* x_scales = p.x_scales + group * p.x_scale_stride + place.row_begin;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + i * 16 + half * 8 + lane / 4;
        scales[i][half] = row < place.rows ? x_scales[row] * w_scale : 0.0f;
      }
    }
  };
  const auto promote = [&] {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          promoted[i][j][e] = fmaf(sums[i][j][e], scales[i][e / 2], promoted[i][j][e]);
          sums[i][j][e] = 0.0f;
        }
      }
    }
  };

  if constexpr (kFp8) {
    fetch_step(0);
    for (int step = 0; step < steps; ++step) {
      // Nobody reads this stage any more: its last readers (step - 2) passed the barrier of step - 1.
      uint8_t* stage = stages + step % kStages * kStageBytes;
      x_pieces.store(stage);
      w_pieces.store(stage + kXBytes);
      __syncthreads();
      fetch_step(step + 1);
      if (step % 2 == 0) fetch_scales(step / 2);
      multiply_step(stage);
      if (step % 2 == 1) promote();
    }
  } else {
    for (int step = 0; step < kStages - 1; ++step) copy_step(step);
    for (int step = 0; step < steps; ++step) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // everybody's copies of this step are there, and everybody has done with the step before
      copy_step(step + kStages - 1);
      multiply_step(stages + step % kStages * kStageBytes);
    }
  }

#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + i * 16 + half * 8 + lane / 4;
      if (row >= place.rows) continue;
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const float* values = kFp8 ? promoted[i][j] : sums[i][j];
        const int col = place.col_begin + warp_col + j * 8 + lane % 4 * 2;
        store_pair(p, head, place.row_begin + row, col, values[half * 2], values[half * 2 + 1]);
      }
    }
  }
}

}  // namespace dsv3::cuda::simple
