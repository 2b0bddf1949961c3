// What runs when, and how sequences end.
#include <gtest/gtest.h>

#include "scheduler_rig.h"

namespace dsv3::testing {
namespace {

using scheduling::Scheduler;

TEST(Scheduler, RunsARequestToItsLength) {
  Rig rig;
  const auto request = greedy(prompt_of(1, 100), 20);
  auto sink = rig.add(request);
  // 100 prompt tokens in chunks of 64, the first token with the last chunk, then 19 decodes.
  EXPECT_EQ(rig.run(), 2 + 19);
  EXPECT_EQ(sink->choice(0).ids(), rig.reference(request));
  EXPECT_EQ(sink->choice(0).finish, FinishReason::kLength);
  const EngineStats stats = rig.stats();
  EXPECT_EQ(stats.prompt_tokens, 100);
  EXPECT_EQ(stats.generated_tokens, 20);
  EXPECT_EQ(stats.requests_finished, 1);
  EXPECT_EQ(stats.steps, 21);
  EXPECT_EQ(stats.blocks_used, 0);
}

TEST(Scheduler, MixesDecodesWithPrefillsWithinTheStep) {
  Rig rig;
  for (int32_t i = 0; i < 6; ++i) rig.add(greedy(prompt_of(i, 8), 200));
  for (int i = 0; i < 3; ++i) rig.step();
  rig.add(greedy(prompt_of(50, 500), 4));
  rig.step();
  const StepPlan& mixed = rig.plans().back();
  EXPECT_EQ(mixed.decodes.size(), 6u);  // nobody waits for the long prompt
  ASSERT_EQ(mixed.prefills.size(), 1u);
  EXPECT_EQ(mixed.prefills[0].count, 64);
  rig.run();
}

TEST(Scheduler, AHugePromptDelaysAShortOneByOneStep) {
  ExecutorLimits limits = roomy_limits();
  Rig rig(limits);
  auto huge = rig.add(greedy(prompt_of(1, 1500), 2));
  rig.step();
  auto short_one = rig.add(greedy(prompt_of(2, 30), 1));
  rig.step();
  EXPECT_EQ(short_one->choice(0).tokens.size(), 1u);
  // And short ones do not starve the huge one: half of each step's budget is its own.
  const size_t from = rig.plans().size();
  for (int32_t i = 0; huge->choice(0).tokens.empty(); ++i) {
    for (int32_t k = 0; k < 3; ++k) rig.add(greedy(prompt_of(100 + 3 * i + k, 31), 1));
    rig.step();
    ASSERT_LT(i, 100);
  }
  EXPECT_LE(rig.plans().size() - from, 1500u / 32 + 2);
  rig.run();
}

TEST(Scheduler, HigherPriorityStartsFirstThenArrival) {
  ExecutorLimits limits = roomy_limits();
  limits.max_slots = 1;
  Rig rig(limits);
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int32_t i = 0; i < 4; ++i) {
    auto request = greedy(prompt_of(i, 10), 1);
    request.priority = i == 3 ? 5 : 0;
    sinks.push_back(rig.add(request));
  }
  for (int expected : {3, 0, 1, 2}) {
    rig.step();
    EXPECT_EQ(sinks[static_cast<size_t>(expected)]->choice(0).final_updates, 1) << expected;
  }
}

TEST(Scheduler, MoreDecodesThanAStepHoldsTakeTurns) {
  ExecutorLimits limits = roomy_limits();
  limits.max_step_tokens = 4;
  EngineConfig config = config_for(limits);
  config.num_drafts = 3;
  Rig rig(limits, config);
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int32_t i = 0; i < 10; ++i) sinks.push_back(rig.add(greedy(prompt_of(i, 3), 200)));
  std::vector<size_t> before;
  for (int i = 0; i < 60; ++i) rig.step();  // all have begun
  for (const auto& sink : sinks) before.push_back(sink->choice(0).tokens.size());
  for (int i = 0; i < 20; ++i) rig.step();  // 4 rows a step: 8 turns each
  for (size_t i = 0; i < sinks.size(); ++i) {
    ASSERT_GT(before[i], 0u);
    EXPECT_EQ(sinks[i]->choice(0).tokens.size() - before[i], 8u) << i;
  }
  rig.run();
}

