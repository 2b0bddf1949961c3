#include "gemm_choice.h"

#include <algorithm>

#include "gemm.h"
#include "tiles_choice.h"

namespace dsv3::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Few rows. Blocks that keep HBM busy: each holds 64 to 90 KiB of loads in flight, and 112 of them need 28 bytes/ns a
// piece.
constexpr int64_t kEnoughBlocks = 112;
constexpr int64_t kLeastStages = 3;  // of 128 columns, for each split

// The model of predict_*_us(), microseconds and bytes a microsecond: fitted to all measured variants (H100, chains of
// launches).
constexpr double kHbm = 2.84e6, kL2 = 5.8e6, kIntoSm = 6.0e4;
constexpr double kTilesHbm = 3.1e6;
constexpr double kCyclesPerUs = 1755, kMacsPerCycle = 4096;
constexpr double kStageLatency = 0.16,
                 kTokenLatency = 0.0012;  // barrier, first wgmma; promotion: not overlapped within a block
constexpr double kStart = 1.4;            // a block that shares its SM: the dependency, first activations, the epilogue
constexpr double kStartAlone = 2.4;       // one that has to wait for the SM of its predecessor
constexpr double kCluster = 1.2;          // two cluster barriers
constexpr double kExchange = 2.7e4;       // between the SMs of a cluster, into one SM
constexpr int64_t kClusterPlaces = 228;   // of the 2 * kSms places those that clusters find: they must lie within a GPC

/// The fastest measured variant (H100, chains of launches): what a block computes, rows of x by rows of W.
struct Best {
  int rows = 0, cols = 0;  ///< 0: not measured
  int splits = 0;          ///< of K, of the streaming kernel; 0: the tensor-core tiles
  int blocks = 1;          ///< of a cluster of those
};
constexpr int kPair = 2;
constexpr int64_t kMeasuredRows[] = {16, 32, 64, 128, 256, 512, 1024};  // an entry speaks for fewer rows, too
struct Measured {
  int64_t n, k;
  std::array<Best, std::size(kMeasuredRows)> best;
};
// Few rows: the stream, which swaps the operands. Then the smallest tiles that still fill the GPU once: a block's time
// is the way of a stage from L2 to its promotion, once for each 128 of K, whatever the tile. Splits pay where K is long
// and few blocks remain. Pairs of blocks pay where tiles are many and large: they save half of the traffic of x, and
// wait for each other.
// clang-format off
constexpr Measured kMeasured[] = {
    {2112, 7168,  {{{16, 64, 6}, {32, 64, 6}, {32, 64, 2}, {64, 32}, {128, 32}, {128, 64}, {128, 192, 0, kPair}}}},
    {24576, 1536, {{{16, 64, 1}, {32, 64, 1}, {64, 128, 0, kPair}, {128, 64}, {128, 128}, {256, 128, 0, kPair}, {256, 128, 0, kPair}}}},
    {32768, 512,  {{{16, 64, 1}, {32, 64, 1}, {64, 128}, {128, 128}, {128, 128}, {128, 128}, {256, 128, 0, kPair}}}},
    {7168, 16384, {{{16, 64, 2}, {32, 64, 1}, {64, 64}, {128, 64}, {128, 128}, {256, 128, 0, kPair}, {256, 128, 0, kPair}}}},
    {4096, 7168,  {{{16, 64, 3}, {32, 64, 3}, {64, 32}, {128, 32}, {128, 64}, {128, 128}, {256, 128, 0, kPair}}}},
    {7168, 2048,  {{{16, 64, 1}, {32, 64, 1}, {64, 64}, {128, 64}, {128, 128}, {128, 128}, {256, 128, 0, kPair}}}},
    {3072, 1536,  {{{16, 64, 3}, {16, 64, 1}, {64, 64}, {128, 32}, {128, 64}, {128, 128}, {128, 192, 0, kPair}}}},
    {1536, 1536,  {{{16, 64, 1}, {8, 64, 1}, {64, 32}, {64, 32}, {128, 32}, {128, 64}, {128, 96}}}},
    {4096, 512,   {{{8, 64, 1}, {16, 64, 1}, {64, 32}, {64, 64}, {128, 64}, {128, 64}, {128, 128}}}},
    {2048, 512,   {{{8, 64, 1}, {8, 64, 1}, {16, 64, 1}, {64, 32}, {64, 64}, {128, 64}, {128, 128}}}},
    {7168, 1024,  {{{16, 64, 1}, {32, 64, 1}, {64, 96}, {128, 96}, {128, 128}, {128, 128}, {128, 128, 0, kPair}}}},
    {512, 7168,   {{{16, 64, 8}, {16, 64, 8}, {32, 64, 8}, {64, 64, 8}, {64, 64, 6}, {64, 32}, {64, 64}}}},
    {256, 7168,   {{{16, 64, 8}, {16, 64, 8}, {16, 64, 8}, {32, 64, 8}, {64, 64, 8}, {64, 64, 6}, {64, 32}}}},
    {7168, 256,   {{{16, 64, 1}, {32, 64, 1}, {64, 64}, {128, 64}, {128, 64}, {128, 128}, {128, 128}}}},
    {7168, 128,   {{{16, 64, 1}, {32, 64, 1}, {64, 64}, {64, 128}, {128, 64}, {128, 128}, {128, 128}}}},
    {36864, 7168, {{{16, 64, 1}, {32, 64, 1}, {64, 96}, {128, 96}, {128, 192, 0, kPair}, {128, 192, 0, kPair}, {256, 128, 0, kPair}}}},
    {7168, 18432, {{{16, 64, 1}, {32, 64, 1}, {64, 64}, {128, 64}, {128, 128}, {256, 128, 0, kPair}, {256, 128, 0, kPair}}}},
    {4608, 7168,  {{{16, 64, 3}, {32, 64, 2}, {64, 48}, {128, 48}, {128, 96}, {128, 192, 0, kPair}, {128, 192, 0, kPair}}}},
    {7168, 2304,  {{{16, 64, 1}, {32, 64, 1}, {64, 64}, {128, 64}, {128, 128}, {128, 128}, {256, 128, 0, kPair}}}},
};

