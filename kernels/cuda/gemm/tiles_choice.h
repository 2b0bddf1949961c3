// Which tile the tensor-core FP8 products use: pure functions of the shape; and these products. Results do not depend
// on the tile: each output is one chain of sums, ascending in K.
#pragma once

#include <array>
#include <string>

#include "../common/types.h"
#include "dsv3/base/status.h"

namespace dsv3::cuda {

/// Outputs of one block: rows (tokens) x cols (features). blocks = 2: a cluster that does rows x 2 cols and shares its
/// loads of x.
struct TileShape {
  int rows = 0, cols = 0, blocks = 2;
  bool operator==(const TileShape&) const = default;
};
/// All tiles that are compiled.
inline constexpr std::array<TileShape, 14> kTileShapes = {{{256, 128},
                                                           {128, 192},
                                                           {128, 128},
                                                           {64, 128},
                                                           {128, 128, 1},
                                                           {64, 128, 1},
                                                           {128, 64, 1},
                                                           {128, 32, 1},
                                                           {64, 64, 1},
                                                           {64, 32, 1},
                                                           {128, 96, 1},
                                                           {128, 48, 1},
                                                           {64, 96, 1},
                                                           {64, 48, 1}}};

/// The tile with the least modelled time for y[m, n] over k on `sms` multiprocessors.
TileShape choose_tiles(int64_t m, int64_t n, int64_t k, int sms);
/// For lists of tiles of up to `tile_rows` rows (8 .. 256), whose number only the device knows.
TileShape choose_grouped_tiles(int tile_rows, int64_t n, int64_t k);
/// Whether a list can hold fewer than two tiles for each of so many experts: on average less than a tile of rows.
bool few_rows_each(const ExpertTiles& tiles, int64_t experts);
/// Of experts: K so short that outputs are most of the traffic.
inline constexpr int64_t kShortK = 512;
/// Tiles of the list's or the product's rows (tiles null) that are done for all columns before the next are. A band of many rows shares
/// W and x where both come from L2. Experts with one tile each share x alone: one expert after the other, all its columns at once
/// (256 experts of 128 rows, us with 1024 rows and with 1 tile: 4096x7168 2884 and 2825, 7168x2048 1516 and 1459, 512x7168 421 and 414).
/// With a few tiles each, whose weights are to be read once, about as many as an expert has (256 rows each: 4096x7168 3688 and, with 512
/// rows, 3519). Where K is short, outputs are most of the traffic, and whole rows of them are written best (7168x256: 607 and, with 256
/// rows, 580).
int band_tiles(int tile_rows, const ExpertTiles* tiles, const Fp8Weight& w);
/// Cycles of the model behind choose_tiles().
double modelled_cycles(TileShape tile, int64_t m, int64_t n, int64_t k, int sms);
/// "256x128"
std::string to_string(TileShape tile);

Status fp8_gemm_tiles(TileShape tile, const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, Stream stream);
Status fp8_grouped_gemm_tiles(TileShape tile, const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles,
                              const Bf16Matrix& y, Stream stream);

}  // namespace dsv3::cuda
