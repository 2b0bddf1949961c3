// The schedule of MLA decode, once a step: one block, a prefix sum over the groups, a binary search for each cut.
#include <string>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "mla_decode_check.h"
#include "mla_decode_plan.h"

namespace dsv3::cuda {
namespace {

constexpr int kThreads = kMaxDecodeGroups;
constexpr int kGroupCost = 3;      // what a group costs beside its blocks (queries, output), in blocks
constexpr int kSmallestPiece = 2;  // no cut closer to an end of a group, where parts are large

__global__ void __launch_bounds__(kThreads)
    mla_decode_schedule_kernel(const QueryGroup* groups, int num_groups, bool deterministic, DecodeShape shape,
                               DecodeSchedule* out) {
  __shared__ int32_t cost_end[kThreads], blocks_of[kThreads];
  __shared__ uint64_t warp_sums[32];
  __shared__ DecodeCut cut[kMaxDecodeParts + 1];
  __shared__ int32_t merges, used_groups;
  launch_dependents();
  wait_for_previous();
  const int g = threadIdx.x, lane = g % 32, warp = g / 32;
  if (g == 0) merges = used_groups = 0;
  const int blocks = g < num_groups ? group_blocks(groups[g]) : 0;
  const int splits = blocks > 0 ? (blocks + split_blocks(blocks) - 1) / split_blocks(blocks) : 0;
  const uint64_t mine =
      static_cast<uint64_t>(splits) << 32 | static_cast<uint32_t>(blocks > 0 ? blocks + kGroupCost : 0);
  uint64_t sum = mine;  // inclusive prefix sum of costs (low) and splits (high)
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    uint64_t total = warp_sums[lane];
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, total, step);
      if (lane >= step) total += other;
    }
    warp_sums[lane] = total;
  }
  __syncthreads();
  if (warp > 0) sum += warp_sums[warp - 1];
  cost_end[g] = static_cast<int32_t>(sum);
  blocks_of[g] = blocks;
  if (blocks > 0) atomicMax(&used_groups, g + 1);
  const int total = static_cast<int32_t>(warp_sums[31]), all_splits = static_cast<int32_t>(warp_sums[31] >> 32);
  const bool fold = deterministic && all_splits > shape.slots();
  __syncthreads();

  if (g <= shape.parts) {
    const int share = max(1, (total + shape.parts - 1) / shape.parts), at = g * share;
    DecodeCut mine_cut{used_groups, 0};
    if (g < shape.parts && at < total) {
      int low = 0, high = kThreads - 1;  // the first group whose end lies behind `at`
      while (low < high) {
        const int middle = (low + high) / 2;
        if (cost_end[middle] > at) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      const int of = blocks_of[low];
      mine_cut = {low, max(0, at - (cost_end[low] - of))};  // the group's own cost comes first
      if (fold) {
        mine_cut = {2 * mine_cut.block > of ? low + 1 : low, 0};
      } else if (deterministic) {
        mine_cut.block -= mine_cut.block % split_blocks(of);
      } else if (share >= 4 * kSmallestPiece) {
        if (mine_cut.block < kSmallestPiece) mine_cut.block = 0;
        if (mine_cut.block > 0 && of - mine_cut.block < kSmallestPiece) mine_cut = {low + 1, 0};
      }
    }
    cut[g] = mine_cut;
    out->cut[g] = mine_cut;
  }
  __syncthreads();

  if (!deterministic) {
    // The first cut inside of a group finds the last: cuts ascend.
    if (g > 0 && g < shape.parts && cut[g].block > 0 && !(cut[g - 1].block > 0 && cut[g - 1].group == cut[g].group)) {
      int low = g + 1, high = shape.parts;  // the first cut behind the group
      while (low < high) {
        const int middle = (low + high) / 2;
        if (cut[middle].group > cut[g].group) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      out->merge[atomicAdd(&merges, 1)] = {cut[g].group, g - 1, low - (g - 1)};
    }
  } else {
    const int slot = static_cast<int32_t>(sum >> 32) - splits;
    out->slot_begin[g] = slot;
    if (splits > 1 && !fold) out->merge[atomicAdd(&merges, 1)] = {g, slot, splits};
  }
  __syncthreads();
  if (g == 0) {
    out->merges = merges;
    out->fold = fold ? 1 : 0;
  }
}

}  // namespace

int64_t mla_decode_workspace_bytes(int64_t, int64_t max_group_rows, int64_t heads) {
  // A smaller number of tiles can make more of parts * tiles: take the largest of all calls that are allowed.
  int64_t bytes = 0;
  for (int64_t rows = 1; rows <= max_group_rows; ++rows)
    bytes = std::max(bytes, decode_scratch_bytes(decode_shape(rows, heads, sm_count())));
  return bytes;
}

Status mla_decode_schedule(const MlaDecode& p, const MlaWorkspace& ws, Stream stream) {
  DSV3_TRY(check_mla_decode(p));
  if (p.num_groups == 0) return {};
  const DecodeShape shape = decode_shape(p.max_group_rows, p.heads, sm_count());
  if (ws.data == nullptr || ws.bytes < decode_scratch_bytes(shape)) {
    return {Code::kInternal, "mla_decode_schedule: workspace of " + std::to_string(ws.bytes) + " bytes, needs " +
                                 std::to_string(decode_scratch_bytes(shape))};
  }
  return launch("mla_decode_schedule", mla_decode_schedule_kernel, {dim3(1), dim3(kThreads)}, stream, p.groups,
                p.num_groups, p.deterministic, shape, decode_scratch(ws.data, shape).schedule);
}

}  // namespace dsv3::cuda
