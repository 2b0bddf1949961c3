// An engine over a FakeExecutor that tests can hold at a step.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dsv3/engine/engine.h"
#include "scheduler_rig.h"

namespace dsv3::testing {

/// Stops steps before they run while it is closed. Thread safe.
class Gate {
 public:
  void close() { set(true); }
  void open() { set(false); }
  void pass() {
    std::unique_lock lock(mutex_);
    ++passing_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !closed_; });
    --passing_;
  }
  /// Returns once a step stands before the closed gate.
  void wait_for_step() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return closed_ && passing_ > 0; });
  }

 private:
  void set(bool closed) {
    std::lock_guard lock(mutex_);
    closed_ = closed;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  int passing_ = 0;
};

class EngineRig {
 public:
  explicit EngineRig(EngineConfig config, FakeExecutorOptions options = {}, EngineObserver* observer = nullptr) {
    if (options.limits.max_slots == 0) options.limits = roomy_limits();
    config.max_running_requests = std::min(config.max_running_requests, options.limits.max_slots);
    options.max_in_flight = 1 + config.lookahead;
    options.before_step = [gate = gate_](const StepPlan&) { gate->pass(); };
    model_ = std::make_unique<ToyModel>(options.key, options.limits.vocab_size);
    auto executor = std::make_unique<Watched>(std::move(options), violations_);
    auto created = Engine::create(config, std::move(executor), observer);
    EXPECT_TRUE(created.ok()) << created.status().message();
    engine_ = std::move(*created);
  }
  ~EngineRig() {
    gate_->open();
    engine_.reset();
    EXPECT_EQ(*violations_, std::vector<std::string>{});
  }

  /// Submits what must be admitted.
  std::shared_ptr<CollectingSink> add(GenerationRequest request, uint64_t* id = nullptr) {
    auto sink = std::make_shared<CollectingSink>();
    auto result = engine_->submit(std::move(request), sink);
    EXPECT_TRUE(result.ok()) << result.status().message();
    if (id && result.ok()) *id = *result;
    return sink;
  }
  Status refused(GenerationRequest request) {
    return engine_->submit(std::move(request), std::make_shared<CollectingSink>()).status();
  }
  std::vector<int32_t> reference(const GenerationRequest& request, int32_t choice = 0) const {
    SamplingParams sampling = request.sampling;
    sampling.seed = derive_seed(*request.seed, choice);
    std::vector<int32_t> ids;
    for (const auto& token : reference_output(*model_, request.prompt_ids, sampling, request.max_new_tokens).tokens) {
      ids.push_back(token.id);
    }
    return ids;
  }
  Engine& engine() { return *engine_; }
  Gate& gate() { return *gate_; }
  void destroy_engine() { engine_.reset(); }

 private:
  /// Leaves its complaints behind when the engine destroys it.
  class Watched : public FakeExecutor {
   public:
    Watched(FakeExecutorOptions options, std::shared_ptr<std::vector<std::string>> complaints)
        : FakeExecutor(std::move(options)), complaints_(std::move(complaints)) {}
    ~Watched() override { *complaints_ = violations(); }

   private:
    std::shared_ptr<std::vector<std::string>> complaints_;
  };

  std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  std::shared_ptr<std::vector<std::string>> violations_ = std::make_shared<std::vector<std::string>>();
  std::unique_ptr<ToyModel> model_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace dsv3::testing
