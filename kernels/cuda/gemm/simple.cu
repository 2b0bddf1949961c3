// Launchers of the readable rung of matrix products (gemm.h). The kernel is in simple_tile.cuh.
#include <string>

#include "../common/launch.cuh"
#include "gemm.h"
#include "simple_tile.cuh"

namespace dsv3::cuda {
namespace {

using simple::LargeTile;
using simple::Operands;
using simple::Params;
using simple::SmallTile;

bool on(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

/// Blocks of `p` for this tile, on `heads` heads. Nothing to do: no launch.
template <class Tile, Operands kOperands>
Status enqueue(const char* name, Params p, int tile_rows, int max_tiles, int64_t heads, Stream stream) {
  if (p.tiles != nullptr) {
    p.blocks_per_tile = (tile_rows + Tile::rows - 1) / Tile::rows;
    p.m_blocks = max_tiles * p.blocks_per_tile;
  } else {
    p.m_blocks = static_cast<int>((p.rows + Tile::rows - 1) / Tile::rows);
  }
  p.n_blocks = (p.n + Tile::cols - 1) / Tile::cols;
  const int64_t blocks = static_cast<int64_t>(p.m_blocks) * p.n_blocks;
  if (blocks == 0 || heads == 0) return {};
  if (blocks > INT32_MAX || heads > 65535)
    return wrong(name, "too many blocks: " + std::to_string(blocks) + " of " + std::to_string(heads));
  constexpr int kBytes = simple::shared_bytes<Tile, kOperands>();
  DSV3_TRY(allow_shared_bytes(name, simple::product_kernel<Tile, kOperands>, kBytes));
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(heads));
  shape.block = dim3(Tile::warps_m * Tile::warps_n * 32);
  shape.shared_bytes = kBytes;
  return launch(name, simple::product_kernel<Tile, kOperands>, shape, stream, p);
}

/// Sizes and alignment that all products need: 16-byte pieces of x and W.
Status check_operands(const char* name, const Params& p, int64_t n, int64_t k, int64_t elements_of_16_bytes, int64_t k_multiple) {
  if (n <= 0 || n > INT32_MAX / 2 || k <= 0 || k > INT32_MAX / 2)
    return wrong(name, "n = " + std::to_string(n) + ", k = " + std::to_string(k));
  if (k % k_multiple != 0) return wrong(name, "k = " + std::to_string(k) + " is no multiple of " + std::to_string(k_multiple));
  if (p.rows < 0 || p.rows > INT32_MAX / 2) return wrong(name, "rows = " + std::to_string(p.rows));
  if (p.x == nullptr || p.w == nullptr || p.y == nullptr) return wrong(name, "no data");
  if (!on(p.x, 16) || !on(p.w, 16)) return wrong(name, "x or W is not on 16 bytes");
  for (const int64_t stride : {p.x_row, p.x_batch, p.w_row, p.w_batch}) {
    if (stride % elements_of_16_bytes != 0) return wrong(name, "a stride of x or W is no multiple of 16 bytes: " + std::to_string(stride));
  }
  return {};
}

Status check_tiles(const char* name, const ExpertTiles& tiles) {
  if (tiles.max_tiles < 0 || (tiles.max_tiles > 0 && (tiles.tiles == nullptr || tiles.count == nullptr))) return wrong(name, "no tiles");
  if (tiles.tile_rows < 1 || tiles.tile_rows > 256) return wrong(name, "tile_rows = " + std::to_string(tiles.tile_rows));
  return {};
}

void set_output(Params& p, const Bf16Matrix& y) {
  p.y = y.data;
  p.y_row = y.stride;
  p.y_in_pairs = y.stride % 2 == 0 && on(y.data, 4);
}
void set_output(Params& p, const F32Matrix& y) {
  p.y = y.data;
  p.y_row = y.stride;
  p.y_is_f32 = true;
  p.y_in_pairs = y.stride % 2 == 0 && on(y.data, 8);
}

template <class Matrix>
Status check_output(const char* name, const Matrix& y, int64_t rows, int64_t n) {
  if (y.rows != rows || y.cols != n || y.stride < n) {
    return wrong(name, "y is [" + std::to_string(y.rows) + ", " + std::to_string(y.cols) + "], wanted [" + std::to_string(rows) + ", " +
                           std::to_string(n) + "]");
  }
  return {};
}

template <class Matrix>
Status bf16_product(const char* name, const Bf16Matrix& x, const Bf16Weight& w, const ExpertTiles* tiles, const Matrix& y, Stream stream) {
  DSV3_TRY(check_output(name, y, tiles != nullptr ? y.rows : x.rows, w.n));
  if (x.rows == 0) return {};
  if (x.cols != w.k || x.stride < x.cols) return wrong(name, "x has " + std::to_string(x.cols) + " columns, W " + std::to_string(w.k));
  Params p;
  p.x = x.data;
  p.x_row = x.stride;
  p.w = w.data;
  p.w_row = w.k;
  p.w_batch = w.n * w.k;
  p.rows = x.rows;
  set_output(p, y);
  DSV3_TRY(check_operands(name, p, w.n, w.k, 8, 8));
  p.n = static_cast<int>(w.n);
  p.k = static_cast<int>(w.k);
  int64_t tile_rows = x.rows;
  if (tiles != nullptr) {
    DSV3_TRY(check_tiles(name, *tiles));
    p.tiles = tiles->tiles;
    p.tile_count = tiles->count;
    tile_rows = tiles->tile_rows;
    if (tiles->max_tiles == 0) return {};
  }
  const int max_tiles = tiles != nullptr ? tiles->max_tiles : 0;
  const int rows = static_cast<int>(tile_rows);
  if (simple::prefer_large_tile(tile_rows, tiles != nullptr ? max_tiles : 1, w.n, sm_count())) {
    return enqueue<LargeTile, Operands::kBf16>(name, p, rows, max_tiles, 1, stream);
  }
  return enqueue<SmallTile, Operands::kBf16>(name, p, rows, max_tiles, 1, stream);
}

Status fp8_product(const char* name, const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles* tiles, const Bf16Matrix& y, Stream stream) {
  DSV3_TRY(check_output(name, y, tiles != nullptr ? y.rows : x.rows, w.n));
  if (x.rows == 0) return {};
  if (x.cols != w.k) return wrong(name, "x has " + std::to_string(x.cols) + " columns, W " + std::to_string(w.k));
  if (x.scales == nullptr || w.scales == nullptr || x.scale_stride < x.rows) return wrong(name, "no scales, or fewer than rows");
  Params p;
  p.x = x.data;
  p.x_row = x.cols;
  p.x_scales = x.scales;
  p.x_scale_stride = x.scale_stride;
  p.w = w.data;
  p.w_row = w.k;
  p.w_batch = w.n * w.k;
  p.w_scales = w.scales;
  p.rows = x.rows;
  set_output(p, y);
  DSV3_TRY(check_operands(name, p, w.n, w.k, 16, kQuantGroup));
  p.n = static_cast<int>(w.n);
  p.k = static_cast<int>(w.k);
  if (tiles == nullptr) return enqueue<SmallTile, Operands::kFp8>(name, p, 0, 0, 1, stream);
  DSV3_TRY(check_tiles(name, *tiles));
  if (tiles->max_tiles == 0) return {};
  p.tiles = tiles->tiles;
  p.tile_count = tiles->count;
  return enqueue<SmallTile, Operands::kFp8>(name, p, tiles->tile_rows, tiles->max_tiles, 1, stream);
}

}  // namespace

Status simple_fp8_gemm(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, Stream stream) {
  return fp8_product("simple_fp8_gemm", x, w, nullptr, y, stream);
}

Status simple_fp8_grouped_gemm(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y, Stream stream) {
  return fp8_product("simple_fp8_grouped_gemm", x, w, &tiles, y, stream);
}

Status simple_bf16_gemm(const Bf16Matrix& x, const Bf16Weight& w, const Bf16Matrix& y, Stream stream) {
  return bf16_product("simple_bf16_gemm", x, w, nullptr, y, stream);
}

Status simple_bf16_gemm(const Bf16Matrix& x, const Bf16Weight& w, const F32Matrix& y, Stream stream) {
  return bf16_product("simple_bf16_gemm", x, w, nullptr, y, stream);
}

Status simple_bf16_grouped_gemm(const Bf16Matrix& x, const Bf16Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y, Stream stream) {
  return bf16_product("simple_bf16_grouped_gemm", x, w, &tiles, y, stream);
}

Status simple_head_product(const HeadProduct& h, Stream stream) {
  const char* name = "simple_head_product";
  if (h.rows == 0 || h.heads == 0) return {};
  if (h.heads < 0) return wrong(name, "heads = " + std::to_string(h.heads));
  if (h.transposed && h.n % 8 != 0) return wrong(name, "n = " + std::to_string(h.n) + " of a transposed W is no multiple of 8");
  Params p;
  p.x = h.x;
  p.x_row = h.x_row;
  p.x_batch = h.x_head;
  p.w = h.w;
  p.w_row = h.w_stride;
  p.w_batch = h.w_head;
  p.y = h.y;
  p.y_row = h.y_row;
  p.y_batch = h.y_head;
  p.y_in_pairs = h.y_row % 2 == 0 && h.y_head % 2 == 0 && on(h.y, 4);
  p.rows = h.rows;
  DSV3_TRY(check_operands(name, p, h.n, h.k, 8, 8));
  p.n = static_cast<int>(h.n);
  p.k = static_cast<int>(h.k);
  if (h.transposed) return enqueue<SmallTile, Operands::kBf16Transposed>(name, p, 0, 0, h.heads, stream);
  return enqueue<SmallTile, Operands::kBf16>(name, p, 0, 0, h.heads, stream);
}

}  // namespace dsv3::cuda