/// The same for experts, tensor-core tiles alone: of up to 64 rows each, of up to 128 rows each.
struct MeasuredExperts {
  int64_t n, k, experts;
  TileShape best[2];
};
constexpr MeasuredExperts kMeasuredExperts[] = {
    {4096, 7168, 8,   {{64, 128, 1}, {128, 128, kPair}}},     {7168, 2048, 8,   {{64, 64, 1}, {128, 64, 1}}},
    {4096, 7168, 32,  {{64, 128, 1}, {128, 128, 1}}},         {7168, 2048, 32,  {{64, 128, 1}, {128, 64, 1}}},
    {4096, 7168, 256, {{64, 128, 1}, {128, 192, kPair}}},     {7168, 2048, 256, {{64, 128, 1}, {128, 64, 1}}},
    {512, 7168, 256,  {{64, 128, kPair}, {128, 128, 1}}},     {7168, 256, 256,  {{64, 128, kPair}, {128, 96, 1}}},
    {256, 7168, 256,  {{64, 128, kPair}, {128, 128, kPair}}}, {7168, 128, 256,  {{64, 128, 1}, {128, 128, kPair}}},
};
// clang-format on
constexpr double kNear = 1.3;         // n and k of a measured product that speaks for another one: at most this far off
constexpr double kNearExperts = 2.1;  // and counts of experts

double ratio(int64_t a, int64_t b) {
  return static_cast<double>(std::max(a, b)) / static_cast<double>(std::min(a, b));
}

/// What is known of the nearest measured product; rows 0: none is near.
Best nearest(int64_t m, int64_t n, int64_t k) {
  const auto at = std::ranges::lower_bound(kMeasuredRows, m);
  if (at == std::end(kMeasuredRows)) return {};
  const Measured* found = nullptr;
  double least = 0;
  for (const Measured& measured : kMeasured) {
    const double by_n = ratio(n, measured.n), by_k = ratio(k, measured.k);
    if (by_n > kNear || by_k > kNear || (found != nullptr && by_n * by_k >= least)) continue;
    found = &measured, least = by_n * by_k;
  }
  return found == nullptr ? Best{} : found->best[static_cast<size_t>(at - std::begin(kMeasuredRows))];
}

