// MLA decode, the fast kernel: see mla_decode_plan.h for how work is cut, mla_decode_roles.cuh for what the warpgroups
// do.
#include <string>

#include "../common/fragment.cuh"
#include "../common/launch.cuh"
#include "../common/tensor_map.h"
#include "mla_decode_check.h"
#include "mla_decode_roles.cuh"

namespace dsv3::cuda {
namespace {

// Registers a thread: 2 output warpgroups + scores + loader = 512.
template <KvFormat kFormat>
struct Registers;
template <>
struct Registers<KvFormat::kBf16> {
  static constexpr int kOutput = 168, kScore = 120, kLoad = 56;
};
template <>
struct Registers<KvFormat::kFp8> {
  static constexpr int kOutput = 160, kScore = 104, kLoad = 88;
};

/// Column pair i (of 32) and row r (of 2) of a thread's output: columns 8 i + 2 (lane % 4) and + 1 of the half.
__device__ __forceinline__ float2 pair_of(const float (&acc)[2][64], int i, int r) {
  return {acc[i / 16][i % 16 * 4 + 2 * r], acc[i / 16][i % 16 * 4 + 2 * r + 1]};
}

/// Joins the split in acc to this thread's 64 pairs of the block's folding slot (deterministic). Rounds as a piece in a slot of its
/// own is rounded.
__device__ __forceinline__ void fold_piece(const DecodePiece& piece, float2* slot, float (&acc)[2][64],
                                           const float2 (&stats)[2], DecodeFold (&state)[2]) {
  float keep[2], add[2], inverse[2];
  for (int r = 0; r < 2; ++r) {
    if (piece.first == 0) state[r] = {};
    fold_row(state[r], {stats[r].x, stats[r].y}, keep[r], add[r]);
    inverse[r] = inverse_of(stats[r].y);
  }
#pragma unroll
  for (int i = 0; i < 128; ++i) {
    float& value = acc[i / 64][i % 64];
    value = __half2float(__float2half_rn(__fmul_rn(value, inverse[i / 2 % 2])));
    if (piece.first == 0) value = fold_value(0, value, 0, add[i / 2 % 2]);
  }
  if (piece.first > 0) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const float2 before = slot[i * 256 + threadIdx.x];
      float &x = acc[i / 32][i % 32 * 2], &y = acc[i / 32][i % 32 * 2 + 1];
      x = fold_value(before.x, x, keep[i % 2], add[i % 2]);
      y = fold_value(before.y, y, keep[i % 2], add[i % 2]);
    }
  }
  if (piece.last == piece.blocks) return;
#pragma unroll
  for (int i = 0; i < 64; ++i) slot[i * 256 + threadIdx.x] = {acc[i / 32][i % 32 * 2], acc[i / 32][i % 32 * 2 + 1]};
}

/// Rows of the tile below `rows`, times `inverses`, to to[64][512]. pack(x, y): two neighbouring columns as a word.
template <class Value, class Pack>
__device__ __forceinline__ void write_rows(Value* to, int rows, const float (&acc)[2][64], const float (&inverses)[2], Pack&& pack) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, half = threadIdx.x / 128;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = 16 * warp + lane / 4 + 8 * r;
    Value* mine = to + row * kLatent + half * 256 + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 values = pair_of(acc, i + j, r);
        words[j] = pack(__fmul_rn(values.x, inverses[r]), __fmul_rn(values.y, inverses[r]));
      }
      transpose_in_quad(words);
      if (row < rows) *reinterpret_cast<uint4*>(mine + 8 * i) = {words[0], words[1], words[2], words[3]};
    }
  }
}

/// Rows of the tile that are the group's.
__device__ __forceinline__ int rows_in_tile(const MlaDecode& p, const DecodePiece& piece, int tile) {
  return piece.group.rows * p.heads - tile * kDecodeTileRows;
}

