// Blocks: reuse of prefixes, choices that share a prompt, preemption, reservations.
#include <gtest/gtest.h>

#include "dsv3/base/log.h"
#include "scheduler_rig.h"

namespace dsv3::testing {
namespace {

using scheduling::Scheduler;

TEST(PrefixReuse, FindsTheLongestCachedPrefix) {
  Rig rig;
  rig.add(greedy(prompt_of(1, 50), 2));
  rig.run();
  const int64_t before = rig.prefill_rows();
  auto longer = prompt_of(1, 50);
  longer.resize(43);  // 5 full blocks and 3 tokens in common
  longer.insert(longer.end(), {1, 2, 3, 4});
  const auto request = greedy(longer, 5);
  auto sink = rig.add(request);
  rig.run();
  EXPECT_EQ(sink->choice(0).cached_tokens, 40);
  EXPECT_EQ(rig.prefill_rows() - before, 7);
  EXPECT_EQ(sink->choice(0).ids(), rig.reference(request));
  EXPECT_EQ(rig.stats().cached_tokens, 40);
}

TEST(PrefixReuse, FindsTheOutputOfAnEarlierTurn) {
  for (int32_t drafts : {0, 3}) {
    const ExecutorLimits limits = roomy_limits();
    EngineConfig config = config_for(limits);
    config.num_drafts = drafts;
    Rig rig(limits, config);
    const auto first = greedy(prompt_of(1, 21), 30);
    rig.add(first);
    rig.run();
    auto conversation = first.prompt_ids;
    for (int32_t id : rig.reference(first)) conversation.push_back(id);
    conversation.push_back(3);
    const auto second = greedy(conversation, 5);
    auto sink = rig.add(second);
    rig.run();
    EXPECT_EQ(sink->choice(0).cached_tokens, 48);  // of 51: the last token's row is never computed
    EXPECT_EQ(sink->choice(0).ids(), rig.reference(second));
  }
}

TEST(PrefixReuse, LeavesOneTokenToCompute) {
  Rig rig;
  rig.add(greedy(prompt_of(1, 48), 1));
  rig.run();
  auto sink = rig.add(greedy(prompt_of(1, 48), 1));
  rig.run();
  EXPECT_EQ(sink->choice(0).cached_tokens, 40);
}

TEST(PrefixReuse, SaltsKeepTenantsApart) {
  Rig rig;
  auto request = greedy(prompt_of(1, 48), 1);
  request.cache_salt = "a";
  rig.add(request);
  rig.run();
  for (const char* salt : {"b", ""}) {
    request.cache_salt = salt;
    auto other = rig.add(request);
    rig.run();
    EXPECT_EQ(other->choice(0).cached_tokens, 0) << salt;
  }
  request.cache_salt = "a";
  auto same = rig.add(request);
  rig.run();
  EXPECT_EQ(same->choice(0).cached_tokens, 40);
}

TEST(PrefixReuse, PromptLogprobsLimitIt) {
  Rig rig;
  auto request = greedy(prompt_of(1, 48), 2);
  request.sampling.num_logprobs = 2;
  rig.add(request);
  rig.run();
  const auto want = reference_output(rig.executor().model(), request.prompt_ids, request.sampling, 0).prompt_logprobs;
  for (int32_t from : {0, 7, 8, 23, 46, 47, 100}) {
    request.prompt_logprobs_from = from;
    auto sink = rig.add(request);
    rig.run();
    const Collected got = sink->choice(0);
    EXPECT_EQ(got.cached_tokens, std::min(40, from / 8 * 8)) << from;
    ASSERT_EQ(got.prompt_logprobs.size(), static_cast<size_t>(std::max(0, 47 - from))) << from;
    for (size_t i = 0; i < got.prompt_logprobs.size(); ++i) {
      EXPECT_EQ(got.prompt_logprobs[i].id, request.prompt_ids[static_cast<size_t>(from) + 1 + i]);
      EXPECT_EQ(got.prompt_logprobs[i].logprob, want[static_cast<size_t>(from) + i].logprob);
    }
    EXPECT_LE(got.prompt_logprobs_updates, 1);
  }
}

TEST(PrefixReuse, EqualPromptsThatArriveTogetherAreComputedOnce) {
  Rig rig;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 8; ++i) sinks.push_back(rig.add(greedy(prompt_of(1, 400), 2)));
  rig.run();
  EXPECT_EQ(rig.prefill_rows(), 400 + 7 * 8);
  for (size_t i = 1; i < sinks.size(); ++i) EXPECT_EQ(sinks[i]->choice(0).cached_tokens, 392);
}

TEST(PrefixReuse, FlushDropsIt) {
  Rig rig;
  rig.add(greedy(prompt_of(1, 48), 3));
  EXPECT_EQ(rig.scheduler().flush_cache().code(), Code::kUnavailable);
  rig.run();
  EXPECT_GT(rig.stats().blocks_cached, 0);
  EXPECT_TRUE(rig.scheduler().flush_cache().ok());
  EXPECT_EQ(rig.stats().blocks_cached, 0);
  EXPECT_EQ(rig.stats().blocks_free, 400);
  auto sink = rig.add(greedy(prompt_of(1, 48), 3));
  rig.run();
  EXPECT_EQ(sink->choice(0).cached_tokens, 0);
}

TEST(Choices, ShareThePromptsBlocks) {
  for (bool cache : {true, false}) {
    const ExecutorLimits limits = roomy_limits();
    EngineConfig config = config_for(limits);
    config.prefix_cache = cache;
    Rig rig(limits, config);
    auto request = greedy(prompt_of(1, 101), 20);
    request.n = 6;
    request.sampling.temperature = 1;
    auto sink = rig.add(request);
    rig.run();
    EXPECT_EQ(rig.prefill_rows(), 101 + 5 * 5);
    std::set<std::vector<int32_t>> different;
    for (int32_t choice = 0; choice < 6; ++choice) {
      EXPECT_EQ(sink->choice(choice).ids(), rig.reference(request, choice));
      EXPECT_EQ(sink->choice(choice).cached_tokens, 0);  // nothing was there when the request came
      different.insert(sink->choice(choice).ids());
    }
    EXPECT_EQ(different.size(), 6u);
    EXPECT_EQ(rig.stats().prompt_tokens, 101);
    EXPECT_EQ(rig.stats().requests_finished, 1);
    EXPECT_EQ(rig.stats().blocks_cached > 0, cache);
  }
}

TEST(Choices, AllGetThePromptLogprobsWhichAreComputedOnce) {
  Rig rig;
  auto request = greedy(prompt_of(1, 60), 3);
  request.n = 3;
  request.prompt_logprobs_from = 0;
  request.sampling.num_logprobs = 0;
  auto sink = rig.add(request);
  rig.run();
  EXPECT_EQ(rig.prefill_rows(), 60 + 2 * 4);
  for (int32_t choice = 0; choice < 3; ++choice) {
    EXPECT_EQ(sink->choice(choice).prompt_logprobs.size(), 59u);
    EXPECT_EQ(sink->choice(choice).prompt_logprobs_updates, 1);
  }
}

TEST(Choices, MoreThanThereAreSlots) {
  ExecutorLimits limits = roomy_limits();
  limits.max_slots = 3;
  Rig rig(limits);
  auto request = greedy(prompt_of(1, 20), 9);
  request.n = 10;
  request.sampling.temperature = 1;
  auto sink = rig.add(request);
  rig.run();
  for (int32_t choice = 0; choice < 10; ++choice) {
    EXPECT_EQ(sink->choice(choice).ids(), rig.reference(request, choice));
  }
}

/// The pool holds a third of what 32 requests ask for.
TEST(Preemption, IsInvisibleAndBounded) {
  set_log_level(LogLevel::kOff);
  for (int32_t lookahead : {0, 1}) {
    for (int32_t drafts : {0, 2}) {
      ExecutorLimits limits = roomy_limits();
      limits.max_slots = 32;
      limits.num_blocks = 32 * 13 / 3;
      limits.max_context_tokens = 200;
      EngineConfig config = config_for(limits);
      config.lookahead = lookahead;
      config.num_drafts = drafts;
      Rig rig(limits, config);
      std::vector<std::shared_ptr<CollectingSink>> sinks;
      std::vector<GenerationRequest> requests;
      for (int32_t i = 0; i < 32; ++i) {
        requests.push_back(greedy(prompt_of(i, 20), 80));
        requests.back().seed = 100 + i;
        sinks.push_back(rig.add(requests.back()));
      }
      rig.run();
      EXPECT_GT(rig.stats().preemptions, 0);
      for (size_t i = 0; i < sinks.size(); ++i) {
        EXPECT_EQ(sinks[i]->choice(0).ids(), rig.reference(requests[i])) << i;
        EXPECT_LE(rig.executor().begins(100 + i), 1 + Scheduler::kMaxPreemptions);
      }
    }
  }
}

TEST(Preemption, TakesTheLowestPriorityThenTheYoungest) {
  set_log_level(LogLevel::kOff);
  ExecutorLimits limits = roomy_limits();
  limits.max_slots = 3;
  limits.num_blocks = 12;
  limits.max_context_tokens = 96;
  Rig rig(limits);
  auto make = [&](int32_t stem, int32_t priority) {
    auto request = greedy(prompt_of(stem, 8), 60);
    request.priority = priority;
    request.seed = static_cast<uint64_t>(stem);
    return rig.add(request);
  };
  make(1, 0);
  make(2, -1);
  make(3, 0);
  rig.run();
  EXPECT_EQ(rig.executor().begins(1), 1);  // the oldest of the best never
  EXPECT_GE(rig.executor().begins(2), 2);  // the lowest priority first
  EXPECT_LE(rig.executor().begins(3), rig.executor().begins(2));
}

TEST(Preemption, ResumesFromItsPublishedBlocks) {
  set_log_level(LogLevel::kOff);
  ExecutorLimits limits = roomy_limits();
  limits.max_slots = 2;
  limits.num_blocks = 20;
  limits.max_context_tokens = 160;
  Rig rig(limits);
  rig.add(greedy(prompt_of(1, 64), 60));
  rig.add(greedy(prompt_of(2, 64), 60));
  rig.run();
  EXPECT_GT(rig.stats().preemptions, 0);
  // Resuming recomputes less than all of it.
  EXPECT_LT(rig.prefill_rows(), 2 * 64 + rig.stats().preemptions * 64);
  bool reused = false;
  for (const auto& plan : rig.plans()) {
    for (const auto& begin : plan.begun) {
      if (static_cast<int32_t>(begin.tokens.size()) > begin.prompt_tokens) reused |= begin.cached_tokens > 0;
    }
  }
  EXPECT_TRUE(reused);
}

TEST(Starting, OneThatDoesNotFitIsPassedByABoundedNumber) {
  ExecutorLimits limits = roomy_limits();
  limits.max_slots = 4;
  limits.num_blocks = 30;
  limits.max_context_tokens = 240;
  Rig rig(limits);
  auto holder = rig.add(greedy(prompt_of(1, 8), 150));  // grows to 20 blocks, slowly
  for (int i = 0; i < 60; ++i) rig.step();
  auto big = rig.add(greedy(prompt_of(2, 200), 2));  // 26 blocks: not while the holder runs
  int passed = 0;
  for (int32_t i = 0; i < 200 && big->choice(0).tokens.empty(); ++i) {
    auto small = rig.add(greedy(prompt_of(1000 + i, 9), 1));
    rig.step();
    if (holder->choice(0).final_updates == 0 && small->choice(0).final_updates == 1) ++passed;
  }
  EXPECT_GT(passed, 0);
  EXPECT_LE(passed, Scheduler::kMaxBypass);
  EXPECT_EQ(holder->choice(0).final_updates, 1);
  rig.run();
  EXPECT_EQ(big->choice(0).finish, FinishReason::kLength);
}

}  // namespace
}  // namespace dsv3::testing