TEST(Scheduler, DrainsABacklogOfDecodesWithoutStarvingPrefills) {
  ExecutorLimits limits = roomy_limits();
  limits.max_step_tokens = 8;
  Rig rig(limits);
  for (int32_t i = 0; i < 8; ++i) rig.add(greedy(prompt_of(i, 2), 400));
  for (int i = 0; i < 20; ++i) rig.step();
  auto late = rig.add(greedy(prompt_of(99, 16), 1));
  for (int i = 0; i < 8; ++i) rig.step();  // 16 tokens at a quarter of 8 a step
  EXPECT_EQ(late->choice(0).final_updates, 1);
}

TEST(Scheduler, StopIdEndsTheSequenceAndCounts) {
  for (int32_t lookahead : {0, 1}) {
    ExecutorLimits limits = roomy_limits();
    EngineConfig config = config_for(limits);
    config.num_drafts = 3;
    config.lookahead = lookahead;
    Rig rig(limits, config);
    rig.executor().options().acceptance = 1.0;
    auto request = greedy(prompt_of(4, 20), 40);
    const auto all = rig.reference(request);
    request.stop_ids = {all[6], 5000 % 1000};
    auto sink = rig.add(request);
    rig.run();
    const Collected got = sink->choice(0);
    EXPECT_EQ(got.finish, FinishReason::kStop);
    EXPECT_EQ(got.matched_id, all[6]);
    EXPECT_EQ(got.ids(), std::vector<int32_t>(all.begin(), all.begin() + 7));  // the rest of that step is dropped
    EXPECT_LE(got.drafts_accepted, static_cast<int32_t>(got.tokens.size()));
    EXPECT_EQ(rig.stats().generated_tokens, 7);
  }
}

TEST(Scheduler, MinTokensSuppressesStopIds) {
  ExecutorLimits limits = roomy_limits();
  limits.vocab_size = 2;
  Rig rig(limits);
  GenerationRequest request = greedy({1, 0, 1}, 30);
  request.stop_ids = {0};
  request.sampling.min_tokens = 12;
  auto sink = rig.add(request);
  rig.run();
  const Collected got = sink->choice(0);
  EXPECT_EQ(got.finish, FinishReason::kStop);
  ASSERT_GT(got.tokens.size(), 12u);
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(got.tokens[i].id, 1);
}

TEST(Scheduler, ZeroNewTokensOnlyFillsTheCache) {
  Rig rig;
  auto sink = rig.add(greedy(prompt_of(3, 40), 0));
  EXPECT_EQ(rig.run(), 1);
  EXPECT_EQ(sink->choice(0).finish, FinishReason::kLength);
  EXPECT_TRUE(sink->choice(0).tokens.empty());
  EXPECT_EQ(rig.stats().generated_tokens, 0);
  auto second = rig.add(greedy(prompt_of(3, 40), 3));
  rig.run();
  EXPECT_EQ(second->choice(0).cached_tokens, 32);  // 5 full blocks, but one token must be computed
}

TEST(Scheduler, DraftsSpeedUpWithoutChangingAnything) {
  const auto request = greedy(prompt_of(9, 33), 100);
  std::vector<int32_t> plain;
  int plain_steps = 0;
  for (int32_t drafts : {0, 1, 3}) {
    for (int32_t lookahead : {0, 1}) {
      ExecutorLimits limits = roomy_limits();
      EngineConfig config = config_for(limits);
      config.num_drafts = drafts;
      config.lookahead = lookahead;
      Rig rig(limits, config);
      auto sink = rig.add(request);
      const int steps = rig.run();
      if (plain.empty()) plain = sink->choice(0).ids(), plain_steps = steps;
      EXPECT_EQ(sink->choice(0).ids(), plain);
      const EngineStats stats = rig.stats();
      if (drafts == 0) {
        EXPECT_EQ(stats.drafts, 0);
        continue;
      }
      EXPECT_LT(steps, plain_steps);
      EXPECT_GT(stats.drafts, 0);
      ASSERT_EQ(stats.drafts_accepted_at.size(), static_cast<size_t>(drafts));
      int64_t sum = 0;
      for (int64_t at : stats.drafts_accepted_at) sum += at;
      EXPECT_EQ(sum, stats.drafts_accepted);
      EXPECT_LE(stats.drafts_accepted, stats.drafts_proposed);
      EXPECT_TRUE(std::is_sorted(stats.drafts_accepted_at.rbegin(), stats.drafts_accepted_at.rend()));
      EXPECT_EQ(sink->choice(0).drafts_accepted, stats.drafts_accepted);
    }
  }
}

