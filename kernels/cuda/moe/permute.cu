// Rows into the order by expert, their activation, and the weighted sum back.
#include "../norm/rows.cuh"
#include "moe.h"

namespace dsv3::cuda {
namespace {

constexpr int kPermuteThreads = 128, kCombineThreads = 128;
constexpr int kInFlight = 4;  // 16-byte loads a thread has under way
constexpr int kMaxTopK = 32, kTerms = 8;
constexpr int64_t kFewRows = 512;

struct PermuteParams {
  const uint4* x;
  uint4* out;
  const int32_t* source;    // [capacity]
  const int32_t* position;  // [rows, top_k]
  const float* scales;      // or null
  float* out_scales;
  int64_t x_stride, out_stride;  // in 16 bytes
  int64_t scale_stride, out_scale_stride;
  int32_t vectors, groups;  // of a row: 16-byte pieces, scales
  int32_t top_k;
};

/// One block a permuted row.
__global__ __launch_bounds__(kPermuteThreads) void permute_kernel(const __grid_constant__ PermuteParams p) {
  launch_dependents();
  wait_for_previous();
  const int64_t to = blockIdx.x;
  const int32_t from = p.source[to];
  if (from < 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  const uint4* x = p.x + from * p.x_stride;
  uint4* out = p.out + to * p.out_stride;
  for (int g = thread; g < p.groups; g += kPermuteThreads) {
    p.out_scales[g * p.out_scale_stride + to] = p.scales[g * p.scale_stride + from];
  }
  for (int begin = thread; begin < p.vectors; begin += kInFlight * kPermuteThreads) {
    uint4 v[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (begin + j * kPermuteThreads < p.vectors) v[j] = x[begin + j * kPermuteThreads];
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (begin + j * kPermuteThreads < p.vectors) out[begin + j * kPermuteThreads] = v[j];
    }
  }
}

/// One thread a piece of a row of the batch, which it reads once and writes to every place of the row; grid (rows, pieces of a row).
__global__ __launch_bounds__(kPermuteThreads) void spread_kernel(const __grid_constant__ PermuteParams p) {
  launch_dependents();
  wait_for_previous();
  const int64_t from = blockIdx.x;
  const int i = static_cast<int>(blockIdx.y) * kPermuteThreads + static_cast<int>(threadIdx.x);
  if (i >= p.vectors) return;
  const uint4 v = p.x[from * p.x_stride + i];
  constexpr int kScaleVectors = kQuantGroup / 16;  // 16-byte pieces of e4m3 that share a scale
  const int group = p.groups > 0 && i % kScaleVectors == 0 ? i / kScaleVectors : -1;
  const float scale = group >= 0 ? p.scales[group * p.scale_stride + from] : 0.0f;
  for (int begin = 0; begin < p.top_k; begin += kTerms) {
    int32_t at[kTerms];
#pragma unroll
    for (int k = 0; k < kTerms; ++k) at[k] = begin + k < p.top_k ? p.position[from * p.top_k + begin + k] : -1;
#pragma unroll
    for (int k = 0; k < kTerms; ++k) {
      if (at[k] < 0) continue;
      p.out[at[k] * p.out_stride + i] = v;
      if (group >= 0) p.out_scales[group * p.out_scale_stride + at[k]] = scale;
    }
  }
}

struct CombineParams {
  const Bf16* y;
  Bf16* out;
  const int32_t* position;  // [rows, top_k]
  const float* weights;     // [rows, top_k]
  int64_t y_stride, out_stride;
  int32_t top_k, vectors;
  bool accumulate;
};

/// One thread per 8 columns; grid (rows, pieces of a row).
__global__ __launch_bounds__(kCombineThreads) void combine_kernel(const __grid_constant__ CombineParams p) {
  launch_dependents();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const int i = static_cast<int>(blockIdx.y) * kCombineThreads + static_cast<int>(threadIdx.x);
  if (i >= p.vectors) return;
  Bf16* out = p.out + row * p.out_stride + i * kVector;
  float sum[8] = {};
  if (p.accumulate) unpack_bf16(load_vector(out), sum);
  for (int begin = 0; begin < p.top_k; begin += kTerms) {
    int32_t at[kTerms];
    float weight[kTerms];
    uint4 y[kTerms];
#pragma unroll
    for (int k = 0; k < kTerms; ++k) {
      const bool there = begin + k < p.top_k;
      at[k] = there ? p.position[row * p.top_k + begin + k] : -1;
      weight[k] = there ? p.weights[row * p.top_k + begin + k] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kTerms; ++k) {
      if (at[k] >= 0) y[k] = load_vector(p.y + at[k] * p.y_stride + i * kVector);
    }
#pragma unroll
    for (int k = 0; k < kTerms; ++k) {
      if (at[k] < 0) continue;  // an expert of another rank
      float v[8];
      unpack_bf16(y[k], v);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] = fmaf(weight[k], v[j], sum[j]);
    }
  }
  store_vector(out, sum);
}

Status check_capacity(const char* name, const ExpertOrder& order) {
  if (order.capacity < 0 || order.capacity >= int64_t{1} << 31) return wrong(name, "capacity is " + std::to_string(order.capacity));
  if (order.source == nullptr) return wrong(name, "order has no source");
  return {};
}

/// Few rows are taken from `position`: `source` is mostly padding then (each expert's rows start on a multiple of 8).
bool few_rows(const ExpertOrder& order) {
  return order.rows > 0 && order.rows <= kFewRows && order.top_k > 0 && order.position != nullptr;
}

Status run_permute(const char* name, const PermuteParams& p, int64_t rows, const ExpertOrder& order, Stream stream) {
  if (few_rows(order)) {
    if (rows < order.rows) return wrong(name, std::to_string(rows) + " rows for an order of " + std::to_string(order.rows));
    const auto pieces = static_cast<unsigned>((p.vectors + kPermuteThreads - 1) / kPermuteThreads);
    return launch(name, spread_kernel, {dim3(static_cast<unsigned>(order.rows), pieces), dim3(kPermuteThreads)}, stream, p);
  }
  return launch(name, permute_kernel, {dim3(static_cast<unsigned>(order.capacity)), dim3(kPermuteThreads)}, stream, p);
}

Activation activation_of(const Bf16Matrix& gate_up, const ExpertOrder& order) {
  Activation p;
  p.x = gate_up.data, p.x_stride = gate_up.stride, p.rows = order.capacity, p.source = order.source;
  p.vectors = static_cast<uint32_t>(gate_up.cols / 2 / kVector);
  if (few_rows(order)) p.rows = order.rows * order.top_k, p.source = nullptr, p.place = order.position;
  return p;
}

}  // namespace

Status permute_rows(const Fp8Rows& x, const ExpertOrder& order, const Fp8Rows& out, Stream stream) {
  constexpr const char* kName = "permute_rows (fp8)";
  if (order.capacity == 0 || x.rows == 0) return {};
  DSV3_TRY(check_capacity(kName, order));
  DSV3_TRY(check_fp8(kName, "x", x, x.rows, x.cols));
  DSV3_TRY(check_fp8(kName, "out", out, order.capacity, x.cols));
  const PermuteParams p{reinterpret_cast<const uint4*>(x.data),
                        reinterpret_cast<uint4*>(out.data),
                        order.source,
                        order.position,
                        x.scales,
                        out.scales,
                        x.cols / 16,
                        x.cols / 16,
                        x.scale_stride,
                        out.scale_stride,
                        static_cast<int32_t>(x.cols / 16),
                        static_cast<int32_t>(x.cols / kQuantGroup),
                        static_cast<int32_t>(order.top_k)};
  return run_permute(kName, p, x.rows, order, stream);
}

Status permute_rows(const Bf16Matrix& x, const ExpertOrder& order, const Bf16Matrix& out, Stream stream) {
  constexpr const char* kName = "permute_rows";
  if (order.capacity == 0 || x.rows == 0) return {};
  DSV3_TRY(check_capacity(kName, order));
  DSV3_TRY(check_matrix(kName, "x", x, x.rows, x.cols));
  DSV3_TRY(check_matrix(kName, "out", out, order.capacity, x.cols));
  const PermuteParams p{reinterpret_cast<const uint4*>(x.data),
                        reinterpret_cast<uint4*>(out.data),
                        order.source,
                        order.position,
                        nullptr,
                        nullptr,
                        x.stride / kVector,
                        out.stride / kVector,
                        0,
                        0,
                        static_cast<int32_t>(x.cols / kVector),
                        0,
                        static_cast<int32_t>(order.top_k)};
  return run_permute(kName, p, x.rows, order, stream);
}

Status silu_mul_permuted(const Bf16Matrix& gate_up, const ExpertOrder& order, const Fp8Rows& out, bool ue8m0, Stream stream) {
  constexpr const char* kName = "silu_mul_permuted (fp8)";
  if (order.capacity == 0) return {};
  DSV3_TRY(check_capacity(kName, order));
  DSV3_TRY(check_matrix(kName, "gate_up", gate_up, order.capacity, gate_up.cols));
  DSV3_TRY(check_fp8(kName, "out", out, order.capacity, gate_up.cols / 2));
  Activation p = activation_of(gate_up, order);
  p.quantised = out.data, p.scales = out.scales, p.scale_stride = out.scale_stride, p.ue8m0 = ue8m0;
  return launch_activation(kName, p, true, stream);
}

Status silu_mul_permuted(const Bf16Matrix& gate_up, const ExpertOrder& order, const Bf16Matrix& out, Stream stream) {
  constexpr const char* kName = "silu_mul_permuted";
  if (order.capacity == 0) return {};
  DSV3_TRY(check_capacity(kName, order));
  DSV3_TRY(check_matrix(kName, "gate_up", gate_up, order.capacity, gate_up.cols));
  DSV3_TRY(check_matrix(kName, "out", out, order.capacity, gate_up.cols / 2));
  Activation p = activation_of(gate_up, order);
  p.out = out.data, p.out_stride = out.stride;
  return launch_activation(kName, p, true, stream);
}

Status combine_experts(int64_t rows, int64_t top_k, const Bf16Matrix& y, const ExpertOrder& order, const float* weights, bool accumulate,
                       const Bf16Matrix& out, Stream stream) {
  constexpr const char* kName = "combine_experts";
  if (rows == 0) return {};
  if (top_k < 1 || top_k > kMaxTopK) return wrong(kName, "top_k is " + std::to_string(top_k));
  DSV3_TRY(check_matrix(kName, "out", out, rows, out.cols));
  DSV3_TRY(check_matrix(kName, "y", y, 0, out.cols));
  if (order.position == nullptr || weights == nullptr) return wrong(kName, "a buffer is null");
  const int64_t vectors = out.cols / kVector, pieces = (vectors + kCombineThreads - 1) / kCombineThreads;
  const CombineParams p{
      y.data,    out.data, order.position, weights, y.stride, out.stride, static_cast<int32_t>(top_k), static_cast<int32_t>(vectors),
      accumulate};
  return launch(kName, combine_kernel, {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(pieces)), dim3(kCombineThreads)}, stream,
                p);
}

}  // namespace dsv3::cuda
