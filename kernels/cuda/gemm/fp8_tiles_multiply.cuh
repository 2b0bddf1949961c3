// The math warpgroups of fp8_tiles.cuh: of a pair of blocks, and of a block alone.
#pragma once

#include <type_traits>

#include "../common/wgmma.cuh"
#include "fp8_tiles_load.cuh"

namespace dsv3::cuda::tiles {

/// One warp's 16 rows x kN columns (fragments of wgmma) to y: through shared memory, in slabs of up to 64 columns, so
/// that whole 128-byte lines are written. Rows >= rows and columns >= n are not.
template <int kN>
__device__ inline void store(const Params& p, uint8_t* slab, const float (&sum)[kN / 2], int64_t first_row, int rows,
                             int first_col) {
  if constexpr (kN % 16 != 0) {  // small: four bytes a lane, 16 together
    const int quad = static_cast<int>(threadIdx.x % 4), row = static_cast<int>(threadIdx.x % 32 / 4);
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {  // [8 columns][upper or lower row]
      const int col = first_col + i / 2 * 8 + 2 * quad, at = row + i % 2 * 8;
      if (at < rows && col < p.n)
        *reinterpret_cast<uint32_t*>(p.y + (first_row + at) * p.y_stride + col) = pack_bf16(sum[2 * i], sum[2 * i + 1]);
    }
    return;
  }
  constexpr int kSlab = slab_cols(kN), kChunks = kSlab / 8, kPitch = kSlab * 2;  // chunks: 8 columns, 16 bytes
  constexpr int kTogether = 32 / kChunks;  // rows that a warp writes to y at a time
  const auto swizzle = [](int row, int chunk) {
    return chunk ^ (row / (8 / kChunks) & (kChunks - 1));
  };  // against bank conflicts
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int put_row = lane % 16;  // stmatrix: lanes 0-15 name rows of 8 columns, 16-31 rows of the next 8
  const int get_row = lane / kChunks, get_chunk = lane % kChunks;
  Bf16* out = p.y + (first_row + get_row) * p.y_stride + first_col + 8 * get_chunk;
#pragma unroll
  for (int s = 0; s < kN / kSlab; ++s) {
    __syncwarp();  // the slab before has been read
#pragma unroll
    for (int c = 0; c < kChunks; c += 2) {
      const int i = 4 * (kChunks * s + c);
      stmatrix_x4(slab + put_row * kPitch + swizzle(put_row, c + lane / 16) * 16, pack_bf16(sum[i], sum[i + 1]),
                  pack_bf16(sum[i + 2], sum[i + 3]), pack_bf16(sum[i + 4], sum[i + 5]),
                  pack_bf16(sum[i + 6], sum[i + 7]));
    }
    __syncwarp();
    const bool in_columns = first_col + kSlab * s + 8 * get_chunk < p.n;  // n is a multiple of 8
#pragma unroll
    for (int j = 0; j < 16 / kTogether; ++j) {
      const int row = kTogether * j + get_row;
      const uint4 value = *reinterpret_cast<const uint4*>(slab + row * kPitch + swizzle(row, get_chunk) * 16);
      if (in_columns && row < rows) *reinterpret_cast<uint4*>(out + kTogether * j * p.y_stride + kSlab * s) = value;
    }
  }
}

/// A math warpgroup (128 threads) of a block of two. kGroup, 0 or 1, is a constant so that descriptors and barriers
/// stay in uniform registers.
///
/// From the end of its product to its next a warpgroup has only the time of the other's product (256 cycles for 64 x
/// 128), so all that a product needs is made ready while the one before still runs: the wait for the next stage and its
/// scales of x there, descriptors, the scale of W.
template <int kRows, int kCols, bool kSkipWaves, int kGroup>
__device__ inline void multiply_pair(const Params& p, uint8_t* base, int unit0, int step, int rank) {
  using L = Layout<kRows, kCols, 2, kSkipWaves>;
  constexpr bool kSplitCols = L::kSplitCols;
  constexpr int kN = L::kN, kWaves = L::kWaves;
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
  uint8_t* slab = base + L::kOut + (4 * kGroup + warp) * L::kSlabBytes;

  wait_for_previous();
  const int row_tiles = p.list != nullptr ? *p.count : (p.m + kRows - 1) / kRows;
  const int units = row_tiles * p.n_groups;

  Cursor<L::kStages> ring;
  uint64_t x_next = x_base, w_next = w_base;  // descriptors at ring.stage
  float product[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) product[i] = 0.0f;
  float x_scale[kWaves][2];  // of the stage to come. [wave][upper or lower row of the fragment]
  const auto await_stage = [&] {
    barrier_wait(&full[ring.stage], ring.parity);
    const auto* from = reinterpret_cast<const float*>(base + L::kScales + ring.stage * L::kScaleBytes) + fragment_row;
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
      x_scale[wave][0] = from[kWaveRows * wave];
      x_scale[wave][1] = from[kWaveRows * wave + 8];
    }
  };
  const auto tile_column = [&](const Work& work) { return (2 * work.group() + rank) * kCols; };
  // Scales of W: lane l holds those of stages 32 c + l and 32 (c + 1) + l. [chunk][lower or higher scale block; higher:
  // kParts 3 only]
  float w_chunk[2][2] = {};
  const auto load_w_chunk = [&](const Work& work, int first_kb, float(&to)[2]) {
    const int block = min(tile_column(work) / 128, p.n_blocks - 1);
    const int index = (work.expert * p.n_blocks + block) * p.k_blocks +
                      min(first_kb + lane, p.k_blocks - 1);  // the launcher checked: fits
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
    if (unit + step < units)
      next = locate<kRows>(p, unit + step, row_tiles);  // read early: nobody waits for the list later
    const int tile_col = tile_column(work);             // >= n in the empty half of the last pair: computed, not stored
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
          // Nobody waits in a circle: this stage is not yet released, but the next does not need that (kStages >= 3),
          // and of two blocks the one behind always finds its next stage released by the one ahead.
          await_stage();
        }
      };
      const auto release_stage = [&] {
        __syncwarp();                                                                // all lanes have read their scales
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
          wgmma_e4m3<kN>(product, x_stage + 8 * kWaveRows * wave + 2 * step_k, w_stage + 2 * step_k,
                         step_k > 0 ? 1 : 0);
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
          for (int j = 0; j < 4; ++j)
            sum[wave][4 * i + j] = fmaf(scale[wave][j / 2][part], product[4 * i + j], sum[wave][4 * i + j]);
        }
