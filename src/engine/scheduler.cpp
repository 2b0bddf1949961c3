// Life and death of requests: arrival, cancellation, deadlines, the end, the counts.
#include "scheduler.h"

#include <algorithm>
#include <tuple>

namespace dsv3::scheduling {
namespace {

/// What a request with several choices is counted as: the gravest end of any.
FinishReason graver(FinishReason a, FinishReason b) {
  return static_cast<int>(a) > static_cast<int>(b) ? a : b;
}

}  // namespace

Scheduler::Scheduler(const EngineConfig& config, const ExecutorLimits& limits, PrefixHasher hasher,
                     EngineObserver* observer)
    : config_(config),
      limits_(limits),
      hasher_(hasher),
      observer_(observer),
      blocks_(limits.num_blocks, limits.block_tokens, config.prefix_cache) {
  for (int32_t slot = config.max_running_requests; slot-- > 0;) free_slots_.push_back(slot);
  totals_.drafts_accepted_at.resize(static_cast<size_t>(config.num_drafts));
}

void Scheduler::add(std::shared_ptr<Request> request) {
  if (const int64_t deadline = request->body.deadline_us; deadline != 0) {
    next_deadline_us_ = next_deadline_us_ == 0 ? deadline : std::min(next_deadline_us_, deadline);
  }
  // Later choices wait for the first to compute what they share: full blocks of the prompt, or its logprobs.
  const bool shares = (request->prompt_tokens() - 1) / limits_.block_tokens > 0 || request->logprobs_from() >= 0;
  Request* added = request.get();
  requests_.emplace(request->id, std::move(request));
  unpark(added, !shares);
}

void Scheduler::unpark(Request* request, bool all) {
  for (Sequence& sequence : request->sequences) {
    if (sequence.state != State::kParked) continue;
    sequence.state = State::kWaiting;
    waiting_.insert(&sequence);
    if (!all) return;
  }
}

void Scheduler::cancel(uint64_t request, int32_t choice, int64_t now_us) {
  const auto found = requests_.find(request);
  if (found == requests_.end()) return;
  const std::shared_ptr<Request> kept = found->second;
  for (Sequence& sequence : kept->sequences) {
    if (choice >= 0 && sequence.choice != choice) continue;
    abort(&sequence, FinishReason::kAbort, Status(Code::kCancelled, "the request was cancelled"),
          choice >= 0 ? FinishReason::kStop : FinishReason::kAbort, now_us);
  }
}

void Scheduler::end_all(FinishReason finish, const Status& why, int64_t now_us) {
  std::vector<std::shared_ptr<Request>> all;
  all.reserve(requests_.size());
  for (const auto& [id, request] : requests_) all.push_back(request);
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a->id < b->id; });
  for (const auto& request : all) {
    for (Sequence& sequence : request->sequences) abort(&sequence, finish, why, finish, now_us);
  }
}

void Scheduler::expire(int64_t now_us) {
  if (next_deadline_us_ == 0 || now_us < next_deadline_us_) return;
  next_deadline_us_ = 0;
  std::vector<std::shared_ptr<Request>> late;
  for (const auto& [id, request] : requests_) {
    const int64_t deadline = request->body.deadline_us;
    if (deadline == 0) continue;
    if (deadline <= now_us) {
      late.push_back(request);
    } else {
      next_deadline_us_ = next_deadline_us_ == 0 ? deadline : std::min(next_deadline_us_, deadline);
    }
  }
  for (const auto& request : late) {
    const char* message = request->started ? "the request's deadline passed while it ran"
                                           : "the request's deadline passed while it waited";
    const Status why(Code::kUnavailable, message, {}, "deadline_exceeded");
    for (Sequence& sequence : request->sequences) {
      abort(&sequence, FinishReason::kAbort, why, FinishReason::kAbort, now_us);
    }
  }
}

