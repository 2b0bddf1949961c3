// An Executor without a network: ToyModel over a simulated paged KV cache. It obeys the contract of step_plan.h to
// the letter and checks that its caller does: every row it reads must be the row of the right token at the right
// position, no block is written by two slots or after it was shared, plans stay within the limits. Blocks that are
// granted anew are poisoned first. What it finds wrong is in violations().
//
// Used by one thread at a time, as any Executor; options may be changed between steps by that thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dsv3/model/step_plan.h"
#include "support/toy_model.h"

namespace dsv3::testing {

struct FakeExecutorOptions {
  ExecutorLimits limits;
  uint64_t key = 1;             ///< of the toy model
  int32_t max_in_flight = 2;    ///< plans submitted and not yet waited for
  double acceptance = 0.7;      ///< chance of each draft
  double fault_rate = 0;        ///< chance that a chunk or decode writes bad rows: logits that read them are bad
  uint64_t fail_wait_at = 0;    ///< wait() for this step number fails; 0: never
  uint64_t fail_submit_at = 0;  ///< submit() of this step number fails; 0: never
  std::function<void(const StepPlan&)> before_step;  ///< called by wait() before the step runs: block, sleep, record
};

class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(FakeExecutorOptions options)
      : options_(std::move(options)),
        model_(options_.key, options_.limits.vocab_size),
        slots_(static_cast<size_t>(options_.limits.max_slots)),
        blocks_(static_cast<size_t>(options_.limits.num_blocks)) {
    for (Block& block : blocks_) block.rows.resize(static_cast<size_t>(options_.limits.block_tokens));
  }

  const ExecutorLimits& limits() const override { return options_.limits; }

  Status submit(StepPlan plan) override {
    if (plan.step == options_.fail_submit_at) return {Code::kInternal, "injected: submit"};
    check(static_cast<int32_t>(queue_.size()) < options_.max_in_flight, plan, "too many plans in flight");
    queue_.push_back(std::move(plan));
    return {};
  }

  Result<StepResult> wait() override {
    if (queue_.empty()) return Status(Code::kInternal, "wait() without a plan");
    const StepPlan plan = std::move(queue_.front());
    queue_.pop_front();
    if (options_.before_step) options_.before_step(plan);
    if (plan.step == options_.fail_wait_at) return Status(Code::kInternal, "injected: wait");
    return run(plan);
  }

  const ToyModel& model() const { return model_; }
  const std::vector<std::string>& violations() const { return violations_; }
  /// How often a sequence with this sampling seed was begun: 1 + its preemptions, at most.
  int32_t begins(uint64_t seed) const {
    const auto found = begins_.find(seed);
    return found == begins_.end() ? 0 : found->second;
  }
  FakeExecutorOptions& options() { return options_; }

 private:
  struct Row {
    uint64_t value = 0;
    enum class Kind : uint8_t { kPoison, kGood, kBad } kind = Kind::kPoison;
  };
  struct Block {
    std::vector<Row> rows;
    int32_t holders = 0;
    bool shared = false;  // was granted as cached: nobody may write to it
  };
  struct Slot {
    bool live = false;
    SamplingParams sampling;
    std::vector<int32_t> tokens;
    std::vector<uint64_t> expected;  // the row of each token
    std::vector<int32_t> blocks;
    int32_t prompt = 0, begin = 0, cached = 0;
    int32_t computed = 0;  // rows in the cache
    bool fresh = false;    // begun in this plan
  };

  void check(bool right, const StepPlan& plan, const std::string& what) {
    if (!right && violations_.size() < 20) violations_.push_back("step " + std::to_string(plan.step) + ": " + what);
  }
  Slot* slot(int32_t number, const StepPlan& plan, bool live) {
    if (number < 0 || number >= options_.limits.max_slots) {
      check(false, plan, "slot " + std::to_string(number) + " out of range");
      return nullptr;
    }
    Slot* found = &slots_[static_cast<size_t>(number)];
    check(found->live == live, plan, "slot " + std::to_string(number) + (live ? " is not live" : " is live"));
    return found->live == live ? found : nullptr;
  }
  int32_t capacity(const Slot& s) const { return static_cast<int32_t>(s.blocks.size()) * options_.limits.block_tokens; }
  Row* row(const Slot& s, int32_t position) {
    const int32_t tokens = options_.limits.block_tokens;
    const auto index = static_cast<size_t>(position / tokens);
    if (index >= s.blocks.size()) return nullptr;
    return &blocks_[static_cast<size_t>(s.blocks[index])].rows[static_cast<size_t>(position % tokens)];
  }
  void append(Slot* s, int32_t token) {
    const uint64_t previous = s->expected.empty() ? ToyModel::kNoRow : s->expected.back();
    s->expected.push_back(model_.row(previous, token, static_cast<int32_t>(s->tokens.size())));
    s->tokens.push_back(token);
  }

