// The time model behind the choice of tiles: whole waves of clusters, each tile limited by the tensor core or by what the L2
// delivers to a multiprocessor.
#include "tiles_choice.h"

#include <algorithm>

namespace dsv3::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr double kMacsPerCycle = 4096;       // e4m3, one multiprocessor
constexpr double kL2BytesPerCycle = 4300;    // all multiprocessors together
constexpr double kMostBytesPerCycle = 56;    // into one multiprocessor
constexpr double kEpilogueCycles = 0.025;    // per output of a tile: what of the stores is not hidden
constexpr double kTileCycles = 300;          // pipeline bubble from tile to tile
constexpr double kStartCycles = 2000;        // set-up and first loads

/// Cycles of one stage of K (128): both operands come from L2, x halved by the multicast to the pair of blocks.
double stage_cycles(TileShape tile, double blocks) {
  const double macs = 128.0 * tile.rows * tile.cols / kMacsPerCycle;
  const double bytes = 128.0 * (tile.rows / 2 + tile.cols);
  return std::max(macs, bytes / std::min(kMostBytesPerCycle, kL2BytesPerCycle / blocks));
}

}  // namespace

double modelled_cycles(TileShape tile, int64_t m, int64_t n, int64_t k, int sms) {
  const int64_t clusters = std::max(1, sms / 2);
  const int64_t units = ceil_div(m, tile.rows) * ceil_div(n, 2 * tile.cols);
  const int64_t waves = ceil_div(units, clusters);
  const double blocks = 2.0 * static_cast<double>(std::min(units, clusters));
  const double stages = static_cast<double>(k / kQuantGroup) * stage_cycles(tile, blocks);
  const double a_tile = stages + kEpilogueCycles * tile.rows * tile.cols + kTileCycles;
  return kStartCycles + static_cast<double>(waves) * a_tile;
}

TileShape choose_tiles(int64_t m, int64_t n, int64_t k, int sms) {
  TileShape best = kTileShapes[0];
  for (const TileShape tile : kTileShapes) {
    if (modelled_cycles(tile, m, n, k, sms) < modelled_cycles(best, m, n, k, sms)) best = tile;
  }
  return best;
}

TileShape choose_grouped_tiles(int tile_rows, int64_t n) {
  if (tile_rows <= 64) return {64, 128};
  if (tile_rows > 128) return {256, 128};
  const auto cost = [n](TileShape tile) { return static_cast<double>(ceil_div(n, 2 * tile.cols)) * stage_cycles(tile, 132); };
  const TileShape wide{128, 192}, narrow{128, 128};
  return cost(wide) < cost(narrow) ? wide : narrow;
}

std::string to_string(TileShape tile) { return std::to_string(tile.rows) + "x" + std::to_string(tile.cols); }

}  // namespace dsv3::cuda
