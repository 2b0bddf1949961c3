#include "tensor_map.h"

#include <cuda_runtime_api.h>

#include <string>

#include "cuda_status.h"
#include "launch.cuh"

namespace dsv3::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, looked up at run time: the program starts on machines without a driver, too.
Encode encoder() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result) != cudaSuccess) return Encode{};
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : Encode{};
  }();
  return found;
}

struct Map2d {
  const void* data = nullptr;
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  int64_t rows = 0, cols = 0, row_bytes = 0;
  int box_rows = 0, box_cols = 0;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
};

Status make_tensor_map(const Map2d& shape, CUtensorMap* map) {
  const Encode encode = encoder();
  if (encode == nullptr) return {Code::kDeviceLost, "the CUDA driver has no cuTensorMapEncodeTiled"};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(shape.cols), static_cast<cuuint64_t>(shape.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(shape.row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(shape.box_cols), static_cast<cuuint32_t>(shape.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = encode(map, shape.type, 2, const_cast<void*>(shape.data), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, shape.swizzle, shape.promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return {Code::kInternal, "tensor map of " + std::to_string(shape.rows) + " x " + std::to_string(shape.cols) + ", box " +
                               std::to_string(shape.box_rows) + " x " + std::to_string(shape.box_cols) + ", row of " +
                               std::to_string(shape.row_bytes) + " bytes: driver error " + std::to_string(static_cast<int>(result))};
}

Status map_e4m3(const uint8_t* data, int64_t rows, int64_t cols, int box_rows, CUtensorMap* map) {
  return make_tensor_map({.data = data, .rows = rows, .cols = cols, .row_bytes = cols, .box_rows = box_rows, .box_cols = kQuantGroup}, map);
}

}  // namespace

Status map_bf16(const Bf16* data, int64_t rows, int64_t cols, int64_t stride, int box_rows, CUtensorMap* map) {
  return make_tensor_map({.data = data,
                          .type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                          .rows = rows,
                          .cols = cols,
                          .row_bytes = stride * 2,
                          .box_rows = box_rows,
                          .box_cols = 64},
                         map);
}

Status map_rows(const Fp8Rows& x, int box_rows, CUtensorMap* map) {
  return map_e4m3(x.data, x.rows, x.cols, box_rows, map);
}

Status map_weights(const Fp8Weight& w, int box_rows, CUtensorMap* map) {
  return map_e4m3(w.data, w.n * w.count, w.k, box_rows, map);
}

Status map_row_scales(const Fp8Rows& x, int box_cols, CUtensorMap* map) {
  return make_tensor_map({.data = x.scales,
                          .type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                          .rows = x.cols / kQuantGroup,
                          .cols = x.rows,
                          .row_bytes = x.scale_stride * 4,
                          .box_rows = 1,
                          .box_cols = box_cols,
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE,
                          .promotion = CU_TENSOR_MAP_L2_PROMOTION_NONE},
                         map);
}

int sm_count() {
  static const int count = [] {
    int device = 0, value = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 132;
    if (cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 132;
    return value;
  }();
  return count;
}

}  // namespace dsv3::cuda
