// Quantisation and silu(gate) * up: one thread per 8 columns.
#include "norm.h"
#include "rows.cuh"

namespace dsv3::cuda {
namespace {

constexpr unsigned kThreads = 256;

template <bool kSilu>
__global__ __launch_bounds__(kThreads) void activation_kernel(const __grid_constant__ Activation p) {
  launch_dependents();
  wait_for_previous();
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;  // the launcher keeps it below 2^31
  const uint32_t listed = index / p.vectors, i = index - listed * p.vectors;
  int64_t row = listed;
  bool used = listed < p.rows && (p.source == nullptr || p.source[listed] >= 0);
  if (used && p.place != nullptr) {
    row = p.place[listed];
    used = row >= 0;
  }
  if (!__any_sync(0xffffffffu, used)) return;
  float v[8] = {};
  if (used) {
    const Bf16* x = p.x + row * p.x_stride + i * kVector;
    const uint4 first = load_vector(x);
    uint4 second{};
    if (kSilu) second = load_vector(x + p.vectors * kVector);
    unpack_bf16(first, v);
    if (kSilu) {
      float up[8];
      unpack_bf16(second, up);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = silu(v[j]) * up[j];
    }
    if (p.out != nullptr) store_vector(p.out + row * p.out_stride + i * kVector, v);
  }
  if (p.quantised == nullptr) return;
  // Rows have a multiple of 16 vectors, so 16 neighbouring lanes are of one row and one group.
  const float scale = group_scale(v, p.ue8m0);
  if (!used) return;
  *reinterpret_cast<uint2*>(p.quantised + (row * p.vectors + i) * kVector) = to_e4m3(v, scale);
  if (i % kGroupVectors == 0) p.scales[i / kGroupVectors * p.scale_stride + row] = scale;
}

}  // namespace

Status launch_activation(const char* name, const Activation& p, bool with_silu, Stream stream) {
  const int64_t total = p.rows * p.vectors;
  if (total == 0) return {};
  if (total >= int64_t{1} << 31) return wrong(name, std::to_string(p.rows) + " rows of " + std::to_string(p.vectors) + " x 8: too many");
  const LaunchShape shape{dim3(static_cast<unsigned>((total + kThreads - 1) / kThreads)), dim3(kThreads)};
  return with_silu ? launch(name, activation_kernel<true>, shape, stream, p) : launch(name, activation_kernel<false>, shape, stream, p);
}

Status quantise(const Bf16Matrix& x, const Fp8Rows& out, bool ue8m0, Stream stream) {
  if (x.rows == 0) return {};
  DSV3_TRY(check_matrix("quantise", "x", x, x.rows, x.cols));
  DSV3_TRY(check_fp8("quantise", "out", out, x.rows, x.cols));
  Activation p;
  p.x = x.data, p.x_stride = x.stride, p.rows = x.rows, p.vectors = static_cast<uint32_t>(x.cols / kVector), p.ue8m0 = ue8m0;
  p.quantised = out.data, p.scales = out.scales, p.scale_stride = out.scale_stride;
  return launch_activation("quantise", p, false, stream);
}

Status silu_mul(const Bf16Matrix& gate_up, const Bf16Matrix& out, const Fp8Rows& quantised, bool ue8m0, Stream stream) {
  const int64_t rows = gate_up.rows, width = gate_up.cols / 2;
  if (rows == 0) return {};
  if (gate_up.cols % (2 * kVector) != 0) return wrong("silu_mul", "gate_up needs a multiple of 16 columns");
  DSV3_TRY(check_matrix("silu_mul", "gate_up", gate_up, rows, gate_up.cols));
  if (out.data != nullptr) DSV3_TRY(check_matrix("silu_mul", "out", out, rows, width));
  if (quantised.data != nullptr) DSV3_TRY(check_fp8("silu_mul", "quantised", quantised, rows, width));
  Activation p;
  p.x = gate_up.data, p.x_stride = gate_up.stride, p.rows = rows, p.vectors = static_cast<uint32_t>(width / kVector), p.ue8m0 = ue8m0;
  p.out = out.data, p.out_stride = out.stride;
  p.quantised = quantised.data, p.scales = quantised.scales, p.scale_stride = quantised.scale_stride;
  return launch_activation("silu_mul", p, true, stream);
}

}  // namespace dsv3::cuda
