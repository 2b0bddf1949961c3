// The decode kernel by roles (mla_decode.cu launches it). Four warpgroups of a block work on one tile of 64 packed
// query rows:
//
//   output warpgroups 0, 1   O[64, 256 each] += P V: left and right half of the latents, 128 float registers a thread
//   score warpgroup          S = Q K^T (64 x 64 x 576), mask, online softmax, P to shared memory
//   load warpgroup           KV blocks of 64 tokens into two stages (BF16: one warp and the copy engine; FP8: all
//                            128 threads dequantise)
//
// The score of block j + 1 runs while the outputs of block j do. Block j uses KV stage j % 2 and P buffer j % 2:
//
//   kv_full[stage][box]    loader -> scores, outputs       box: 64 columns of the block (FP8: box 0 stands for all)
//   kv_empty[stage][step]  step 0: the rotary box, from the scores (4 warps); 1 and 2: first and second quarter of each
//                          half, from the outputs (8 warps). Scores are done with a stage before P of its block is full
//   p_full(buffer, half)   scores -> outputs, named        half of the tokens. The first also covers `keep`
//   stats_full(buffer)     scores -> outputs, named        row statistics, with a piece's last block
//   p_empty(buffer)        outputs -> scores, named
//
// The loader refills boxes in the order in which they become free, and the scores take them in that order.
//
// n counts blocks since the start of the kernel in every role, so the phase of a barrier's use is (n / 2) % 2
// everywhere.
#pragma once

#include "../common/wgmma.cuh"
#include "mla_decode_load.cuh"

namespace dsv3::cuda {

inline constexpr int kPThreads = 3 * 128;
__device__ __forceinline__ int p_full(uint32_t buffer, int half) {
  return 2 + 2 * static_cast<int>(buffer) + half;  // 1: among the scores
}
__device__ __forceinline__ int stats_full(uint32_t buffer) { return 6 + static_cast<int>(buffer); }
__device__ __forceinline__ int p_empty(uint32_t buffer) { return 8 + static_cast<int>(buffer); }

// ---- scores --------------------------------------------------------------------------------------------------------

/// Rows of the tile: latent columns to shared memory, rotary ones as the A fragments of four k-steps. Rows past the
/// group's are 0.
__device__ __forceinline__ void load_queries(const MlaDecode& p, const QueryGroup& group, int tile,
                                             DecodeShared& shared, uint32_t (&rope)[4][4]) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int rows = group.rows * p.heads - tile * kDecodeTileRows;  // > 0; may be more than 64
  const Bf16* q = p.q + (static_cast<int64_t>(group.row_begin) * p.heads + tile * kDecodeTileRows) * kCacheRow;
  for (int i = thread; i < kDecodeTileRows * kLatent / 8; i += 128) {
    const int row = i / (kLatent / 8), chunk = i % (kLatent / 8);
    const bool valid = row < rows;
    cp_async_16(shared.q[chunk / 8] + swizzled(row, chunk % 8), q + (valid ? row * kCacheRow + chunk * 8 : 0), valid);
  }
  cp_async_commit();
  const int row = 16 * warp + lane / 4;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // of a fragment: row, row + 8; then the same 8 columns on
      const int at = row + part % 2 * 8, column = kLatent + 16 * k + part / 2 * 8 + lane % 4 * 2;
      rope[k][part] = at < rows ? *reinterpret_cast<const uint32_t*>(q + at * kCacheRow + column) : 0;
    }
  }
  cp_async_wait<0>();
}

/// V rows past the sequence's end may hold anything, and 0 * NaN is NaN. Other warps may still read these rows as K:
/// their columns of S are masked whatever they hold.
__device__ __forceinline__ void zero_tail(DecodeShared& shared, uint32_t stage, int valid_rows) {
  for (int i = threadIdx.x % 128; i < (kCacheBlockTokens - valid_rows) * kLatentBoxes * 8; i += 128) {
    const int row = valid_rows + i / (kLatentBoxes * 8), box = i / 8 % kLatentBoxes, chunk = i % 8;
    *reinterpret_cast<uint4*>(shared.kv[stage][box] + row * 128 + chunk * 16) = uint4{0, 0, 0, 0};
  }
}

