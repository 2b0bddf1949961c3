// Making a step: decodes, starts, prefill chunks, and the blocks for them. The rules stand in scheduler.h.
#include <algorithm>

#include "dsv3/base/log.h"
#include "scheduler.h"

namespace dsv3::scheduling {

bool Scheduler::make_plan(StepPlan* plan, int64_t now_us) {
  *plan = {};
  plan->step = next_step_;
  InFlightStep step;
  step.step = next_step_;
  plan_decodes(plan, &step);
  start_waiting(now_us);
  plan_prefills(plan, &step);
  if (plan->empty()) {
    DSV3_CHECK(!in_flight_.empty() || requests_.empty(), "work that waits can be planned when nothing runs");
    return false;
  }
  plan->ended = std::exchange(ended_slots_, {});
  plan->hash = plan_hash(*plan);
  in_flight_.push_back(std::move(step));
  ++next_step_;
  return true;
}

void Scheduler::plan_decodes(StepPlan* plan, InFlightStep* step) {
  // Once, unless all that were selected got preempted: then those who had no turn take it.
  do {
    decodable_.clear();
    bool prefill_wanted = !waiting_.empty() && static_cast<int32_t>(running_.size()) < config_.max_running_requests;
    for (Sequence* sequence : running_) {
      if (sequence->prefilling()) {
        prefill_wanted = true;
      } else if (sequence->may_decode()) {
        decodable_.push_back(sequence);
      }
    }
    if (decodable_.empty()) return;
    // Where many decodes and drafts could fill the step, a quarter stays for prefills: they must not starve either.
    const int32_t kept = std::min(config_.chunked_prefill_tokens, std::max(1, limits_.max_step_tokens / 4));
    const int32_t max_rows = limits_.max_step_tokens - (prefill_wanted ? kept : 0);
    select_decodes(max_rows);
    const auto count = static_cast<int32_t>(decodable_.size());
    const int32_t drafts = std::clamp(max_rows / count - 1, 0, config_.num_drafts);
    // By rank: a victim of preemption ranks behind all that are planned already.
    for (Sequence* sequence : decodable_) {
      if (sequence->state == State::kRunning) plan_decode(sequence, drafts, plan, step);
    }
  } while (plan->decodes.empty());
}

void Scheduler::plan_decode(Sequence* sequence, int32_t drafts, StepPlan* plan, InFlightStep* step) {
  const int32_t max_drafts = affordable_drafts(*sequence, drafts);
  if (!grow(sequence, sequence->length() + sequence->pending_max + max_drafts)) return;
  grant_blocks(sequence, plan);
  plan->decodes.push_back({sequence->slot, max_drafts});
  Item item = make_item(sequence);
  item.min_tokens = 1;
  item.max_tokens = 1 + max_drafts;
  sequence->pending_min += item.min_tokens;
  sequence->pending_max += item.max_tokens;
  step->items.push_back(std::move(item));
  step->decode_rows += 1 + max_drafts;
}

/// Leaves at most `max_rows` sequences in decodable_, by rank. If that is not all, they take turns.
void Scheduler::select_decodes(int32_t max_rows) {
  const auto keep = static_cast<size_t>(max_rows);
  if (decodable_.size() <= keep) return;
  std::stable_sort(decodable_.begin(), decodable_.end(),
                   [](const Sequence* a, const Sequence* b) { return a->last_turn < b->last_turn; });
  decodable_.resize(keep);
  for (Sequence* sequence : decodable_) sequence->last_turn = ++turns_;
  std::sort(decodable_.begin(), decodable_.end(), RankOrder{});
}

/// As many drafts as can still be used before the sequence's end, and as fit without taking anybody's blocks.
int32_t Scheduler::affordable_drafts(const Sequence& sequence, int32_t drafts) const {
  const int32_t length = sequence.length() + sequence.pending_max;
  drafts = std::clamp(sequence.max_length() - 1 - length, 0, drafts);
  const int64_t blocks = static_cast<int64_t>(sequence.blocks.size()) + blocks_.available();
  return static_cast<int32_t>(std::clamp<int64_t>(blocks * limits_.block_tokens - length, 0, drafts));
}

/// Makes the sequence's table hold `rows` rows, preempting others if it must. False: it was preempted itself.
bool Scheduler::grow(Sequence* sequence, int32_t rows) {
  const int32_t lacking = blocks_.blocks_for(rows) - static_cast<int32_t>(sequence->blocks.size());
  if (lacking <= 0) return true;
  while (!blocks_.allocate(lacking, &sequence->blocks)) {
    const auto victim =
        std::find_if(running_.rbegin(), running_.rend(), [](const Sequence* s) { return !s->reserved; });
    DSV3_CHECK(victim != running_.rend(), "only sequences without a reservation lack blocks");
    Sequence* preempted = *victim;
    preempt(preempted, lacking);
    if (preempted == sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence* sequence, int32_t lacking_blocks) {
  leave_slot(sequence);
  ++sequence->preemptions;
  ++totals_.preemptions;
  sequence->state = State::kWaiting;
  sequence->lacking_blocks = 0;
  waiting_.insert(sequence);
  log_event(LogLevel::kInfo, "preempt",
            {{"request", sequence->request->id},
             {"choice", sequence->choice},
             {"tokens", sequence->length()},
             {"times", sequence->preemptions},
             {"blocks_short", lacking_blocks}});
}

void Scheduler::start_waiting(int64_t now_us) {
  blocked_.clear();
  int32_t examined = 0;
  for (auto next = waiting_.begin(); next != waiting_.end() && examined < kMaxExamined; ++examined) {
    if (static_cast<int32_t>(running_.size()) >= config_.max_running_requests) return;
    Sequence* sequence = *next++;
    if (sequence->in_flight > 0) return;  // just preempted: its last tokens are not known yet
    if (prefix_in_progress(*sequence)) continue;
    if (try_start(sequence, now_us)) {
      for (Sequence* passed : blocked_) ++passed->bypassed;
    } else {
      blocked_.push_back(sequence);
    }
    // Sequences that were running once hold the line at once: new ones would only make room scarcer.
    if (!blocked_.empty() && (blocked_.front()->bypassed >= kMaxBypass || blocked_.front()->preemptions > 0)) return;
  }
}

/// Is the first block that `sequence` lacks being computed by a running sequence?
bool Scheduler::prefix_in_progress(const Sequence& sequence) const {
  if (sequence.preemptions > 0) return false;
  const auto& mine = sequence.request->prompt_hashes;
  const int32_t reusable = std::min(max_reusable_blocks(sequence), static_cast<int32_t>(mine.size()));
  if (reusable == 0) return false;
  return std::any_of(running_.begin(), running_.end(), [&](const Sequence* other) {
    const auto& theirs = other->request->prompt_hashes;
    const auto next = static_cast<size_t>(other->published_blocks);  // chained: equal here means equal up to here
    return other->publishing && next < theirs.size() && other->published_blocks < reusable &&
           mine[next] == theirs[next] && other->request->body.priority >= sequence.request->body.priority;
  });
}

/// How many leading blocks may come from the cache: one token at least is computed, and every row whose logprobs
/// are wanted.
int32_t Scheduler::max_reusable_blocks(const Sequence& sequence) const {
  int32_t rows = sequence.length() - 1;
  if (const int32_t from = sequence.request->logprobs_from(); from >= 0) rows = std::min(rows, from);
  return rows / limits_.block_tokens;
}

std::vector<int32_t> Scheduler::match_prefix(Sequence* sequence) {
  std::vector<int32_t> path;
  const int32_t reusable = max_reusable_blocks(*sequence);
  const int32_t tokens = limits_.block_tokens;
  int32_t parent = PrefixCache::kRoot;
  for (int32_t i = 0; i < reusable; ++i) {
    parent = blocks_.child(parent, sequence->request->salt, sequence->block_hash(i, hasher_),
                           sequence->ids(i * tokens, tokens, &id_scratch_));
    if (parent == PrefixCache::kNone) break;
    path.push_back(parent);
  }
  return path;
}

bool Scheduler::try_start(Sequence* sequence, int64_t now_us) {
  const int32_t headroom = static_cast<int32_t>(running_.size());  // none when it would run alone
  // Looking a long prefix up takes time: not again in each step while nothing has changed for the better.
  constexpr uint64_t kLookAgainSteps = 16;
  if (headroom > 0 && sequence->lacking_blocks > 0 && next_step_ < sequence->lacking_step + kLookAgainSteps &&
      blocks_.available() < sequence->lacking_blocks + headroom) {
    return false;
  }
  const bool reserve = sequence->preemptions >= kMaxPreemptions;
  std::vector<int32_t> path = match_prefix(sequence);
  const auto shared = std::count_if(path.begin(), path.end(), [this](int32_t b) { return blocks_.referenced(b); });
  const int32_t total = blocks_.blocks_for(reserve ? sequence->max_length() : sequence->length());
  const int32_t taken = total - static_cast<int32_t>(shared);  // from what is available now
  if (blocks_.available() < taken + headroom) {
    sequence->lacking_blocks = taken;
    sequence->lacking_step = next_step_;
    return false;
  }
  blocks_.acquire(path);
  const auto matched = static_cast<int32_t>(path.size());
  sequence->blocks = std::move(path);
  DSV3_CHECK(blocks_.allocate(total - matched, &sequence->blocks), "room was just counted");

  waiting_.erase(sequence);
  running_.insert(std::upper_bound(running_.begin(), running_.end(), sequence, RankOrder{}), sequence);
  sequence->state = State::kRunning;
  sequence->slot = free_slots_.back();
  free_slots_.pop_back();
  sequence->reserved = reserve;
  sequence->granted_blocks = 0;
  sequence->published_blocks = matched;
  sequence->publishing = true;
  sequence->begin_tokens = sequence->length();
  sequence->cached_rows = sequence->planned_rows = sequence->computed_rows = matched * limits_.block_tokens;
  sequence->bypassed = sequence->lacking_blocks = 0;

  if (Request* request = sequence->request; !request->started) {
    leave_queue(request);
    request->cached_tokens = sequence->cached_rows;
    totals_.prompt_tokens += request->prompt_tokens();
    totals_.cached_tokens += request->cached_tokens;
    if (observer_) observer_->on_queue_time(static_cast<double>(now_us - request->submit_us) * 1e-6);
  }
  return true;
}

void Scheduler::plan_prefills(StepPlan* plan, InFlightStep* step) {
  prefilling_.clear();
  for (Sequence* sequence : running_) {
    if (sequence->prefilling()) prefilling_.push_back(sequence);
  }
  int32_t budget = std::min(config_.chunked_prefill_tokens, limits_.max_step_tokens - step->decode_rows);
  if (prefilling_.empty() || budget <= 0) return;
  // A chunk ends at the prompt's end at the latest: output rows are computed in the other form of attention.
  const auto next_chunk = [](const Sequence* s) {
    const int32_t prompt = s->prompt_tokens();
    return (s->planned_rows < prompt ? prompt : s->begin_tokens) - s->planned_rows;
  };
  Sequence* head = prefilling_.front();
  int32_t head_rows = std::min(next_chunk(head), (budget + 1) / 2);
  budget -= head_rows;
  std::stable_sort(prefilling_.begin() + 1, prefilling_.end(), [](const Sequence* a, const Sequence* b) {
    return a->begin_tokens - a->planned_rows < b->begin_tokens - b->planned_rows;
  });
  std::vector<std::pair<Sequence*, int32_t>> others;
  for (size_t i = 1; i < prefilling_.size() && budget > 0; ++i) {
    const int32_t rows = std::min(next_chunk(prefilling_[i]), budget);
    others.emplace_back(prefilling_[i], rows);
    budget -= rows;
  }
  head_rows += std::min(next_chunk(head) - head_rows, budget);
  plan_chunk(head, head_rows, plan, step);
  for (const auto& [sequence, rows] : others) plan_chunk(sequence, rows, plan, step);
}

void Scheduler::plan_chunk(Sequence* sequence, int32_t count, StepPlan* plan, InFlightStep* step) {
  const Request& request = *sequence->request;
  const int32_t prompt = request.prompt_tokens();
  if (!sequence->begun) {
    SlotBegin begin;
    begin.slot = sequence->slot;
    begin.sampling = request.body.sampling;
    begin.sampling.seed = sequence->seed;
    begin.tokens.reserve(static_cast<size_t>(sequence->begin_tokens));
    begin.tokens = request.body.prompt_ids;
    begin.tokens.insert(begin.tokens.end(), sequence->output.begin(), sequence->output.end());
    begin.prompt_tokens = prompt;
    begin.cached_tokens = sequence->cached_rows;
    plan->begun.push_back(std::move(begin));
    sequence->begun = true;
  }
  grant_blocks(sequence, plan);

  Item item = make_item(sequence);
  item.start = sequence->planned_rows;
  item.count = count;
  PrefillChunk chunk{sequence->slot, item.start, count, -1};
  if (const int32_t from = request.logprobs_from(); from >= 0 && item.start < prompt) {
    chunk.logprobs_from = from;
    const int32_t first = std::max(from, item.start) + 1, last = std::min(item.start + count, prompt - 1);
    item.logprobs = std::max(0, last - first + 1);
  }
  sequence->planned_rows += count;
  if (!sequence->prefilling()) item.min_tokens = item.max_tokens = 1;
  sequence->pending_min += item.min_tokens;
  sequence->pending_max += item.max_tokens;
  plan->prefills.push_back(chunk);
  // Results come with prefills first.
  step->items.insert(step->items.begin() + static_cast<ptrdiff_t>(plan->prefills.size() - 1), std::move(item));
  step->prefill_rows += count;
}

void Scheduler::grant_blocks(Sequence* sequence, StepPlan* plan) {
  const auto granted = static_cast<size_t>(sequence->granted_blocks);
  if (granted == sequence->blocks.size()) return;
  plan->grants.push_back(
      {sequence->slot, {sequence->blocks.begin() + static_cast<ptrdiff_t>(granted), sequence->blocks.end()}});
  sequence->granted_blocks = static_cast<int32_t>(sequence->blocks.size());
}

Scheduler::Item Scheduler::make_item(Sequence* sequence) const {
  Item item;
  item.request = sequence->request->shared_from_this();
  item.sequence = sequence;
  item.epoch = sequence->epoch;
  item.slot = sequence->slot;
  ++sequence->in_flight;
  return item;
}

}  // namespace dsv3::scheduling
