// Which kernel computes a product, and how it is cut: pure functions of shapes, tested without a GPU.
#pragma once

#include <cstdint>
#include <string>

namespace dsv3::cuda {

enum class GemmKernel { kStream, kTiles };

struct GemmChoice {
  GemmKernel kernel = GemmKernel::kStream;
  int tokens = 0;       ///< rows of x a block computes (kStream)
  int weight_rows = 0;  ///< rows of W a block computes (kStream)
  int splits = 1;       ///< blocks that share the K of a tile: a cluster (kStream)
  int launches = 1;     ///< kStream in deterministic mode with many rows: slices of kStreamMaxRows
  int64_t blocks = 0;   ///< of one launch (kStream)
};

inline constexpr int64_t kStreamMaxRows = 128;

/// Dense product y[m, n] = x[m, k] W[n, k]^T, m > 0.
GemmChoice choose_gemm(int64_t m, int64_t n, int64_t k, bool deterministic);
/// Grouped product over tiles of tile_rows rows.
GemmKernel choose_grouped_gemm(int tile_rows, bool deterministic);

/// Smallest of 8, 16, 32, 64, 128 that holds m <= 128 rows.
int stream_tokens(int64_t m);
/// Rows of W of a block: 64, or 128 (two warpgroups share the activations) where activations weigh as much as weights.
int stream_weight_rows(int tokens);
/// Splits of K: 1, 2, 3, 4, 6 or 8, for a kernel of so many tokens a block. In deterministic mode the splits of 8 tokens serve
/// all batches, so that the bits of a row do not depend on the batch.
int stream_splits(int64_t n, int64_t k, int tokens);

/// Microseconds of a streaming product in a chain of dependent launches: bytes / 3.1 TB/s, plus 0.3, plus 0.7 when split.
double predict_stream_us(int64_t m, int64_t n, int64_t k);

/// "stream: 8 tokens x 64 rows, 4 splits, 132 blocks".
std::string describe(const GemmChoice& choice);

}  // namespace dsv3::cuda
