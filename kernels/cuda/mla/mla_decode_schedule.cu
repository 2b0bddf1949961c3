// The schedule of MLA decode, once a step: one block, prefix sums over the groups, a binary search for each cut.
#include <string>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "mla_decode_check.h"
#include "mla_decode_plan.h"

namespace dsv3::cuda {
namespace {

constexpr int kThreads = kMaxDecodeGroups;
constexpr int kPieceCost = 3;      // what a piece costs beside its blocks (queries, output), in blocks
constexpr int kMergeCost = 1;      // what any merging costs, in blocks
constexpr int kSlotCost = 20;      // where every part fills a slot of 64 rows: to write and merge them, in 1/4 blocks
constexpr int kSmallestPiece = 2;  // no cut closer to an end of a group, where parts are large
// Cuts are laid out in four ways at once, and the one that is done first (slowest part, then merging) is taken: equal
// blocks; whole groups, or whole fractions of one, a part; equal blocks with a toll at the start of each group, of two
// sizes.
constexpr int kLayouts = 4, kAligned = 1;
static_assert(kThreads == kLayouts * kMaxDecodeParts, "a thread for each cut");
__device__ constexpr int toll_of(int layout) {
  return layout <= kAligned ? 0 : layout == 2 ? 1 : kPieceCost;
}

struct Counts {  ///< running sums over the groups, that one included
  int32_t blocks, used;
};

__global__ void __launch_bounds__(kThreads)
    mla_decode_schedule_kernel(const QueryGroup* groups, int num_groups, bool deterministic, DecodeShape shape,
                               int slot_cost, DecodeSchedule* out) {
  __shared__ Counts ends[kThreads];
  __shared__ int32_t blocks_of[kThreads];
  __shared__ uint64_t warp_sums[32];
  __shared__ DecodeCut cuts[kLayouts][kMaxDecodeParts + 1];
  __shared__ int32_t slowest[kLayouts], slots[kLayouts], merges, most_pieces, used_groups;
  launch_dependents();
  wait_for_previous();
  const int g = threadIdx.x, lane = g % 32, warp = g / 32;
  if (g == 0) merges = most_pieces = used_groups = 0;
  if (g < kLayouts) slowest[g] = slots[g] = 0;
  const int blocks = g < num_groups ? group_blocks(groups[g]) : 0;
  const int splits = blocks > 0 ? (blocks + split_blocks(blocks) - 1) / split_blocks(blocks) : 0;
  // Inclusive prefix sums in one word: blocks (32 bits), groups that have any (16), splits (16; at most 8 a group).
  uint64_t sum =
      static_cast<uint64_t>(splits) << 48 | static_cast<uint64_t>(blocks > 0) << 32 | static_cast<uint32_t>(blocks);
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
  ends[g] = {static_cast<int32_t>(sum), static_cast<int32_t>(sum >> 32 & 0xFFFF)};
  blocks_of[g] = blocks;
  if (blocks > 0) atomicMax(&used_groups, g + 1);
  const int all_blocks = static_cast<int32_t>(warp_sums[31]),
            all_used = static_cast<int32_t>(warp_sums[31] >> 32 & 0xFFFF);
  const int all_splits = static_cast<int32_t>(warp_sums[31] >> 48);
  const bool fold = deterministic && all_splits > shape.slots();
  __syncthreads();

  const int layout = g / kMaxDecodeParts, part = g % kMaxDecodeParts, toll = toll_of(layout);
  if (part < shape.parts) {
    const int total = all_blocks + toll * all_used;
    int share = max(1, (total + shape.parts - 1) / shape.parts);
    if (layout == kAligned && all_used > 0) share = aligned_share(share, (all_blocks + all_used - 1) / all_used);
    const int64_t at = static_cast<int64_t>(part) * share;
    DecodeCut cut{used_groups, 0};
    if (at < total) {
      int low = 0, high = kThreads - 1;  // the first group whose end lies behind `at`
      while (low < high) {
        const int middle = (low + high) / 2;
        if (ends[middle].blocks + toll * ends[middle].used > at) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      const int of = blocks_of[low];
      const int begin = ends[low].blocks + toll * ends[low].used - of;  // the toll comes before the blocks
      cut = {low, max(0, static_cast<int>(at) - begin)};
      if (fold) {
        cut = {2 * cut.block > of ? low + 1 : low, 0};
      } else if (deterministic) {
        cut.block -= cut.block % split_blocks(of);
      } else if (share >= 4 * kSmallestPiece) {
        if (cut.block < kSmallestPiece) cut.block = 0;
        if (cut.block > 0 && of - cut.block < kSmallestPiece) cut = {low + 1, 0};
      }
    }
    cuts[layout][part] = cut;
    if (part == 0) cuts[layout][shape.parts] = {used_groups, 0};
  }
  __syncthreads();
  if (part < shape.parts) {
    const DecodeCut from = cuts[layout][part], to = cuts[layout][part + 1];
    const Counts none{0, 0};
    const Counts before = from.group > 0 ? ends[from.group - 1] : none,
                 after = to.group > 0 ? ends[to.group - 1] : none;
    const int of_part = after.blocks + to.block - before.blocks - from.block;
    const int pieces = after.used + (to.block > 0 ? 1 : 0) - before.used;
    const int in_slots = from.group == to.group ? 1 : (from.block > 0 ? 1 : 0) + (to.block > 0 ? 1 : 0);
    if (of_part > 0) {
      atomicMax(&slowest[layout], of_part + kPieceCost * pieces);
      atomicAdd(&slots[layout], in_slots);
    }
  }
  __syncthreads();
  int best = kLayouts - 1;
  if (!deterministic) {
    const auto cost = [&](int of) {  // in 1/4 blocks of all parts
      return 4 * shape.parts * (slowest[of] + (slots[of] > 0 ? kMergeCost : 0)) + slot_cost * slots[of];
    };
    for (int other = kLayouts - 2; other >= 0; --other) {
      if (cost(other) <= cost(best)) best = other;
    }
  }
  const DecodeCut* cut = cuts[best];
  if (g < shape.parts) {
    const QueryGroup first = cut[g].group < num_groups ? groups[cut[g].group] : QueryGroup{};
    out->part[g] = {cut[g], cut[g + 1], first};
  }

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
      const QueryGroup group = groups[cut[g].group];
      const int count = low - (g - 1);
      atomicMax(&most_pieces, count);
      out->merge[atomicAdd(&merges, 1)] = {group.row_begin, group.rows, g - 1, count};
    }
  } else {
    const int slot = static_cast<int32_t>(sum >> 48) - splits;
    out->slot_begin[g] = slot;
    if (splits > 1 && !fold) {
      atomicMax(&most_pieces, splits);
      out->merge[atomicAdd(&merges, 1)] = {groups[g].row_begin, groups[g].rows, slot, splits};
    }
  }
  __syncthreads();
  if (g == 0) {
    out->merges = merges;
    out->fold = fold ? 1 : 0;
    out->most_pieces = most_pieces;
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
  const int slot_cost = kSlotCost * p.max_group_rows * p.heads / (shape.tiles * kDecodeTileRows);
  return launch("mla_decode_schedule", mla_decode_schedule_kernel, {dim3(1), dim3(kThreads)}, stream, p.groups,
                p.num_groups, p.deterministic, shape, slot_cost, decode_scratch(ws.data, shape).schedule);
}

}  // namespace dsv3::cuda
