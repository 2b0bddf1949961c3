// Tensor maps for the copy engine (TMA), made on the host and passed to kernels as __grid_constant__ parameters.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "dsv3/base/status.h"
#include "types.h"

namespace dsv3::cuda {

// Elements outside of a tensor arrive as zeros. Data on 16 bytes, rows a multiple of 16 bytes apart, at most 256 rows a box; boxes are 128
// bytes wide and swizzled by 128 where nothing else is said. kInternal if the driver refuses the shape.

/// Rows `stride` elements apart, in boxes of 64 columns.
Status map_bf16(const Bf16* data, int64_t rows, int64_t cols, int64_t stride, int box_rows, CUtensorMap* map);
// Maps of an FP8 product's operands, in boxes of one scale block of K (128).
Status map_rows(const Fp8Rows& x, int box_rows, CUtensorMap* map);
Status map_weights(const Fp8Weight& w, int box_rows, CUtensorMap* map);  ///< of all experts: [count * n][k]
/// [k / 128][rows], in boxes of a row, not swizzled. Columns past the rows come as zeros, whatever the padding holds.
Status map_row_scales(const Fp8Rows& x, int box_cols, CUtensorMap* map);

}  // namespace dsv3::cuda