#pragma unroll
        for (int i = 0; i < kN / 2; ++i)
          wgmma_pin(sum[wave][i]);  // promoted now, while the other works, not before our next product
      }
    }
    if (unit + step < units) load_w_chunk(next, 0, w_chunk[0]);  // arrive during the stores

#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
      if (kSkipWaves && wave >= waves) continue;
      const int tile_row = kGroupRow + kWaveRows * wave + 16 * warp;
      store<kN>(p, slab, sum[wave], static_cast<int64_t>(work.first_row) + tile_row, work.rows() - tile_row,
                tile_col + kGroupCol);
    }
  }
}

/// A math warpgroup of a block alone. Small tiles: a product takes less time than the way from a stage's arrival to its
/// promotion, so kDepth of them are under way at once, each with an accumulator of its own. They are drained at the end
/// of the loop's body: across the back-edge ptxas would wait for each (kernels.md 4.1).
template <int kRows, int kCols, int kGroup>
__device__ inline void multiply_alone(const Params& p, uint8_t* base, int unit0, int step) {
  using L = Layout<kRows, kCols, 1, false>;
  constexpr int kN = L::kN, kDepth = L::kDepth;
  auto* full = reinterpret_cast<uint64_t*>(base + L::kBarriers);
  auto* empty = full + L::kStages;
  const int thread = static_cast<int>(threadIdx.x % 128), warp = thread / 32, lane = thread % 32;
  constexpr int kGroupRow = L::kSplitCols ? 0 : kGroup * kRows / 2, kGroupCol = L::kSplitCols ? kGroup * kN : 0;
  const int fragment_row = kGroupRow + 16 * warp + lane / 4;  // and + 8
  const uint64_t x_base = wgmma_descriptor_128(shared_address(base + L::kX) + kGroupRow * kStageK);
  const uint64_t w_base = wgmma_descriptor_128(shared_address(base + L::kW) + kGroupCol * kStageK);
  uint8_t* slab = base + L::kOut + (4 * kGroup + warp) * L::kSlabBytes;

  wait_for_previous();
  const int row_tiles = p.list != nullptr ? *p.count : (p.m + kRows - 1) / kRows;
  const int units = row_tiles * p.n_groups;
  // Scales of W: lane l holds those of stages 32 c + l, and of 32 (c + 1) + l; [1]: of the higher of two scale blocks.
  constexpr int kBlocks = 128 % kCols == 0 ? 1 : 2;
  float w_chunk[kBlocks] = {}, w_chunk_next[kBlocks] = {};
  const auto load_w_chunk = [&](const Work& work, int first_kb, float(&to)[kBlocks]) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int block = min(work.group() * kCols / 128 + b, p.n_blocks - 1);
      to[b] =
          __ldg(p.w_scales + (work.expert * p.n_blocks + block) * p.k_blocks + min(first_kb + lane, p.k_blocks - 1));
    }
  };

  Cursor<L::kStages> ring;
  uint64_t x_next = x_base, w_next = w_base;  // descriptors at ring.stage
  float product[kDepth][kN / 2];
