// Executes StepPlans on one rank: slots, batches, forward passes, sampling, drafting. Runs on the rank's thread only.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "dsv3/kernels/ops.h"
#include "dsv3/model/step_plan.h"
#include "dsv3/parallel/group.h"
#include "transformer.h"

namespace dsv3 {

class RankRunner {
 public:
  RankRunner(std::unique_ptr<Ops> ops, std::unique_ptr<Transformer> transformer, const ExecutorLimits& limits)
      : limits_(limits), ops_(std::move(ops)), transformer_(std::move(transformer)),
        prompts_(static_cast<size_t>(limits.max_slots)) {}

  /// Runs prompts of several lengths with every kind of sampling, and empty decode steps of every batch size that the backend
  /// wants to have seen: whatever a driver or library sets up at first use is set up then. Before the first plan; only where
  /// the backend asks for it.
  Status warm_up();

  /// Starts a step. kDeviceLost when the plan's number or hash is not what this rank expects: ranks must never drift apart.
  /// A second step may be launched before the first is finished: a GPU then goes from one to the next without a gap.
  Status launch(const StepPlan& plan);
  /// The result of the oldest step launched; blocks until it has ended.
  Result<StepResult> finish();
  /// True if finish() would not block.
  bool ready() { return pending_.empty() || pending_.front().idle || ops_->ready(); }
  int steps_under_way() const { return static_cast<int>(pending_.size()); }

  const Ops& ops() const { return *ops_; }

 private:
  struct Prompt {
    std::vector<int32_t> tokens;  ///< SlotBegin::tokens
    int32_t prompt_tokens = 0;
    int32_t num_logprobs = -1;
  };

  struct Pending {
    StepResult result;        ///< what is known already
    int64_t start_us = 0;
    bool idle = false;        ///< a plan without rows: nothing to wait for
  };

  Status warm_up_prompts();
  Status warm_up_mixed();
  void update_slots(const StepPlan& plan);
  /// All that a step computes: forward passes, sampling, drafts.
  void execute(const StepPlan& plan, const Batch& batch, StepResult* result);
  Batch make_batch(const StepPlan& plan) const;
  std::vector<SampledToken> prompt_logprobs(const PrefillChunk& chunk, const BatchSegment& segment);
  void make_drafts(const Batch& main);

  const ExecutorLimits limits_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<Prompt> prompts_;  // by slot
  std::deque<Pending> pending_;  // oldest first
  int64_t last_end_us_ = 0;      // when the step before ended
  uint64_t next_step_ = 0;       // 0 until the first plan
};

}  // namespace dsv3
