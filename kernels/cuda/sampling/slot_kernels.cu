// Kernels that change slots and lay batches out from them. A few microseconds each; one block per slot or segment.
#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "slot_device.h"

namespace dsv3::cuda {
namespace {

constexpr int kApplyThreads = 256, kApplySplit = 16, kPrepareThreads = 128;

/// Block (u, part): part `part` of kApplySplit of update u. Block (num_updates, part) copies header and segments.
__global__ void __launch_bounds__(kApplyThreads) apply_kernel(const __grid_constant__ SlotView view) {
  launch_dependents();
  wait_for_previous();
  const auto& header = *reinterpret_cast<const UploadHeader*>(view.staging);
  const int first = static_cast<int>(blockIdx.y) * kApplyThreads + static_cast<int>(threadIdx.x);
  constexpr int kStep = kApplySplit * kApplyThreads;
  const int u = static_cast<int>(blockIdx.x);
  if (u >= header.num_updates) {
    if (header.has_segments == 0) return;
    const auto* segments = reinterpret_cast<const StepSegment*>(view.staging + sizeof(UploadHeader));
    for (int i = first; i < header.num_segments; i += kStep) view.segments[i] = segments[i];
    if (first == 0) *view.header = header;
    return;
  }
  const SlotUpdate& update = reinterpret_cast<const SlotUpdate*>(view.staging + header.updates_at)[u];
  const auto* payload = reinterpret_cast<const int32_t*>(view.staging + header.payload_at);
  const auto slot = static_cast<int64_t>(update.slot);
  int32_t* table = view.block_tables + slot * view.limits.max_blocks;
  for (int i = first; i < update.num_blocks; i += kStep) table[update.first_block + i] = payload[update.blocks_at + i];
  if (update.begun == 0) {
    if (first == 0) view.slots[slot].granted = update.granted;
    return;
  }
  int32_t* tokens = view.tokens + slot * view.token_stride;
  for (int i = first; i < update.length; i += kStep) tokens[i] = payload[update.tokens_at + i];
  BiasEntry* biases = view.biases + slot * kMaxLogitBias;
  for (int i = first; i < update.rules.num_bias; i += kStep) {
    biases[i] = {payload[update.bias_at + 2 * i], __int_as_float(payload[update.bias_at + 2 * i + 1])};
  }
  if (update.rules.adjusted != 0) {
    uint32_t* words = view.words + slot * view.limits.vocab;
    for (int i = first; i < view.limits.vocab; i += kStep) words[i] = 0;
  }
  if (first == 0) {
    SlotRecord record;
    record.length = update.length;
    record.prompt = update.prompt;
    record.computed = update.computed;
    record.granted = update.granted;
    view.slots[slot] = record;
    view.rules[slot] = update.rules;
  }
}

/// After apply_kernel has cleared them: the words of slots that begin with adjusted logits.
__global__ void __launch_bounds__(kApplyThreads) mark_kernel(const __grid_constant__ SlotView view) {
  launch_dependents();
  wait_for_previous();
  const auto& header = *reinterpret_cast<const UploadHeader*>(view.staging);
  const SlotUpdate& update = reinterpret_cast<const SlotUpdate*>(view.staging + header.updates_at)[blockIdx.x];
  if (update.begun == 0 || update.rules.adjusted == 0) return;
  const auto* payload = reinterpret_cast<const int32_t*>(view.staging + header.payload_at);
  const int first = static_cast<int>(blockIdx.y) * kApplyThreads + static_cast<int>(threadIdx.x);
  constexpr int kStep = kApplySplit * kApplyThreads;
  uint32_t* words = view.words + static_cast<int64_t>(update.slot) * view.limits.vocab;
  const auto known = [&](int32_t id) { return id >= 0 && id < view.limits.vocab; };
  for (int i = first; i < update.length; i += kStep) {
    const int32_t id = payload[update.tokens_at + i];
    if (!known(id)) continue;
    if (i < update.prompt) {
      atomicOr(words + id, kInPrompt);
    } else {
      atomicAdd(words + id, 1u);
    }
  }
  for (int i = first; i < update.rules.num_bias; i += kStep) {
    const int32_t id = payload[update.bias_at + 2 * i];
    if (known(id)) atomicOr(words + id, kHasBias);
  }
  for (int i = first; i < update.num_suppressed; i += kStep) {
    const int32_t id = payload[update.suppressed_at + i];
    if (known(id)) atomicOr(words + id, kIsSuppressed);
  }
}

__device__ void put_row(const DeviceBatch& batch, int row, int32_t token, int32_t position, int64_t cache_row, int32_t source) {
  batch.tokens[row] = token;
  batch.positions[row] = position;
  batch.cache_rows[row] = cache_row;
  batch.source_rows[row] = source;
}

__device__ int64_t cache_row_of(const SlotView& view, int32_t slot, int32_t position) {
  const int32_t block = view.block_tables[static_cast<int64_t>(slot) * view.limits.max_blocks + position / kCacheBlockTokens];
  return static_cast<int64_t>(block) * kCacheBlockTokens + position % kCacheBlockTokens;
}

/// Groups of a segment of `layout_rows` rows of which the first `valid` count.
__device__ void put_groups(const DeviceBatch& batch, const StepSegment& segment, int32_t slot, int32_t start, int32_t valid) {
  if (segment.group_begin < 0) return;
  const int count = (segment.rows + kMaxGroupRows - 1) / kMaxGroupRows;
  for (int g = static_cast<int>(threadIdx.x); g < count; g += kPrepareThreads) {
    const int first = g * kMaxGroupRows;
    const int rows = min(max(valid - first, 0), kMaxGroupRows);
    batch.groups[segment.group_begin + g] = {max(slot, 0), segment.row_begin + first, rows, rows > 0 ? start + first : 0};
  }
}

/// Rows, logit rows and groups that no segment owns become padding.
__device__ void pad_tail(const DeviceBatch& batch, int rows_from, int rows, int logits_from, int logit_rows, int groups_from, int groups) {
  const int t = static_cast<int>(threadIdx.x);
  for (int i = rows_from + t; i < rows; i += kPrepareThreads) put_row(batch, i, -1, -1, -1, -1);
  for (int i = logits_from + t; i < logit_rows; i += kPrepareThreads) batch.logit_rows[i] = 0;
  for (int i = groups_from + t; i < groups; i += kPrepareThreads) batch.groups[i] = {0, 0, 0, 0};
}

/// Block s: segment s. The last block: the tail.
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_main_kernel(const __grid_constant__ SlotView view, int32_t rows, int32_t logit_rows, int32_t num_groups) {
  launch_dependents();
  wait_for_previous();
  const int s = static_cast<int>(blockIdx.x), t = static_cast<int>(threadIdx.x);
  const UploadHeader& header = *view.header;
  const DeviceBatch& batch = view.main;
  if (s == static_cast<int>(gridDim.x) - 1) {
    pad_tail(batch, header.total_rows, rows, header.total_logit_rows, logit_rows, header.total_groups, num_groups);
    for (int i = header.total_logit_rows + t; i < logit_rows; i += kPrepareThreads) view.logit_info[i] = {-1, 0};
    return;
  }
  if (s >= header.num_segments) return;
  const StepSegment segment = view.segments[s];
  const bool decode = (segment.flags & kSegmentDecode) != 0, sample = (segment.flags & kSegmentSample) != 0;
  SegmentState state;
  int32_t length = 0;
  const int32_t* drafts = nullptr;
  if (segment.slot >= 0) {
    const SlotRecord& slot = view.slots[segment.slot];
    const int32_t room = slot.granted * kCacheBlockTokens;
    length = slot.length;
    drafts = slot.drafts;
    state.slot = segment.slot;
    state.start = decode ? slot.computed : segment.start;
    // A slot that is not ready to decode, or has no room, gets padding only: it must not write to rows it does not own.
    const int32_t has = decode ? (slot.computed + 1 == length ? 1 + slot.num_drafts : 0) : length - segment.start;
    state.rows = max(0, min(segment.rows, min(has, room - state.start)));
  }
  for (int r = t; r < segment.rows; r += kPrepareThreads) {
    const int row = segment.row_begin + r;
    if (r < state.rows) {
      const int32_t p = state.start + r;
      const int32_t token = p < length ? view.tokens[static_cast<int64_t>(state.slot) * view.token_stride + p] : drafts[p - length];
      put_row(batch, row, token, p, cache_row_of(view, state.slot, p), row);
    } else {
      put_row(batch, row, -1, -1, -1, -1);
    }
  }
  put_groups(batch, segment, state.slot, state.start, state.rows);
  if (sample) {
    const int sampled = decode ? segment.rows : 1;
    for (int r = t; r < sampled; r += kPrepareThreads) {
      const bool valid = decode ? r < state.rows : state.rows == segment.rows && segment.rows > 0;
      batch.logit_rows[segment.logit_begin + r] = segment.row_begin + (decode ? r : segment.rows - 1);
      view.logit_info[segment.logit_begin + r] = {valid ? s : -1, r};
    }
  }
  if (t == 0) {
    view.states[s] = state;
    if (sample) view.sampling_segments[segment.unused] = s;
  }
}

/// Pass 0: block s lays out segment s again, each row with the token after it. The last block: the tail.
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_first_draft_kernel(const __grid_constant__ SlotView view, int32_t rows, int32_t num_groups) {
  launch_dependents();
  wait_for_previous();
  const int s = static_cast<int>(blockIdx.x), t = static_cast<int>(threadIdx.x);
  const UploadHeader& header = *view.header;
  const DeviceBatch& batch = view.draft;
  if (s == static_cast<int>(gridDim.x) - 1) {
    pad_tail(batch, header.total_rows, rows, header.total_sampling, view.limits.max_logit_rows, header.total_groups, num_groups);
    return;
  }
  if (s >= header.num_segments) return;
  const StepSegment segment = view.segments[s];
  const SegmentState state = view.states[s];
  int32_t valid = 0;
  if (state.slot >= 0) {
    const SlotRecord& slot = view.slots[state.slot];
    valid = max(0, min(state.rows, min(slot.length - 1 - state.start, slot.computed - state.start)));
  }
  for (int r = t; r < segment.rows; r += kPrepareThreads) {
    const int row = segment.row_begin + r;
    if (r < valid) {
      const int32_t p = state.start + r;
      const int32_t token = view.tokens[static_cast<int64_t>(state.slot) * view.token_stride + p + 1];
      put_row(batch, row, token, p, cache_row_of(view, state.slot, p), row);
    } else {
      put_row(batch, row, -1, -1, -1, -1);
    }
  }
  put_groups(batch, segment, state.slot, state.start, valid);
  if (t == 0) {
    view.states[s].draft_end = valid > 0 ? state.start + valid : -1;
    if ((segment.flags & kSegmentSample) != 0) batch.logit_rows[segment.unused] = segment.row_begin + max(valid - 1, 0);
  }
}

/// Pass p >= 1: row i is the i-th sampling segment's newest draft.
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_next_draft_kernel(const __grid_constant__ SlotView view, int32_t pass, int32_t rows, int32_t num_groups) {
  launch_dependents();
  wait_for_previous();
  const int i = static_cast<int>(blockIdx.x) * kPrepareThreads + static_cast<int>(threadIdx.x);
  const DeviceBatch& batch = view.draft;
  if (i >= rows && i >= num_groups) return;
  int32_t slot = -1, position = -1, token = -1;
  if (i < view.header->total_sampling) {
    const SegmentState& state = view.states[view.sampling_segments[i]];
    if (state.slot >= 0 && state.draft_end >= 0) {
      const SlotRecord& record = view.slots[state.slot];
      const int32_t p = state.draft_end + pass - 1;
      if (p < record.granted * kCacheBlockTokens && record.num_drafts > 0) {
        slot = state.slot;
        position = p;
        token = record.drafts[record.num_drafts - 1];
      }
    }
  }
  if (i < rows) {
    put_row(batch, i, token, position, position >= 0 ? cache_row_of(view, slot, position) : -1, position >= 0 ? i : -1);
    if (i < view.limits.max_logit_rows) batch.logit_rows[i] = i;
  }
  if (i < num_groups) batch.groups[i] = {max(slot, 0), i, position >= 0 ? 1 : 0, max(position, 0)};
}

LaunchShape blocks_of(int x, int y, int threads) {
  return {dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), dim3(static_cast<unsigned>(threads)), 0, 1};
}

}  // namespace

