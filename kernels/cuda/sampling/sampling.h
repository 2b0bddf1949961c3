// Slot state on the device, batches laid out from it, sampling, verification of drafts. A decode step reads and advances it
// without the host, so that the next step can be queued before this one has ended.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "../common/types.h"
#include "dsv3/base/status.h"
#include "dsv3/kernels/ops.h"
#include "dsv3/kernels/sampling.h"

namespace dsv3::cuda {

/// At most 7 drafts, 2^18 ids, 32 top logprobs, and 2 * max_slots + 64 segments a step. Vocab words (counts and marks of
/// penalties, biases) take max_slots * vocab * 4 bytes. Memory of all slots, in device memory that the caller owns (SlotState::bytes(), zeroed by the caller).
struct SlotLimits {
  int32_t max_slots = 0, max_context_tokens = 0, max_blocks = 0;  ///< max_blocks: of one slot
  int32_t num_drafts = 0;
  int32_t vocab = 0, known_vocab = 0;
  int32_t max_rows = 0;        ///< of a step
  int32_t max_logit_rows = 0;
  int32_t max_top_logprobs = 20;
};

/// A segment of a step as the host knows it (uploaded with the step). Row layout is fixed by the host: a decode segment has
/// 1 + drafts rows whether or not the slot holds that many drafts; surplus rows are padding (position -1).
struct StepSegment {
  int32_t slot = 0;        ///< -1: padding of a graph's batch
  int32_t start = 0;       ///< prefill: position of the first row; decode: ignored
  int32_t rows = 0;
  int32_t row_begin = 0;
  int32_t flags = 0;       ///< kSegmentDecode | kSegmentSample
  int32_t logit_begin = 0; ///< first row in the logits, if kSegmentSample
  int32_t group_begin = 0; ///< first QueryGroup, if absorbed (decode, or output rows recomputed after a preemption); else -1
  int32_t unused = 0;
};
inline constexpr int32_t kSegmentDecode = 1, kSegmentSample = 2;

/// What a batch looks like on the device. Pointers are fixed for the life of the state.
struct DeviceBatch {
  int32_t* tokens = nullptr;      ///< [max_rows]; -1 padding
  int32_t* positions = nullptr;   ///< [max_rows]; -1 padding
  int64_t* cache_rows = nullptr;  ///< [max_rows]; -1 padding
  int32_t* source_rows = nullptr; ///< [max_rows] draft passes: row of the hidden state of each row; -1 padding
  int32_t* logit_rows = nullptr;  ///< [max_logit_rows] rows whose logits are wanted
  QueryGroup* groups = nullptr;   ///< [max_rows]
};

class SlotState {
 public:
  static int64_t bytes(const SlotLimits& limits);
  /// Lays itself out in `memory`; allocates pinned host memory for uploads and results.
  static Result<std::unique_ptr<SlotState>> create(const SlotLimits& limits, void* memory);
  virtual ~SlotState() = default;

  // ---- changes by the host; collected and uploaded by begin_step()
  virtual void slot_begin(int32_t slot, const SamplingParams& sampling, std::span<const int32_t> tokens, int32_t prompt_tokens,
                          int32_t cached_tokens) = 0;
  virtual void slot_grant(int32_t slot, std::span<const int32_t> blocks) = 0;
  virtual void slot_end(int32_t slot) = 0;

  /// Uploads changes and segments (one copy from pinned memory, plus one per long prompt) and applies them. Outside of graphs.
  virtual Status begin_step(std::span<const StepSegment> segments, Stream stream) = 0;

  // ---- capturable: shapes come from the host's segment list, contents from the device
  /// Fills main_batch() for the segments of begin_step().
  virtual Status prepare_main(int32_t num_segments, int32_t rows, int32_t logit_rows, int32_t num_groups, Stream stream) = 0;
  /// Fills draft_batch(pass). Pass 0 has the rows, and the groups, of the main batch: row p carries the token after it (padding where that is not
  /// known), source_rows are the same rows, logit_rows the last valid row of each sampling segment. Later passes have one
  /// row (and one group) per sampling segment: the token drafted by the pass before, source_rows counting logit_rows of the pass before.
  virtual Status prepare_draft(int32_t pass, int32_t num_segments, int32_t rows, int32_t num_groups, Stream stream) = 0;
  /// Samples every sampling segment from logits (rows as in logit_begin), verifies drafts, advances the slots, writes results.
  virtual Status sample(int32_t num_segments, int32_t logit_rows, const F32Matrix& logits, Stream stream) = 0;
  /// Most likely known token of each logits row becomes the slot's next draft (row i: i-th sampling segment).
  virtual Status set_drafts(int32_t pass, int32_t num_segments, int32_t logit_rows, const F32Matrix& logits, Stream stream) = 0;

  virtual const DeviceBatch& main_batch() const = 0;
  virtual const DeviceBatch& draft_batch(int32_t pass) const = 0;   ///< passes may share memory: valid until the next prepare_draft
  virtual const int32_t* block_tables() const = 0;                  ///< [max_slots, max_blocks]

  // ---- results
  /// Copies the step's results to pinned memory, outside of graphs; `done` fires after. At most two steps are in flight.
  virtual Status end_step(Stream stream) = 0;
  /// Blocks (polling, then sleeping) until the oldest step is done; one result per segment of its begin_step().
  virtual Result<std::vector<SegmentResult>> collect() = 0;
  /// True if collect() would not block.
  virtual Result<bool> ready() = 0;

  /// Logprobs of given tokens: row i of logits, token ids[i]; blocks. For prompt logprobs.
  virtual Result<std::vector<SampledToken>> logprobs_of(const F32Matrix& logits, std::span<const int32_t> ids, int32_t num_top,
                                                        Stream stream) = 0;
};

}  // namespace dsv3::cuda
