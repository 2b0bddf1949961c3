// Grouped y = x W_e^T over tiles of few rows, for weights of many rows and small K: the down product of experts in decode.
#pragma once

#include "../common/types.h"
#include "dsv3/base/status.h"

namespace dsv3::cuda {

/// As fp8_grouped_gemm_stream() (gemm.h), bit for bit, with another distribution of work: a block for every tile and 128 rows of
/// W, all resident at once where a decode batch hits few experts. tiles.tile_rows: 8 or 16.
Status fp8_down(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y, Stream stream);

}  // namespace dsv3::cuda
