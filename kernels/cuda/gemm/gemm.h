// Matrix products y = x W^T. Launchers check shapes (kInternal) and enqueue; nothing is allocated.
//
// fp8_gemm() and fp8_grouped_gemm() choose a kernel by shape (gemm_choice.h, a pure function): streaming kernels for
// few rows (weights at HBM speed, split over K, weights requested before the dependency wait), tensor-core tiles for
// many. Every product is promoted to float32 every 128 of K (kernels.md findings 5 and 6).
#pragma once

#include "../common/types.h"
#include "dsv3/base/status.h"

namespace dsv3::cuda {

struct GemmOptions {
  /// The same bits for a row whatever the number of rows: splits of K depend on n and k alone, sums in order of split.
  bool deterministic = false;
};

/// y[m, n] = x[m, k] W[n, k]^T, BF16 result. x.rows == y.rows (0 is legal); y.stride * 2 a multiple of 16, y on 16
/// bytes.
Status fp8_gemm(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, const GemmOptions& options, Stream stream);

/// For every tile t < *tiles.count: y[rows of t] = x[rows of t] W[t.expert]^T. Rows outside all tiles are left alone. x
/// and y are in the permuted order; x has tiles' rows plus min(tile_rows, 128) - 1 rows that may be read and are
/// ignored.
Status fp8_grouped_gemm(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y,
                        const GemmOptions& options, Stream stream);

/// Rows per tile for `rows` tokens that choose top_k of `experts`: 8, 16, 32, 64, 128 or 256. Pure.
int grouped_tile_rows(int64_t rows, int64_t top_k, int64_t experts);

// ---- simple.cu: the readable rung: any shape, any count of rows, mma.sync on BF16 operands (FP8 is converted; exact),
// one fixed order of sums. Baseline of tests, the path of BF16 experts, and of BF16 products in deterministic mode.
Status simple_fp8_gemm(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, Stream stream);
Status simple_fp8_grouped_gemm(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y,
                               Stream stream);
Status simple_bf16_gemm(const Bf16Matrix& x, const Bf16Weight& w, const Bf16Matrix& y, Stream stream);
Status simple_bf16_gemm(const Bf16Matrix& x, const Bf16Weight& w, const F32Matrix& y, Stream stream);
Status simple_bf16_grouped_gemm(const Bf16Matrix& x, const Bf16Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y,
                                Stream stream);

/// A batch of products over heads: y[r][h][n] = sum over k of x[r][h][k] * W_h, W_h[n][k] or, if `transposed`,
/// W_h[k][n]. Element (r, h, i) of x at x + r * x_row + h * x_head + i, y alike; W_h at w + h * w_head with row length
/// w_stride.
struct HeadProduct {
  const Bf16* x = nullptr;
  int64_t x_row = 0, x_head = 0;
  const Bf16* w = nullptr;
  int64_t w_head = 0, w_stride = 0;
  bool transposed = false;
  Bf16* y = nullptr;
  int64_t y_row = 0, y_head = 0;
  int64_t rows = 0, heads = 0, n = 0, k = 0;
};
Status simple_head_product(const HeadProduct& p, Stream stream);

}  // namespace dsv3::cuda
