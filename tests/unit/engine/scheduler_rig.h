// A scheduler with a FakeExecutor, stepped by hand.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "scheduler.h"
#include "support/collecting_sink.h"
#include "support/fake_executor.h"

namespace dsv3::testing {

inline ExecutorLimits roomy_limits() {
  ExecutorLimits limits;
  limits.max_slots = 16;
  limits.num_blocks = 400;
  limits.block_tokens = 8;
  limits.max_context_tokens = 1600;
  limits.max_step_tokens = 128;
  limits.num_drafts = 3;
  limits.vocab_size = 1000;
  return limits;
}

inline EngineConfig config_for(const ExecutorLimits& limits) {
  EngineConfig config;
  config.max_running_requests = limits.max_slots;
  config.chunked_prefill_tokens = 64;
  return config;
}

/// A prompt whose ids depend on `stem`, so that equal stems share prefixes.
inline std::vector<int32_t> prompt_of(int32_t stem, int32_t tokens) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < tokens; ++i) ids.push_back((stem * 131 + i * 7) % 1000);
  return ids;
}

inline GenerationRequest greedy(std::vector<int32_t> prompt, int64_t max_new_tokens) {
  GenerationRequest request;
  request.prompt_ids = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  request.sampling.temperature = 0;
  request.seed = 1;
  return request;
}

class Rig {
 public:
  explicit Rig(const ExecutorLimits& limits = roomy_limits()) : Rig(limits, config_for(limits)) {}
  Rig(const ExecutorLimits& limits, const EngineConfig& config, EngineObserver* observer = nullptr)
      : config_(config),
        hasher_({1, 2}, limits.block_tokens),
        executor_(options(limits, config)),
        scheduler_(config, limits, hasher_, observer) {
    executor_.options().before_step = [this](const StepPlan& plan) { plans_.push_back(plan); };
  }

  std::shared_ptr<CollectingSink> add(GenerationRequest request) {
    auto sink = std::make_shared<CollectingSink>();
    scheduler_.add(
        scheduling::make_request(++last_id_, std::move(request), sink, hasher_, config_.prefix_cache, now_us_));
    return sink;
  }

  /// Plans, runs and completes one step; false when there is nothing to do.
  bool step() {
    now_us_ += 1000;
    StepPlan plan;
    while (scheduler_.steps_in_flight() <= config_.lookahead && scheduler_.make_plan(&plan, now_us_)) {
      EXPECT_TRUE(executor_.submit(std::move(plan)).ok());
    }
    hand_out();
    if (scheduler_.steps_in_flight() == 0) return false;
    auto result = executor_.wait();
    EXPECT_TRUE(result.ok());
    const Status status = scheduler_.complete(std::move(*result), now_us_);
    EXPECT_TRUE(status.ok()) << status.message();
    hand_out();
    return true;
  }
  /// Steps until nothing is left; returns how many steps it took.
  int run() {
    int steps = 0;
    while (step() && steps < 100'000) ++steps;
    EXPECT_FALSE(scheduler_.has_work());
    check();
    return steps;
  }
  void check() {
    const Status books = scheduler_.check_books();
    EXPECT_TRUE(books.ok()) << books.message();
    EXPECT_EQ(executor_.violations(), std::vector<std::string>{});
  }
  void hand_out() {
    for (auto& delivery : scheduler_.take_deliveries()) delivery.sink->on_update(std::move(delivery.update));
  }

  EngineStats stats() const {
    EngineStats stats;
    scheduler_.fill_stats(&stats);
    return stats;
  }
  std::vector<int32_t> reference(const GenerationRequest& request, int32_t choice = 0) const {
    SamplingParams sampling = request.sampling;
    sampling.seed = derive_seed(*request.seed, choice);
    std::vector<int32_t> ids;
    for (const auto& token :
         reference_output(executor_.model(), request.prompt_ids, sampling, request.max_new_tokens).tokens) {
      ids.push_back(token.id);
    }
    return ids;
  }
  int64_t prefill_rows() const {
    int64_t rows = 0;
    for (const auto& plan : plans_) {
      for (const auto& chunk : plan.prefills) rows += chunk.count;
    }
    return rows;
  }

  const std::vector<StepPlan>& plans() const { return plans_; }
  scheduling::Scheduler& scheduler() { return scheduler_; }
  FakeExecutor& executor() { return executor_; }
  uint64_t last_id() const { return last_id_; }
  int64_t now_us() const { return now_us_; }

 private:
  static FakeExecutorOptions options(const ExecutorLimits& limits, const EngineConfig& config) {
    FakeExecutorOptions options;
    options.limits = limits;
    options.max_in_flight = 1 + config.lookahead;
    return options;
  }

  EngineConfig config_;
  scheduling::PrefixHasher hasher_;
  FakeExecutor executor_;
  scheduling::Scheduler scheduler_;
  std::vector<StepPlan> plans_;
  uint64_t last_id_ = 0;
  int64_t now_us_ = 1'000'000;
};

}  // namespace dsv3::testing
