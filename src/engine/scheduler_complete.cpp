// Reading a step's result: new tokens, ends, blocks that may be shared from now on.
#include <algorithm>

#include "dsv3/base/log.h"
#include "scheduler.h"

namespace dsv3::scheduling {

Status Scheduler::complete(StepResult result, int64_t now_us) {
  if (in_flight_.empty()) return {Code::kInternal, "the executor returned a step that was not asked for"};
  const InFlightStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  DSV3_TRY(check_result(step, result));
  ++totals_.steps;
  deliveries_.reserve(deliveries_.size() + step.items.size());
  for (size_t i = 0; i < step.items.size(); ++i) settle(step.items[i], std::move(result.outputs[i]), now_us);
  if (observer_) {
    observer_->on_step(static_cast<double>(result.elapsed_us) * 1e-6, step.prefill_rows, step.decode_rows);
  }
  return {};
}

/// The executor is code of ours, but perhaps on another machine: what it says is checked before it is believed.
Status Scheduler::check_result(const InFlightStep& step, const StepResult& result) const {
  const auto wrong = [&step](const std::string& what) {
    return Status(Code::kInternal, "result of step " + std::to_string(step.step) + ": " + what);
  };
  if (result.step != step.step) return wrong("is numbered " + std::to_string(result.step));
  if (result.outputs.size() != step.items.size()) return wrong("has the wrong number of outputs");
  for (size_t i = 0; i < step.items.size(); ++i) {
    const Item& item = step.items[i];
    const SlotOutput& output = result.outputs[i];
    if (output.slot != item.slot) return wrong("its outputs are not in the order of the plan");
    if (output.bad_logits) continue;
    const auto tokens = static_cast<int32_t>(output.tokens.size());
    if (tokens < item.min_tokens || tokens > item.max_tokens) return wrong("wrong number of tokens for a slot");
    if (static_cast<int32_t>(output.prompt_logprobs.size()) != item.logprobs) {
      return wrong("wrong number of prompt logprobs for a slot");
    }
    for (const SampledToken& token : output.tokens) {
      if (token.id < 0 || token.id >= limits_.vocab_size) return wrong("a token is outside the vocabulary");
    }
  }
  return {};
}

void Scheduler::settle(const Item& item, SlotOutput output, int64_t now_us) {
  Sequence* sequence = item.sequence;
  --sequence->in_flight;
  sequence->pending_min -= item.min_tokens;
  sequence->pending_max -= item.max_tokens;
  if (sequence->state == State::kDone) return;  // ended while the step ran: nobody wants its tokens
  Request* request = item.request.get();
  if (output.bad_logits) {
    forget_prefix(sequence);
    abort(sequence, FinishReason::kError,
          Status(Code::kInternal, "the model produced logits that are not numbers; this sequence was stopped"),
          FinishReason::kError, now_us);
    return;
  }
  std::move(output.prompt_logprobs.begin(), output.prompt_logprobs.end(), std::back_inserter(request->prompt_logprobs));

  TokenUpdate update = new_update(*sequence);
  const bool same_run = item.epoch == sequence->epoch;  // else it was preempted: tokens count, rows are gone
  const int32_t length_before = sequence->length();
  const auto sampled = static_cast<int32_t>(output.tokens.size());
  if (item.max_tokens > 0) take_tokens(sequence, &output, &update, now_us);
  if (same_run) {
    // All rows but that of the last sampled token, which no step has read yet; none behind the sequence's end.
    sequence->computed_rows =
        item.count > 0 ? item.start + item.count : std::min(length_before + sampled - 1, sequence->length());
    publish_full_blocks(sequence);
    if (!request->prompt_computed && sequence->computed_rows >= request->prompt_tokens()) {
      request->prompt_computed = true;
      unpark(request, true);
    }
  }
  if (update.finish != FinishReason::kNone) {
    const FinishReason reason = update.finish;
    finish(sequence, std::move(update), reason, now_us);
  } else if (!update.tokens.empty()) {
    deliver(*sequence, std::move(update));
  }
}

/// Moves sampled tokens into the sequence and the update, up to its end.
void Scheduler::take_tokens(Sequence* sequence, SlotOutput* output, TokenUpdate* update, int64_t now_us) {
  Request* request = sequence->request;
  const GenerationRequest& body = request->body;
  if (!std::exchange(sequence->sent_prompt_logprobs, true)) update->prompt_logprobs = request->prompt_logprobs;
  if (body.max_new_tokens == 0) {
    update->finish = FinishReason::kLength;
    return;
  }
  update->tokens = std::move(output->tokens);
  for (size_t i = 0; i < update->tokens.size(); ++i) {
    const int32_t id = update->tokens[i].id;
    sequence->output.push_back(id);
    const auto generated = static_cast<int64_t>(sequence->output.size());
    if (generated > body.sampling.min_tokens &&
        std::find(body.stop_ids.begin(), body.stop_ids.end(), id) != body.stop_ids.end()) {
      update->finish = FinishReason::kStop;
      update->matched_id = id;
    } else if (generated == body.max_new_tokens) {
      update->finish = FinishReason::kLength;
    }
    if (update->finish != FinishReason::kNone) update->tokens.resize(i + 1);  // what follows is nobody's
  }
  count_drafts(*output, update);
  const auto taken = static_cast<int64_t>(update->tokens.size());
  totals_.generated_tokens += taken;
  request->generated_tokens += taken;
  if (observer_) {
    int64_t gaps = taken;
    if (sequence->last_token_us == 0) {
      --gaps;  // the choice's first token has no gap
      if (!request->first_token_seen) {
        observer_->on_first_token(static_cast<double>(now_us - request->submit_us) * 1e-6);
      }
    }
    // Tokens of one step arrive together: each gets an even share of the gap.
    const double gap =
        sequence->last_token_us == 0 ? 0.0 : static_cast<double>(now_us - sequence->last_token_us) * 1e-6;
    for (int64_t i = 0; i < gaps; ++i) observer_->on_inter_token(gap / static_cast<double>(gaps));
  }
  request->first_token_seen = true;
  sequence->last_token_us = now_us;
}

void Scheduler::count_drafts(const SlotOutput& output, TokenUpdate* update) {
  if (output.drafts_proposed <= 0) return;
  // Behind the sequence's end nothing counts as accepted.
  const auto kept = static_cast<int32_t>(update->tokens.size());
  update->drafts_proposed = output.drafts_proposed;
  update->drafts_accepted = std::clamp(std::min(output.drafts_accepted, kept), 0, output.drafts_proposed);
  ++totals_.drafts;
  totals_.drafts_proposed += update->drafts_proposed;
  totals_.drafts_accepted += update->drafts_accepted;
  const auto positions = std::min(totals_.drafts_accepted_at.size(), static_cast<size_t>(update->drafts_accepted));
  for (size_t i = 0; i < positions; ++i) ++totals_.drafts_accepted_at[i];
}

void Scheduler::publish_full_blocks(Sequence* sequence) {
  const int32_t tokens = limits_.block_tokens;
  while (sequence->publishing && (sequence->published_blocks + 1) * tokens <= sequence->computed_rows) {
    const int32_t index = sequence->published_blocks;
    const auto i = static_cast<size_t>(index);
    const int32_t parent = index == 0 ? PrefixCache::kRoot : sequence->blocks[i - 1];
    sequence->publishing =
        blocks_.publish(sequence->blocks[i], parent, sequence->request->salt, sequence->block_hash(index, hasher_),
                        sequence->ids(index * tokens, tokens, &id_scratch_));
    if (sequence->publishing) ++sequence->published_blocks;
  }
}

/// Rows of the sequence may be bad, and it is unknown which: everything that starts with its first block is dropped
/// from the cache, so that a retry computes it anew.
void Scheduler::forget_prefix(Sequence* sequence) {
  log_event(LogLevel::kWarn, "bad_logits",
            {{"request", sequence->request->id}, {"choice", sequence->choice}, {"tokens", sequence->length()}});
  sequence->publishing = false;
  const int32_t tokens = limits_.block_tokens;
  if (sequence->length() < tokens) return;
  const int32_t first = blocks_.child(PrefixCache::kRoot, sequence->request->salt, sequence->block_hash(0, hasher_),
                                      sequence->ids(0, tokens, &id_scratch_));
  if (first != PrefixCache::kNone) blocks_.forget(first);
}

}  // namespace dsv3::scheduling
