#include "rank_runner.h"

#include <algorithm>
#include <string>

#include "dsv3/base/clock.h"

namespace dsv3 {

Result<StepResult> RankRunner::run(const StepPlan& plan) {
  const int64_t start_us = now_us();
  if (const uint64_t hash = plan_hash(plan); hash != plan.hash || (next_step_ != 0 && plan.step != next_step_)) {
    return Status(Code::kDeviceLost, "step plan " + std::to_string(plan.step) + " (hash " + std::to_string(plan.hash) +
                                         ") is not the expected " + std::to_string(next_step_) + " (hash " +
                                         std::to_string(hash) + ")");
  }
  next_step_ = plan.step + 1;
  update_slots(plan);
  StepResult result{.step = plan.step};
  if (plan.empty()) return result;

  Batch batch = make_batch(plan);
  ops_->prepare_batch(batch);
  DSV3_CHECK(batch.rows <= limits_.max_step_tokens, "plan with more rows than the executor was built for");
  transformer_->forward(batch);

  result.outputs.resize(batch.segments.size());
  for (size_t i = 0; i < plan.prefills.size(); ++i) {
    result.outputs[i].prompt_logprobs = prompt_logprobs(plan.prefills[i], batch.segments[i]);
  }
  auto sampled = ops_->sample(batch, batch.logit_rows.empty() ? Tensor{} : transformer_->logits(batch.logit_rows));
  if (limits_.num_drafts > 0) make_drafts(batch);
  for (size_t i = 0; i < sampled.size(); ++i) {
    SlotOutput& output = result.outputs[i];
    output.slot = batch.segments[i].slot;
    output.tokens = std::move(sampled[i].tokens);
    output.drafts_proposed = sampled[i].drafts_proposed;
    output.drafts_accepted = sampled[i].drafts_accepted;
    output.bad_logits = sampled[i].bad_logits;
  }
  result.elapsed_us = now_us() - start_us;
  return result;
}

void RankRunner::update_slots(const StepPlan& plan) {
  for (int32_t slot : plan.ended) {
    ops_->slot_end(slot);
    prompts_[static_cast<size_t>(slot)] = {};
  }
  for (const auto& begin : plan.begun) {
    ops_->slot_begin(begin.slot, begin.sampling, begin.tokens, begin.prompt_tokens, begin.cached_tokens);
    prompts_[static_cast<size_t>(begin.slot)] = {begin.tokens, begin.prompt_tokens, begin.sampling.num_logprobs};
  }
  for (const auto& grant : plan.grants) ops_->slot_grant(grant.slot, grant.blocks);
}

Batch RankRunner::make_batch(const StepPlan& plan) const {
  Batch batch;
  for (const auto& chunk : plan.prefills) {
    const Prompt& prompt = prompts_[static_cast<size_t>(chunk.slot)];
    const int32_t end = chunk.start + chunk.count;
    DSV3_CHECK(chunk.start >= prompt.prompt_tokens || end <= prompt.prompt_tokens, "chunk straddles the prompt's end");
    batch.segments.push_back({.slot = chunk.slot,
                              .start = chunk.start,
                              .rows = chunk.count,
                              .form = chunk.start < prompt.prompt_tokens ? AttentionForm::kExpanded
                                                                         : AttentionForm::kAbsorbed,
                              .sample = end == static_cast<int32_t>(prompt.tokens.size())});
  }
  for (const auto& item : plan.decodes) {
    batch.segments.push_back({.slot = item.slot, .rows = 1 + item.max_drafts, .decode = true, .sample = true});
  }
  return batch;
}

std::vector<SampledToken> RankRunner::prompt_logprobs(const PrefillChunk& chunk, const BatchSegment& segment) {
  std::vector<SampledToken> result;
  if (chunk.logprobs_from < 0) return result;
  const Prompt& prompt = prompts_[static_cast<size_t>(chunk.slot)];
  // Row at position p says how likely token p + 1 was.
  const int32_t first = std::max(chunk.start, chunk.logprobs_from);
  const int32_t end = std::min(chunk.start + chunk.count, prompt.prompt_tokens - 1);
  const auto most = static_cast<int32_t>(transformer_->max_logit_rows());
  for (int32_t begin = first; begin < end; begin += most) {
    std::vector<int32_t> rows, ids;
    for (int32_t p = begin; p < std::min(begin + most, end); ++p) {
      rows.push_back(segment.row_begin + p - chunk.start);
      ids.push_back(prompt.tokens[static_cast<size_t>(p) + 1]);
    }
    auto part = ops_->logprobs_of(static_cast<int64_t>(rows.size()), transformer_->logits(rows), ids,
                                  std::max(prompt.num_logprobs, 0));
    std::move(part.begin(), part.end(), std::back_inserter(result));
  }
  return result;
}

void RankRunner::make_drafts(const Batch& main) {
  Batch previous, draft;
  for (int32_t i = 0; i < limits_.num_drafts; ++i) {
    ops_->prepare_draft(main, i == 0 ? nullptr : &previous, draft);
    if (draft.rows == 0) return;
    transformer_->forward_draft(draft, i == 0);
    if (draft.logit_rows.empty()) return;
    ops_->set_drafts(draft, transformer_->draft_logits(draft));
    std::swap(previous, draft);
  }
}

}  // namespace dsv3
