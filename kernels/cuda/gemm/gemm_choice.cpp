#include "gemm_choice.h"

#include <algorithm>

#include "gemm.h"
#include "tiles_choice.h"

namespace dsv3::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Few rows. Blocks that keep HBM busy: each holds 64 to 90 KiB of loads in flight, and 112 of them need 28 bytes/ns a piece.
constexpr int64_t kEnoughBlocks = 112;
constexpr int64_t kLeastStages = 3;  // of 128 columns, for each split

// The model of predict_*_us(), microseconds and bytes a microsecond.
constexpr int kSms = 132;
constexpr double kHbm = 3.1e6, kL2 = 5.8e6, kIntoSm = 9.0e4;
constexpr double kCyclesPerUs = 1755, kMacsPerCycle = 4096;
constexpr double kStageLatency = 0.12;     // barrier, first wgmma, promotion: not overlapped within a block
constexpr double kStart = 1.0;             // a block that shares its SM: the dependency, first activations, the epilogue
constexpr double kStartAlone = 2.6;        // one that has to wait for the SM of its predecessor
constexpr double kCluster = 0.7;           // two cluster barriers
constexpr double kExchange = 2.0e4;        // between the SMs of a cluster, into one SM
constexpr double kStartTiles = 2.5, kTilesEfficiency = 0.75;

int64_t count_blocks(const StreamShape& shape, int64_t m, int64_t n) {
  return ceil_div(n, shape.weight_rows * shape.peers) * shape.peers * ceil_div(m, shape.tokens) * shape.splits;
}

double product_bytes(int64_t m, int64_t n, int64_t k) { return static_cast<double>(n * k + m * k + 2 * m * n); }

}  // namespace

int stream_tokens(int64_t m) {
  int tokens = 8;
  while (tokens < m && tokens < kStreamMaxRows) tokens *= 2;
  return tokens;
}

int stream_weight_rows(int tokens) { return tokens >= 64 ? 128 : 64; }

int stream_splits(int64_t n, int64_t k) {
  const int64_t tiles = ceil_div(n, 64), stages = k / 128;
  int best = 1;
  for (const int splits : kStreamSplits) {
    if (splits > 1 && stages / splits < kLeastStages) break;
    best = splits;
    if (tiles * splits >= kEnoughBlocks) break;
  }
  return best;
}

double predict_stream_us(const StreamShape& shape, int64_t m, int64_t n, int64_t k) {
  const bool alone = shape.tokens == 128 && shape.weight_rows == 128;
  const int64_t blocks = count_blocks(shape, m, n);
  const int64_t places = alone ? kSms : 2 * kSms;
  // Blocks one after the other, and blocks of the busiest SM; many small blocks even out.
  const auto waves = static_cast<double>(ceil_div(blocks, places));
  const double of_sm = blocks <= places || alone ? static_cast<double>(ceil_div(blocks, kSms)) : static_cast<double>(blocks) / kSms + 0.5;
  const auto stages = static_cast<double>(ceil_div(k / 128, shape.splits));
  const double stage_bytes = 128.0 * (shape.weight_rows + shape.tokens);
  const double hbm = product_bytes(m, n, k) / kHbm, l2_bytes = 128.0 * (shape.weight_rows + shape.tokens / shape.peers);
  const double l2 = static_cast<double>(blocks) * stages * l2_bytes / kL2;
  const double sm = of_sm * stages * stage_bytes / kIntoSm;
  const double stage_us = 128.0 * shape.weight_rows * shape.tokens / (kMacsPerCycle * kCyclesPerUs) + kStageLatency;
  double us = (alone ? kStartAlone : kStart) + std::max({hbm, l2, sm, waves * stages * stage_us});
  if (shape.splits > 1) us += kCluster + 4.0 * shape.weight_rows * shape.tokens * of_sm / kExchange;
  return us;
}

