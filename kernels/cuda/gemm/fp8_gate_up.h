// Gate and up product of experts with its activation, for few rows: one launch from FP8 rows to FP8 rows.
//
//   out[p] = e4m3(silu(x[p] Wg^T) * (x[p] Wu^T)), one scale per row and 128 columns (the rule of quantise())
//
// The sums stay in float32 up to the rounding to e4m3 (fp8_gemm() and silu_mul() round gate and up to BF16 between).
#pragma once

#include "../common/types.h"
#include "dsv3/base/status.h"

namespace dsv3::cuda {

inline constexpr int kGateUpMaxSplits = 8;  ///< the largest cluster that every GPU grants

struct GateUpOptions {
  bool ue8m0 = false;
  int splits = 0;            ///< 1, 2, 4 or 8 blocks share the K of an item, each at least 128 of it; 0: gate_up_splits() chooses
};

/// For every tile t < *tiles.count: out[rows of t] from x[rows of t] and gate_up[t.expert], a weight [2 * width, k] with the gate's
/// rows first; width a multiple of 128. Rows outside all tiles are left alone. x may be read up to 7 rows past a
/// tile (what lies there does not matter). tiles.tile_rows: 8.
Status fp8_gate_up(const Fp8Rows& x, const Fp8Weight& gate_up, const ExpertTiles& tiles, const Fp8Rows& out, const GateUpOptions& options,
                   Stream stream);

/// The same for few rows: the batch is the one tile of every hit. out[kHitRows h + r] from x[r] and gate_up[hit h's expert],
/// its scales times hits.weights[h][r], for all hits.rows rows r (where the weight is 0, too: zeros times numbers). x
/// may be read kHitRows rows far. Lets its successor start once the list of hits is complete.
Status fp8_gate_up_hits(const Fp8Rows& x, const Fp8Weight& gate_up, const ExpertHits& hits, const Fp8Rows& out,
                        const GateUpOptions& options, Stream stream);

/// Blocks that share the K of an item (a tile and 128 columns): 1, 2 or 4, by k alone, so that a row's bits depend on the row and its
/// expert only. Pure.
int gate_up_splits(int64_t k);
/// Columns of the output that a block takes: 128, or 64 where `items` of 128 columns are too few to keep every SM's copies under way.
/// Bits do not depend on it. Pure.
int gate_up_cols(int64_t items, int splits);

}  // namespace dsv3::cuda
