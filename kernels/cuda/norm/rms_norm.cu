// RMS norm of rows, with the residual sum before it and the quantisation behind it. One block a row; the row stays in registers.
#include "norm.h"
#include "rows.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kMaxThreadsOnePass = 1024, kMaxThreadsFourPasses = 512;
constexpr int kManyRows = 264;  // two blocks an SM: from here on bytes in flight count more than one row's latency

template <class X>
struct NormParams {
  X* x;                // [rows, cols]: the residual (float32), or the input (BF16)
  const Bf16* delta;   // [rows, cols] or null; x + delta goes back to x. Only with a residual
  const float* gain;   // [cols]
  Bf16* out;           // or null
  uint8_t* quantised;  // or null
  float* scales;
  int64_t x_stride, delta_stride, out_stride, scale_stride;
  int32_t cols;
  float eps;
  bool ue8m0;
};

/// Vector i = pass * blockDim.x + thread. The sum goes 8 values of a vector, 32 vectors of a chunk, chunks: the same tree however
/// many threads and passes there are, so a row's bits do not depend on the number of rows.
/// One pass: 32 registers, so that two rows fit on an SM below kManyRows.
template <int kPasses, class X>
__global__ __launch_bounds__(kPasses == 1 ? kMaxThreadsOnePass : kMaxThreadsFourPasses,
                             kPasses == 1 ? 2 : 1) void norm_kernel(const __grid_constant__ NormParams<X> p) {
  constexpr bool kResidual = std::is_same_v<X, float>;
  launch_dependents();
  __shared__ float partial[kPasses == 1 ? 32 : kPasses * kMaxThreadsFourPasses / 32];
  const int vectors = p.cols / kVector, threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  float gain[8] = {};
  if (kPasses == 1 && thread < vectors) load_floats(p.gain + thread * kVector, gain);
  wait_for_previous(p);

  X* x = p.x + row * p.x_stride;
  VectorOf<X> raw[kPasses];
  uint4 added[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int i = pass * threads + thread;
    raw[pass] = {};
    added[pass] = {};
    if (i >= vectors) continue;
    raw[pass] = load_vector(x + i * kVector);
    if (kResidual && p.delta != nullptr) added[pass] = load_vector(p.delta + row * p.delta_stride + i * kVector);
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int i = pass * threads + thread;
    float v[8];
    unpack(raw[pass], v);
    if constexpr (kResidual) {
      if (p.delta != nullptr) {
        float d[8];
        unpack(added[pass], d);
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] += d[j];
        raw[pass] = {{v[0], v[1], v[2], v[3]}, {v[4], v[5], v[6], v[7]}};
        if (i < vectors) store_vector(x + i * kVector, v);
      }
    }
    const float sum = warp_sum(sum_of_squares(v));
    if (thread % 32 == 0) partial[i / 32] = sum;
  }
  __syncthreads();
  float sum = 0;
  for (int chunk = thread % 32; chunk < kPasses * threads / 32; chunk += 32) sum += partial[chunk];
  const float inverse = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(p.cols) + p.eps);

#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int i = pass * threads + thread;
    if (pass * threads + thread / 32 * 32 >= vectors) break;  // whole warps: lanes of a group of 128 columns stay together
    float v[8];
    unpack(raw[pass], v);
    if (kPasses > 1 && i < vectors) load_floats(p.gain + i * kVector, gain);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = v[j] * inverse * gain[j];
    if (p.out != nullptr && i < vectors) store_vector(p.out + row * p.out_stride + i * kVector, v);
    if (p.quantised == nullptr) continue;
    const float scale = group_scale(v, p.ue8m0);  // lanes past the row form groups of their own: cols is a multiple of 128
    if (i >= vectors) continue;
    *reinterpret_cast<uint2*>(p.quantised + row * p.cols + i * kVector) = to_e4m3(v, scale);
    if (i % kGroupVectors == 0) p.scales[i / kGroupVectors * p.scale_stride + row] = scale;
  }
}

template <class X, class Matrix>
Status run_norm(const char* name, const Matrix& x, const Bf16Matrix* delta, const float* gain, float eps, const Bf16Matrix& out,
                const Fp8Rows& quantised, bool ue8m0, Stream stream) {
  const int64_t rows = x.rows;
  if (rows == 0) return {};
  DSV3_TRY(check_matrix(name, "x", x, rows, x.cols));
  if (delta != nullptr) DSV3_TRY(check_matrix(name, "delta", *delta, rows, x.cols));
  if (out.data != nullptr) DSV3_TRY(check_matrix(name, "out", out, rows, x.cols));
  if (quantised.data != nullptr) DSV3_TRY(check_fp8(name, "quantised", quantised, rows, x.cols));
  if (gain == nullptr || !aligned(gain)) return wrong(name, "gain is null or not on 16 bytes");
  const int64_t vectors = x.cols / kVector;
  const bool one_pass = vectors <= kMaxThreadsOnePass && rows < kManyRows;
  const int64_t wanted = one_pass ? vectors : (vectors + 3) / 4;
  const auto threads = static_cast<unsigned>((wanted + 31) / 32 * 32);
  if (!one_pass && threads > kMaxThreadsFourPasses) return wrong(name, std::to_string(x.cols) + " columns; at most 16384");
  const NormParams<X> p{x.data,
                        delta != nullptr ? delta->data : nullptr,
                        gain,
                        out.data,
                        quantised.data,
                        quantised.scales,
                        x.stride,
                        delta != nullptr ? delta->stride : 0,
                        out.stride,
                        quantised.scale_stride,
                        static_cast<int32_t>(x.cols),
                        eps,
                        ue8m0};
  const LaunchShape shape{dim3(static_cast<unsigned>(rows)), dim3(threads)};
  return one_pass ? launch(name, norm_kernel<1, X>, shape, stream, p) : launch(name, norm_kernel<4, X>, shape, stream, p);
}

}  // namespace

Status add_rms_norm(const F32Matrix& residual, const Bf16Matrix& delta, const float* gain, float eps, const Bf16Matrix& out,
                    const Fp8Rows& quantised, bool ue8m0, Stream stream) {
  return run_norm<float>("add_rms_norm", residual, delta.data != nullptr ? &delta : nullptr, gain, eps, out, quantised, ue8m0, stream);
}

Status rms_norm(const Bf16Matrix& x, const float* gain, float eps, const Bf16Matrix& out, const Fp8Rows& quantised, bool ue8m0,
                Stream stream) {
  return run_norm<Bf16>("rms_norm", x, nullptr, gain, eps, out, quantised, ue8m0, stream);
}

}  // namespace dsv3::cuda
