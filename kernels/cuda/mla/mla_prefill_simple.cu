// Prefill attention, the readable rung: one warp per query row and head, float32, online softmax over the keys one by one.
#include <cuda_bf16.h>
#include <math_constants.h>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "mla_prefill.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kWarps = 4;

struct SimpleParams {
  const Bf16 *q, *kv, *k_rope;
  Bf16* out;
  float* lse;
  int64_t q_stride, kv_stride, out_stride;
  int32_t heads;
  float softmax_scale;
  PrefillSpan span;
  bool merge;
};

/// Grid (rows / kWarps, heads). Lane l holds columns 4l .. 4l + 3 of the plain part and of the value, 2l and 2l + 1 of the turned part.
__global__ void __launch_bounds__(32 * kWarps) simple_mla_prefill_kernel(const __grid_constant__ SimpleParams p) {
  launch_dependents();
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;  // of the span
  const int head = static_cast<int>(blockIdx.y);
  if (row >= p.span.rows) return;
  const int64_t batch_row = p.span.row_begin + row;

  const Bf16* q = p.q + batch_row * p.q_stride + head * kQueryHead;
  float q_nope[4], q_rope[2], sum[4] = {};
  for (int i = 0; i < 4; ++i) q_nope[i] = __bfloat162float(q[4 * lane + i]);
  for (int i = 0; i < 2; ++i) q_rope[i] = __bfloat162float(q[kNope + 2 * lane + i]);

  float max = -CUDART_INF_F, total = 0;
  const int keys = visible_keys(p.span, row);
  for (int key = 0; key < keys; ++key) {
    const int64_t key_row = p.span.key_begin + key;
    const Bf16* kv = p.kv + key_row * p.kv_stride + head * (kNope + kValue);
    const Bf16* k_rope = p.k_rope + key_row * kRope;
    float score = 0;
    for (int i = 0; i < 4; ++i) score += q_nope[i] * __bfloat162float(kv[4 * lane + i]);
    for (int i = 0; i < 2; ++i) score += q_rope[i] * __bfloat162float(k_rope[2 * lane + i]);
    for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(0xFFFFFFFFu, score, step);
    score *= p.softmax_scale;
    const float new_max = fmaxf(max, score);
    const float keep = expf(max - new_max), weight = expf(score - new_max);
    max = new_max;
    total = total * keep + weight;
    for (int i = 0; i < 4; ++i) sum[i] = sum[i] * keep + weight * __bfloat162float(kv[kNope + 4 * lane + i]);
  }

  Bf16* out = p.out + batch_row * p.out_stride + head * kValue + 4 * lane;
  float* lse = p.lse == nullptr ? nullptr : p.lse + batch_row * p.heads + head;
  if (keys == 0 && p.merge) return;  // the earlier result stands
  if (keys > 0 && p.merge) {
    // The earlier keys count as one more key: score = their lse, value = their output.
    const float earlier = *lse;
    const float new_max = fmaxf(max, earlier);
    const float keep = expf(max - new_max), weight = expf(earlier - new_max);
    __syncwarp();  // every lane has read lse
    max = new_max;
    total = total * keep + weight;
    for (int i = 0; i < 4; ++i) sum[i] = sum[i] * keep + (weight > 0 ? weight * __bfloat162float(out[i]) : 0.0f);
  }
  for (int i = 0; i < 4; ++i) out[i] = __float2bfloat16_rn(keys > 0 ? sum[i] / total : 0.0f);
  if (lse != nullptr && lane == 0) *lse = keys > 0 ? max + logf(total) : -CUDART_INF_F;
}

}  // namespace

Status simple_mla_prefill(const MlaPrefill& p, Stream stream) {
  if (Status status = check_mla_prefill("simple_mla_prefill", p); !status.ok()) return status;
  for (const PrefillSpan& span : p.spans) {
    if (span.rows == 0) continue;
    const SimpleParams params{p.q,          p.kv,    p.k_rope,        p.out, p.lse,  p.q_stride, p.kv_stride,
                              p.out_stride, p.heads, p.softmax_scale, span,  p.merge};
    const auto blocks = static_cast<unsigned>((span.rows + kWarps - 1) / kWarps);
    const LaunchShape shape{dim3(blocks, static_cast<unsigned>(p.heads)), dim3(32 * kWarps)};
    if (Status status = launch("simple_mla_prefill", simple_mla_prefill_kernel, shape, stream, params); !status.ok()) return status;
  }
  return {};
}

}  // namespace dsv3::cuda