TEST(Scheduler, DraftsAreClampedAtTheEndOfTheContext) {
  ExecutorLimits limits = roomy_limits();
  limits.max_context_tokens = 40;
  limits.num_blocks = 5;  // exactly the context
  for (int32_t lookahead : {0, 1}) {
    EngineConfig config = config_for(limits);
    config.num_drafts = 3;
    config.lookahead = lookahead;
    Rig rig(limits, config);
    auto sink = rig.add(greedy(prompt_of(9, 10), 30));
    rig.run();  // the executor objects to any row behind the context
    EXPECT_EQ(sink->choice(0).tokens.size(), 30u);
  }
}

TEST(Scheduler, CancelsInEveryState) {
  for (int32_t lookahead : {0, 1}) {
    ExecutorLimits limits = roomy_limits();
    limits.max_slots = 2;
    EngineConfig config = config_for(limits);
    config.lookahead = lookahead;
    Rig rig(limits, config);
    auto decoding = rig.add(greedy(prompt_of(1, 8), 100));
    for (int i = 0; i < 3; ++i) rig.step();
    auto prefilling = rig.add(greedy(prompt_of(2, 1000), 5));
    rig.step();
    auto waiting = rig.add(greedy(prompt_of(3, 8), 5));
    rig.step();
    for (uint64_t id : {1, 2, 3}) rig.scheduler().cancel(id, -1, rig.now_us());
    rig.scheduler().cancel(77, -1, rig.now_us());  // unknown: no effect
    rig.hand_out();
    EXPECT_EQ(rig.stats().blocks_used, 0);  // at once
    rig.run();
    for (const auto& sink : {decoding, prefilling, waiting}) {
      EXPECT_EQ(sink->choice(0).finish, FinishReason::kAbort);
      EXPECT_EQ(sink->choice(0).error.code(), Code::kCancelled);
      EXPECT_EQ(sink->choice(0).final_updates, 1);
      EXPECT_EQ(sink->choice(0).updates_after_final, 0);
    }
    EXPECT_EQ(rig.stats().requests_aborted, 3);
  }
}

TEST(Scheduler, CancellingOneChoiceLeavesTheOthers) {
  Rig rig;
  auto request = greedy(prompt_of(1, 40), 10);
  request.n = 3;
  request.sampling.temperature = 1;
  auto sink = rig.add(request);
  rig.scheduler().cancel(1, 0, rig.now_us());  // the one that would have computed the prompt
  rig.run();
  EXPECT_EQ(sink->choice(0).finish, FinishReason::kAbort);
  for (int32_t choice : {1, 2}) EXPECT_EQ(sink->choice(choice).ids(), rig.reference(request, choice));
  EXPECT_EQ(rig.stats().requests_finished, 1);  // its reader had what it wanted
  EXPECT_EQ(rig.stats().requests_aborted, 0);
}

TEST(Scheduler, DeadlinesHoldQueuedAndRunning) {
  ExecutorLimits limits = roomy_limits();
  limits.max_slots = 1;
  Rig rig(limits);
  auto late = greedy(prompt_of(1, 8), 100);
  late.deadline_us = rig.now_us() + 5000;
  auto running = rig.add(late);
  auto waiting = rig.add(late);
  auto patient = rig.add(greedy(prompt_of(2, 8), 3));
  for (int i = 0; i < 4; ++i) rig.step();
  rig.scheduler().expire(rig.now_us());
  EXPECT_EQ(running->choice(0).final_updates, 0);
  rig.step();
  rig.scheduler().expire(rig.now_us());
  rig.hand_out();
  for (const auto& sink : {running, waiting}) {
    EXPECT_EQ(sink->choice(0).finish, FinishReason::kAbort);
    EXPECT_EQ(sink->choice(0).error.reason(), "deadline_exceeded");
  }
  EXPECT_EQ(running->choice(0).tokens.size(), 5u);
  rig.run();
  EXPECT_EQ(patient->choice(0).finish, FinishReason::kLength);
}

