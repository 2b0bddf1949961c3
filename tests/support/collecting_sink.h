// A sink that keeps what it is told, for tests. Thread safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <vector>

#include "dsv3/engine/engine.h"

namespace dsv3::testing {

/// All that one choice was told.
struct Collected {
  std::vector<SampledToken> tokens;
  std::vector<SampledToken> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  int32_t final_updates = 0;
  int32_t updates_after_final = 0;
  int32_t prompt_logprobs_updates = 0;
  int32_t matched_id = -1;
  int32_t cached_tokens = 0;
  int32_t drafts_proposed = 0, drafts_accepted = 0;
  Status error;

  std::vector<int32_t> ids() const {
    std::vector<int32_t> result;
    for (const auto& token : tokens) result.push_back(token.id);
    return result;
  }
};

class CollectingSink : public GenerationSink {
 public:
  void on_update(TokenUpdate update) override {
    std::lock_guard lock(mutex_);
    Collected& choice = choices_[update.choice];
    if (choice.final_updates > 0) ++choice.updates_after_final;
    choice.tokens.insert(choice.tokens.end(), update.tokens.begin(), update.tokens.end());
    if (!update.prompt_logprobs.empty()) {
      ++choice.prompt_logprobs_updates;
      choice.prompt_logprobs = std::move(update.prompt_logprobs);
    }
    choice.cached_tokens = update.cached_tokens;
    choice.drafts_proposed += update.drafts_proposed;
    choice.drafts_accepted += update.drafts_accepted;
    if (update.finish != FinishReason::kNone) {
      choice.finish = update.finish;
      choice.matched_id = update.matched_id;
      choice.error = std::move(update.error);
      ++choice.final_updates;
      ++finished_;
    }
    changed_.notify_all();
  }

  Collected choice(int32_t number) const {
    std::lock_guard lock(mutex_);
    const auto found = choices_.find(number);
    return found == choices_.end() ? Collected{} : found->second;
  }

  /// True once `count` choices got their last update.
  bool wait_finished(int32_t count = 1, std::chrono::milliseconds timeout = std::chrono::seconds(20)) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return finished_ >= count; });
  }
  /// True once choice 0 has `count` tokens.
  bool wait_tokens(size_t count, std::chrono::milliseconds timeout = std::chrono::seconds(20)) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] {
      const auto found = choices_.find(0);
      return found != choices_.end() && found->second.tokens.size() >= count;
    });
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::map<int32_t, Collected> choices_;
  int32_t finished_ = 0;
};

}  // namespace dsv3::testing
