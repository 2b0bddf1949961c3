// Joins the pieces of groups that several parts worked on. Few pieces: a warp takes half a row and joins one piece
// after the other, with the arithmetic that the main kernel folds with. Many (a long sequence over the whole device): a
// block of 512 threads takes a row, 8 strands of pieces x 64 threads of 8 columns.
#include <algorithm>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "../norm/rows.cuh"
#include "mla_decode_pieces.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kColumnThreads = kLatent / 8, kStrands = 8, kThreads = kColumnThreads * kStrands;
constexpr int kFewPieces = 8;   // all that deterministic splits can be
constexpr int kWarpPieces = 32;  // that a warp can join; worth its while where rows for whole blocks would make several rounds
constexpr int kFewRows = kThreads / 64;
constexpr int kBlocksAnSm = 2;  // and as many in the grid: a second wave would wait for the latencies of the first
static_assert(kThreads >= kMaxDecodeParts, "a thread loads one piece's maximum and sum");

__device__ __forceinline__ void store_row(Bf16* to, const float (&out)[8], float inverse) {
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = __fmul_rn(out[i], inverse);
  store_vector(to, v);
}

/// One warp, half a row. The loads of a batch are on their way before any is used, the first ones' before those of the statistics.
__device__ __forceinline__ void merge_few(const MergeRow& pieces, int half, Bf16* to) {
  constexpr int kBatch = 6;  // what fits into the registers of two blocks an SM
  const int lane = threadIdx.x % 32, count = pieces.count, column = half * (kLatent / 2) + 8 * lane;
  uint4 values[kBatch];
  const auto load = [&](int base) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (base + i < count) values[i] = pieces.values(base + i, column);  // not used if it isn't there
    }
  };
  load(0);
  const float2 mine = lane < count ? pieces.stats(lane) : float2{0, 0};
  const uint32_t exist = __ballot_sync(~0u, lane < count && pieces.exists(lane));
  DecodeFold state;
  float out[8] = {};
#pragma unroll 1
  for (int base = 0; base < count; base += kBatch) {
    if (base > 0) load(base);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const DecodeFold next{__shfl_sync(~0u, mine.x, base + i), __shfl_sync(~0u, mine.y, base + i)};
      if (base + i >= count || (exist >> (base + i) & 1) == 0) continue;
      float keep, add, more[8];
      fold_row(state, next, keep, add);
      unpack_f16(values[i], more);
#pragma unroll
      for (int j = 0; j < 8; ++j) out[j] = fold_value(out[j], more[j], keep, add);
    }
  }
  store_row(to + column, out, __frcp_rn(state.sum));
}

/// The whole block, one row.
__device__ __forceinline__ void merge_many(const MergeRow& pieces, Bf16* to) {
  __shared__ float tops[kThreads], weights[kThreads];
  __shared__ float strand_sums[kStrands - 1][8][kColumnThreads];
  const int thread = threadIdx.x, column = thread % kColumnThreads, strand = thread / kColumnThreads,
            lane = thread % 32;
  const int count = pieces.count;
  float2 mine{-INFINITY, 0};
  if (thread < count && pieces.exists(thread)) mine = pieces.stats(thread);
  tops[thread] = mine.x;
  __syncthreads();
  float top = -INFINITY;
  for (int k = lane; k < count; k += 32) top = fmaxf(top, tops[k]);
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
  weights[thread] = exp2f(mine.x - top) * mine.y;  // some piece holds key 0, so top is finite
  __syncthreads();
  float sum = 0;
  for (int k = lane; k < count; k += 32) sum += weights[k];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  float out[8] = {};
#pragma unroll 8
  for (int k = strand; k < count; k += kStrands) {
    const float w = weights[k];
    add_piece(out, w, w != 0.0f ? pieces.values(k, 8 * column) : uint4{0, 0, 0, 0});  // what was not written is not read
  }
  if (strand > 0) {
#pragma unroll
    for (int i = 0; i < 8; ++i) strand_sums[strand - 1][i][column] = out[i];
  }
  __syncthreads();
  if (strand == 0) {
    for (int s = 0; s < kStrands - 1; ++s) {
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] += strand_sums[s][i][column];
    }
    store_row(to + 8 * column, out, __frcp_rn(sum));
  }
  __syncthreads();  // the arrays serve the next row
}

__global__ void __launch_bounds__(kThreads, kBlocksAnSm)
    mla_decode_merge_kernel(const __grid_constant__ MlaDecode p, const __grid_constant__ DecodeShape shape,
                            const __grid_constant__ DecodeScratch scratch) {
  launch_dependents();
  wait_for_previous(p);
  const DecodeSchedule& schedule = *scratch.schedule;
  const int merges = schedule.merges, group_queries = p.max_group_rows * p.heads;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  // A unit is one row where a group has many pieces, else 8 rows. Beside a group with many, those with few have units
  // left over, which come last.
  const int few_pieces = merges * group_queries > static_cast<int>(gridDim.x) ? kWarpPieces : kFewPieces;
  const bool any_many = !p.deterministic && schedule.most_pieces > few_pieces;
  const int units = merges * (any_many ? group_queries : (group_queries + kFewRows - 1) / kFewRows);
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const DecodeMerge merge = schedule.merge[unit % merges];
    const bool few = p.deterministic || merge.count <= few_pieces;
    const int query = few ? unit / merges * kFewRows + warp / 2 : unit / merges;
    if (query >= merge.rows * p.heads) continue;  // the same for the whole warp, or for the whole block
    const MergeRow pieces(scratch, shape, merge, p.deterministic, query);
    Bf16* to = p.out + (static_cast<int64_t>(merge.row_begin) * p.heads + query) * kLatent;
    if (few) {
      merge_few(pieces, warp % 2, to);
    } else {
      merge_many(pieces, to);
    }
  }
}

}  // namespace

Status mla_decode_merge(const MlaDecode& p, const DecodeShape& shape, const DecodeScratch& scratch, Stream stream) {
  const int most_merges =
      p.deterministic ? std::min(p.num_groups, shape.slots() / 2) : std::min(p.num_groups, shape.parts - 1);
  if (most_merges == 0) return {};
  const int blocks = std::min(most_merges * p.max_group_rows * p.heads, kBlocksAnSm * sm_count());
  return launch("mla_decode_merge", mla_decode_merge_kernel, {dim3(blocks), dim3(kThreads)}, stream, p, shape, scratch);
}

}  // namespace dsv3::cuda
