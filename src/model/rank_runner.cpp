#include "rank_runner.h"

#include <algorithm>
#include <string>

#include "dsv3/base/clock.h"

namespace dsv3 {

Status RankRunner::warm_up_prompts() {
  const int32_t most = std::min(limits_.max_step_tokens, limits_.max_context_tokens - 16);
  int32_t kind = 0;
  for (int32_t count = 1; count <= most; count = count == most ? most + 1 : std::min(2 * count, most), ++kind) {
    const int32_t blocks = (count + 1 + limits_.num_drafts) / limits_.block_tokens + 1;
    if (blocks > limits_.num_blocks) break;
    StepPlan plan{.step = 0};
    SlotBegin begin{.slot = 0, .tokens = std::vector<int32_t>(static_cast<size_t>(count), 0), .prompt_tokens = count};
    begin.sampling = {.temperature = kind % 2 == 0 ? 1.0f : 0.0f, .top_p = 0.9f, .top_k = 50, .repetition_penalty = 1.1f, .num_logprobs = 1};
    plan.begun.push_back(std::move(begin));
    BlockGrant grant{.slot = 0};
    for (int32_t b = 0; b < blocks; ++b) grant.blocks.push_back(b);
    plan.grants.push_back(std::move(grant));
    plan.prefills.push_back({.slot = 0, .start = 0, .count = count, .logprobs_from = count <= 64 ? 0 : -1});
    plan.hash = plan_hash(plan);
    DSV3_TRY(launch(plan));
    DSV3_TRY(finish().status());
    // A decode of its own, not of a graph's shape, then the slot is free again.
    StepPlan decode{.step = 1, .decodes = {{.slot = 0, .max_drafts = limits_.num_drafts}}};
    decode.hash = plan_hash(decode);
    DSV3_TRY(launch(decode));
    DSV3_TRY(finish().status());
    StepPlan end{.step = 2, .ended = {0}};
    end.hash = plan_hash(end);
    DSV3_TRY(launch(end));
    DSV3_TRY(finish().status());
    next_step_ = 0;
  }
  return warm_up_mixed();
}

/// A prompt beside a decode, and a context of several chunks.
Status RankRunner::warm_up_mixed() {
  const int32_t blocks_each = std::min(limits_.num_blocks, limits_.max_context_tokens / limits_.block_tokens) / 2;
  const int32_t length = std::min(blocks_each * limits_.block_tokens - 16, 16384);
  if (limits_.max_slots < 2 || length < 32 || limits_.max_step_tokens < 17 + limits_.num_drafts) return {};  // 16 rows and a decode
  uint64_t step = 0;
  const auto do_step = [&](StepPlan plan) -> Status {
    plan.step = step++;
    plan.hash = plan_hash(plan);
    DSV3_TRY(launch(plan));
    return finish().status();
  };
  StepPlan first;
  for (int32_t slot = 0; slot < 2; ++slot) {
    const int32_t prompt = slot == 0 ? 16 : length;
    first.begun.push_back({.slot = slot, .tokens = std::vector<int32_t>(static_cast<size_t>(prompt), 0), .prompt_tokens = prompt});
    BlockGrant grant{.slot = slot};
    for (int32_t b = 0; b < blocks_each; ++b) grant.blocks.push_back(slot * blocks_each + b);
    first.grants.push_back(std::move(grant));
  }
  first.prefills.push_back({.slot = 0, .start = 0, .count = 16});
  DSV3_TRY(do_step(std::move(first)));
  const int32_t chunk = std::max(limits_.max_step_tokens - limits_.max_slots * (1 + limits_.num_drafts), 16);
  for (int32_t start = 0; start < length; start += chunk) {
    StepPlan plan;
    plan.prefills.push_back({.slot = 1, .start = start, .count = std::min(chunk, length - start)});
    if (start == 0) plan.decodes.push_back({.slot = 0, .max_drafts = limits_.num_drafts});
    DSV3_TRY(do_step(std::move(plan)));
  }
  StepPlan both{.decodes = {{.slot = 0, .max_drafts = limits_.num_drafts}, {.slot = 1, .max_drafts = limits_.num_drafts}}};
  DSV3_TRY(do_step(std::move(both)));
  DSV3_TRY(do_step(StepPlan{.ended = {0, 1}}));
  next_step_ = 0;
  last_end_us_ = 0;
  return {};
}

Status RankRunner::warm_up() {
  if (!ops_->wants_warm_up()) return {};
  DSV3_TRY(warm_up_prompts());
  for (const int32_t size : ops_->warm_up_batches()) {
    Batch batch;
    for (int32_t i = 0; i < size; ++i) {
      batch.segments.push_back({.slot = -1, .rows = 1 + limits_.num_drafts, .decode = true, .sample = true});
    }
    ops_->prepare_batch(batch);
    StepResult result;
    ops_->run(batch, false, [&] { execute({}, batch, &result); });
    DSV3_TRY(ops_->collect().status());
  }
  return ops_->set_ready();
}

Status RankRunner::launch(const StepPlan& plan) {
  const int64_t start_us = now_us();
  if (const uint64_t hash = plan_hash(plan); hash != plan.hash || (next_step_ != 0 && plan.step != next_step_)) {
    return Status(Code::kDeviceLost, "step plan " + std::to_string(plan.step) + " (hash " + std::to_string(plan.hash) +
                                         ") is not the expected " + std::to_string(next_step_) + " (hash " +
                                         std::to_string(hash) + ")");
  }
  next_step_ = plan.step + 1;
  update_slots(plan);
  Pending& pending = pending_.emplace_back();
  pending.result.step = plan.step;
  pending.start_us = start_us;
  pending.idle = plan.empty();
  if (plan.empty()) return {};

  Batch batch = make_batch(plan);
  ops_->prepare_batch(batch);
  DSV3_CHECK(batch.rows <= limits_.max_step_tokens, "plan with more rows than the executor was built for");
  pending.result.outputs.resize(batch.segments.size());
  for (size_t i = 0; i < batch.segments.size(); ++i) pending.result.outputs[i].slot = batch.segments[i].slot;
  const bool once = std::any_of(plan.prefills.begin(), plan.prefills.end(), [](const PrefillChunk& c) { return c.logprobs_from >= 0; });
  ops_->run(batch, once, [&] { execute(plan, batch, &pending.result); });
  return {};
}

void RankRunner::execute(const StepPlan& plan, const Batch& batch, StepResult* result) {
  transformer_->forward(batch);
  for (size_t i = 0; i < plan.prefills.size(); ++i) {
    result->outputs[i].prompt_logprobs = prompt_logprobs(plan.prefills[i], batch.segments[i]);
  }
  ops_->sample(batch, batch.num_logit_rows == 0 ? Tensor{} : transformer_->logits(batch));
  if (limits_.num_drafts > 0) make_drafts(batch);
}

Result<StepResult> RankRunner::finish() {
  DSV3_CHECK(!pending_.empty(), "finish() without a step");
  Pending pending = std::move(pending_.front());
  pending_.pop_front();
  if (pending.idle) return std::move(pending.result);
  DSV3_ASSIGN(auto sampled, ops_->collect());
  DSV3_CHECK(sampled.size() == pending.result.outputs.size(), "one result per segment");
  for (size_t i = 0; i < sampled.size(); ++i) {
    SlotOutput& output = pending.result.outputs[i];
    output.tokens = std::move(sampled[i].tokens);
    output.drafts_proposed = sampled[i].drafts_proposed;
    output.drafts_accepted = sampled[i].drafts_accepted;
    output.bad_logits = sampled[i].bad_logits;
  }
  // A step that was launched while another ran began when that one ended.
  const int64_t end_us = now_us();
  pending.result.elapsed_us = end_us - std::max(pending.start_us, last_end_us_);
  last_end_us_ = end_us;
  return std::move(pending.result);
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
    auto part = ops_->logprobs_of(static_cast<int64_t>(rows.size()), transformer_->logits_of(rows), ids,
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
    if (draft.num_logit_rows == 0) return;
    ops_->set_drafts(draft, transformer_->draft_logits(draft));
    std::swap(previous, draft);
  }
}

}  // namespace dsv3
