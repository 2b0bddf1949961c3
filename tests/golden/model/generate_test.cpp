// Greedy ids of every golden prompt through the engine: alone, in a batch of 32, in chunks of 7, from the prefix cache,
// with and without speculation, with 1, 2 and 8 ranks. Sampled ids must not depend on any of these either.
#include <gtest/gtest.h>

#include "dsv3/engine/engine.h"
#include "dsv3/model/model_executor.h"
#include "generation.h"
#include "golden_data.h"

namespace dsv3 {
namespace {

using testing::Collector;
using testing::golden;
using testing::greedy_request;
using testing::submit;

struct EngineSetup {
  int tp = 1;
  int32_t drafts = 0;
  int32_t chunk = 2048;
  int32_t max_running = 32;
  int32_t num_blocks = 400;
  int32_t lookahead = 0;
};

std::string describe(const EngineSetup& s) {
  return "tp " + std::to_string(s.tp) + ", drafts " + std::to_string(s.drafts) + ", chunk " + std::to_string(s.chunk) +
         ", running " + std::to_string(s.max_running) + ", blocks " + std::to_string(s.num_blocks) + ", lookahead " +
         std::to_string(s.lookahead);
}

std::unique_ptr<Engine> make_engine(const EngineSetup& setup) {
  auto executor = make_model_executor(
      golden().config, golden().weights,
      {.tp = setup.tp, .num_threads = 2, .max_slots = setup.max_running, .num_blocks = setup.num_blocks,
       .max_context_tokens = static_cast<int32_t>(golden().config.max_position_embeddings), .max_step_tokens = 2304,
       .num_drafts = setup.drafts});
  DSV3_CHECK(executor.ok(), "the executor must start");
  auto engine = Engine::create({.max_running_requests = setup.max_running, .chunked_prefill_tokens = setup.chunk,
                                .num_drafts = setup.drafts, .lookahead = setup.lookahead},
                               std::move(*executor));
  DSV3_CHECK(engine.ok(), "the engine must start");
  return std::move(*engine);
}

class Generate : public ::testing::TestWithParam<EngineSetup> {};

TEST_P(Generate, GreedyIdsEqualTheReference) {
  SCOPED_TRACE(describe(GetParam()));
  const auto engine = make_engine(GetParam());
  int64_t proposed = 0, accepted = 0;
  for (int round = 0; round < 2; ++round) {  // the second one finds prompts in the prefix cache
    std::vector<std::shared_ptr<Collector>> sinks;
    for (size_t i = 0; i < golden().prompts.size(); ++i) sinks.push_back(submit(*engine, greedy_request(i)));
    for (size_t i = sinks.size(); i < 32; ++i) sinks.push_back(submit(*engine, greedy_request(i % 24)));
    for (size_t i = 0; i < sinks.size(); ++i) {
      sinks[i]->wait();
      EXPECT_EQ(sinks[i]->tokens[0], golden().prompts[i % 24].greedy) << "prompt " << i << ", round " << round;
      EXPECT_EQ(sinks[i]->finish, FinishReason::kStop);
      proposed += sinks[i]->proposed;
      accepted += sinks[i]->accepted;
      if (round == 1 && GetParam().num_blocks >= 400 && golden().prompts[i % 24].ids.size() > 1000) {
        EXPECT_GT(sinks[i]->cached, 1000);
      }
    }
  }
  if (GetParam().drafts > 0) {
    EXPECT_GT(accepted, 0);
    std::printf("%s: %.1f%% of %lld drafts accepted\n", describe(GetParam()).c_str(),
                100.0 * static_cast<double>(accepted) / static_cast<double>(proposed), static_cast<long long>(proposed));
  }
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.blocks_used, 0);
  EXPECT_EQ(stats.blocks_free + stats.blocks_cached, stats.blocks_total);
}

INSTANTIATE_TEST_SUITE_P(Setups, Generate,
                         ::testing::Values(EngineSetup{}, EngineSetup{.chunk = 7}, EngineSetup{.max_running = 1}, EngineSetup{.drafts = 1},
                                           EngineSetup{.drafts = 3}, EngineSetup{.tp = 2}, EngineSetup{.tp = 2, .drafts = 2, .chunk = 64},
                                           EngineSetup{.tp = 8}, EngineSetup{.tp = 8, .drafts = 1}, EngineSetup{.lookahead = 1},
                                           EngineSetup{.drafts = 1, .lookahead = 1},
                                           EngineSetup{.drafts = 1, .chunk = 256, .num_blocks = 24}));

std::vector<std::vector<int32_t>> sampled(const EngineSetup& setup, bool crowd) { return testing::sampled(*make_engine(setup), crowd); }

TEST(Sampled, SameSeedSameIdsWhateverElseRuns) {
  const auto want = sampled({.max_running = 1}, false);
  EXPECT_NE(want[3], want[4]) << "choices of an open-ended prompt must differ";
  for (const auto& setup : {EngineSetup{}, EngineSetup{.chunk = 5}, EngineSetup{.drafts = 1}, EngineSetup{.drafts = 3, .lookahead = 1},
                            EngineSetup{.drafts = 2, .max_running = 7, .num_blocks = 24}}) {
    EXPECT_EQ(sampled(setup, true), want) << describe(setup);
  }
}

}  // namespace
}  // namespace dsv3
