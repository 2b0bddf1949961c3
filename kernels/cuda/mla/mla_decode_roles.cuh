// The decode kernel by roles (mla_decode.cu launches it). Four warpgroups of a block work on one tile of 64 packed
// query rows:
//
//   output warpgroups 0, 1   O[64, 256 each] += P V: the left and right half of the latents; 128 float registers a thread
//   score warpgroup          S = Q K^T (64 x 64 x 576), mask, online softmax, P to shared memory
//   load warpgroup           KV blocks of 64 tokens into two stages (BF16: one warp and the copy engine; FP8: 128 threads
//                            dequantise)
//
// The score of block j + 1 runs while the outputs of block j do. Block j uses KV stage j % 2 and P buffer j % 2:
//
//   kv_full[stage][box]    loader -> scores, outputs       box: 64 columns of the block (FP8: box 0 stands for all)
//   kv_empty[stage][step]  step 0: the rotary box, from the scores (4 warps); 1 and 2: first and second quarter of each
//                          half, from the outputs (8 warps). Scores are done with a stage before P of its block is full
//   p_full[buffer]         scores (4 warps) -> outputs     also covers `keep` and the row statistics
//   p_empty[buffer]        outputs (8 warps) -> scores
//
// The loader refills boxes in the order in which they become free, and the scores take them in that order.
//
// Paired: the two blocks of a cluster have neighbouring tiles and walk the same KV. Each loads every other box for both,
// so L2 is read once. A box may be overwritten when both are done with it: kv_empty counts the warps of both blocks.
//
// n counts blocks since the start of the kernel in every role, so the phase of a barrier's use is (n / 2) % 2
// everywhere.
#pragma once

#include "../common/ptx.cuh"
#include "../common/wgmma.cuh"
#include "mla_decode_work.cuh"

namespace dsv3::cuda {

inline constexpr int kDecodeThreads = 512, kBoxes = kCacheRow / 64, kLatentBoxes = kLatent / 64;
inline constexpr int kBoxBytes = 64 * 128;  // 64 rows of 64 BF16, swizzled by 128 bytes

inline constexpr int kLoadSteps = 3;
/// The order of loading and of Q K^T: 8, 0, 1, 4, 5, 2, 3, 6, 7. Step 0 is the first, steps 1 and 2 have four each.
__host__ __device__ constexpr int box_at(int i) {
  return i == 0 ? kLatentBoxes : (i - 1) % 4 / 2 * 4 + (i - 1) % 2 + (i - 1) / 4 * 2;
}
__host__ __device__ constexpr int first_of_step(int step) { return step == 0 ? 0 : 4 * step - 3; }

/// On 1024 bytes. The rotary 64 columns of Q live in registers of the score warpgroup.
struct DecodeShared {
  uint8_t q[kLatentBoxes][kBoxBytes];
  uint8_t kv[2][kBoxes][kBoxBytes];
  uint8_t p[2][kBoxBytes];
  float keep[2][kDecodeTileRows];    ///< factor of O before the block is added
  float2 stats[2][kDecodeTileRows];  ///< last block of a piece: maximum, sum
  uint64_t kv_full[2][kBoxes], kv_empty[2][kLoadSteps], p_full[2], p_empty[2];
};
static_assert(sizeof(DecodeShared) <= 232448, "shared memory of a block");

/// Where 16 bytes (8 columns) of a row lie in a box.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

/// A warp is done with the boxes of a step. Called by one lane.
template <bool kPaired>
__device__ __forceinline__ void release_boxes(DecodeShared& shared, uint32_t stage, int step) {
  uint64_t* barrier = &shared.kv_empty[stage][step];
  barrier_arrive(barrier);
  if constexpr (kPaired) barrier_arrive_cluster(cluster_address(barrier, (blockIdx.x & 1) ^ 1));
}

// ---- loader ------------------------------------------------------------------------------------------------------

/// BF16: one warp. Rows of a block are 64 neighbouring rows of the pages, so a box is one copy. Paired: this block takes
/// the boxes of its own parity (the rotary one by turns) and sends them to both; its barriers expect all of them.
template <bool kPaired>
__device__ __forceinline__ void load_blocks_bf16(const MlaDecode& p, const DecodePiece& piece, const CUtensorMap* map,
                                                 DecodeShared& shared, uint32_t& n, bool shared_by_tiles) {
  const int32_t* table = p.block_tables + static_cast<int64_t>(piece.group.slot) * p.max_blocks;
  const int lane = threadIdx.x % 32, rank = blockIdx.x & 1;
  const uint64_t hint = shared_by_tiles ? kEvictNormal : kEvictFirst;
  int32_t ids = 0;
  for (int b = piece.first; b < piece.last; ++b, ++n) {
    const int in_run = (b - piece.first) % 32;
    if (in_run == 0 && b + lane < piece.last) ids = table[b + lane];
    const int row = __shfl_sync(~0u, ids, in_run) * kCacheBlockTokens;
    const uint32_t stage = n & 1, phase = (n >> 1) & 1;
#pragma unroll
    for (int step = 0; step < kLoadSteps; ++step) {
      barrier_wait(&shared.kv_empty[stage][step], phase ^ 1);
      if (elect_one()) {
#pragma unroll
        for (int i = first_of_step(step); i < first_of_step(step + 1); ++i) {
          const int box = box_at(i);
          uint64_t* full = &shared.kv_full[stage][box];
          barrier_expect(full, kBoxBytes);
          if constexpr (!kPaired) {
            tma_load_2d(shared.kv[stage][box], map, full, box * 64, row, hint);
          } else if ((box < kLatentBoxes ? box & 1 : static_cast<int>(n >> 1) & 1) == rank) {
            tma_load_2d_multicast(shared.kv[stage][box], map, full, box * 64, row, 3, hint);
          }
        }
      }
      __syncwarp();
    }
  }
}

/// 16 e4m3 times `scale` as BF16.
__device__ __forceinline__ void dequantise(const uint4& raw, float scale, uint4& low, uint4& high) {
  const auto pair = [scale](uint32_t two) {
    const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two & 0xFFFF), __NV_E4M3);
    const float2 values = __half22float2(__half2(halves));
    return pack_bf16(values.x * scale, values.y * scale);
  };
  low = {pair(raw.x), pair(raw.x >> 16), pair(raw.y), pair(raw.y >> 16)};
  high = {pair(raw.z), pair(raw.z >> 16), pair(raw.w), pair(raw.w >> 16)};
}

