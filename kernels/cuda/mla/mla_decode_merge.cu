// Joins the pieces of groups that several parts worked on. One block of 512 threads a row: 4 strands of pieces x 128 threads of 4
// columns. Deterministic: one strand, piece after piece, with the arithmetic that the main kernel folds with.
#include <algorithm>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "mla_decode_work.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kColumnThreads = kLatent / 4, kStrands = 4, kThreads = kColumnThreads * kStrands;
static_assert(kThreads >= kMaxDecodeParts, "a thread loads one piece's maximum and sum");

__global__ void __launch_bounds__(kThreads) mla_decode_merge_kernel(const __grid_constant__ MlaDecode p, DecodeShape shape,
                                                                    DecodeScratch scratch) {
  __shared__ float tops[kThreads], weights[kThreads];
  __shared__ float4 strand_sums[kStrands - 1][kColumnThreads];
  launch_dependents();
  wait_for_previous();
  const DecodeSchedule& schedule = *scratch.schedule;
  const int thread = threadIdx.x, column = thread % kColumnThreads, strand = thread / kColumnThreads, lane = thread % 32;
  const int group_queries = p.max_group_rows * p.heads, items = schedule.merges * group_queries;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const DecodeMerge merge = schedule.merge[item / group_queries];
    const QueryGroup group = p.groups[merge.group];
    const int query = item % group_queries;
    if (query >= group.rows * p.heads) continue;  // the same for the whole block
    const int tile = query / kDecodeTileRows, row = query % kDecodeTileRows;
    const auto row_of_slot = [&](int slot) { return (static_cast<int64_t>(slot) * shape.tiles + tile) * kDecodeTileRows + row; };
    const auto slot_of = [&](int k) {
      if (p.deterministic) return merge.begin + k;
      return 2 * (merge.begin + k) + (k == 0 ? 1 : 0);  // as for_each_piece() numbers them
    };
    const auto values_of = [&](int k) {
      return *reinterpret_cast<const float4*>(scratch.output + row_of_slot(slot_of(k)) * kLatent + 4 * column);
    };
    float4 out;
    float sum;
    if (p.deterministic) {
      if (strand > 0) continue;  // no barrier on this path
      const float2 first = scratch.stats[row_of_slot(slot_of(0))];
      DecodeFold state{first.x, first.y};
      out = values_of(0);
      for (int k = 1; k < merge.count; ++k) {
        const float2 next = scratch.stats[row_of_slot(slot_of(k))];
        const float4 values = values_of(k);
        float keep, add;
        fold_row(state, {next.x, next.y}, keep, add);
        out = {fold_value(out.x, values.x, keep, add), fold_value(out.y, values.y, keep, add), fold_value(out.z, values.z, keep, add),
               fold_value(out.w, values.w, keep, add)};
      }
      sum = state.sum;
    } else {
      __syncthreads();  // the arrays still serve the item before
      // Parts without a block left their slot alone: weight 0, not read.
      float2 mine{-INFINITY, 0};
      if (thread < merge.count) {
        const DecodeCut from = schedule.cut[merge.begin + thread], to = schedule.cut[merge.begin + thread + 1];
        if (from.group != to.group || from.block != to.block) mine = scratch.stats[row_of_slot(slot_of(thread))];
      }
      tops[thread] = mine.x;
      __syncthreads();
      float top = -INFINITY;
      for (int k = lane; k < merge.count; k += 32) top = fmaxf(top, tops[k]);
      for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
      const float weight = exp2f(mine.x - top);  // some piece holds key 0, so top is finite
      weights[thread] = weight;
      __syncthreads();
      tops[thread] = weight * mine.y;
      __syncthreads();
      sum = 0;
      for (int k = lane; k < merge.count; k += 32) sum += tops[k];
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      out = {0, 0, 0, 0};
#pragma unroll 8
      for (int k = strand; k < merge.count; k += kStrands) {
        const float w = weights[k];
        const float4 values = w != 0.0f ? values_of(k) : float4{0, 0, 0, 0};
        out = {out.x + w * values.x, out.y + w * values.y, out.z + w * values.z, out.w + w * values.w};
      }
      if (strand > 0) strand_sums[strand - 1][column] = out;
      __syncthreads();
      if (strand > 0) continue;
      for (int s = 0; s < kStrands - 1; ++s) {
        const float4 other = strand_sums[s][column];
        out = {out.x + other.x, out.y + other.y, out.z + other.z, out.w + other.w};
      }
    }
    const float inverse = __frcp_rn(sum);
    const int64_t at = (static_cast<int64_t>(group.row_begin) * p.heads + query) * kLatent + 4 * column;
    *reinterpret_cast<uint2*>(p.out + at) = {pack_bf16(__fmul_rn(out.x, inverse), __fmul_rn(out.y, inverse)),
                                             pack_bf16(__fmul_rn(out.z, inverse), __fmul_rn(out.w, inverse))};
  }
}

}  // namespace

Status mla_decode_merge(const MlaDecode& p, const DecodeShape& shape, const DecodeScratch& scratch, Stream stream) {
  const int most_merges = p.deterministic ? std::min(p.num_groups, shape.slots() / 2) : std::min(p.num_groups, shape.parts - 1);
  if (most_merges == 0) return {};
  const int blocks = std::min(most_merges * p.max_group_rows * p.heads, 4 * sm_count());
  return launch("mla_decode_merge", mla_decode_merge_kernel, {dim3(blocks), dim3(kThreads)}, stream, p, shape, scratch);
}

}  // namespace dsv3::cuda
