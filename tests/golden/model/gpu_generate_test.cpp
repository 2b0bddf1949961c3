// Golden prompts through the engine on a GPU: greedy ids equal the reference's as far as its gap between the two best tokens exceeds
// what BF16 can tell apart; alone, batched, chunked, from the prefix cache, with drafts, with and without CUDA graphs.
#include <gtest/gtest.h>

#include "dsv3/engine/engine.h"
#include "dsv3/model/model_executor.h"
#include "generation.h"
#include "gpu_model.h"

namespace dsv3 {
namespace {

using testing::Collector;
using testing::golden;
using testing::GpuSetup;
using testing::greedy_request;
using testing::submit;

const std::vector<int32_t> kGraphs = {1, 2, 4, 8, 16, 32};

}  // namespace

namespace testing {

std::unique_ptr<Engine> make_gpu_engine(const GpuSetup& setup, int32_t lookahead) {
  const auto planned = testing::plan_gpu(setup);
  ExecutorOptions options{.w8a8 = setup.w8a8, .cuda = planned.options, .max_slots = setup.max_slots,
                          .num_blocks = static_cast<int32_t>(setup.cache_tokens / 64),
                          .max_context_tokens = static_cast<int32_t>(golden().config.max_position_embeddings),
                          .max_step_tokens = static_cast<int32_t>(planned.plan.step_tokens), .num_drafts = setup.drafts};
  auto executor = make_model_executor(golden().config, golden().weights, options);
  EXPECT_TRUE(executor.ok()) << executor.status().message();
  if (!executor.ok()) return nullptr;
  auto engine = Engine::create({.max_running_requests = setup.max_slots, .chunked_prefill_tokens = static_cast<int32_t>(setup.prefill_tokens),
                                .num_drafts = setup.drafts, .lookahead = lookahead},
                               std::move(*executor));
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(*engine) : nullptr;
}

}  // namespace testing

namespace {

using testing::make_gpu_engine;

struct Case {
  GpuSetup setup;
  int32_t lookahead = 1;
};
std::string describe(const Case& c) { return testing::describe(c.setup) + ", lookahead " + std::to_string(c.lookahead); }

class GpuGenerate : public ::testing::TestWithParam<Case> {};

TEST_P(GpuGenerate, GreedyIdsEqualWhereTheGapIsClear) {
  DSV3_NEEDS_GPU();
  SCOPED_TRACE(describe(GetParam()));
  const auto engine = make_gpu_engine(GetParam().setup, GetParam().lookahead);
  ASSERT_NE(engine, nullptr);
  int64_t proposed = 0, accepted = 0, equal = 0, parted = 0;
  double largest = 0;
  for (int round = 0; round < 2; ++round) {  // the second one finds prompts in the prefix cache
    std::vector<std::shared_ptr<Collector>> sinks;
    for (size_t i = 0; i < 32; ++i) sinks.push_back(submit(*engine, greedy_request(i % 24)));
    for (size_t i = 0; i < sinks.size(); ++i) {
      sinks[i]->wait();
      if (HasFailure()) return;
      const auto& want = golden().prompts[i % 24];
      const auto& got = sinks[i]->tokens[0];
      proposed += sinks[i]->proposed;
      accepted += sinks[i]->accepted;
      const auto parting = std::mismatch(want.greedy.begin(), want.greedy.end(), got.begin(), got.end()).first - want.greedy.begin();
      if (static_cast<size_t>(parting) == want.greedy.size()) {
        ++equal;
        EXPECT_EQ(got.size(), want.greedy.size());
        continue;
      }
      ++parted;  // what follows has another context: only the first difference says something
      largest = std::max(largest, want.greedy_gaps[static_cast<size_t>(parting)]);
    }
  }
  std::printf("%s: %lld of %lld answers equal; largest gap overruled %.3f", describe(GetParam()).c_str(), static_cast<long long>(equal),
              static_cast<long long>(equal + parted), largest);
  if (proposed > 0) std::printf("; %.2f%% of %lld drafts accepted", 100.0 * static_cast<double>(accepted) / static_cast<double>(proposed), static_cast<long long>(proposed));
  std::printf("\n");
  // BF16 activations and weights put logits off by 0.016 in the mean (gpu_forward_test): the difference of two by 0.03, so that a
  // gap of 0.066 was seen to go the other way, once. FP8 activations move them by 0.1.
  EXPECT_LE(largest, GetParam().setup.w8a8 ? 0.5 : 0.1);
  EXPECT_GE(equal * 10, (equal + parted) * 8);
  if (GetParam().setup.drafts == 1) {
    // The float32 reference accepts 95.9% on these prompts (and 99.9% on the evaluation, which scripts/gpu-check measures).
    EXPECT_GE(static_cast<double>(accepted), 0.92 * static_cast<double>(proposed));
  }
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.blocks_used, 0);
  EXPECT_EQ(stats.blocks_free + stats.blocks_cached, stats.blocks_total);
  EXPECT_EQ(stats.device.allocations_after_ready, 0);
  if (!GetParam().setup.graphs.empty()) {
    EXPECT_GT(stats.device.graph_steps, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Setups, GpuGenerate,
    ::testing::Values(Case{{}}, Case{{}, 0}, Case{{.graphs = kGraphs}}, Case{{.w8a8 = true, .graphs = kGraphs}},
                      Case{{.w8a8 = true, .fp8_cache = true, .graphs = kGraphs}}, Case{{.max_slots = 1, .graphs = {1}}},
                      Case{{.prefill_tokens = 7, .graphs = kGraphs}}, Case{{.w8a8 = true, .drafts = 1, .graphs = kGraphs}},
                      Case{{.drafts = 1, .graphs = kGraphs}}, Case{{.drafts = 3, .graphs = kGraphs}}, Case{{.drafts = 1}},
                      Case{{.drafts = 1, .cache_tokens = 24 * 64, .prefill_tokens = 256, .graphs = kGraphs}},
                      Case{{.w8a8 = true, .deterministic = true, .drafts = 1, .graphs = kGraphs}}));

std::vector<std::vector<int32_t>> sampled(const GpuSetup& setup, bool crowd) {
  const auto engine = make_gpu_engine(setup, 1);
  return engine != nullptr ? testing::sampled(*engine, crowd) : std::vector<std::vector<int32_t>>();
}

TEST(GpuDeterministic, SameSeedSameIdsWhateverElseRuns) {
  DSV3_NEEDS_GPU();
  for (const bool w8a8 : {false, true}) {
    const auto want = sampled({.w8a8 = w8a8, .deterministic = true, .max_slots = 1, .graphs = {1}}, false);
    ASSERT_FALSE(want.empty());
    EXPECT_NE(want[3], want[4]) << "choices of an open-ended prompt must differ";
    for (const auto& setup : {GpuSetup{.w8a8 = w8a8, .deterministic = true, .graphs = kGraphs}, GpuSetup{.w8a8 = w8a8, .deterministic = true},
                              GpuSetup{.w8a8 = w8a8, .deterministic = true, .prefill_tokens = 5, .graphs = kGraphs}}) {
      EXPECT_EQ(sampled(setup, true), want) << testing::describe(setup);
    }
  }
}

}  // namespace
}  // namespace dsv3
