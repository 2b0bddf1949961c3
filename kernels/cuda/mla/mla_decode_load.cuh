// The decode kernel's shared memory and the warpgroup that fills it with KV blocks; mla_decode_roles.cuh tells who
// waits for whom.
#pragma once

#include "../common/ptx.cuh"
#include "mla_decode_work.cuh"

namespace dsv3::cuda {

inline constexpr int kDecodeThreads = 512, kBoxes = kCacheRow / 64, kLatentBoxes = kLatent / 64;
inline constexpr int kBoxBytes = 64 * 128;  // 64 rows of 64 BF16, swizzled by 128 bytes

inline constexpr int kLoadSteps = 3;
/// The order of loading and of Q K^T: 8, 0, 1, 4, 5, 2, 3, 6, 7. Step 0 is the first, steps 1 and 2 have four each.
__host__ __device__ constexpr int box_at(int i) {
  return i == 0 ? kLatentBoxes : (i - 1) % 4 / 2 * 4 + (i - 1) % 2 + (i - 1) / 4 * 2;
}
__host__ __device__ constexpr int first_of_step(int step) {
  return step == 0 ? 0 : 4 * step - 3;
}

/// On 1024 bytes. The rotary 64 columns of Q live in registers of the score warpgroup.
struct DecodeShared {
  uint8_t q[kLatentBoxes][kBoxBytes];
  uint8_t kv[2][kBoxes][kBoxBytes];
  uint8_t p[2][kBoxBytes];
  float keep[2][kDecodeTileRows];    ///< factor of O before the block is added
  float2 stats[2][kDecodeTileRows];  ///< last block of a piece: maximum, sum
  uint64_t kv_full[2][kBoxes], kv_empty[2][kLoadSteps];
};
static_assert(sizeof(DecodeShared) <= 232448, "shared memory of a block");

/// Where 16 bytes (8 columns) of a row lie in a box.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

// ---- loader ------------------------------------------------------------------------------------------------------

/// BF16: one warp. Rows of a block are 64 neighbouring rows of the pages, so a box is one copy. `early`: the kernel ahead may still
/// run; waits for it before the first block with rows of this step.
__device__ __forceinline__ void load_blocks_bf16(const MlaDecode& p, const DecodePiece& piece, const CUtensorMap* map,
                                                 DecodeShared& shared, uint32_t& n, bool shared_by_tiles, bool& early) {
  const int32_t* table = p.block_tables + static_cast<int64_t>(piece.group.slot) * p.max_blocks;
  const int lane = threadIdx.x % 32;
  const uint64_t hint = shared_by_tiles ? kEvictNormal : kEvictFirst;
  const uint32_t kv = fixed_shared_address(shared.kv), full = fixed_shared_address(shared.kv_full);
  const uint32_t empty = fixed_shared_address(shared.kv_empty);
  int32_t ids = 0;
  for (int b = piece.first; b < piece.last; ++b, ++n) {
    const int in_run = (b - piece.first) % 32;
    if (in_run == 0 && b + lane < piece.last) ids = __ldcg(table + b + lane);
    if (early && (b + 1) * kCacheBlockTokens > piece.group.start) {
      wait_for_previous();
      early = false;
    }
    const int row = __shfl_sync(~0u, ids, in_run) * kCacheBlockTokens;
    const uint32_t stage = n & 1, phase = (n >> 1) & 1;
#pragma unroll
    for (int step = 0; step < kLoadSteps; ++step) {
      barrier_wait(empty + 8 * (stage * kLoadSteps + step), phase ^ 1);
      if (elect_one()) {
#pragma unroll
        for (int i = first_of_step(step); i < first_of_step(step + 1); ++i) {
          const uint32_t box = box_at(i), at = stage * kBoxes + box;
          barrier_expect(full + 8 * at, kBoxBytes);
          tma_load_2d(kv + at * kBoxBytes, map, full + 8 * at, box * 64, row, hint);
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

/// A thread's share of 16 rows of FP8 latents on their way: of its warp's rows 2 i and 2 i + 1, 16 latents of each half of one of them.
struct Fp8Quarter {
  uint4 raw[2][2];  ///< [i][half]
  float scale;      ///< lane 4 r + s (+ 16): of row r, latents 128 s ...
};

/// FP8: 128 threads. A warp takes 4 rows of 16, and reads half of each of two neighbouring rows at a time: eight lanes then store even
/// columns of an even and of an odd row, which the swizzle puts in different banks. Quarters of a block go through registers, three at a
/// time on their way; the rotary part needs no arithmetic and is copied straight to its place.
__device__ __forceinline__ void load_blocks_fp8(const MlaDecode& p, const DecodePiece& piece, DecodeShared& shared,
                                                uint32_t& n) {
  constexpr int kRowBytes = 656, kBuffers = 3, kHalfBytes = kLatent / 2;
  const int32_t* table = p.block_tables + static_cast<int64_t>(piece.group.slot) * p.max_blocks + piece.first;
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const int row = 4 * warp + lane / 4 % 2, box = lane / 8, part = lane % 4;  // 16 latents: part of a box, of 64
  const int blocks = piece.last - piece.first, quarters = 4 * blocks;
  uint32_t places[2];  // of the first eight latents, in a quarter's first rows of the boxes; the other eight: ^ 16
#pragma unroll
  for (int i = 0; i < 2; ++i) places[i] = box * kBoxBytes + swizzled(row + 2 * i, 2 * part);

  const auto block_data = [&](int32_t id) {
    return static_cast<const uint8_t*>(p.pages.data) + static_cast<int64_t>(id) * kCacheBlockTokens * kRowBytes;
  };
  const uint8_t* data = block_data(table[0]);  // the block that is being loaded
  int32_t next_id = blocks > 1 ? table[1] : 0;
  const auto load = [&](Fp8Quarter& to, int quarter) {
    if (quarter % 4 == 0 && quarter > 0) {
      data = block_data(next_id);
      if (quarter / 4 + 1 < blocks) next_id = table[quarter / 4 + 1];
    }
    const uint8_t* rows = data + quarter % 4 * 16 * kRowBytes;
    const uint8_t* mine = rows + row * kRowBytes + box * 64 + part * 16;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        to.raw[i][half] = __ldcg(reinterpret_cast<const uint4*>(mine + 2 * i * kRowBytes + half * kHalfBytes));
    }
    to.scale = __ldcg(reinterpret_cast<const float*>(rows + (4 * warp + lane / 4 % 4) * kRowBytes + kLatent) + lane % 4);
  };
  Fp8Quarter buffers[kBuffers];
#pragma unroll
  for (int i = 0; i < kBuffers; ++i) load(buffers[i], i);  // a block has four
  for (int first = 0; first < quarters; first += kBuffers) {
#pragma unroll
    for (int b = 0; b < kBuffers; ++b) {
      const int quarter = first + b;
      if (quarter >= quarters) break;
      const uint32_t stage = n & 1, phase = (n >> 1) & 1;
      if (quarter % 4 == 0) {
        for (int step = 0; step < kLoadSteps; ++step) barrier_wait(&shared.kv_empty[stage][step], phase ^ 1);
        const uint8_t* rope = data + kLatent + 16;  // its last quarter is not loaded yet
#pragma unroll
        for (int j = 0; j < 4; ++j) {  // 64 rows x 8 chunks
          const int rope_row = 16 * j + thread / 8;
          cp_async_16(shared.kv[stage][kLatentBoxes] + swizzled(rope_row, thread % 8),
                      rope + rope_row * kRowBytes + thread % 8 * 16);
        }
        cp_async_commit();
      }
      uint8_t* to = shared.kv[stage][0] + quarter % 4 * 16 * 128;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint4 low, high;
          const int scale_lane = 4 * (2 * i + lane / 4 % 2) + 2 * half + lane / 16;
          dequantise(buffers[b].raw[i][half], __shfl_sync(~0u, buffers[b].scale, scale_lane), low, high);
          const uint32_t boxes = half * kLatentBoxes / 2 * kBoxBytes;
          *reinterpret_cast<uint4*>(to + boxes + places[i]) = low;
          *reinterpret_cast<uint4*>(to + boxes + (places[i] ^ 16)) = high;
        }
      }
      if (quarter + kBuffers < quarters) load(buffers[b], quarter + kBuffers);
      if (quarter % 4 == 3) {
        cp_async_wait<0>();
        fence_async_proxy();
        barrier_arrive(&shared.kv_full[stage][0]);
        ++n;
      }
    }
  }
}

}  // namespace dsv3::cuda
