// Dispatch of FP8 products by shape.
#include "gemm.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "gemm_choice.h"
#include "tiles_choice.h"

namespace dsv3::cuda {

Status fp8_gemm(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, const GemmOptions& options, Stream stream) {
  if (x.rows == 0) return {};
  const GemmChoice choice = choose_gemm(x.rows, w.n, w.k, options.deterministic);
  if (choice.kernel == GemmKernel::kTiles) return fp8_gemm_tiles(choice.tile, x, w, y, stream);
  if (y.rows != x.rows) return {Code::kInternal, "fp8_gemm: x and y differ in rows"};
  for (int64_t begin = 0; begin < x.rows; begin += kStreamMaxRows) {
    Fp8Rows slice = x;
    slice.data += begin * x.cols;
    slice.scales += begin;
    slice.rows = std::min(kStreamMaxRows, x.rows - begin);
    const Bf16Matrix out{y.data + begin * y.stride, slice.rows, y.cols, y.stride};
    if (Status s = fp8_gemm_stream(choice.stream, slice, w, out, stream); !s.ok()) return s;
  }
  return {};
}

Status fp8_grouped_gemm(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y,
                        const GemmOptions& options, Stream stream) {
  const GroupedChoice choice = choose_grouped_gemm(tiles, w, options.deterministic);
  if (choice.kernel == GemmKernel::kStream) return fp8_grouped_gemm_stream(x, w, tiles, y, stream);
  return fp8_grouped_gemm_tiles(choice.tile, x, w, tiles, y, stream);
}

}  // namespace dsv3::cuda
