// The engine as its callers see it: threads, queue bounds, cancellation, drain.
#include <gtest/gtest.h>

#include <atomic>
#include <ctime>
#include <random>

#include "dsv3/base/clock.h"
#include "engine_rig.h"

namespace dsv3::testing {
namespace {

using namespace std::chrono_literals;

TEST(Engine, AnswersAsTheModel) {
  for (int32_t lookahead : {0, 1}) {
    EngineConfig config;
    config.lookahead = lookahead;
    config.num_drafts = 2;
    EngineRig rig(config);
    std::vector<GenerationRequest> requests;
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (int32_t i = 0; i < 30; ++i) {
      requests.push_back(greedy(prompt_of(i % 7, 10 + 9 * i), 10 + i));
      requests.back().n = 1 + i % 3;
      requests.back().seed = static_cast<uint64_t>(i);
      requests.back().sampling.temperature = i % 2 ? 1.0f : 0.0f;
      sinks.push_back(rig.add(requests.back()));
    }
    for (size_t i = 0; i < sinks.size(); ++i) {
      ASSERT_TRUE(sinks[i]->wait_finished(requests[i].n));
      for (int32_t choice = 0; choice < requests[i].n; ++choice) {
        const Collected got = sinks[i]->choice(choice);
        EXPECT_EQ(got.ids(), rig.reference(requests[i], choice));
        EXPECT_EQ(got.final_updates, 1);
      }
    }
    const EngineStats stats = rig.engine().stats();
    EXPECT_EQ(stats.requests_finished, 30);
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.queued, 0);
    EXPECT_EQ(stats.queued_tokens, 0);
    EXPECT_EQ(stats.blocks_used, 0);
    EXPECT_EQ(stats.blocks_cached + stats.blocks_free, stats.blocks_total);
    EXPECT_TRUE(rig.engine().health().ok());
    EXPECT_EQ(rig.engine().limits().block_tokens, 8);
  }
}

TEST(Engine, WithoutASeedChoicesAndRunsDiffer) {
  EngineRig rig{EngineConfig{}};
  auto request = greedy(prompt_of(1, 10), 30);
  request.sampling.temperature = 1;
  request.seed.reset();
  auto a = rig.add(request), b = rig.add(request);
  ASSERT_TRUE(a->wait_finished() && b->wait_finished());
  EXPECT_NE(a->choice(0).ids(), b->choice(0).ids());
}

TEST(Engine, RefusesWhatCanNeverRun) {
  EngineRig rig{EngineConfig{}};
  EXPECT_EQ(rig.refused(greedy(prompt_of(1, 1000), 601)).code(), Code::kContextLength);
  EXPECT_EQ(rig.refused(greedy({}, 1)).code(), Code::kInvalidArgument);
  EXPECT_EQ(rig.engine().submit(greedy({1}, 1), nullptr).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(rig.engine().stats().requests_rejected, 3);
}

TEST(Engine, QueueIsBoundedInRequests) {
  EngineConfig config;
  config.max_running_requests = 1;
  config.max_queued_requests = 3;
  EngineRig rig(config);
  rig.gate().close();
  std::vector<std::shared_ptr<CollectingSink>> sinks{rig.add(greedy(prompt_of(1, 8), 2))};
  rig.gate().wait_for_step();  // it left the queue
  for (int i = 0; i < 3; ++i) sinks.push_back(rig.add(greedy(prompt_of(1, 8), 2)));
  const int64_t start = now_us();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(rig.refused(greedy(prompt_of(1, 8), 2)).code(), Code::kOverloaded);
  EXPECT_LT(now_us() - start, 1'000'000);  // at once, although a step hangs
  EXPECT_NE(rig.refused(greedy({1}, 1)).message().find("at most 3"), std::string::npos);
  EXPECT_EQ(rig.engine().stats().queued, 3);
  EXPECT_EQ(rig.engine().stats().queued_tokens, 24);
  EXPECT_EQ(rig.engine().stats().requests_rejected, 101);
  rig.gate().open();
  for (const auto& sink : sinks) EXPECT_TRUE(sink->wait_finished());
  EXPECT_TRUE(rig.add(greedy({1}, 1))->wait_finished());  // room again
}

TEST(Engine, QueueIsBoundedInTokens) {
  EngineConfig config;
  config.max_running_requests = 1;
  config.max_queued_tokens = 100;
  EngineRig rig(config);
  rig.gate().close();
  auto running = rig.add(greedy(prompt_of(1, 8), 2));
  rig.gate().wait_for_step();
  auto huge = rig.add(greedy(prompt_of(2, 500), 2));  // alone it may wait, however long it is
  EXPECT_EQ(rig.refused(greedy({1}, 1)).code(), Code::kOverloaded);
  rig.gate().open();
  ASSERT_TRUE(running->wait_finished() && huge->wait_finished());
  rig.gate().close();
  auto again = rig.add(greedy(prompt_of(1, 8), 2));
  rig.gate().wait_for_step();
  auto first = rig.add(greedy(prompt_of(3, 60), 2)), second = rig.add(greedy(prompt_of(4, 40), 2));
  EXPECT_EQ(rig.refused(greedy({1}, 1)).code(), Code::kOverloaded);
  rig.gate().open();
  EXPECT_TRUE(again->wait_finished() && first->wait_finished() && second->wait_finished());
}

TEST(Engine, CancelEndsRunningAndWaiting) {
  EngineConfig config;
  config.max_running_requests = 1;
  for (int32_t lookahead : {0, 1}) {
    config.lookahead = lookahead;
    EngineRig rig(config);
    uint64_t running_id = 0, waiting_id = 0;
    auto running = rig.add(greedy(prompt_of(1, 8), 1000), &running_id);
    ASSERT_TRUE(running->wait_tokens(3));
    rig.gate().close();
    rig.gate().wait_for_step();
    auto waiting = rig.add(greedy(prompt_of(2, 8), 5), &waiting_id);
    rig.engine().cancel(waiting_id);
    rig.engine().cancel(running_id, 0);
    rig.engine().cancel(987654);  // unknown
    rig.gate().open();
    ASSERT_TRUE(running->wait_finished() && waiting->wait_finished());
    EXPECT_EQ(running->choice(0).finish, FinishReason::kAbort);
    EXPECT_EQ(waiting->choice(0).finish, FinishReason::kAbort);
    EXPECT_EQ(rig.engine().stats().blocks_used, 0);
    rig.engine().cancel(running_id);  // finished: no effect
    EXPECT_TRUE(rig.add(greedy({1, 2}, 2))->wait_finished());
  }
}

TEST(Engine, CancelAll) {
  EngineRig rig{EngineConfig{}};
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int32_t i = 0; i < 40; ++i) sinks.push_back(rig.add(greedy(prompt_of(i, 8), 1000)));
  ASSERT_TRUE(sinks[0]->wait_tokens(2));
  rig.engine().cancel_all();
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->wait_finished());
    EXPECT_EQ(sink->choice(0).finish, FinishReason::kAbort);
    EXPECT_EQ(sink->choice(0).final_updates, 1);
  }
  EXPECT_EQ(rig.engine().stats().requests_aborted, 40);
}

