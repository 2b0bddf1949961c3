// Launchers of the tensor-core FP8 products (fp8_tiles.cuh): checks, tensor maps, choice of the tile.
#include <algorithm>
#include <limits>
#include <string>

#include "../common/launch.cuh"
#include "../common/tensor_map.h"
#include "fp8_tiles.cuh"
#include "gemm.h"
#include "gemm_choice.h"
#include "tiles_choice.h"

namespace dsv3::cuda {
namespace {

Status refuse(const std::string& why) {
  return {Code::kInternal, "fp8_gemm_tiles: " + why};
}
bool aligned(const void* p, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

Status check(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y) {
  const auto text = [](int64_t value) { return std::to_string(value); };
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (x.data == nullptr || x.scales == nullptr || w.data == nullptr || w.scales == nullptr || y.data == nullptr) {
    return refuse("null operand");
  }
  if (w.k <= 0 || w.k % kQuantGroup != 0 || x.cols != w.k) return refuse("x.cols " + text(x.cols) + ", k " + text(w.k));
  if (w.n <= 0 || w.n % 8 != 0 || y.cols != w.n) return refuse("y.cols " + text(y.cols) + ", n " + text(w.n));
  if (w.count < 1 || w.count * w.n > kMost || x.rows > kMost || x.scale_stride > kMost)
    return refuse("more rows than 2^30");
  if (w.count * ((w.n + kQuantGroup - 1) / kQuantGroup) * (w.k / kQuantGroup) > kMost)
    return refuse("more than 2^30 weight scales");
  if (x.scale_stride < x.rows || x.scale_stride % 4 != 0) return refuse("scale_stride " + text(x.scale_stride));
  if (y.stride < y.cols || y.stride % 8 != 0) return refuse("y.stride " + text(y.stride));
  if (!aligned(x.data, 128) || !aligned(x.scales, 16) || !aligned(w.data, 16) || !aligned(y.data, 16)) {
    return refuse("operand not aligned");
  }
  return {};
}

template <int kRows, int kCols, int kCluster, bool kSkipWaves = false>
Status launch_tiles(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, const ExpertTiles* tiles,
                    Stream stream) {
  using L = tiles::Layout<kRows, kCols, kCluster, kSkipWaves>;
  tiles::Params p{};
  DSV3_TRY(map_rows(x, L::kBoxRows, &p.x_map));
  DSV3_TRY(map_weights(w, kCols, &p.w_map));
  DSV3_TRY(map_row_scales(x, kRows, &p.scales_map));
  p.w_scales = w.scales;
  p.y = y.data;
  p.y_stride = y.stride;
  p.m = static_cast<int>(x.rows);
  p.n = static_cast<int>(w.n);
  p.k_blocks = static_cast<int>(w.k / kQuantGroup);
  p.n_blocks = static_cast<int>((w.n + kQuantGroup - 1) / kQuantGroup);
  p.n_groups = static_cast<int>((w.n + kCluster * kCols - 1) / (kCluster * kCols));
  p.band = band_tiles(kRows, tiles, w);
  // Not where others read the same weights.
  p.evict_first = tiles == nullptr ? x.rows <= std::min(kRows, 128) && tiles_evict_first(w.n * w.k) : experts_evict_first(*tiles, w, x.rows);
  int64_t row_tiles = (x.rows + kRows - 1) / kRows;
  if (tiles != nullptr) {
    p.list = tiles->tiles;
    p.count = tiles->count;
    row_tiles = tiles->max_tiles;
  }
  const int64_t units = row_tiles * p.n_groups;
  if (units > std::numeric_limits<int32_t>::max() / 2) return refuse(std::to_string(units) + " tiles");
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(kCluster * std::min<int64_t>(units, std::max(1, sm_count() / kCluster))));
  shape.block = dim3(tiles::kThreads);
  shape.shared_bytes = L::kBytes;
  shape.cluster = kCluster;
  DSV3_TRY(
      allow_shared_bytes("fp8_tiles", tiles::fp8_tiles_kernel<kRows, kCols, kCluster, kSkipWaves>, shape.shared_bytes));
  return launch("fp8_tiles", tiles::fp8_tiles_kernel<kRows, kCols, kCluster, kSkipWaves>, shape, stream, p);
}

template <size_t kAt = 0>
Status launch_tile(TileShape tile, const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, const ExpertTiles* tiles,
                   Stream stream) {
  if constexpr (kAt < kTileShapes.size()) {
    constexpr TileShape kTile = kTileShapes[kAt];
    if (tile != kTile) return launch_tile<kAt + 1>(tile, x, w, y, tiles, stream);
    if constexpr (kTile.rows == 256) {
      if (tiles != nullptr) return launch_tiles<kTile.rows, kTile.cols, kTile.blocks, true>(x, w, y, tiles, stream);
    }
    return launch_tiles<kTile.rows, kTile.cols, kTile.blocks>(x, w, y, tiles, stream);
  }
  return refuse("no tile " + to_string(tile));
}

}  // namespace

Status fp8_gemm_tiles(TileShape tile, const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, Stream stream) {
  if (x.rows != y.rows) return refuse("x has " + std::to_string(x.rows) + " rows, y " + std::to_string(y.rows));
  if (x.rows == 0) return {};
  DSV3_TRY(check(x, w, y));
  return launch_tile(tile, x, w, y, nullptr, stream);
}

Status fp8_grouped_gemm_tiles(TileShape tile, const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles,
                              const Bf16Matrix& y, Stream stream) {
  if (tiles.max_tiles == 0 || x.rows == 0) return {};
  DSV3_TRY(check(x, w, y));
  if (tiles.tiles == nullptr || tiles.count == nullptr || !aligned(tiles.tiles, 16)) return refuse("no list of tiles");
  if (tiles.max_tiles < 0 || tiles.tile_rows < 1 || tiles.tile_rows > tile.rows) {
    return refuse("list of " + std::to_string(tiles.max_tiles) + " tiles of " + std::to_string(tiles.tile_rows) +
                  " rows for " + to_string(tile));
  }
  return launch_tile(tile, x, w, y, &tiles, stream);
}

}  // namespace dsv3::cuda
