#include "gemm.h"

#include <algorithm>
#include <cstring>

namespace dsv3::cpu {

PackedMatrix::PackedMatrix(const float* w, int64_t out, int64_t in, int64_t w_stride)
    : out_(out), in_(in), data_(static_cast<size_t>((out + kPanelCols - 1) / kPanelCols * kPanelCols * in)) {
  for (int64_t p = 0; p < panels(); ++p) {
    float* panel = data_.data() + p * in_ * kPanelCols;
    const int64_t cols = std::min(kPanelCols, out_ - p * kPanelCols);
    for (int64_t j = 0; j < cols; ++j) {
      const float* row = w + (p * kPanelCols + j) * w_stride;
      for (int64_t k = 0; k < in_; ++k) panel[k * kPanelCols + j] = row[k];
    }
  }
}

void gemm_panel(int64_t rows, const float* x, int64_t x_stride, const PackedMatrix& w, int64_t p, float* y,
                int64_t y_stride) {
  const int64_t cols = std::min(kPanelCols, w.out() - p * kPanelCols);
  for (int64_t r = 0; r < rows; r += kRowBlock) {
    const int64_t block = std::min(kRowBlock, rows - r);
    if (cols == kPanelCols) {
      simd().panel(block, w.in(), x + r * x_stride, x_stride, w.panel(p), kPanelCols, y + r * y_stride,
                   y_stride, false);
      continue;
    }
    float edge[kRowBlock * kPanelCols];  // the panel writes whole: the matrix ends inside it
    simd().panel(block, w.in(), x + r * x_stride, x_stride, w.panel(p), kPanelCols, edge, kPanelCols,
                 false);
    for (int64_t i = 0; i < block; ++i) {
      std::memcpy(y + (r + i) * y_stride, edge + i * kPanelCols, static_cast<size_t>(cols) * sizeof(float));
    }
  }
}

void gemm(ForkJoin& pool, int64_t rows, const float* x, int64_t x_stride, const PackedMatrix& w, float* y,
          int64_t y_stride) {
  if (rows == 0) return;
  // A task should be worth more than waking a thread for it: about 20 us of arithmetic or of streaming weights.
  const int64_t panel_work = w.in() * kPanelCols * std::max<int64_t>(rows, 4);
  const int64_t per_task = std::clamp<int64_t>(500'000 / std::max<int64_t>(panel_work, 1), 1, w.panels());
  const int64_t tasks = (w.panels() + per_task - 1) / per_task;
  pool.run(tasks, [&](int64_t task) {
    const int64_t end = std::min((task + 1) * per_task, w.panels());
    for (int64_t p = task * per_task; p < end; ++p) gemm_panel(rows, x, x_stride, w, p, y + p * kPanelCols, y_stride);
  });
}

}  // namespace dsv3::cpu
