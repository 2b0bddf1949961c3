// What the scheduler itself costs: host time a step at batch 256, with an executor that takes no time. The bound is
// loose, since tests share their machine; the printed figure is the point.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "dsv3/base/clock.h"
#include "scheduler.h"
#include "support/collecting_sink.h"

namespace dsv3::testing {
namespace {

class NullSink : public GenerationSink {
 public:
  void on_update(TokenUpdate) override {}
};

/// Tokens for every item of a plan, without looking at them. Slots keep whether they sample.
StepResult answer(const StepPlan& plan, const std::vector<int32_t>& begin_tokens) {
  StepResult result;
  result.step = plan.step;
  for (const PrefillChunk& chunk : plan.prefills) {
    SlotOutput output;
    output.slot = chunk.slot;
    if (chunk.start + chunk.count == begin_tokens[static_cast<size_t>(chunk.slot)]) {
      output.tokens.push_back({1, 0.0f, {}});
    }
    result.outputs.push_back(std::move(output));
  }
  for (const DecodeItem& item : plan.decodes) {
    SlotOutput output;
    output.slot = item.slot;
    output.tokens.push_back({static_cast<int32_t>(plan.step % 1000), 0.0f, {}});
    output.drafts_proposed = item.max_drafts;
    result.outputs.push_back(std::move(output));
  }
  return result;
}

void measure(int32_t num_drafts, int32_t queued) {
  constexpr int32_t kBatch = 256;
  ExecutorLimits limits;
  limits.max_slots = kBatch;
  limits.num_blocks = 16'000;
  limits.max_context_tokens = 16'384;
  limits.max_step_tokens = 4096;
  limits.num_drafts = num_drafts;
  limits.vocab_size = 129'280;
  EngineConfig config;
  config.num_drafts = num_drafts;
  const scheduling::PrefixHasher hasher(scheduling::HashKey::random(), limits.block_tokens);
  scheduling::Scheduler scheduler(config, limits, hasher, nullptr);
  auto sink = std::make_shared<NullSink>();
  for (int32_t i = 0; i < kBatch + queued; ++i) {
    GenerationRequest request;
    for (int32_t t = 0; t < 512; ++t) request.prompt_ids.push_back((i * 37 + t) % 1000);
    request.max_new_tokens = 4000;
    request.stop_ids = {128'000};
    scheduler.add(scheduling::make_request(static_cast<uint64_t>(i + 1), std::move(request), sink, hasher, true, 0));
  }
  std::vector<int32_t> begin_tokens(kBatch);
  std::vector<int64_t> plan_us, complete_us, hand_out_us;
  for (int step = 0; step < 2000; ++step) {
    StepPlan plan;
    const int64_t start = now_us();
    ASSERT_TRUE(scheduler.make_plan(&plan, start));
    const int64_t planned = now_us();
    for (const auto& begin : plan.begun) {
      begin_tokens[static_cast<size_t>(begin.slot)] = static_cast<int32_t>(begin.tokens.size());
    }
    StepResult result = answer(plan, begin_tokens);
    const bool full = plan.decodes.size() == kBatch;
    const int64_t done = now_us();
    ASSERT_TRUE(scheduler.complete(std::move(result), done).ok());
    const int64_t settled = now_us();
    for (auto& delivery : scheduler.take_deliveries()) delivery.sink->on_update(std::move(delivery.update));
    const int64_t handed_out = now_us();
    if (!full) continue;
    plan_us.push_back(planned - start);
    complete_us.push_back(settled - done);
    hand_out_us.push_back(handed_out - settled);
  }
  ASSERT_GT(plan_us.size(), 1000u);
  const auto percentile = [](std::vector<int64_t>* times, size_t percent) {
    std::sort(times->begin(), times->end());
    return (*times)[times->size() * percent / 100];
  };
  std::printf("batch %d, %d drafts, %d queued: plan %ld us (p99 %ld), complete %ld us (p99 %ld), hand out %ld us\n",
              kBatch, num_drafts, queued, percentile(&plan_us, 50), percentile(&plan_us, 99),
              percentile(&complete_us, 50), percentile(&complete_us, 99), percentile(&hand_out_us, 50));
  EXPECT_LT(percentile(&plan_us, 50) + percentile(&complete_us, 50), 5000);
}

TEST(SchedulerCost, Batch256) {
  measure(0, 0);
}
TEST(SchedulerCost, Batch256WithDrafts) {
  measure(2, 0);
}
TEST(SchedulerCost, Batch256WithAFullQueue) {
  measure(0, 1000);
}

}  // namespace
}  // namespace dsv3::testing
