// Golden prompts through an engine.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "dsv3/engine/engine.h"
#include "golden_data.h"

namespace dsv3::testing {

/// Collects one request's choices.
class Collector final : public GenerationSink {
 public:
  explicit Collector(int32_t choices) : tokens(static_cast<size_t>(choices)), open_(choices) {}

  void on_update(TokenUpdate update) override {
    std::lock_guard lock(mutex_);
    auto& mine = tokens[static_cast<size_t>(update.choice)];
    for (const auto& token : update.tokens) mine.push_back(token.id);
    proposed += update.drafts_proposed;
    accepted += update.drafts_accepted;
    cached = std::max(cached, update.cached_tokens);
    if (update.finish == FinishReason::kNone) return;
    finish = update.finish;
    if (--open_ == 0) done_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(done_.wait_for(lock, std::chrono::minutes(5), [this] { return open_ == 0; })) << "no answer";
  }

  std::vector<std::vector<int32_t>> tokens;
  int64_t proposed = 0, accepted = 0;
  int32_t cached = 0;
  FinishReason finish = FinishReason::kNone;

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  int32_t open_;
};

inline GenerationRequest greedy_request(size_t prompt) {
  GenerationRequest request;
  request.prompt_ids = golden().prompts[prompt].ids;
  request.sampling.temperature = 0;
  request.max_new_tokens = 64;
  request.stop_ids = {1};
  return request;
}

inline std::shared_ptr<Collector> submit(Engine& engine, GenerationRequest request) {
  auto sink = std::make_shared<Collector>(request.n);
  auto id = engine.submit(std::move(request), sink);
  EXPECT_TRUE(id.ok()) << id.status().message();
  return sink;
}

/// Sampled ids of a few prompts, three choices each, alone or among 20 others.
inline std::vector<std::vector<int32_t>> sampled(Engine& engine, bool crowd) {
  std::vector<std::shared_ptr<Collector>> others, sinks;
  if (crowd) {
    for (size_t i = 0; i < 20; ++i) others.push_back(submit(engine, greedy_request(i)));
  }
  for (size_t i : {0u, 8u, 19u, 20u}) {
    GenerationRequest request = greedy_request(i);
    request.sampling = {.temperature = 1.2f, .top_p = 0.95f, .repetition_penalty = 1.1f, .presence_penalty = 0.3f};
    request.seed = 1000 + i;
    request.n = 3;
    request.max_new_tokens = 40;
    sinks.push_back(submit(engine, std::move(request)));
  }
  std::vector<std::vector<int32_t>> ids;
  for (auto& sink : sinks) {
    sink->wait();
    for (auto& choice : sink->tokens) ids.push_back(choice);
  }
  for (auto& other : others) other->wait();
  return ids;
}

}  // namespace dsv3::testing