TEST(Engine, DrainRefusesNewAndWaitsForOld) {
  EngineRig rig{EngineConfig{}};
  rig.gate().close();
  auto old = rig.add(greedy(prompt_of(1, 8), 20));
  rig.gate().wait_for_step();
  EXPECT_FALSE(rig.engine().drain(20'000));
  EXPECT_EQ(rig.refused(greedy({1}, 1)).code(), Code::kUnavailable);
  EXPECT_EQ(rig.engine().health().code(), Code::kUnavailable);
  rig.gate().open();
  EXPECT_TRUE(rig.engine().drain(INT64_MAX));
  EXPECT_EQ(old->choice(0).finish, FinishReason::kLength);
  EXPECT_TRUE(rig.engine().drain(0));
}

TEST(Engine, DestructionAnswersEverybody) {
  for (int32_t lookahead : {0, 1}) {
    EngineConfig config;
    config.lookahead = lookahead;
    config.max_running_requests = 2;
    EngineRig rig(config);
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (int32_t i = 0; i < 10; ++i) {
      auto request = greedy(prompt_of(i, 30), 1000);
      request.n = 2;
      sinks.push_back(rig.add(request));
    }
    ASSERT_TRUE(sinks[0]->wait_tokens(2));
    rig.destroy_engine();
    for (const auto& sink : sinks) {
      for (int32_t choice : {0, 1}) {
        EXPECT_EQ(sink->choice(choice).final_updates, 1);
        EXPECT_EQ(sink->choice(choice).finish, FinishReason::kAbort);
        EXPECT_EQ(sink->choice(choice).error.code(), Code::kUnavailable);
      }
    }
  }
}

TEST(Engine, FlushNeedsAnIdleEngine) {
  EngineRig rig{EngineConfig{}};
  rig.gate().close();
  auto sink = rig.add(greedy(prompt_of(1, 50), 5));
  rig.gate().wait_for_step();
  EXPECT_EQ(rig.engine().flush_cache().code(), Code::kUnavailable);  // at once, although a step hangs
  rig.gate().open();
  ASSERT_TRUE(sink->wait_finished());
  EXPECT_GT(rig.engine().stats().blocks_cached, 0);
  EXPECT_TRUE(rig.engine().flush_cache().ok());
  auto again = rig.add(greedy(prompt_of(1, 50), 5));
  ASSERT_TRUE(again->wait_finished());
  EXPECT_EQ(again->choice(0).cached_tokens, 0);
}

TEST(Engine, WhoFlushedFindsTheBlocksFree) {
  EngineRig rig{EngineConfig{}};
  for (int round = 0; round < 1000; ++round) {  // two threads race
    ASSERT_TRUE(rig.add(greedy(prompt_of(1, 50), 2))->wait_finished());
    ASSERT_TRUE(rig.engine().flush_cache().ok());
    const EngineStats stats = rig.engine().stats();
    ASSERT_EQ(stats.blocks_cached, 0) << "round " << round;
    ASSERT_EQ(stats.blocks_free, stats.blocks_total);
  }
}

TEST(Engine, DeadlinesHold) {
  EngineRig rig{EngineConfig{}};
  auto expired = greedy(prompt_of(1, 8), 1000);
  expired.deadline_us = now_us() - 1;
  auto sink = rig.add(expired);
  ASSERT_TRUE(sink->wait_finished());
  EXPECT_EQ(sink->choice(0).error.reason(), "deadline_exceeded");
  EXPECT_TRUE(sink->choice(0).tokens.empty());
}

TEST(Engine, SleepsWhenIdle) {
  EngineRig rig{EngineConfig{}};
  ASSERT_TRUE(rig.add(greedy(prompt_of(1, 50), 5))->wait_finished());
  std::this_thread::sleep_for(20ms);
  const std::clock_t before = std::clock();  // of the whole process
  std::this_thread::sleep_for(300ms);
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.01);
}

/// Clients on several threads come, go away at random moments, and ask for stats and health all the while.
TEST(Engine, StandsAStormOfClientsThatLeave) {
  for (int32_t lookahead : {0, 1}) {
    EngineConfig config;
    config.lookahead = lookahead;
    config.num_drafts = 1;
    config.max_queued_requests = 50;
    FakeExecutorOptions options;
    options.limits = roomy_limits();
    options.limits.num_blocks = 60;
    options.limits.max_context_tokens = 200;
    EngineRig rig(config, options);
    std::atomic<int> refused = 0, admitted = 0, mistakes = 0;
    std::vector<std::thread> clients;
    for (int client = 0; client < 4; ++client) {
      clients.emplace_back([&, client] {
        std::mt19937 random(static_cast<unsigned>(client));
        for (int round = 0; round < 120; ++round) {
          auto request = greedy(prompt_of(static_cast<int32_t>(random() % 5), 5 + static_cast<int32_t>(random() % 60)),
                                static_cast<int64_t>(random() % 40));
          request.n = 1 + static_cast<int32_t>(random() % 3);
          auto sink = std::make_shared<CollectingSink>();
          const auto id = rig.engine().submit(request, sink);
          if (!id.ok()) {
            ++refused;
            continue;
          }
          ++admitted;
          if (random() % 3 == 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
            rig.engine().cancel(*id);
          }
          if (!sink->wait_finished(request.n)) ++mistakes;
          for (int32_t choice = 0; choice < request.n; ++choice) {
            const Collected got = sink->choice(choice);
            if (got.final_updates != 1 || got.updates_after_final != 0) ++mistakes;
            const auto want = rig.reference(request, choice);
            const auto ids = got.ids();
            if (got.finish == FinishReason::kLength ? ids != want : !std::equal(ids.begin(), ids.end(), want.begin())) {
              ++mistakes;
            }
          }
          const EngineStats stats = rig.engine().stats();
          if (stats.blocks_used + stats.blocks_cached + stats.blocks_free != stats.blocks_total) ++mistakes;
          if (!rig.engine().health().ok()) ++mistakes;
        }
      });
    }
    for (auto& client : clients) client.join();
    EXPECT_EQ(mistakes, 0);
    ASSERT_TRUE(rig.engine().drain(10'000'000));
    const EngineStats stats = rig.engine().stats();
    EXPECT_EQ(stats.requests_finished + stats.requests_aborted, admitted);
    EXPECT_EQ(stats.requests_rejected, refused);
    EXPECT_EQ(stats.blocks_used, 0);
    EXPECT_EQ(stats.queued, 0);
  }
}

}  // namespace
}  // namespace dsv3::testing