Status launch_apply(const SlotView& view, int32_t num_updates, bool marks, Stream stream) {
  DSV3_TRY(launch("slots: apply", apply_kernel, blocks_of(num_updates + 1, kApplySplit, kApplyThreads), stream, view));
  if (!marks) return {};
  return launch("slots: mark", mark_kernel, blocks_of(num_updates, kApplySplit, kApplyThreads), stream, view);
}

Status launch_prepare_main(const SlotView& view, int32_t num_segments, int32_t rows, int32_t logit_rows, int32_t num_groups,
                           Stream stream) {
  const LaunchShape shape = blocks_of(num_segments + 1, 1, kPrepareThreads);
  return launch("slots: prepare_main", prepare_main_kernel, shape, stream, view, rows, logit_rows, num_groups);
}

Status launch_prepare_draft(const SlotView& view, int32_t pass, int32_t num_segments, int32_t rows, int32_t num_groups, Stream stream) {
  if (pass == 0) {
    const LaunchShape shape = blocks_of(num_segments + 1, 1, kPrepareThreads);
    return launch("slots: prepare_draft", prepare_first_draft_kernel, shape, stream, view, rows, num_groups);
  }
  const int most = rows > num_groups ? rows : num_groups;
  if (most == 0) return {};
  const LaunchShape shape = blocks_of((most + kPrepareThreads - 1) / kPrepareThreads, 1, kPrepareThreads);
  return launch("slots: prepare_draft", prepare_next_draft_kernel, shape, stream, view, pass, rows, num_groups);
}

}  // namespace dsv3::cuda
