// What the two prefill kernels share on the host, and the plan of the fast one: which tiles a launch computes, in which order.
// Pure functions of the host, tested without a GPU.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <span>
#include <vector>

#include "../common/types.h"
#include "mla.h"

namespace dsv3::cuda {

inline constexpr int kPrefillTile = 128;                           ///< query rows of a tile, and keys of a step
inline constexpr int kPrefillSpans = 64, kPrefillTiles = 1024;     ///< of one launch: 6 and 10 bits of PrefillPlan::tiles
inline constexpr int64_t kPrefillL2Bytes = 28ll << 20;             ///< keys and values that shall stay in L2 together

/// kInternal if the pointers, strides or spans can't be right.
Status check_mla_prefill(const char* name, const MlaPrefill& p);

/// Keys that the query in row `row` of the span sees: the first so many of the span's keys.
__host__ __device__ inline int32_t visible_keys(const PrefillSpan& span, int32_t row) {
  const int64_t visible = static_cast<int64_t>(span.start) + row - span.key_start + 1;
  if (visible <= 0) return 0;
  return visible < span.keys ? static_cast<int32_t>(visible) : span.keys;
}

/// Steps of 128 keys that a tile of 128 query rows takes.
__host__ __device__ inline int32_t prefill_steps(const PrefillSpan& span, int32_t tile) {
  const int32_t end = (tile + 1) * kPrefillTile;
  return (visible_keys(span, (end < span.rows ? end : span.rows) - 1) + kPrefillTile - 1) / kPrefillTile;
}

/// One launch. Work items are pairs (tile, head). Heads are cut into groups whose keys and values fit into L2 together; inside
/// a group the tiles go from long to short, in the next one from short to long, and so on, so that the length of items never
/// jumps; the last group ends with the shortest. Blocks take items in a snake (left to right, right to left), which gives
/// every block the same sum to first order, without a counter in memory.
struct PrefillPlan {
  PrefillSpan spans[kPrefillSpans];
  uint16_t tiles[kPrefillTiles];  ///< span << 10 | tile of the span; longest first
  int32_t num_tiles = 0;
  int32_t heads = 0, group_heads = 0, groups = 0;
};

struct PrefillItem {
  int32_t span, tile, head;
};

/// Item `ordinal` < num_tiles * heads in the plan's order.
__host__ __device__ inline PrefillItem prefill_item(const PrefillPlan& plan, int32_t ordinal) {
  const int32_t per_group = plan.num_tiles * plan.group_heads;
  const int32_t group = ordinal / per_group;
  const int32_t within = ordinal - group * per_group;
  const int32_t first_head = group * plan.group_heads;
  const int32_t heads = plan.heads - first_head < plan.group_heads ? plan.heads - first_head : plan.group_heads;
  const int32_t rank = within / heads;
  const bool falling = ((plan.groups - 1 - group) & 1) == 0;
  const uint32_t packed = plan.tiles[falling ? rank : plan.num_tiles - 1 - rank];
  return {static_cast<int32_t>(packed >> 10), static_cast<int32_t>(packed & 1023u), first_head + within - rank * heads};
}

/// Item of `block` in round `round`, or -1 where the last round has none.
__host__ __device__ inline int32_t prefill_ordinal(int32_t items, int32_t blocks, int32_t block, int32_t round) {
  const int64_t ordinal = static_cast<int64_t>(round) * blocks + ((round & 1) != 0 ? blocks - 1 - block : block);
  return ordinal < items ? static_cast<int32_t>(ordinal) : -1;
}

/// Cuts a batch into launches. Spans without rows are left out; spans without a visible key are kept (their rows get 0 and -inf).
class PrefillPlanner {
 public:
  PrefillPlanner(std::span<const PrefillSpan> spans, int32_t heads) : rest_(spans), heads_(heads) {}
  /// The next launch, or false at the end.
  bool next(PrefillPlan& plan);

 private:
  std::span<const PrefillSpan> rest_;
  int32_t heads_;
  int32_t done_rows_ = 0;  ///< of rest_.front(), which launches before this one cover
};

}  // namespace dsv3::cuda