__device__ __forceinline__ void write_output(const MlaDecode& p, const DecodePiece& piece, int tile,
                                             const float (&acc)[2][64], const float (&sums)[2]) {
  const int64_t at = static_cast<int64_t>(piece.group.row_begin) * p.heads + tile * kDecodeTileRows;
  const float inverses[2] = {__frcp_rn(sums[0]), __frcp_rn(sums[1])};
  write_rows(p.out + at * kLatent, rows_in_tile(p, piece, tile), acc, inverses, [](float x, float y) { return pack_bf16(x, y); });
}

/// To the piece's slot, with the rows' statistics.
__device__ __forceinline__ void write_piece(const MlaDecode& p, const DecodePiece& piece, const DecodeShape& shape,
                                            const DecodeScratch& scratch, int tile, const float (&acc)[2][64],
                                            const float2 (&stats)[2]) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int rows = rows_in_tile(p, piece, tile);
  const int64_t at = (static_cast<int64_t>(piece.slot) * shape.tiles + tile) * kDecodeTileRows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = 16 * warp + lane / 4 + 8 * r;
    if (row < rows && threadIdx.x < 128 && lane % 4 == 0) scratch.stats[at + row] = stats[r];
  }
  const float inverses[2] = {inverse_of(stats[0].y), inverse_of(stats[1].y)};
  write_rows(scratch.output + at * kLatent, rows, acc, inverses, [](float x, float y) { return pack_f16(x, y); });
}

/// grid: (tiles, parts).
template <KvFormat kFormat>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    mla_decode_kernel(const __grid_constant__ MlaDecode p, const __grid_constant__ CUtensorMap map,
                      const __grid_constant__ DecodeShape shape, const __grid_constant__ DecodeScratch scratch,
                      bool list_read_early) {
  extern __shared__ __align__(1024) uint8_t raw_shared[];
  DecodeShared& shared = *reinterpret_cast<DecodeShared*>(raw_shared);
  const int tile = blockIdx.x, part = blockIdx.y;
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  constexpr bool kFp8 = kFormat == KvFormat::kFp8;
  using Limits = Registers<kFormat>;

  if (!list_read_early) launch_dependents();
  if (threadIdx.x == 0) {
    if constexpr (!kFp8) prefetch_tensor_map(&map);
    for (int stage = 0; stage < 2; ++stage) {
      for (int box = 0; box < kBoxes; ++box) barrier_init(&shared.kv_full[stage][box], kFp8 ? 128 : 1);
      for (int step = 0; step < kLoadSteps; ++step) barrier_init(&shared.kv_empty[stage][step], step == 0 ? 4 : 8);
    }
    fence_barrier_init();
  }
  __syncthreads();
  uint32_t n = 0;

  if (warpgroup == 3) {
    shrink_registers<Limits::kLoad>();
    bool early = !kFp8 && p.reads_early;
    if (!early) wait_for_previous();
    if constexpr (kFp8) {
      for_each_piece(p, *scratch.schedule, shape, part, tile,
                     [&](const DecodePiece& piece) { load_blocks_fp8(p, piece, shared, n); });
    } else if (threadIdx.x / 32 % 4 == 0) {
      for_each_piece<true>(p, *scratch.schedule, shape, part, tile,
                           [&](const DecodePiece& piece) { load_blocks_bf16(p, piece, &map, shared, n, shape.tiles > 1, early); });
    }
    if (early) wait_for_previous();
  } else if (warpgroup == 2) {
    if constexpr (Limits::kScore < 128) {
      shrink_registers<Limits::kScore>();
    }
    wait_for_previous();
    if (list_read_early) launch_dependents();  // not before: expand_values() reads the schedule before it waits
    uint32_t rope[4][4];
    int loaded = -1;
    for_each_piece(p, *scratch.schedule, shape, part, tile, [&](const DecodePiece& piece) {
      if (piece.index != loaded) {
        named_barrier_sync(1, 128);  // all warps are done with the rows before
        load_queries(p, piece.group, tile, shared, rope);
        fence_async_proxy();
        named_barrier_sync(1, 128);
        loaded = piece.index;
      }
      score_blocks<kFormat>(p, piece, tile, shared, rope, n);
    });
    for (uint32_t i = n < 2 ? 0 : n - 2; i < n; ++i) named_barrier_sync(p_empty(i & 1), kPThreads);  // nobody arrives in vain
  } else {
    grow_registers<Limits::kOutput>();
    wait_for_previous();
    float acc[2][64];
#pragma unroll
    for (int i = 0; i < 128; ++i) acc[i / 64][i % 64] = 0;
    DecodeFold state[2];
    for_each_piece(p, *scratch.schedule, shape, part, tile, [&](const DecodePiece& piece) {
      float2 stats[2];
      output_blocks<kFormat>(piece, warpgroup, shared, acc, stats, n);
      if (piece.slot < 0) {
        const float sums[2] = {stats[0].y, stats[1].y};
        write_output(p, piece, tile, acc, sums);
      } else if (piece.slot < shape.slots()) {
        write_piece(p, piece, shape, scratch, tile, acc, stats);
      } else {
        float2* slot = scratch.folds + (static_cast<int64_t>(piece.slot - shape.slots()) * shape.tiles + tile) * kDecodeTilePairs;
        fold_piece(piece, slot, acc, stats, state);
        const float sums[2] = {state[0].sum, state[1].sum};
        if (piece.last == piece.blocks) write_output(p, piece, tile, acc, sums);
      }
    });
  }
}

