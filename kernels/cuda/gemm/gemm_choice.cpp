#include "gemm_choice.h"

#include "gemm.h"

namespace dsv3::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks that keep HBM busy: each holds 64 to 90 KiB of loads in flight, and 112 of them need 28 bytes/ns a piece (weights; at 128
// tokens as much again for the activations, of the about 70 that an SM gets from L2).
constexpr int64_t kEnoughBlocks = 112;
// A block of 128 tokens has an SM to itself: more than one wave of clusters would cost twice the time of one.
constexpr int64_t kMostWideBlocks = 112;
constexpr int64_t kLeastStages = 3;                 // of 128 columns, for each split
constexpr int kSplits[] = {1, 2, 3, 4, 6, 8};       // 8: the portable size of a cluster

}  // namespace

int stream_tokens(int64_t m) {
  int tokens = 8;
  while (tokens < m && tokens < kStreamMaxRows) tokens *= 2;
  return tokens;
}

int stream_weight_rows(int tokens) { return tokens >= 64 ? 128 : 64; }

int stream_splits(int64_t n, int64_t k, int tokens) {
  const int64_t tiles = ceil_div(n, stream_weight_rows(tokens)), stages = k / 128;
  int best = 1;
  for (const int splits : kSplits) {
    if (splits > 1 && (stages / splits < kLeastStages || (tokens == 128 && tiles * splits > kMostWideBlocks))) break;
    best = splits;
    if (tiles * splits >= kEnoughBlocks) break;
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
  choice.tokens = stream_tokens(m);
  choice.weight_rows = stream_weight_rows(choice.tokens);
  choice.splits = stream_splits(n, k, deterministic ? 8 : choice.tokens);
  choice.blocks = ceil_div(n, choice.weight_rows) * choice.splits;
  return choice;
}

GemmKernel choose_grouped_gemm(int tile_rows, bool deterministic) {
  return tile_rows <= 64 || deterministic ? GemmKernel::kStream : GemmKernel::kTiles;
}

int grouped_tile_rows(int64_t rows, int64_t top_k, int64_t experts) {
  // Rows of an expert spread about their mean like counts of rare events: mean + two deviations (at least 3 rows) keeps
  // most experts in one tile. The square root is avoided: t >= mean + 2 sqrt(mean) <=> (t - mean)^2 >= 4 mean.
  const double mean = experts > 0 ? static_cast<double>(rows * top_k) / static_cast<double>(experts) : 0;
  int tile = 8;
  while (tile < 128 && (tile < mean || (tile - mean) * (tile - mean) < 4 * mean)) tile *= 2;
  return tile;
}

double predict_stream_us(int64_t m, int64_t n, int64_t k) {
  const double bytes = static_cast<double>(n * k + m * k + 2 * m * n);
  return bytes / 3.1e6 + 0.3 + (stream_splits(n, k, stream_tokens(m)) > 1 ? 0.7 : 0.0);
}

std::string describe(const GemmChoice& choice) {
  if (choice.kernel == GemmKernel::kTiles) return "tiles";
  std::string text = "stream: " + std::to_string(choice.tokens) + " tokens x " + std::to_string(choice.weight_rows) + " rows, " +
                     std::to_string(choice.splits) + " splits, " + std::to_string(choice.blocks) + " blocks";
  if (choice.launches > 1) text += ", " + std::to_string(choice.launches) + " launches";
  return text;
}

}  // namespace dsv3::cuda
