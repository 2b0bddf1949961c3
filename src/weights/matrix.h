// What every source of weights has to know about a tensor: its matrix form, its bytes, the grid of its scales.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3::weights {

constexpr std::string_view kScaleSuffix = "_scale_inv";  ///< appended to "...weight"

struct Matrix {
  int64_t rows = 1, cols = 1;
};

/// Rows and columns as Slice counts them: a vector is one row, leading dimensions are rows.
Matrix matrix_of(const TensorInfo& info);
int64_t bytes_of(const TensorInfo& info);

/// [ceil(rows / block), ceil(cols / block)]
std::vector<int64_t> scale_shape(const std::vector<int64_t>& shape, int64_t block);

/// kInvalidArgument naming the tensor if `slice` is not inside it.
Status check_slice(std::string_view name, const TensorInfo& info, const Slice& slice);

/// The scale blocks that `slice` touches, as a slice of the scale tensor.
Slice scale_slice(const Slice& slice, int64_t block);

/// kBadModelFile naming the first of the n scales that is not finite.
Status check_scales(std::string_view name, const Slice& slice, const float* scales);

}  // namespace dsv3::weights
