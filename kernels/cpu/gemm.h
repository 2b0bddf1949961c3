// Float32 matrix products against weights that were packed once, at load.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dsv3/base/thread_pool.h"
#include "dsv3/tensor/aligned.h"
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
  AlignedFloats data_;
};

/// y[rows, out] = x[rows, in] W^T; y is overwritten. `y[r]` depends on `x[r]` alone, bit for bit.
void gemm(ForkJoin& pool, int64_t rows, const float* x, int64_t x_stride, const PackedMatrix& w, float* y,
          int64_t y_stride);

/// The columns [panel * kPanelCols, ...) of the same product, on the calling thread; `y` points at the first of them.
void gemm_panel(int64_t rows, const float* x, int64_t x_stride, const PackedMatrix& w, int64_t panel, float* y,
                int64_t y_stride);

/// body(r) for each row in [0, rows), on all threads of the pool where there are enough rows to pay for waking them.
template <class Body>
void for_rows(ForkJoin& pool, int64_t rows, Body&& body) {
  constexpr int64_t kRowsPerTask = 32;
  if (rows < 2 * kRowsPerTask) {
    for (int64_t r = 0; r < rows; ++r) body(r);
    return;
  }
  pool.run((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kRowsPerTask, rows);
    for (int64_t r = task * kRowsPerTask; r < end; ++r) body(r);
  });
}

}  // namespace dsv3::cpu