  StepResult run(const StepPlan& plan) {
    check(plan.hash == plan_hash(plan), plan, "wrong plan_hash");
    check(last_step_ == 0 || plan.step == last_step_ + 1, plan, "steps do not count up by one");
    last_step_ = plan.step;
    check(!plan.empty(), plan, "an empty plan");
    for (int32_t number : plan.ended) end_slot(number, plan);
    for (const SlotBegin& begin : plan.begun) begin_slot(begin, plan);
    for (const BlockGrant& grant : plan.grants) grant_blocks(grant, plan);
    check_rows(plan);
    StepResult result;
    result.step = plan.step;
    result.elapsed_us = 1;
    for (const PrefillChunk& chunk : plan.prefills) result.outputs.push_back(prefill(chunk, plan));
    for (const DecodeItem& item : plan.decodes) result.outputs.push_back(decode(item, plan));
    for (const SlotBegin& begin : plan.begun) {
      if (begin.slot >= 0 && begin.slot < options_.limits.max_slots) {
        slots_[static_cast<size_t>(begin.slot)].fresh = false;
      }
    }
    return result;
  }

  void end_slot(int32_t number, const StepPlan& plan) {
    Slot* s = slot(number, plan, true);
    if (!s) return;
    for (int32_t block : s->blocks) --blocks_[static_cast<size_t>(block)].holders;
    *s = {};
  }

  void begin_slot(const SlotBegin& begin, const StepPlan& plan) {
    Slot* s = slot(begin.slot, plan, false);
    if (!s) return;
    const auto size = static_cast<int32_t>(begin.tokens.size());
    check(begin.prompt_tokens >= 1 && begin.prompt_tokens <= size, plan, "prompt_tokens out of range");
    check(begin.cached_tokens >= 0 && begin.cached_tokens < size, plan, "cached_tokens leaves nothing to compute");
    check(size <= options_.limits.max_context_tokens, plan, "more tokens than the context");
    s->live = s->fresh = true;
    s->sampling = begin.sampling;
    s->prompt = begin.prompt_tokens;
    s->begin = size;
    s->cached = s->computed = begin.cached_tokens;
    for (int32_t token : begin.tokens) append(s, token);
    ++begins_[begin.sampling.seed];
  }

  void grant_blocks(const BlockGrant& grant, const StepPlan& plan) {
    Slot* s = slot(grant.slot, plan, true);
    if (!s) return;
    const int32_t tokens = options_.limits.block_tokens;
    for (int32_t number : grant.blocks) {
      if (number < 0 || number >= options_.limits.num_blocks) {
        check(false, plan, "block out of range");
        continue;
      }
      Block& block = blocks_[static_cast<size_t>(number)];
      const std::string name = "block " + std::to_string(number);
      const auto start = static_cast<int32_t>(s->blocks.size()) * tokens;
      check(start < options_.limits.max_context_tokens, plan, name + ": more blocks than the context");
      check(std::find(s->blocks.begin(), s->blocks.end(), number) == s->blocks.end(), plan, name + " granted twice");
      s->blocks.push_back(number);
      ++block.holders;
      if (s->fresh && start < s->cached) {
        block.shared = true;
        for (int32_t i = 0; i < tokens && start + i < s->cached; ++i) check_row(*s, start + i, plan);
      } else {
        check(block.holders == 1, plan, name + " granted while another slot holds it");
        block.shared = false;
        for (Row& r : block.rows) r = {};
      }
    }
    check(capacity(*s) >= s->cached, plan, "fewer blocks than cached tokens");
  }

  void check_rows(const StepPlan& plan) {
    int64_t rows = 0;
    std::set<int32_t> seen;
    for (const auto& chunk : plan.prefills) {
      rows += chunk.count;
      check(seen.insert(chunk.slot).second, plan, "a slot twice in one step");
    }
    for (const auto& item : plan.decodes) {
      rows += 1 + item.max_drafts;
      check(seen.insert(item.slot).second, plan, "a slot twice in one step");
    }
    check(rows <= options_.limits.max_step_tokens, plan, "more rows than max_step_tokens");
  }

  bool check_row(const Slot& s, int32_t position, const StepPlan& plan) {
    const Row* r = row(s, position);
    if (!r || r->kind == Row::Kind::kPoison) {
      check(false, plan, "reads a row that was never written, position " + std::to_string(position));
      return true;
    }
    if (r->kind == Row::Kind::kBad) return false;
    check(r->value == s.expected[static_cast<size_t>(position)], plan,
          "reads the row of another token, position " + std::to_string(position));
    return true;
  }

