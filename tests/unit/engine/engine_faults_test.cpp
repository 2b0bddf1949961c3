// What callers see when the executor fails, hangs or lies, and which settings are refused.
#include <gtest/gtest.h>

#include "dsv3/base/log.h"
#include "engine_rig.h"

namespace dsv3::testing {
namespace {

using namespace std::chrono_literals;

void expect_all_lost(EngineRig& rig, const std::vector<std::shared_ptr<CollectingSink>>& sinks) {
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->wait_finished());
    EXPECT_EQ(sink->choice(0).finish, FinishReason::kError);
    EXPECT_EQ(sink->choice(0).error.code(), Code::kDeviceLost);
    EXPECT_EQ(sink->choice(0).final_updates, 1);
  }
  EXPECT_EQ(rig.engine().health().code(), Code::kDeviceLost);
  EXPECT_EQ(rig.refused(greedy({1}, 1)).code(), Code::kDeviceLost);  // for ever
  EXPECT_EQ(rig.engine().flush_cache().code(), Code::kDeviceLost);
  EXPECT_EQ(rig.engine().stats().requests_failed, static_cast<int64_t>(sinks.size()));
  rig.engine().cancel_all();
  EXPECT_TRUE(rig.engine().drain(5'000'000));
}

TEST(EngineFaults, AFailedStepFailsEverythingForEver) {
  set_log_level(LogLevel::kOff);
  for (int32_t lookahead : {0, 1}) {
    for (bool in_wait : {true, false}) {
      EngineConfig config;
      config.lookahead = lookahead;
      FakeExecutorOptions options;
      (in_wait ? options.fail_wait_at : options.fail_submit_at) = 12;
      EngineRig rig(config, options);
      std::vector<std::shared_ptr<CollectingSink>> sinks;
      rig.gate().close();
      for (int32_t i = 0; i < 40; ++i) sinks.push_back(rig.add(greedy(prompt_of(i, 20), 100)));  // some still wait
      rig.gate().open();
      expect_all_lost(rig, sinks);
    }
  }
}

TEST(EngineFaults, WhatIsInTheInboxFailsToo) {
  set_log_level(LogLevel::kOff);
  FakeExecutorOptions options;
  options.fail_wait_at = 1;
  EngineRig rig(EngineConfig{}, options);
  rig.gate().close();
  std::vector<std::shared_ptr<CollectingSink>> sinks{rig.add(greedy(prompt_of(1, 8), 5))};
  rig.gate().wait_for_step();
  for (int32_t i = 0; i < 5; ++i) sinks.push_back(rig.add(greedy(prompt_of(i, 8), 5)));
  rig.gate().open();
  expect_all_lost(rig, sinks);
}

TEST(EngineFaults, AFailedEngineSleeps) {
  set_log_level(LogLevel::kOff);
  FakeExecutorOptions options;
  options.fail_wait_at = 3;
  EngineConfig config;
  config.lookahead = 1;
  EngineRig rig(config, options);
  ASSERT_TRUE(rig.add(greedy(prompt_of(1, 8), 50))->wait_finished());
  std::this_thread::sleep_for(20ms);
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(200ms);
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.01);
}

TEST(EngineFaults, HealthFallsWhileAStepHangsAndOnlyThen) {
  EngineConfig config;
  config.step_timeout_us = 100'000;
  EngineRig rig(config);
  ASSERT_TRUE(rig.add(greedy(prompt_of(1, 8), 3))->wait_finished());
  std::this_thread::sleep_for(150ms);
  EXPECT_TRUE(rig.engine().health().ok());  // idle is not dead
  rig.gate().close();
  auto sink = rig.add(greedy(prompt_of(2, 8), 3));
  rig.gate().wait_for_step();
  EXPECT_TRUE(rig.engine().health().ok());
  std::this_thread::sleep_for(150ms);
  const Status hanging = rig.engine().health();
  EXPECT_EQ(hanging.code(), Code::kUnavailable);
  EXPECT_EQ(hanging.reason(), "step_timeout");
  EXPECT_NE(hanging.message().find("no step completed for"), std::string::npos);
  EXPECT_EQ(rig.engine().stats().running, 1);  // metrics work all the same
  rig.gate().open();
  ASSERT_TRUE(sink->wait_finished());
  EXPECT_TRUE(rig.engine().health().ok());
}

/// An executor whose results belong to another step.
class Liar : public Executor {
 public:
  Liar() : limits_(roomy_limits()) {}
  const ExecutorLimits& limits() const override { return limits_; }
  Status submit(StepPlan) override { return {}; }
  Result<StepResult> wait() override { return StepResult{}; }

 private:
  ExecutorLimits limits_;
};

TEST(EngineFaults, ALyingExecutorIsNotBelieved) {
  set_log_level(LogLevel::kOff);
  EngineConfig config;
  config.max_running_requests = 4;
  auto engine = Engine::create(config, std::make_unique<Liar>());
  ASSERT_TRUE(engine.ok());
  auto sink = std::make_shared<CollectingSink>();
  ASSERT_TRUE((*engine)->submit(greedy({1}, 1), sink).ok());
  ASSERT_TRUE(sink->wait_finished());
  EXPECT_EQ(sink->choice(0).finish, FinishReason::kError);
  EXPECT_FALSE((*engine)->health().ok());
}

/// An executor that breaks the rule that our code throws nothing, as a library under it might.
class Thrower : public Liar {
 public:
  Result<StepResult> wait() override { throw std::bad_alloc(); }
};

TEST(EngineFaults, AnExceptionEndsTheEngineNotTheProcess) {
  set_log_level(LogLevel::kOff);
  EngineConfig config;
  config.max_running_requests = 4;
  auto engine = Engine::create(config, std::make_unique<Thrower>());
  ASSERT_TRUE(engine.ok());
  auto sink = std::make_shared<CollectingSink>();
  ASSERT_TRUE((*engine)->submit(greedy({1}, 1), sink).ok());
  ASSERT_TRUE(sink->wait_finished());
  EXPECT_EQ(sink->choice(0).finish, FinishReason::kError);
  EXPECT_FALSE((*engine)->submit(greedy({1}, 1), sink).ok());
  EXPECT_FALSE((*engine)->flush_cache().ok());
  EXPECT_TRUE((*engine)->drain(1'000'000));
}

TEST(EngineFaults, CreateRefusesBadSettings) {
  EXPECT_FALSE(Engine::create(EngineConfig{}, nullptr).ok());
  EngineConfig config;
  config.max_running_requests = 17;
  const auto refused = Engine::create(config, std::make_unique<Liar>());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().param(), "max_running_requests");
  EXPECT_NE(refused.status().message().find("allowed 1 to 16"), std::string::npos);
}

}  // namespace
}  // namespace dsv3::testing