/// A thread's share of 16 rows of FP8 latents on their way: rows warp, warp + 4, ... of the 16; 16 latents of each.
struct Fp8Quarter {
  uint4 raw[4];
  float scale;  ///< lane 4 r + s (+ 16): of row r, latents 128 s ...
};

/// FP8: 128 threads. A warp reads the 512 bytes of a row, 16 a lane. Quarters of a block go through registers, three at
/// a time on their way; the rotary part needs no arithmetic and is copied straight to its place.
__device__ __forceinline__ void load_blocks_fp8(const MlaDecode& p, const DecodePiece& piece, DecodeShared& shared,
                                                uint32_t& n) {
  constexpr int kRowBytes = 656, kBuffers = 3;
  const int32_t* table = p.block_tables + static_cast<int64_t>(piece.group.slot) * p.max_blocks + piece.first;
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const int box = lane / 4, chunk = lane % 4 * 2,
            swap = box & 1;  // odd boxes store their halves in the other order: no bank conflict
  const int quarters = 4 * (piece.last - piece.first);
  const auto block_data = [&](int block) {
    return static_cast<const uint8_t*>(p.pages.data) +
           static_cast<int64_t>(table[block]) * kCacheBlockTokens * kRowBytes;
  };
  Fp8Quarter buffers[kBuffers];
  const auto load = [&](Fp8Quarter& to, int quarter) {
    const uint8_t* rows = block_data(quarter / 4) + (quarter % 4 * 16 + warp) * kRowBytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) to.raw[i] = __ldcg(reinterpret_cast<const uint4*>(rows + 4 * i * kRowBytes) + lane);
    to.scale = __ldcg(reinterpret_cast<const float*>(rows + lane / 4 % 4 * 4 * kRowBytes + kLatent) + lane % 4);
  };
#pragma unroll
  for (int i = 0; i < kBuffers; ++i) load(buffers[i], i);  // a block has four
  for (int first = 0; first < quarters; first += kBuffers) {
#pragma unroll
    for (int i = 0; i < kBuffers; ++i) {
      const int quarter = first + i;
      if (quarter >= quarters) break;
      const uint32_t stage = n & 1, phase = (n >> 1) & 1;
      if (quarter % 4 == 0) {
        for (int step = 0; step < kLoadSteps; ++step) barrier_wait(&shared.kv_empty[stage][step], phase ^ 1);
        const uint8_t* rope = block_data(quarter / 4) + kLatent + 16;
#pragma unroll
        for (int j = 0; j < 4; ++j) {  // 64 rows x 8 chunks
          const int row = 16 * j + thread / 8;
          cp_async_16(shared.kv[stage][kLatentBoxes] + swizzled(row, thread % 8),
                      rope + row * kRowBytes + thread % 8 * 16);
        }
        cp_async_commit();
      }
      uint8_t* to = shared.kv[stage][box];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = quarter % 4 * 16 + warp + 4 * j;
        uint4 low, high;
        dequantise(buffers[i].raw[j], __shfl_sync(~0u, buffers[i].scale, 4 * j + lane / 8), low, high);
        *reinterpret_cast<uint4*>(to + swizzled(row, chunk + swap)) = swap ? high : low;
        *reinterpret_cast<uint4*>(to + swizzled(row, chunk + 1 - swap)) = swap ? low : high;
      }
      if (quarter + kBuffers < quarters) load(buffers[i], quarter + kBuffers);
      if (quarter % 4 == 3) {
        cp_async_wait<0>();
        fence_async_proxy();
        barrier_arrive(&shared.kv_full[stage][0]);
        ++n;
      }
    }
  }
}

