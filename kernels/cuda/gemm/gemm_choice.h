// Which kernel computes a product, and how it is cut: pure functions of shapes, tested without a GPU.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "../common/types.h"
#include "dsv3/base/status.h"
#include "tiles_choice.h"

namespace dsv3::cuda {

enum class GemmKernel { kStream, kTiles };

/// What a block of the streaming kernel computes: rows of x times rows of W.
struct StreamTile {
  int tokens = 0, weight_rows = 0;
  bool operator==(const StreamTile&) const = default;
};
/// All that are compiled. {128, 128} has a multiprocessor to itself, of the others it holds two.
inline constexpr std::array<StreamTile, 7> kStreamTiles = {
    {{8, 64}, {16, 64}, {32, 64}, {64, 64}, {64, 128}, {128, 64}, {128, 128}}};
/// Blocks that may share the K of a tile. 8: the portable size of a cluster.
inline constexpr std::array<int, 6> kStreamSplits = {1, 2, 3, 4, 6, 8};

/// A tile, and the blocks (a cluster) that share its K.
struct StreamShape {
  int tokens = 0, weight_rows = 0, splits = 1;
  bool operator==(const StreamShape&) const = default;
};

struct GemmChoice {
  GemmKernel kernel = GemmKernel::kStream;
  StreamShape stream;  ///< kStream
  TileShape tile;      ///< kTiles
  int launches = 1;    ///< kStream in deterministic mode with many rows: slices of kStreamMaxRows
};

inline constexpr int kSms = 132;  ///< of an H100, on which choices of kernels were measured
inline constexpr int kStreamTileRows = 128;  ///< rows of x of the largest streaming tile
inline constexpr int64_t kStreamMaxRows =
    1024;  ///< of one launch: x stays in L2, where the blocks of all weight rows read it

/// Dense product y[m, n] = x[m, k] W[n, k]^T, m > 0.
GemmChoice choose_gemm(int64_t m, int64_t n, int64_t k, bool deterministic);
/// Grouped product over a list of tiles.
struct GroupedChoice {
  GemmKernel kernel = GemmKernel::kStream;
  TileShape tile;  ///< kTiles
};
GroupedChoice choose_grouped_gemm(const ExpertTiles& tiles, const Fp8Weight& w, bool deterministic);

/// Whether copies of weights that a launch reads once ask L2 to drop them first, so that the layer's activations stay. Not where the weights
/// are more than L2: it asks HBM for 256 bytes a row, half of which is the next stage's, and those are dropped too. Measured on an H100: as
/// one rank of TP 8, up to 33 MB a product, a dense layer of one row takes 56 us with and 61 us without; the experts' gate and up of two
/// rows (62 MB) 1% more with, of eight rows (210 MB) 7%; a dense layer in full size 298 us with, 285 without.
constexpr bool evicts_first(int64_t weight_bytes) {
  return weight_bytes <= 48'000'000;
}
/// The same for the tensor-core tiles of up to 128 rows. 128 rows, us without and with: 4608x7168 16.0 and 15.7, 24576x1536 16.4 and 15.7,
/// 32768x512 8.5 and 8.0, 7168x2304 8.1 and 7.9; but 2112x7168 10.3 and 10.4, 7168x1024 5.0 and 5.4, 3072x1536 4.4 and 4.5.
constexpr bool tiles_evict_first(int64_t weight_bytes) {
  return weight_bytes >= 16'000'000 && evicts_first(weight_bytes);
}

/// The same for experts with about a tile each: where all activations, `rows` in and out, stay in L2. Eight experts, us without and with:
/// 4096x7168, 64 rows each 86.9 and 83.0, 128 rows 92.8 and 89.7; 7168x2048 46.7 and 44.3, 54.9 and 49.5. Where more activations pass, L2
/// keeps them in the weights' place: 32 experts, 7168x2048, 64 rows 178 and 182; 256 experts, 512x7168, 64 rows 368 and 410.
bool experts_evict_first(const ExpertTiles& tiles, const Fp8Weight& w, int64_t rows);

/// Where rows are in order by expert: routed rows (rows * top_k) up to which experts' gate and up products take fp8_gate_up() (fp8_gate_up.h): one or two
/// tokens. Four tokens at 512x7168 took 54 us against 50 of the two kernels, one 17 against 22. Width: the experts'
/// intermediate columns.
inline constexpr int64_t kFusedGateUpRows = 18;
bool use_fused_gate_up(int tile_rows, int64_t rows, int64_t top_k, int64_t width);

/// Smallest of 8, 16, 32, 64, 128 that holds m rows; 128 for more.
int stream_tokens(int64_t m);
/// Rows of W of a block of the grouped kernel: 64, or 128 (two warpgroups share the activations) for 64 tokens and
/// more.
int stream_weight_rows(int tokens);
/// Splits of K for few rows, and in deterministic mode for all, so that the bits of a row do not depend on the batch.
int stream_splits(int64_t n, int64_t k);
/// Tile and splits for m <= kStreamMaxRows rows: those measured best at the nearest product. Where none is near, and in
/// deterministic mode, the smallest tile that holds up to 32 rows, above the one with the least predicted time.
StreamShape choose_stream(int64_t m, int64_t n, int64_t k, bool deterministic);

/// Microseconds in a chain of dependent launches: of a streaming product, and of a tensor-core tile.
double predict_stream_us(const StreamShape& shape, int64_t m, int64_t n, int64_t k);
double predict_tiles_us(TileShape tile, int64_t m, int64_t n, int64_t k);

// The kernels behind fp8_gemm() and fp8_grouped_gemm(), arguments as there; x.rows <= kStreamMaxRows, lists with
// tile_rows <= kStreamTileRows. Those of tiles: tiles_choice.h.
Status fp8_gemm_stream(const StreamShape& shape, const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y,
                       Stream stream);
Status fp8_grouped_gemm_stream(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y,
                               Stream stream);

/// "64 tokens x 128 rows, 2 splits"
std::string describe(const StreamShape& shape);
/// "stream: 8 tokens x 64 rows, 4 splits", "tiles: 128x192".
std::string describe(const GemmChoice& choice);

}  // namespace dsv3::cuda
