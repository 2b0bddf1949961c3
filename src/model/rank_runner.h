// Executes StepPlans on one rank: slots, batches, forward passes, sampling, drafting. Runs on the rank's thread only.
#pragma once

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

  /// kDeviceLost when the plan's number or hash is not what this rank expects: ranks must never drift apart.
  Result<StepResult> run(const StepPlan& plan);

 private:
  struct Prompt {
    std::vector<int32_t> tokens;  ///< SlotBegin::tokens
    int32_t prompt_tokens = 0;
    int32_t num_logprobs = -1;
  };

  void update_slots(const StepPlan& plan);
  Batch make_batch(const StepPlan& plan) const;
  std::vector<SampledToken> prompt_logprobs(const PrefillChunk& chunk, const BatchSegment& segment);
  void make_drafts(const Batch& main);

  const ExecutorLimits limits_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<Prompt> prompts_;  // by slot
  uint64_t next_step_ = 0;       // 0 until the first plan
};

}  // namespace dsv3
