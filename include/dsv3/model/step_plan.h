// One step = one forward pass over a batch. The scheduler makes StepPlans; every rank executes the same plans in
// order. Per-slot state (tokens so far, block table, sampling rules, drafts) lives with the executor and is advanced
// by the step itself, so the next plan can be made while a step still runs.
#pragma once

#include <cstdint>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/kernels/ops.h"
#include "dsv3/kernels/sampling.h"

namespace dsv3 {

/// Hands a slot to a sequence. Sent in the first plan that uses it.
struct SlotBegin {
  int32_t slot = 0;
  SamplingParams sampling;
  std::vector<int32_t> tokens;  ///< all tokens so far: the prompt, and after a preemption the output so far
  int32_t prompt_tokens = 0;    ///< how many of them are the prompt
  int32_t cached_tokens = 0;    ///< leading tokens whose KV rows are already in the slot's blocks (prefix reuse)
};

/// Appends blocks to a slot's block table. Token position p lives in the slot's block p / block_tokens.
struct BlockGrant {
  int32_t slot = 0;
  std::vector<int32_t> blocks;
};

/// Processes tokens [start, start + count) of the slot (they are in SlotBegin::tokens). When this reaches the end of
/// those tokens the step also samples the next token. A chunk never straddles prompt_tokens: prompt rows attend in
/// the expanded form, output rows (recomputed after a preemption) in the absorbed one, as when first computed.
struct PrefillChunk {
  int32_t slot = 0;
  int32_t start = 0;
  int32_t count = 0;
  int32_t logprobs_from = -1;  ///< >= 0: also report the logprob of every prompt token at position > logprobs_from
                               ///< whose predecessor row is in this chunk
};

/// One decode of a slot: its last token, plus up to max_drafts drafted tokens to verify. The slot's granted blocks
/// hold 1 + max_drafts more positions.
struct DecodeItem {
  int32_t slot = 0;
  int32_t max_drafts = 0;
};

struct StepPlan {
  uint64_t step = 0;                ///< counts up by one
  std::vector<int32_t> ended;       ///< slots freed before this step
  std::vector<SlotBegin> begun;
  std::vector<BlockGrant> grants;   ///< applied after `begun`
  std::vector<PrefillChunk> prefills;
  std::vector<DecodeItem> decodes;
  uint64_t hash = 0;                ///< plan_hash() of the rest; ranks compare it

  bool empty() const { return prefills.empty() && decodes.empty(); }
};

uint64_t plan_hash(const StepPlan& plan);

/// What a step did to one slot of its plan.
struct SlotOutput {
  int32_t slot = 0;
  std::vector<SampledToken> tokens;          ///< new output tokens, oldest first; empty for a chunk that is not the last
  std::vector<SampledToken> prompt_logprobs; ///< see PrefillChunk::logprobs_from; in order of position
  int32_t drafts_proposed = 0;               ///< verified in this step
  int32_t drafts_accepted = 0;
  bool bad_logits = false;                   ///< NaN or infinity: the sequence must fail, the others go on
};

struct StepResult {
  uint64_t step = 0;
  std::vector<SlotOutput> outputs;  ///< prefills in plan order, then decodes in plan order
  int64_t elapsed_us = 0;
};

/// Fixed sizes that the executor was built with; the scheduler plans within them.
struct ExecutorLimits {
  int32_t max_slots = 0;
  int32_t num_blocks = 0;        ///< of the KV cache
  int32_t block_tokens = 64;
  int32_t max_context_tokens = 0;
  int32_t max_step_tokens = 0;   ///< rows of one step, prefill and decode together
  int32_t num_drafts = 0;        ///< largest DecodeItem::max_drafts; 0 without speculation
  int32_t vocab_size = 0;
};

/// Runs steps. One plan may be submitted while another runs (lookahead 1); results come back in order.
/// One thread (the scheduler's) calls all of it.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorLimits& limits() const = 0;
  virtual Status submit(StepPlan plan) = 0;
  /// Blocks until the oldest submitted step is done. kDeviceLost: no further step will ever work.
  virtual Result<StepResult> wait() = 0;
  /// Of rank 0's device, after its last step. From any thread.
  virtual DeviceStats device_stats() const { return {}; }
};

}  // namespace dsv3