// ---- scores --------------------------------------------------------------------------------------------------------

/// Rows of the tile: latent columns to shared memory, rotary ones as the A fragments of four k-steps. Rows past the
/// group's are 0.
__device__ __forceinline__ void load_queries(const MlaDecode& p, const QueryGroup& group, int tile,
                                             DecodeShared& shared, uint32_t (&rope)[4][4]) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int rows = group.rows * p.heads - tile * kDecodeTileRows;  // may be more than 64; paired: may be none
  const Bf16* q = p.q + (static_cast<int64_t>(group.row_begin) * p.heads + tile * kDecodeTileRows) * kCacheRow;
  for (int i = thread; i < kDecodeTileRows * kLatent / 8; i += 128) {
    const int row = i / (kLatent / 8), chunk = i % (kLatent / 8);
    const bool valid = row < rows;
    cp_async_16(shared.q[chunk / 8] + swizzled(row, chunk % 8), valid ? q + row * kCacheRow + chunk * 8 : p.q, valid);
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

template <KvFormat kFormat, bool kPaired>
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
    if (lane == 0) release_boxes<kPaired>(shared, stage, 0);

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
      const bool raise = shift[r] * scale > top[r] * scale + 8.0f;  // a row that has seen no key: -inf, unless it sees one
      keep[r] = 1.0f;
      if (raise) {
        keep[r] = exp2_approximate((top[r] - shift[r]) * scale);
        top[r] = shift[r];
      }
      shift[r] = top[r] == -INFINITY ? 0.0f : top[r] * scale;
    }

    const int tail = piece.group.start + piece.group.rows - first_key;  // rows of this block that the sequence has
    barrier_wait(&shared.p_empty[stage], phase ^ 1);
    if (tail < kCacheBlockTokens) zero_tail(shared, stage, tail);
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
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = sum[r] * keep[r] + added[r];
    const bool last = b + 1 == piece.last;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float whole = sum[r];
      if (last) {
        whole += __shfl_xor_sync(~0u, whole, 1);
        whole += __shfl_xor_sync(~0u, whole, 2);
      }
      if (quad == 0) {
        shared.keep[stage][row0 + 8 * r] = keep[r];
        if (last) shared.stats[stage][row0 + 8 * r] = {top[r] * scale, whole};
      }
    }
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.p_full[stage]);
  }
}

// ---- outputs -----------------------------------------------------------------------------------------------------

/// Adds the piece's blocks to acc (overwritten by the first). stats of the thread's two rows come with the last block.
template <KvFormat kFormat, bool kPaired>
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
    barrier_wait(&shared.p_full[stage], phase);
    const float keep[2] = {shared.keep[stage][row], shared.keep[stage][row + 8]};
    if (b + 1 == piece.last) {
      stats[0] = shared.stats[stage][row];
      stats[1] = shared.stats[stage][row + 8];
    }
    if (b > piece.first && __any_sync(~0u, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < 128; ++i) acc[i / 64][i % 64] *= keep[i / 2 % 2];
    }
    wgmma_fence();
#pragma unroll
    for (int side = 0; side < 2; ++side) {  // 128 columns each: the first two boxes can go while the others are read
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // 16 tokens: 32 bytes of P's rows, 2048 bytes of V
        wgmma_bf16_bt<128>(acc[side], p_base + ((k * 32) >> 4), v_base + ((k * 2048 + side * 2 * kBoxBytes) >> 4),
                           b > piece.first || k > 0 ? 1 : 0);
      }
      wgmma_commit();
    }
    wgmma_wait<1>();
    __syncwarp();
    if (lane == 0) release_boxes<kPaired>(shared, stage, 1);
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 128; ++i) wgmma_pin(acc[i / 64][i % 64]);
    __syncwarp();
    if (lane == 0) {
      release_boxes<kPaired>(shared, stage, 2);
      barrier_arrive(&shared.p_empty[stage]);
    }
  }
}

}  // namespace dsv3::cuda
