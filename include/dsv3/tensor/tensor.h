// A matrix in some backend's memory: a window that somebody else owns.
#pragma once

#include <cstdint>

#include "dsv3/base/status.h"
#include "dsv3/tensor/dtype.h"

namespace dsv3 {

/// Cheap to copy; never frees. `data` is host memory on the CPU backend and device memory on a GPU.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  ///< elements from one row to the next

  float* f32(int64_t row = 0) const {
    DSV3_CHECK(dtype == DType::kF32, "not a float32 tensor");
    return static_cast<float*>(data) + row * stride;
  }
  int32_t* i32(int64_t row = 0) const {
    DSV3_CHECK(dtype == DType::kI32, "not an int32 tensor");
    return static_cast<int32_t*>(data) + row * stride;
  }
  /// Rows [begin, begin + count).
  Tensor slice_rows(int64_t begin, int64_t count) const {
    Tensor t = *this;
    t.data = static_cast<char*>(data) + static_cast<size_t>(begin * stride) * dtype_bytes(dtype);
    t.rows = count;
    return t;
  }
  /// Columns [begin, begin + count).
  Tensor slice_cols(int64_t begin, int64_t count) const {
    Tensor t = *this;
    t.data = static_cast<char*>(data) + static_cast<size_t>(begin) * dtype_bytes(dtype);
    t.cols = count;
    return t;
  }
};

}  // namespace dsv3
