// Float32 matrix products against weights that were packed once, at load.
#pragma once

#include <cstdint>
#include <vector>

#include "dsv3/base/thread_pool.h"
#include "simd.h"

namespace dsv3::cpu {

/// W [out, in] as panels of kPanelCols output columns: panel p holds [in][kPanelCols], zeros past `out`.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(const float* w, int64_t out, int64_t in, int64_t w_stride);

  int64_t out() const { return out_; }
  int64_t in() const { return in_; }
  int64_t panels() const { return (out_ + kPanelCols - 1) / kPanelCols; }
  const float* panel(int64_t p) const { return data_.data() + p * in_ * kPanelCols; }

 private:
  int64_t out_ = 0, in_ = 0;
  std::vector<float> data_;
};

/// y[rows, out] = x[rows, in] W^T; y is overwritten. `y[r]` depends on `x[r]` alone, bit for bit.
void gemm(ForkJoin& pool, int64_t rows, const float* x, int64_t x_stride, const PackedMatrix& w, float* y,
          int64_t y_stride);

/// The columns [panel * kPanelCols, ...) of the same product, on the calling thread; `y` points at the first of them.
void gemm_panel(int64_t rows, const float* x, int64_t x_stride, const PackedMatrix& w, int64_t panel, float* y,
                int64_t y_stride);

}  // namespace dsv3::cpu