/// `joined`: by expand_values(), not by mla_decode_merge().
Status run(const MlaDecode& p, const MlaWorkspace& ws, bool joined, DecodePieces* pieces, Stream stream) {
  *pieces = {};
  DSV3_TRY(check_mla_decode(p));
  if (p.num_groups == 0) return {};
  const DecodeShape shape = decode_shape(p.max_group_rows, p.heads, sm_count());
  if (ws.data == nullptr || reinterpret_cast<uintptr_t>(ws.data) % 256 != 0 || ws.bytes < decode_scratch_bytes(shape)) {
    return {Code::kInternal, "mla_decode: workspace of " + std::to_string(ws.bytes) + " bytes, needs " +
                                 std::to_string(decode_scratch_bytes(shape)) + " on 256 bytes"};
  }
  const bool fp8 = p.pages.format == KvFormat::kFp8;
  CUtensorMap map{};
  if (!fp8) {
    DSV3_TRY(map_bf16(static_cast<const Bf16*>(p.pages.data), p.pages.num_blocks * kCacheBlockTokens, kCacheRow, kCacheRow,
                      kCacheBlockTokens, &map));
  }
  const auto kernel = fp8 ? mla_decode_kernel<KvFormat::kFp8> : mla_decode_kernel<KvFormat::kBf16>;
  DSV3_TRY(allow_shared_bytes("mla_decode", kernel, sizeof(DecodeShared)));
  const DecodeScratch scratch = decode_scratch(ws.data, shape);
  const LaunchShape launch_shape{dim3(shape.tiles, shape.parts), dim3(kDecodeThreads), sizeof(DecodeShared)};
  DSV3_TRY(launch("mla_decode", kernel, launch_shape, stream, p, map, shape, scratch, joined));
  *pieces = {shape, scratch};
  return {};
}

}  // namespace

Status mla_decode_pieces(const MlaDecode& p, const MlaWorkspace& ws, DecodePieces* pieces, Stream stream) {
  return run(p, ws, true, pieces, stream);
}

Status mla_decode(const MlaDecode& p, const MlaWorkspace& ws, Stream stream) {
  DecodePieces pieces;
  DSV3_TRY(run(p, ws, false, &pieces, stream));
  return p.num_groups > 0 ? mla_decode_merge(p, pieces.shape, pieces.scratch, stream) : Status{};
}

}  // namespace dsv3::cuda