  void write_row(const Slot& s, int32_t position, uint64_t value, bool bad, const StepPlan& plan) {
    Row* r = row(s, position);
    if (!r) {
      check(false, plan, "writes behind its blocks, position " + std::to_string(position));
      return;
    }
    const int32_t number = s.blocks[static_cast<size_t>(position / options_.limits.block_tokens)];
    const Block& block = blocks_[static_cast<size_t>(number)];
    check(!block.shared && block.holders == 1, plan, "writes to a shared block, position " + std::to_string(position));
    *r = {value, bad ? Row::Kind::kBad : Row::Kind::kGood};
  }

  /// The state that predicts the token at `length`, through the block table. `bad` is set when a row is.
  uint64_t attend(const Slot& s, int32_t length, bool* bad) {
    uint64_t state = 0;
    for (int32_t i = 0; i < length; ++i) {
      const Row* r = row(s, i);
      if (r && r->kind == Row::Kind::kBad) *bad = true;
      state = ToyModel::attend(state, r ? r->value : 0);
    }
    return state;
  }

  bool chance(const Slot& s, uint64_t salt, double probability) {
    return static_cast<double>(mix(mix(s.expected.back(), salt), last_step_) >> 11) * 0x1.0p-53 < probability;
  }

  SlotOutput prefill(const PrefillChunk& chunk, const StepPlan& plan) {
    SlotOutput output;
    output.slot = chunk.slot;
    Slot* s = slot(chunk.slot, plan, true);
    if (!s) return output;
    const int32_t end = chunk.start + chunk.count;
    const bool legal = chunk.count >= 1 && chunk.start == s->computed && end <= s->begin && end <= capacity(*s) &&
                       !(chunk.start < s->prompt && end > s->prompt);
    check(legal, plan, "prefill chunk [" + std::to_string(chunk.start) + ", " + std::to_string(end) + ") is illegal");
    if (!legal) return output;
    for (int32_t i = 0; i < chunk.start; ++i) check_row(*s, i, plan);
    const bool fault = chance(*s, 1, options_.fault_rate);
    for (int32_t i = chunk.start; i < end; ++i) write_row(*s, i, s->expected[static_cast<size_t>(i)], fault, plan);
    s->computed = end;
    bool bad = false;
    if (chunk.logprobs_from >= 0) {
      const int32_t first = std::max(chunk.logprobs_from, chunk.start) + 1;
      for (int32_t i = first; i <= std::min(end, s->prompt - 1); ++i) {
        output.prompt_logprobs.push_back(
            model_.with_logprobs(s->tokens[static_cast<size_t>(i)], attend(*s, i, &bad), s->sampling));
      }
    }
    if (end == s->begin) {
      const uint64_t state = attend(*s, end, &bad);
      output.tokens.push_back(model_.sample(state, s->sampling, s->begin - s->prompt));
      append(s, output.tokens.back().id);
    }
    output.bad_logits = bad;
    return output;
  }

  SlotOutput decode(const DecodeItem& item, const StepPlan& plan) {
    SlotOutput output;
    output.slot = item.slot;
    Slot* s = slot(item.slot, plan, true);
    if (!s) return output;
    const auto length = static_cast<int32_t>(s->tokens.size());
    const bool legal = s->computed == length - 1 && length > s->begin && item.max_drafts >= 0 &&
                       item.max_drafts <= options_.limits.num_drafts && length + item.max_drafts <= capacity(*s) &&
                       length + item.max_drafts <= options_.limits.max_context_tokens;
    check(legal, plan,
          "decode of slot " + std::to_string(item.slot) + " at length " + std::to_string(length) + " with " +
              std::to_string(item.max_drafts) + " drafts is illegal");
    if (!legal) return output;
    for (int32_t i = 0; i < s->computed; ++i) check_row(*s, i, plan);
    const bool fault = chance(*s, 2, options_.fault_rate);
    output.drafts_proposed = chance(*s, 3, 0.9) ? item.max_drafts : item.max_drafts / 2;
    bool bad = false;
    for (int32_t draft = 0;; ++draft) {
      write_row(*s, s->computed, s->expected.back(), fault, plan);
      ++s->computed;
      const uint64_t state = attend(*s, s->computed, &bad);
      output.tokens.push_back(model_.sample(state, s->sampling, static_cast<int32_t>(s->tokens.size()) - s->prompt));
      append(s, output.tokens.back().id);
      if (draft == output.drafts_proposed || !chance(*s, 4, options_.acceptance)) break;
      ++output.drafts_accepted;
    }
    // Rejected drafts leave rows behind the sequence's end; so may the drafting of the next step.
    for (int32_t i = s->computed; i < length + item.max_drafts; ++i) write_row(*s, i, 0xBADull, false, plan);
    output.bad_logits = bad;
    return output;
  }

  FakeExecutorOptions options_;
  ToyModel model_;
  std::vector<Slot> slots_;
  std::vector<Block> blocks_;
  std::deque<StepPlan> queue_;
  std::vector<std::string> violations_;
  std::map<uint64_t, int32_t> begins_;
  uint64_t last_step_ = 0;
};

}  // namespace dsv3::testing
