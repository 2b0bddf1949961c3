// Tensor maps for the copy engine (TMA), made on the host and passed to kernels as __grid_constant__ parameters.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "dsv3/base/status.h"
#include "types.h"

namespace dsv3::cuda {

enum class TmaSwizzle { kNone, k32, k64, k128 };

struct TensorMap2d {
  const void* data = nullptr;    ///< on 16 bytes
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  int element_bytes = 1;
  uint64_t rows = 0, cols = 0;
  uint64_t row_bytes = 0;        ///< from row to row; a multiple of 16
  uint32_t box_rows = 0, box_cols = 0;  ///< <= 256 each; box_cols * element_bytes <= the swizzle's span
  TmaSwizzle swizzle = TmaSwizzle::k128;
  bool promote_l2 = true;        ///< fetch 256 bytes into L2 at a time
};

/// Elements outside the tensor arrive as zeros. kInternal if the driver refuses the shape.
Status make_tensor_map(const TensorMap2d& shape, CUtensorMap* map);

// Maps of an FP8 product's operands, in boxes of one scale block of K (128).
Status map_rows(const Fp8Rows& x, int box_rows, CUtensorMap* map);
Status map_weights(const Fp8Weight& w, int box_rows, CUtensorMap* map);  ///< of all experts: [count * n][k]
/// [k / 128][rows], in boxes of a row. Columns past the rows come as zeros, whatever the padding holds.
Status map_row_scales(const Fp8Rows& x, int box_cols, CUtensorMap* map);

}  // namespace dsv3::cuda