void Scheduler::abort(Sequence* sequence, FinishReason finish_reason, Status why, FinishReason counted_as,
                      int64_t now_us) {
  if (sequence->state == State::kDone) return;
  TokenUpdate update = new_update(*sequence);
  update.finish = finish_reason;
  update.error = std::move(why);
  finish(sequence, std::move(update), counted_as, now_us);
}

TokenUpdate Scheduler::new_update(const Sequence& sequence) const {
  TokenUpdate update;
  update.choice = sequence.choice;
  update.cached_tokens = sequence.request->cached_tokens;
  return update;
}

void Scheduler::deliver(const Sequence& sequence, TokenUpdate update) {
  deliveries_.push_back({sequence.request->sink, std::move(update)});
}

void Scheduler::leave_slot(Sequence* sequence) {
  running_.erase(std::lower_bound(running_.begin(), running_.end(), sequence, RankOrder{}));
  blocks_.release(&sequence->blocks);
  if (sequence->begun) ended_slots_.push_back(sequence->slot);
  free_slots_.push_back(sequence->slot);
  ++sequence->epoch;
  sequence->slot = -1;
  sequence->begun = sequence->reserved = false;
}

void Scheduler::leave_queue(Request* request) {
  if (std::exchange(request->started, true)) return;
  ++departures_.left_queue;
  departures_.left_queue_tokens += request->prompt_tokens();
}

void Scheduler::finish(Sequence* sequence, TokenUpdate update, FinishReason counted_as, int64_t now_us) {
  Request* request = sequence->request;
  if (sequence->state == State::kWaiting) waiting_.erase(sequence);
  if (sequence->state == State::kRunning) leave_slot(sequence);
  const bool was_parked = sequence->state == State::kParked;
  sequence->state = State::kDone;
  deliver(*sequence, std::move(update));
  request->outcome = graver(request->outcome, counted_as);
  if (--request->open > 0) {
    // If the choice that should compute the prompt is gone before it did, the next one takes over.
    if (!was_parked && !request->prompt_computed) unpark(request, false);
    return;
  }
  leave_queue(request);
  ++departures_.ended;
  switch (request->outcome) {
    case FinishReason::kNone:
    case FinishReason::kStop:
    case FinishReason::kLength:
      ++totals_.requests_finished;
      break;
    case FinishReason::kAbort:
      ++totals_.requests_aborted;
      break;
    case FinishReason::kError:
      ++totals_.requests_failed;
      break;
  }
  if (observer_) {
    observer_->on_request_done(static_cast<double>(now_us - request->submit_us) * 1e-6, request->outcome,
                               request->prompt_tokens(), request->generated_tokens);
  }
  requests_.erase(request->id);  // may end the request's life: steps in flight hold their own reference
}

Status Scheduler::flush_cache() {
  if (has_work()) return {Code::kUnavailable, "the cache can be flushed only while no request runs or waits"};
  blocks_.flush();
  return {};
}

void Scheduler::fill_stats(EngineStats* stats) const {
  const BlockCounts blocks = blocks_.counts();
  const auto queued = std::pair(stats->queued, stats->queued_tokens);
  const int64_t rejected = stats->requests_rejected;
  *stats = totals_;
  std::tie(stats->queued, stats->queued_tokens) = queued;
  stats->requests_rejected = rejected;
  stats->running = static_cast<int32_t>(running_.size());
  stats->blocks_total = blocks.total;
  stats->blocks_used = blocks.used;
  stats->blocks_cached = blocks.cached;
  stats->blocks_free = blocks.free;
}

Status Scheduler::check_books() const {
  std::vector<const std::vector<int32_t>*> tables;
  for (const Sequence* sequence : running_) tables.push_back(&sequence->blocks);
  if (running_.size() + free_slots_.size() != static_cast<size_t>(config_.max_running_requests)) {
    return {Code::kInternal, "a slot is lost"};
  }
  return blocks_.check_books(tables);
}

}  // namespace dsv3::scheduling
