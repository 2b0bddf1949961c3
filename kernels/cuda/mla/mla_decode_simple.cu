// The readable rung of MLA decode (model.md 4.3): one block per query row and head walks the sequence in runs of 64
// tokens with the online softmax. All arithmetic in float32.
#include <algorithm>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "mla_decode_check.h"

namespace dsv3::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kRun = kCacheBlockTokens;
static_assert(kLatent == 2 * kThreads, "a thread owns two output columns");

/// Element `col` of a cache row that starts at `row`.
template <KvFormat kFormat>
__device__ float cache_value(const uint8_t* row, int col) {
  if constexpr (kFormat == KvFormat::kBf16) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[col]);
  } else {
    if (col >= kLatent)
      return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row + kLatent + 16)[col - kLatent]);
    const float scale = reinterpret_cast<const float*>(row + kLatent)[col / kQuantGroup];
    return static_cast<float>(reinterpret_cast<const __nv_fp8_e4m3*>(row)[col]) * scale;
  }
}

/// grid: (heads, max_group_rows, groups).
template <KvFormat kFormat>
__global__ void __launch_bounds__(kThreads) simple_mla_decode_kernel(const __grid_constant__ MlaDecode p) {
  launch_dependents();
  wait_for_previous();
  const QueryGroup group = p.groups[blockIdx.z];
  const int head = blockIdx.x, row_in_group = blockIdx.y;
  if (row_in_group >= group.rows) return;
  const int64_t query = (static_cast<int64_t>(group.row_begin) + row_in_group) * p.heads + head;
  const int keys = group.start + row_in_group + 1;  // cache rows [0, keys)
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto* pages = static_cast<const uint8_t*>(p.pages.data);
  constexpr int64_t kRowBytes = kFormat == KvFormat::kBf16 ? kCacheRow * 2 : 656;
  const int32_t* table = p.block_tables + static_cast<int64_t>(group.slot) * p.max_blocks;

  __shared__ float q[kCacheRow];
  __shared__ float scores[kRun];
  for (int i = threadIdx.x; i < kCacheRow; i += kThreads) q[i] = __bfloat162float(p.q[query * kCacheRow + i]);

  float top = -INFINITY, sum = 0, out[2] = {0, 0};
  for (int first = 0; first < keys; first += kRun) {
    const uint8_t* run = pages + static_cast<int64_t>(table[first / kRun]) * kRun * kRowBytes;
    const int count = min(kRun, keys - first);
    __syncthreads();
    for (int t = warp; t < count; t += kWarps) {
      float dot = 0;
      for (int i = lane; i < kCacheRow; i += 32) dot += q[i] * cache_value<kFormat>(run + t * kRowBytes, i);
      for (int step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
      if (lane == 0) scores[t] = dot * p.softmax_scale;
    }
    __syncthreads();
    float run_top = top;
    for (int t = 0; t < count; ++t) run_top = fmaxf(run_top, scores[t]);
    const float keep = __expf(top - run_top);  // 0 in the first run
    top = run_top;
    sum *= keep;
    out[0] *= keep;
    out[1] *= keep;
    for (int t = 0; t < count; ++t) {
      const float weight = __expf(scores[t] - top);
      sum += weight;
      out[0] += weight * cache_value<kFormat>(run + t * kRowBytes, 2 * threadIdx.x);
      out[1] += weight * cache_value<kFormat>(run + t * kRowBytes, 2 * threadIdx.x + 1);
    }
  }
  reinterpret_cast<uint32_t*>(p.out + query * kLatent)[threadIdx.x] = pack_bf16(out[0] / sum, out[1] / sum);
}

}  // namespace

Status simple_mla_decode(const MlaDecode& p, Stream stream) {
  DSV3_TRY(check_mla_decode(p));
  if (p.num_groups == 0) return {};
  const auto kernel = p.pages.format == KvFormat::kBf16 ? simple_mla_decode_kernel<KvFormat::kBf16>
                                                        : simple_mla_decode_kernel<KvFormat::kFp8>;
  const dim3 grid(p.heads, p.max_group_rows, p.num_groups);
  return launch("simple_mla_decode", kernel, {grid, dim3(kThreads)}, stream, p);
}

}  // namespace dsv3::cuda
