// The end of a step: drafts are verified, slots advance, results are written. One thread a segment.
#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "slot_device.h"

namespace dsv3::cuda {
namespace {

constexpr int kSettleThreads = 128;

/// Thread: one segment.
__global__ void __launch_bounds__(kSettleThreads) settle_kernel(const __grid_constant__ SlotView view) {
  launch_dependents();
  wait_for_previous();
  const int s = static_cast<int>(blockIdx.x) * kSettleThreads + static_cast<int>(threadIdx.x);
  if (s >= view.header->num_segments) return;
  const StepSegment segment = view.segments[s];
  const SegmentState state = view.states[s];
  SegmentOut out;
  if (state.slot >= 0 && state.rows > 0) {
    SlotRecord& slot = view.slots[state.slot];
    const bool decode = (segment.flags & kSegmentDecode) != 0;
    int32_t computed = state.start + state.rows;
    if ((segment.flags & kSegmentSample) != 0 && (decode || state.rows == segment.rows)) {
      const bool adjusted = view.rules[state.slot].adjusted != 0;
      int32_t* tokens = view.tokens + static_cast<int64_t>(state.slot) * view.token_stride;
      uint32_t* words = view.words + static_cast<int64_t>(state.slot) * view.limits.vocab;
      out.proposed = decode ? state.rows - 1 : 0;
      int32_t length = slot.length;
      for (int32_t r = 0; r <= out.proposed; ++r) {
        const RowResult result = view.row_results[segment.logit_begin + r];
        out.bad |= result.bad;
        const int32_t id = out.bad != 0 ? 0 : result.id;  // any token will do: the sequence fails, its slot stays consistent
        if (length < view.token_stride) tokens[length++] = id;
        if (adjusted) atomicAdd(words + id, 1u);
        ++out.num_tokens;
        // A draft is right exactly when it is what sampling chose: the output never depends on drafts.
        if (r >= out.proposed || slot.drafts[r] != id) break;
        ++out.accepted;
      }
      slot.length = length;
      slot.num_drafts = 0;
      if (decode) computed = state.start + 1 + out.accepted;
    }
    atomicMax(&slot.computed, computed);  // two chunks of one slot may share a step
  }
  view.outs[s] = out;
}

}  // namespace

Status launch_settle(const SlotView& view, int32_t num_segments, Stream stream) {
  if (num_segments == 0) return {};
  const auto blocks = static_cast<unsigned>((num_segments + kSettleThreads - 1) / kSettleThreads);
  return launch("sampling: settle", settle_kernel, {dim3(blocks), dim3(kSettleThreads), 0, 1}, stream, view);
}

}  // namespace dsv3::cuda