/// The same for experts.
TileShape nearest_experts(int tile_rows, const Fp8Weight& w) {
  const MeasuredExperts* found = nullptr;
  double least = 0;
  for (const MeasuredExperts& measured : kMeasuredExperts) {
    const double by_n = ratio(w.n, measured.n), by_k = ratio(w.k, measured.k),
                 by_count = ratio(w.count, measured.experts);
    if (by_n > kNear || by_k > kNear || by_count > kNearExperts) continue;
    if (found != nullptr && by_n * by_k * by_count >= least) continue;
    found = &measured, least = by_n * by_k * by_count;
  }
  return found == nullptr ? TileShape{} : found->best[tile_rows <= 64 ? 0 : 1];
}

int64_t count_blocks(const StreamShape& shape, int64_t m, int64_t n) {
  return ceil_div(n, shape.weight_rows) * ceil_div(m, shape.tokens) * shape.splits;
}

double product_bytes(int64_t m, int64_t n, int64_t k) {
  return static_cast<double>(n * k + m * k + 2 * m * n);
}

StreamShape choose_stream(const Best& known, int64_t m, int64_t n, int64_t k, bool deterministic) {
  if (known.splits > 0) return {std::min(known.rows, stream_tokens(m)), known.cols, known.splits};
  StreamShape best{stream_tokens(m), 64, stream_splits(n, k)};
  if (best.tokens <= 32) return best;
  const int fixed = best.splits;
  double least = predict_stream_us(best, m, n, k);
  for (const StreamTile& tile : kStreamTiles) {
    if (tile.tokens < 32 || tile.tokens > stream_tokens(m)) continue;
    for (const int splits : kStreamSplits) {
      if (deterministic ? splits != fixed : splits > 1 && k / 128 / splits < kLeastStages) continue;
      const StreamShape shape{tile.tokens, tile.weight_rows, splits};
      const double us = predict_stream_us(shape, m, n, k);
      if (us < least) least = us, best = shape;
    }
  }
  return best;
}

}  // namespace

int stream_tokens(int64_t m) {
  int tokens = 8;
  while (tokens < m && tokens < kStreamTileRows) tokens *= 2;
  return tokens;
}

int stream_weight_rows(int tokens) {
  return tokens >= 64 ? 128 : 64;
}

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
  const int64_t places = alone ? kSms : shape.splits > 1 ? kClusterPlaces : 2 * kSms;
  // Blocks one after the other, and blocks of the busiest SM; many small blocks even out.
  const auto waves = static_cast<double>(ceil_div(blocks, places));
  const double of_sm = blocks <= places || alone ? static_cast<double>(ceil_div(blocks, kSms))
                                                 : static_cast<double>(blocks) / kSms + 0.5;
  const auto stages = static_cast<double>(ceil_div(k / 128, shape.splits));
  const double stage_bytes = 128.0 * (shape.weight_rows + shape.tokens);
  const double hbm = product_bytes(m, n, k) / kHbm, l2 = static_cast<double>(blocks) * stages * stage_bytes / kL2;
  const double sm = of_sm * stages * stage_bytes / kIntoSm;
  const double stage_us = 128.0 * shape.weight_rows * shape.tokens / (kMacsPerCycle * kCyclesPerUs) + kStageLatency +
                          kTokenLatency * shape.tokens;
  double us = (alone ? kStartAlone : kStart) + std::max({hbm, l2, sm, waves * stages * stage_us});
  if (shape.splits > 1) us += kCluster + 4.0 * shape.weight_rows * shape.tokens * of_sm / kExchange;
  return us;
}

double predict_tiles_us(TileShape tile, int64_t m, int64_t n, int64_t k) {
  return std::max(kStart + product_bytes(m, n, k) / kTilesHbm, modelled_cycles(tile, m, n, k, kSms) / kCyclesPerUs);
}

StreamShape choose_stream(int64_t m, int64_t n, int64_t k, bool deterministic) {
  return choose_stream(deterministic ? Best{} : nearest(m, n, k), m, n, k, deterministic);
}

