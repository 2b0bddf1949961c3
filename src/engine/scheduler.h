// The scheduler: which sequence computes what in the next step, and what its results mean. State and decisions only:
// no thread, no clock, no executor, no calls into sinks. One thread uses it.
//
// Each step takes the running decodes first, then prefill chunks within what is left of the step. Rank is priority,
// then arrival, then choice. The rules, and what they promise:
//
//   starting    By rank, while there are slots and blocks for the tokens known so far, plus one spare block for each
//               sequence that runs (room to grow). One that does not fit may be passed by at most kMaxBypass others;
//               then it holds the line. A sequence waits for a prefix that somebody of its priority or better is
//               computing right now instead of computing it twice.
//   prefill     The best-ranked prefill gets half of the chunk budget, so that it always advances; the shortest
//               remaining ones share the other half, so that a huge prompt delays a short one by a step, not by its
//               own length. What either side leaves goes to the other.
//   blocks      Tables grow with the output. When the pool is exhausted, drafts are given up first, then the
//               worst-ranked sequence is preempted: its blocks are released (published ones stay cached) and it
//               starts again later from the tokens it had. After kMaxPreemptions it starts only with blocks for its
//               whole worst case reserved and is then never preempted. The best-ranked running sequence is preempted
//               only by fully reserved ones, which end without help: somebody always advances.
//   worst case  No step needs rows beyond prompt + max_new_tokens: drafts are clamped to what may still be used, and
//               a step planned before the result of the one before it (lookahead) is skipped when that result
//               surely ends the sequence. If the result ends it by chance, the extra step rewrites the last position
//               and its outcome is dropped.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "block_manager.h"
#include "dsv3/engine/engine.h"
#include "sequence.h"

namespace dsv3::scheduling {

/// An update on its way to a sink.
struct Delivery {
  std::shared_ptr<GenerationSink> sink;
  TokenUpdate update;
};

class Scheduler {
 public:
  static constexpr int32_t kMaxPreemptions = 2;  ///< of one sequence
  static constexpr int32_t kMaxBypass = 16;      ///< sequences that may start past one that does not fit
  static constexpr int32_t kMaxExamined = 64;    ///< waiting sequences looked at in one step

  /// `config` has passed check_config(). `observer` may be null.
  Scheduler(const EngineConfig& config, const ExecutorLimits& limits, PrefixHasher hasher, EngineObserver* observer);

  void add(std::shared_ptr<Request> request);
  /// choice -1: all. A single choice that is cancelled counts as served: its reader has what it wanted.
  void cancel(uint64_t request, int32_t choice, int64_t now_us);
  void end_all(FinishReason finish, const Status& why, int64_t now_us);
  void expire(int64_t now_us);  ///< ends what is past its deadline

  /// The next step, or false when there is nothing to run. At most 1 + lookahead plans may be without result.
  [[nodiscard]] bool make_plan(StepPlan* plan, int64_t now_us);
  /// The result of the oldest plan. An error means that the executor broke its contract.
  Status complete(StepResult result, int64_t now_us);

  bool has_work() const { return !requests_.empty(); }
  int32_t steps_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }
  void abandon_steps() { in_flight_.clear(); }  ///< no results will come any more
  Status flush_cache();

  std::vector<Delivery> take_deliveries() { return std::exchange(deliveries_, {}); }

  /// What changed since the last call, for counters that other threads keep.
  struct Departures {
    int32_t left_queue = 0;         ///< requests that started, or ended before they did
    int64_t left_queue_tokens = 0;  ///< their prompts
    int32_t ended = 0;              ///< requests that are over
  };
  Departures take_departures() { return std::exchange(departures_, {}); }

  void fill_stats(EngineStats* stats) const;  ///< all but what concerns the queue
  Status check_books() const;

 private:
  using State = Sequence::State;

  struct Item {
    std::shared_ptr<Request> request;  // keeps the sequence until the result is in
    Sequence* sequence = nullptr;
    uint32_t epoch = 0;
    int32_t slot = -1;
    int32_t start = 0, count = 0;  // of a prefill; count 0: a decode
    int32_t logprobs = 0;          // prompt logprobs to come
    int32_t min_tokens = 0, max_tokens = 0;
  };
  struct InFlightStep {
    uint64_t step = 0;
    std::vector<Item> items;  // as StepResult::outputs
    int32_t prefill_rows = 0, decode_rows = 0;
  };

  // scheduler_plan.cpp
  void plan_decodes(StepPlan* plan, InFlightStep* step);
  void plan_decode(Sequence* sequence, int32_t drafts, StepPlan* plan, InFlightStep* step);
  void select_decodes(int32_t max_rows);
  int32_t affordable_drafts(const Sequence& sequence, int32_t drafts) const;
  bool grow(Sequence* sequence, int32_t rows);
  void preempt(Sequence* sequence, int32_t lacking_blocks);
  void start_waiting(int64_t now_us);
  bool prefix_in_progress(const Sequence& sequence) const;
  bool try_start(Sequence* sequence, int64_t now_us);
  std::vector<int32_t> match_prefix(Sequence* sequence);
  int32_t max_reusable_blocks(const Sequence& sequence) const;
  void plan_prefills(StepPlan* plan, InFlightStep* step);
  void plan_chunk(Sequence* sequence, int32_t count, StepPlan* plan, InFlightStep* step);
  void grant_blocks(Sequence* sequence, StepPlan* plan);
  Item make_item(Sequence* sequence) const;

  // scheduler_complete.cpp
  Status check_result(const InFlightStep& step, const StepResult& result) const;
  void settle(const Item& item, SlotOutput output, int64_t now_us);
  void take_tokens(Sequence* sequence, SlotOutput* output, TokenUpdate* update, int64_t now_us);
  void count_drafts(const SlotOutput& output, TokenUpdate* update);
  void publish_full_blocks(Sequence* sequence);
  void forget_prefix(Sequence* sequence);

  // scheduler.cpp
  void unpark(Request* request, bool all);
  void leave_slot(Sequence* sequence);
  void leave_queue(Request* request);
  TokenUpdate new_update(const Sequence& sequence) const;
  void deliver(const Sequence& sequence, TokenUpdate update);
  void finish(Sequence* sequence, TokenUpdate update, FinishReason counted_as, int64_t now_us);
  void abort(Sequence* sequence, FinishReason finish, Status why, FinishReason counted_as, int64_t now_us);

  EngineConfig config_;
  ExecutorLimits limits_;
  PrefixHasher hasher_;
  EngineObserver* observer_;
  BlockManager blocks_;

  std::unordered_map<uint64_t, std::shared_ptr<Request>> requests_;
  std::set<Sequence*, RankOrder> waiting_;
  std::vector<Sequence*> running_;      // by rank
  std::vector<int32_t> free_slots_;     // a stack
  std::vector<int32_t> ended_slots_;    // for the next plan; may be used again in that plan
  std::deque<InFlightStep> in_flight_;  // oldest first
  uint64_t next_step_ = 1;
  uint64_t turns_ = 0;            // see select_decodes
  int64_t next_deadline_us_ = 0;  // not later than the first deadline; 0: none

  std::vector<Delivery> deliveries_;
  Departures departures_;
  EngineStats totals_;  // the counters

  std::vector<Sequence*> decodable_, prefilling_, blocked_;  // scratch of make_plan
  std::vector<int32_t> id_scratch_;
};

}  // namespace dsv3::scheduling