template <KvFormat kFormat>
__device__ __forceinline__ void score_blocks(const MlaDecode& p, const DecodePiece& piece, int tile,
                                             DecodeShared& shared, const uint32_t (&rope)[4][4], uint32_t& n) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, quad = lane % 4;
  const int row0 = 16 * warp + lane / 4;  // the thread's rows: this one and row0 + 8
  const float scale = p.softmax_scale * 1.44269504f;
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  const uint64_t q_base = wgmma_descriptor_128(shared_address(shared.q));
  for (int b = piece.first; b < piece.last; ++b, ++n) {
    const uint32_t stage = n & 1, phase = (n >> 1) & 1;
    const uint64_t k_base = wgmma_descriptor_128(shared_address(shared.kv[stage]));
    float s[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i] = 0;
    if constexpr (kFormat == KvFormat::kFp8) barrier_wait(&shared.kv_full[stage][0], phase);
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) {
      const int box = box_at(i);
      if constexpr (kFormat == KvFormat::kBf16) barrier_wait(&shared.kv_full[stage][box], phase);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // 16 columns are 32 bytes
        const uint32_t step = (box * kBoxBytes + k * 32) >> 4;
        if (box == kLatentBoxes) {
          wgmma_bf16_rs<64>(s, rope[k], k_base + step, i + k > 0 ? 1 : 0);
        } else {
          wgmma_bf16<64>(s, q_base + step, k_base + step, i + k > 0 ? 1 : 0);
        }
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 32; ++i) wgmma_pin(s[i]);
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.kv_empty[stage][0]);

    const int first_key = b * kCacheBlockTokens;
    if (first_key + kCacheBlockTokens - 1 > piece.group.start) {
      int limits[2];  // last key that the row sees. Worked out here, once or twice a piece: registers are scarce
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        limits[r] = piece.group.start + min((tile * kDecodeTileRows + row0 + 8 * r) / p.heads, piece.group.rows - 1);
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int key = first_key + i / 4 * 8 + quad * 2 + i % 2;
        if (key > limits[i / 2 % 2]) s[i] = -INFINITY;  // a choice, not a product: s may be NaN
      }
    }
    float keep[2], shift[2], added[2] = {0, 0};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int i = 0; i < 16; ++i) most[i % 2] = fmaxf(most[i % 2], s[i / 2 * 4 + r * 2 + i % 2]);
      shift[r] = fmaxf(most[0], most[1]);
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) shift[r] = fmaxf(shift[r], __shfl_xor_sync(~0u, shift[r], step));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // The reference follows the maximum only when P would pass 2^8: any reference gives the same quotient, and
      // rescaling the outputs is what the next block waits for.
      const bool raise = shift[r] * scale > top[r] * scale + 8.0f;  // false while a row has seen no key (-inf both)
      keep[r] = 1.0f;
      if (raise) {
        keep[r] = exp2_approximate((top[r] - shift[r]) * scale);
        top[r] = shift[r];
      }
      shift[r] = top[r] == -INFINITY ? 0.0f : top[r] * scale;
    }

    const int tail = piece.group.start + piece.group.rows - first_key;  // rows of this block that the sequence has
    if (n >= 2) named_barrier_sync(p_empty(stage), kPThreads);
    if (tail < kCacheBlockTokens) zero_tail(shared, stage, tail);
    if (quad == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) shared.keep[stage][row0 + 8 * r] = keep[r];
    }
    uint8_t* to = shared.p[stage];
