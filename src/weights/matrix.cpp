#include "matrix.h"

#include <cmath>

#include "text.h"

namespace dsv3::weights {

Matrix matrix_of(const TensorInfo& info) {
  Matrix matrix;
  if (info.shape.empty()) return matrix;
  matrix.cols = info.shape.back();
  for (size_t i = 0; i + 1 < info.shape.size(); ++i) matrix.rows *= info.shape[i];
  return matrix;
}

int64_t bytes_of(const TensorInfo& info) {
  const Matrix matrix = matrix_of(info);
  return matrix.rows * matrix.cols * static_cast<int64_t>(dtype_bytes(info.dtype));
}

std::vector<int64_t> scale_shape(const std::vector<int64_t>& shape, int64_t block) {
  std::vector<int64_t> grid;
  for (const int64_t dim : shape) grid.push_back((dim + block - 1) / block);
  return grid;
}

Status check_slice(std::string_view name, const TensorInfo& info, const Slice& slice) {
  const Matrix matrix = matrix_of(info);
  const auto fits = [](int64_t begin, int64_t end, int64_t size) { return 0 <= begin && begin <= end && end <= size; };
  if (fits(slice.row_begin, slice.row_end, matrix.rows) && fits(slice.col_begin, slice.col_end, matrix.cols)) return {};
  return {Code::kInvalidArgument, "slice [" + std::to_string(slice.row_begin) + ", " + std::to_string(slice.row_end) +
                                      ") x [" + std::to_string(slice.col_begin) + ", " + std::to_string(slice.col_end) +
                                      ") is not inside tensor " + in_quotes(name) + " of shape " +
                                      shape_text(info.shape)};
}

Slice scale_slice(const Slice& slice, int64_t block) {
  const auto up = [block](int64_t end) { return (end + block - 1) / block; };
  return {slice.row_begin / block, up(slice.row_end), slice.col_begin / block, up(slice.col_end)};
}

Status check_scales(std::string_view name, const Slice& slice, const float* scales) {
  for (int64_t i = 0; i < slice.rows() * slice.cols(); ++i) {
    if (std::isfinite(scales[i])) continue;
    const int64_t row = slice.row_begin + i / slice.cols(), col = slice.col_begin + i % slice.cols();
    return {Code::kBadModelFile, "tensor " + in_quotes(std::string(name) + std::string(kScaleSuffix)) + ": scale [" +
                                     std::to_string(row) + ", " + std::to_string(col) + "] is not a finite number"};
  }
  return {};
}

}  // namespace dsv3::weights