TEST(Scheduler, BadLogitsEndOneSequenceAndLeaveNoTraceInTheCache) {
  Rig rig;
  auto healthy = rig.add(greedy(prompt_of(1, 100), 30));
  while (healthy->choice(0).tokens.empty()) rig.step();
  rig.executor().options().fault_rate = 1.0;  // the next rows are bad: a long prompt's first chunk, healthy's next
  const auto request = greedy(prompt_of(2, 200), 4);
  auto bad = rig.add(request);
  rig.step();
  rig.executor().options().fault_rate = 0.0;
  rig.run();
  EXPECT_EQ(bad->choice(0).finish, FinishReason::kError);
  EXPECT_EQ(bad->choice(0).error.code(), Code::kInternal);
  EXPECT_EQ(healthy->choice(0).finish, FinishReason::kError);
  EXPECT_EQ(rig.stats().requests_failed, 2);
  // A retry meets none of the bad rows, although whole blocks of them had been published.
  auto retry = rig.add(request);
  rig.run();
  EXPECT_EQ(retry->choice(0).ids(), rig.reference(request));
}

TEST(Scheduler, RefusesResultsThatBreakTheContract) {
  const auto with = [](auto change) {
    Rig rig;
    rig.add(greedy(prompt_of(1, 8), 5));
    StepPlan plan;
    EXPECT_TRUE(rig.scheduler().make_plan(&plan, 0));
    StepResult result;
    result.step = plan.step;
    result.outputs.push_back({});
    result.outputs[0].slot = plan.prefills[0].slot;
    result.outputs[0].tokens.push_back({1, 0.0f, {}});
    change(result);
    return rig.scheduler().complete(std::move(result), 0);
  };
  EXPECT_TRUE(with([](StepResult&) {}).ok());
  EXPECT_FALSE(with([](StepResult& r) { ++r.step; }).ok());
  EXPECT_FALSE(with([](StepResult& r) { r.outputs.clear(); }).ok());
  EXPECT_FALSE(with([](StepResult& r) { ++r.outputs[0].slot; }).ok());
  EXPECT_FALSE(with([](StepResult& r) { r.outputs[0].tokens.clear(); }).ok());
  EXPECT_FALSE(with([](StepResult& r) { r.outputs[0].tokens.resize(2); }).ok());
  EXPECT_FALSE(with([](StepResult& r) { r.outputs[0].tokens[0].id = 1000; }).ok());
  EXPECT_FALSE(with([](StepResult& r) { r.outputs[0].tokens[0].id = -1; }).ok());
  EXPECT_FALSE(with([](StepResult& r) { r.outputs[0].prompt_logprobs.resize(1); }).ok());
}

class CountingObserver : public EngineObserver {
 public:
  void on_queue_time(double) override { ++queue; }
  void on_first_token(double seconds) override { ++first, first_seconds = seconds; }
  void on_inter_token(double seconds) override { ++inter, inter_seconds += seconds; }
  void on_request_done(double, FinishReason finish, int64_t prompt, int64_t generated) override {
    ++done, last_finish = finish, prompt_tokens += prompt, generated_tokens += generated;
  }
  void on_step(double, int32_t prefill, int32_t decode) override {
    ++steps, prefill_rows += prefill, decode_rows += decode;
  }

  int queue = 0, first = 0, inter = 0, done = 0, steps = 0;
  double first_seconds = 0, inter_seconds = 0;
  FinishReason last_finish = FinishReason::kNone;
  int64_t prompt_tokens = 0, generated_tokens = 0, prefill_rows = 0, decode_rows = 0;
};

TEST(Scheduler, TellsItsObserver) {
  CountingObserver observer;
  const ExecutorLimits limits = roomy_limits();
  Rig rig(limits, config_for(limits), &observer);
  rig.add(greedy(prompt_of(1, 100), 11));
  rig.run();
  EXPECT_EQ(observer.queue, 1);
  EXPECT_EQ(observer.first, 1);
  EXPECT_NEAR(observer.first_seconds, 0.002, 1e-9);  // two steps of 1 ms
  EXPECT_EQ(observer.inter, 10);
  EXPECT_NEAR(observer.inter_seconds, 0.010, 1e-9);
  EXPECT_EQ(observer.done, 1);
  EXPECT_EQ(observer.last_finish, FinishReason::kLength);
  EXPECT_EQ(observer.prompt_tokens, 100);
  EXPECT_EQ(observer.generated_tokens, 11);
  EXPECT_EQ(observer.steps, 12);
  EXPECT_EQ(observer.prefill_rows, 100);
  EXPECT_EQ(observer.decode_rows, 10);
}

}  // namespace
}  // namespace dsv3::testing
