// The head products around decode attention: queries into the latent space, outputs out of it (model.md 4.3). Both read kv_b once per 16 to
// 64 rows, requested before the kernel in front of them has ended. Launchers check and enqueue.
#pragma once

#include "../common/types.h"
#include "../norm/norm.h"
#include "dsv3/base/status.h"
#include "mla_decode_plan.h"

namespace dsv3::cuda {

/// Where the launchers below beat a batched GEMM with what would come before and behind it: rope_and_cache(), a kernel that quantises, and
/// the waits of a GEMM that is launched without regard to its neighbours. They take any number of rows all the same. Measured with 8, 16
/// and 128 heads, alone and in a layer. Pure.
constexpr bool use_absorb_queries(int64_t rows, int64_t heads) { return rows <= 256 && rows * heads <= 8192; }
constexpr bool use_expand_values(int64_t rows) { return rows <= 256; }
/// Rows that a block of expand_values() takes: 16, 32 or 64. A head's weights are read once for each, so no more blocks than half of an
/// H100's SMs, as far as blocks of 64 rows allow. Pure.
constexpr int expand_tokens(int64_t rows, int64_t heads) {
  constexpr int64_t kBlocks = 66;
  int tokens = 16;
  while (tokens < 64 && rows > tokens && (rows + tokens - 1) / tokens * heads > kBlocks) tokens *= 2;
  return tokens;
}

/// Columns of the 512 latents that a block takes: 128, or 64 where there are too few heads to keep every SM busy. Pure.
constexpr int absorb_width(int64_t heads) { return heads >= 32 ? 128 : 64; }

// A row's bits depend on its own inputs alone, not on the number of rows or its place among them: sums run over k in one order. Not so where
// expand_values() joins pieces: they follow the schedule of the batch.

/// absorbed_q[r][h][c] = sum over n < 128 of q[r][h * 192 + n] * W_K[h][n][c], c < 512; rounded to BF16.
struct AbsorbQueries {
  const Bf16* q = nullptr;     ///< [rows, heads * 192]; 128 plain, then 64 turned (not read here; `turn` turns them)
  int64_t q_stride = 0;        ///< a multiple of 8
  Bf16Weight kv_b{};           ///< [heads * 256, 512]: per head 128 rows W_K, then 128 rows W_V
  Bf16* absorbed_q = nullptr;  ///< [rows, heads, 576] packed; the last 64 of each are left alone, or come from `turn`
  int64_t rows = 0;
  int32_t heads = 0;
  int width = 0;  ///< 0: absorb_width(heads)
  const RopeAndCache* turn = nullptr;  ///< rope_and_cache() of the same rows, done beside it by the same launch
};
/// Its successor starts after its own wait: what MlaDecode::reads_early asks for.
Status absorb_queries(const AbsorbQueries& p, Stream stream);

/// out[r][h * 128 + v] = sum over c < 512 of latent[r][h][c] * W_V[h][v][c]: to BF16, to e4m3 with a scale per row and head (norm.h
/// quantise(), of the unrounded values), or both.
struct ExpandValues {
  const Bf16* latent = nullptr;  ///< [rows, heads, 512] packed
  Bf16Weight kv_b{};
  Bf16Matrix out{};     ///< [rows, heads * 128] or null
  Fp8Rows quantised{};  ///< [rows, heads * 128] or null
  bool ue8m0 = false;
  int64_t rows = 0;
  int32_t heads = 0;
  int tokens = 0;  ///< 0: expand_tokens(rows, heads)
  int width = 0;   ///< of pieces; 0: absorb_width(heads)
  DecodePieces pieces{};  ///< of mla_decode_pieces() of the same rows: they are joined here, `latent` has the other rows. Up to
                          ///< kPieceRows. Their schedule is read before the kernel ahead has ended: mla_decode_pieces() sees to it
};
Status expand_values(const ExpandValues& p, Stream stream);

}  // namespace dsv3::cuda