#pragma unroll
    for (int t = 0; t < 4; ++t) {  // 16 columns: four 8 x 8 matrices, lanes give the addresses of their rows
#pragma unroll
      for (int i = 8 * t; i < 8 * t + 8; ++i) s[i] = exp2_approximate(s[i] * scale - shift[i / 2 % 2]);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        added[r] += (s[8 * t + 2 * r] + s[8 * t + 2 * r + 1]) + (s[8 * t + 4 + 2 * r] + s[8 * t + 5 + 2 * r]);
      const int row = 16 * warp + lane / 8 % 2 * 8 + lane % 8;
      stmatrix_x4(to + swizzled(row, 2 * t + lane / 16), pack_bf16(s[8 * t], s[8 * t + 1]),
                  pack_bf16(s[8 * t + 2], s[8 * t + 3]), pack_bf16(s[8 * t + 4], s[8 * t + 5]),
                  pack_bf16(s[8 * t + 6], s[8 * t + 7]));
      if (t == 1) {  // the outputs can begin
        fence_async_proxy();
        named_barrier_arrive(p_full(stage, 0), kPThreads);
      }
    }
    fence_async_proxy();
    named_barrier_arrive(p_full(stage, 1), kPThreads);
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = sum[r] * keep[r] + added[r];
    if (b + 1 < piece.last) continue;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float whole = sum[r];
      whole += __shfl_xor_sync(~0u, whole, 1);
      whole += __shfl_xor_sync(~0u, whole, 2);
      if (quad == 0) shared.stats[stage][row0 + 8 * r] = {top[r] * scale, whole};
    }
    __syncwarp();
    named_barrier_arrive(stats_full(stage), kPThreads);
  }
}

// ---- outputs -----------------------------------------------------------------------------------------------------

/// Adds the piece's blocks to acc (overwritten by the first). stats of the thread's two rows come with the last block.
template <KvFormat kFormat>
__device__ __forceinline__ void output_blocks(const DecodePiece& piece, int half, DecodeShared& shared,
                                              float (&acc)[2][64], float2 (&stats)[2], uint32_t& n) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = 16 * warp + lane / 4;
  for (int b = piece.first; b < piece.last; ++b, ++n) {
    const uint32_t stage = n & 1, phase = (n >> 1) & 1;
    // V as [64 tokens][64 columns] slabs: MN-major, 8192 bytes from slab to slab, 1024 from 8 tokens to the next 8.
    const uint64_t v_base = wgmma_descriptor_128(shared_address(shared.kv[stage][half * 4]), 1024, kBoxBytes);
    const uint64_t p_base = wgmma_descriptor_128(shared_address(shared.p[stage]));
    // The scores have seen these barriers; each reader of copied data looks for itself all the same.
    if constexpr (kFormat == KvFormat::kBf16) {
      for (int box = 0; box < 4; ++box) barrier_wait(&shared.kv_full[stage][half * 4 + box], phase);
    } else {
      barrier_wait(&shared.kv_full[stage][0], phase);
    }
    named_barrier_sync(p_full(stage, 0), kPThreads);
    const float keep[2] = {shared.keep[stage][row], shared.keep[stage][row + 8]};
    if (b > piece.first && __any_sync(~0u, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < 128; ++i) acc[i / 64][i % 64] *= keep[i / 2 % 2];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // of the tokens: the first ones' P is there while the others' is worked out
      if (half == 1) named_barrier_sync(p_full(stage, 1), kPThreads);
      wgmma_fence();
#pragma unroll
      for (int side = 0; side < 2; ++side) {  // 128 columns each: the first two boxes can go while the others are read
#pragma unroll
        for (int k = 2 * half; k < 2 * half + 2; ++k) {  // 16 tokens: 32 bytes of P's rows, 2048 bytes of V
          wgmma_bf16_bt<128>(acc[side], p_base + ((k * 32) >> 4), v_base + ((k * 2048 + side * 2 * kBoxBytes) >> 4),
                             b > piece.first || k > 0 ? 1 : 0);
        }
        wgmma_commit();
      }
    }
    wgmma_wait<1>();
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.kv_empty[stage][1]);
    if (b + 1 == piece.last) {
      named_barrier_sync(stats_full(stage), kPThreads);
      stats[0] = shared.stats[stage][row];
      stats[1] = shared.stats[stage][row + 8];
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 128; ++i) wgmma_pin(acc[i / 64][i % 64]);
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.kv_empty[stage][2]);
    __syncwarp();
    named_barrier_arrive(p_empty(stage), kPThreads);
  }
}

}  // namespace dsv3::cuda