GemmChoice choose_gemm(int64_t m, int64_t n, int64_t k, bool deterministic) {
  GemmChoice choice;
  if (deterministic) {  // the tiles' sums are not cut where the splits are: many rows go through the same kernel as few
    choice.launches = static_cast<int>(ceil_div(m, kStreamMaxRows));
    choice.stream = choose_stream(std::min(m, kStreamMaxRows), n, k, true);
    return choice;
  }
  const Best known = nearest(m, n, k);
  if (known.rows > 0 && known.splits == 0) {
    choice.kernel = GemmKernel::kTiles;
    choice.tile = {known.rows, known.cols, known.blocks};
    return choice;
  }
  if (m <= kStreamMaxRows) {
    choice.stream = choose_stream(known, m, n, k, false);
    if (known.rows > 0 || m <= 64) return choice;
  }
  const TileShape tile = choose_tiles(m, n, k, kSms);
  if (m <= kStreamMaxRows && predict_stream_us(choice.stream, m, n, k) <= predict_tiles_us(tile, m, n, k))
    return choice;
  choice.kernel = GemmKernel::kTiles;
  choice.tile = tile;
  return choice;
}

bool experts_evict_first(const ExpertTiles& tiles, const Fp8Weight& w, int64_t rows) {
  return few_rows_each(tiles, w.count) && rows * (w.k + 2 * w.n) <= 20'000'000;
}

GroupedChoice choose_grouped_gemm(const ExpertTiles& tiles, const Fp8Weight& w, bool deterministic) {
  GroupedChoice choice;
  if (tiles.tile_rows <= 32 || (deterministic && tiles.tile_rows <= kStreamTileRows)) return choice;
  choice.kernel = GemmKernel::kTiles;
  choice.tile = choose_grouped_tiles(tiles.tile_rows, w.n, w.k);
  if (tiles.tile_rows > 128 || !few_rows_each(tiles, w.count)) return choice;
  if (const TileShape known = nearest_experts(tiles.tile_rows, w); known.rows > 0) {
    choice.tile = known;
  } else if (tiles.tile_rows == 128) {
    choice.tile = {128, 128};  // about a tile for each expert: of wider ones there would be too few
  }
  return choice;
}

// Tiles of 16 rows were measured slower than the two kernels (4096x7168, 8 tiles of 16: 96 us against 86).
bool use_fused_gate_up(int tile_rows, int64_t rows, int64_t top_k, int64_t width) {
  return tile_rows <= 8 && rows * top_k <= kFusedGateUpRows && width % 128 == 0;
}

int grouped_tile_rows(int64_t rows, int64_t top_k, int64_t experts) {
  // Rows of an expert spread about their mean like counts of rare events: mean + two deviations (at least 3 rows) keeps
  // most experts in one tile, so that their weights are read once. The square root is avoided: t >= mean + 2 sqrt(mean)
  // <=> (t - mean)^2 >= 4 mean.
  //
  // Beyond 128 rows, of 4096x7168 with rows spread at random (H100, us, best with tiles of 128 against tiles of 256):
  //   256 experts, mean  128   3438, 2963: an expert's weights are read once, and waves of 64 rows that nobody has are
  //   left out 256 experts, mean  256   4338, 4856: half of the experts have a second tile of few rows, which costs
  //   most of a full one
  //    32 experts, mean  256    549,  583
  //     8 experts, mean 1024    432,  437
  //     8 experts, mean 1024    397,  388, all full: tiles of 256 are 2% faster themselves, which counts where experts
  //     have many
  constexpr double kMostOf256 = 200,
                   kManyOf256 = 2048;  // real rows vary more than random ones: less than two deviations allow
  const double mean = experts > 0 ? static_cast<double>(rows * top_k) / static_cast<double>(experts) : 0;
  const auto holds = [mean](int tile) { return tile >= mean && (tile - mean) * (tile - mean) >= 4 * mean; };
  int tile = 8;
  while (tile < 128 && !holds(tile)) tile *= 2;
  if (holds(tile)) return tile;
  return mean <= kMostOf256 || mean >= kManyOf256 ? 256 : 128;
}

std::string describe(const StreamShape& shape) {
  return std::to_string(shape.tokens) + " tokens x " + std::to_string(shape.weight_rows) + " rows, " +
         std::to_string(shape.splits) + (shape.splits == 1 ? " split" : " splits");
}

std::string describe(const GemmChoice& choice) {
  if (choice.kernel == GemmKernel::kTiles) return "tiles: " + to_string(choice.tile);
  std::string text = "stream: " + describe(choice.stream);
  if (choice.launches > 1) text += ", " + std::to_string(choice.launches) + " launches";
  return text;
}

}  // namespace dsv3::cuda