double predict_tiles_us(int64_t m, int64_t n, int64_t k) {
  const double cycles = modelled_cycles(choose_tiles(m, n, k, kSms), m, n, k, kSms);
  return kStartTiles + std::max(product_bytes(m, n, k) / kHbm, cycles / kCyclesPerUs / kTilesEfficiency);
}

StreamShape choose_stream(int64_t m, int64_t n, int64_t k, bool deterministic) {
  StreamShape best{stream_tokens(m), 64, stream_splits(n, k)};
  if (best.tokens <= 32) return best;
  const int fixed = best.splits;
  double least = predict_stream_us(best, m, n, k);
  for (const StreamTile& tile : kStreamTiles) {
    if (tile.tokens < 32 || tile.tokens > stream_tokens(m)) continue;
    for (const int splits : kStreamSplits) {
      if (splits * tile.peers > kStreamSplits.back()) continue;
      if (deterministic ? splits != fixed : splits > 1 && k / 128 / splits < kLeastStages) continue;
      const StreamShape shape{tile.tokens, tile.weight_rows, splits, tile.peers};
      const double us = predict_stream_us(shape, m, n, k);
      if (us < least) least = us, best = shape;
    }
  }
  return best;
}

GemmChoice choose_gemm(int64_t m, int64_t n, int64_t k, bool deterministic) {
  GemmChoice choice;
  if (m > kStreamMaxRows && !deterministic) {
    choice.kernel = GemmKernel::kTiles;
    return choice;
  }
  // The tiles' sums are not cut where the splits are: in deterministic mode many rows go through the same kernel as few.
  choice.launches = static_cast<int>(ceil_div(m, kStreamMaxRows));
  const int64_t rows = std::min(m, kStreamMaxRows);  // of a launch
  const StreamShape shape = choose_stream(rows, n, k, deterministic);
  if (!deterministic && m > 64 && predict_tiles_us(m, n, k) < predict_stream_us(shape, m, n, k)) {
    choice.kernel = GemmKernel::kTiles;
    return choice;
  }
  choice.tokens = shape.tokens;
  choice.weight_rows = shape.weight_rows;
  choice.splits = shape.splits;
  choice.peers = shape.peers;
  choice.blocks = count_blocks(shape, rows, n);
  return choice;
}

GemmKernel choose_grouped_gemm(int tile_rows, bool deterministic) {
  return tile_rows <= 64 || deterministic ? GemmKernel::kStream : GemmKernel::kTiles;
}

int grouped_tile_rows(int64_t rows, int64_t top_k, int64_t experts) {
  // Rows of an expert spread about their mean like counts of rare events: mean + two deviations (at least 3 rows) keeps
  // most experts in one tile, so that their weights are read once. Tiles of 256 leave out 64 rows at a time that nobody has, and
  // are the fastest of full ones, too. The square root is avoided: t >= mean + 2 sqrt(mean) <=> (t - mean)^2 >= 4 mean.
  const double mean = experts > 0 ? static_cast<double>(rows * top_k) / static_cast<double>(experts) : 0;
  int tile = 8;
  while (tile < 256 && (tile < mean || (tile - mean) * (tile - mean) < 4 * mean)) tile *= 2;
  return tile;
}

std::string describe(const StreamShape& shape) {
  return std::to_string(shape.tokens) + " tokens x " + std::to_string(shape.weight_rows) + " rows, " + std::to_string(shape.splits) +
         (shape.splits == 1 ? " split" : " splits") + (shape.peers > 1 ? ", pairs" : "");
}

std::string describe(const GemmChoice& choice) {
  if (choice.kernel == GemmKernel::kTiles) return "tiles";
  std::string text = "stream: " + describe(StreamShape{choice.tokens, choice.weight_rows, choice.splits, choice.peers}) + ", " +
                     std::to_string(choice.blocks) + " blocks";
  if (choice.launches > 1) text += ", " + std::to_string(choice.launches) + " launches";
  return text;
}

}  // namespace dsv3::cuda