#pragma unroll
  for (int i = 0; i < kDepth * kN / 2; ++i) product[i / (kN / 2)][i % (kN / 2)] = 0.0f;
  Work next;
  if (unit0 < units) {
    next = locate<kRows>(p, unit0, row_tiles);
    load_w_chunk(next, 0, w_chunk);
  }
  for (int unit = unit0; unit < units; unit += step) {
    const Work work = next;
    if (unit + step < units)
      next = locate<kRows>(p, unit + step, row_tiles);  // read early: nobody waits for the list later
    float sum[kN / 2];
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum[i] = 0.0f;
    const int low_cols = 128 - work.group() * kCols % 128 - kGroupCol;  // columns of ours before the higher scale block
    const auto add_stages = [&]<int kSteps>(std::integral_constant<int, kSteps>, int kb) {
      if (kb % 32 == 0 && kb > 0) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) w_chunk[b] = w_chunk_next[b];
      }
      if (kb % 32 == 8 && kb + 24 < p.k_blocks) load_w_chunk(work, kb + 24, w_chunk_next);
      float scale[kSteps][kBlocks][2];  // [stage][scale block][upper or lower row of the fragment]
      uint64_t* release[kSteps];
#pragma unroll
      for (int d = 0; d < kSteps; ++d) {
        barrier_wait(&full[ring.stage], ring.parity);
        const auto* x_scales =
            reinterpret_cast<const float*>(base + L::kScales + ring.stage * L::kScaleBytes) + fragment_row;
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          const float w_scale = __shfl_sync(0xffffffff, w_chunk[b], (kb + d) % 32);
          scale[d][b][0] = x_scales[0] * w_scale;
          scale[d][b][1] = x_scales[8] * w_scale;
        }
        release[d] = &empty[ring.stage];
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) wgmma_pin(product[d][i]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
          wgmma_e4m3<kN>(product[d], x_next + 2 * k, w_next + 2 * k, k > 0 ? 1 : 0);  // 32 bytes of K each
        wgmma_commit();
        ring.advance();
        x_next = ring.stage == 0 ? x_base : x_next + (L::kXBytes >> 4);
        w_next = ring.stage == 0 ? w_base : w_next + (L::kWBytes >> 4);
      }
#pragma unroll
      for (int d = 0; d < kSteps; ++d) {
        wgmma_wait_but(kSteps - 1 - d);
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) wgmma_pin(product[d][i]);
        __syncwarp();  // all lanes have read their scales
        if (lane == 0) barrier_arrive(release[d]);
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) {
          const float s =
              kBlocks == 2 && i / 4 * 8 >= low_cols ? scale[d][kBlocks - 1][i / 2 % 2] : scale[d][0][i / 2 % 2];
          sum[i] = fmaf(s, product[d][i], sum[i]);
        }
      }
    };
    add_in_steps<kDepth>(p.k_blocks, add_stages);
    if (unit + step < units) load_w_chunk(next, 0, w_chunk);  // arrive during the stores
    const int tile_row = kGroupRow + 16 * warp;
    store<kN>(p, slab, sum, static_cast<int64_t>(work.first_row) + tile_row, work.rows() - tile_row,
              work.group() * kCols + kGroupCol);
  }
}

}  // namespace dsv3::cuda::tiles
