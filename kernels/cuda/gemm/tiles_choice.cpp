// The time model behind the choice of tiles: whole waves of clusters, each stage of a tile limited by the tensor core,
// by what comes into a multiprocessor, or by its own latency.
#include "tiles_choice.h"

#include <algorithm>

namespace dsv3::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Fitted to all measured tiles at 64 to 8192 rows (H100; gemm_variants, tiles_variants): half of the predictions are
// within 11%, and the tile chosen takes 1.6% longer than the best on average.
constexpr double kMacsPerCycle = 4096;        // e4m3, one multiprocessor
constexpr double kBytesPerCycle = 45;         // into one multiprocessor
constexpr double kBytesPerCycleOfLists = 33;  // with long lists: experts' tiles find less of each other in L2
constexpr double kStageCycles = 200,
                 kPairStageCycles = 520;   // of any stage: loading, arrival, promotion, release; a pair waits for both
constexpr double kEpilogueCycles = 0.066;  // per output of a tile: what of the stores is not hidden
constexpr double kTileCycles = 280;        // pipeline bubble from tile to tile
constexpr double kStartCycles = 2350, kPairStartCycles = 4690;  // set-up and first loads

/// What of the tensor core's rate is reached, promotion included: more where a stage has more work for the same loads.
double efficiency(TileShape tile) {
  return tile.rows > 128 ? 0.775 : tile.cols > 128 ? 0.745 : 0.73;
}

/// Cycles of one stage of K (128); x is halved by the multicast to a pair of blocks.
double stage_cycles(TileShape tile, double bytes_per_cycle) {
  const double macs = 128.0 * tile.rows * tile.cols / kMacsPerCycle / efficiency(tile);
  const double bytes = 128.0 * (tile.rows / tile.blocks + tile.cols);
  return std::max({tile.blocks == 1 ? kStageCycles : kPairStageCycles, macs, bytes / bytes_per_cycle});
}

}  // namespace

double modelled_cycles(TileShape tile, int64_t m, int64_t n, int64_t k, int sms) {
  const int64_t clusters = std::max(1, sms / tile.blocks);
  const int64_t units = ceil_div(m, tile.rows) * ceil_div(n, tile.blocks * tile.cols);
  const int64_t waves = ceil_div(units, clusters);
  const double a_tile = static_cast<double>(k / kQuantGroup) * stage_cycles(tile, kBytesPerCycle) +
                        kEpilogueCycles * tile.rows * tile.cols + kTileCycles;
  return (tile.blocks == 1 ? kStartCycles : kPairStartCycles) + static_cast<double>(waves) * a_tile;
}

TileShape choose_tiles(int64_t m, int64_t n, int64_t k, int sms) {
  TileShape best = kTileShapes[0];
  for (const TileShape tile : kTileShapes) {
    if (modelled_cycles(tile, m, n, k, sms) < modelled_cycles(best, m, n, k, sms)) best = tile;
  }
  return best;
}

TileShape choose_grouped_tiles(int tile_rows, int64_t n, int64_t k) {
  if (tile_rows <= 64) return {64, 128};
  if (tile_rows > 128) return {256, 128};
  const auto cost = [n](TileShape tile) {
    return static_cast<double>(ceil_div(n, 2 * tile.cols)) * stage_cycles(tile, kBytesPerCycleOfLists);
  };
  const TileShape wide{128, 192}, narrow{128, 128};
  // Wide tiles save loads. 256 rows for each of 256 experts, 7168x256, us: narrow 511, wide 566.
  return k > kShortK && cost(wide) < cost(narrow) ? wide : narrow;
}

bool few_rows_each(const ExpertTiles& tiles, int64_t experts) {
  return tiles.max_tiles < 2 * experts;
}

int band_tiles(int tile_rows, const ExpertTiles* tiles, const Fp8Weight& w) {
  constexpr int64_t kFewTiles = 6;
  int rows = 2048;
  if (tiles != nullptr && tiles->max_tiles < kFewTiles * w.count) {
    rows = w.k <= kShortK ? 256 : few_rows_each(*tiles, w.count) ? tile_rows : 512;
  }
  return std::max(1, rows / tile_rows);
}

std::string to_string(TileShape tile) {
  return std::to_string(tile.rows) + "x" + std::to_string(tile.cols) + (tile.blocks == 1 ? " alone" : "");
}

}  // namespace dsv3::cuda
