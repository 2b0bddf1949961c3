// A GPU that fails while it serves: every request ends with a reason, and the engine says that the device is lost.
#include <gtest/gtest.h>

#include <cstdlib>

#include "dsv3/engine/engine.h"
#include "generation.h"
#include "gpu_model.h"

namespace dsv3 {

namespace testing {
void break_device();  // break_device.cu
std::unique_ptr<Engine> make_gpu_engine(const GpuSetup& setup, int32_t lookahead);  // gpu_generate_test.cpp
}  // namespace testing

namespace {

/// Runs in a process of its own: a context that has trapped never works again. Exit code 0: all as it should be.
void serve_and_break() {
  const auto engine = testing::make_gpu_engine({.w8a8 = true, .graphs = {1, 8, 32}}, 1);
  if (engine == nullptr) std::_Exit(1);
  std::vector<std::shared_ptr<testing::Collector>> sinks;
  for (size_t i = 0; i < 32; ++i) {
    GenerationRequest request = testing::greedy_request(i % 24);
    request.stop_ids = {};
    request.max_new_tokens = 4000;
    sinks.push_back(testing::submit(*engine, std::move(request)));
  }
  testing::break_device();
  for (const auto& sink : sinks) {
    sink->wait();
    if (sink->finish != FinishReason::kError) std::_Exit(2);
  }
  if (engine->health().code() != Code::kDeviceLost) std::_Exit(3);
  GenerationRequest late = testing::greedy_request(0);
  if (engine->submit(std::move(late), std::make_shared<testing::Collector>(1)).ok()) std::_Exit(4);
  std::_Exit(0);
}

TEST(GpuFaultDeathTest, EveryRequestEndsAndTheDeviceIsLost) {
  DSV3_NEEDS_GPU();
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(serve_and_break(), ::testing::ExitedWithCode(0), "");
}

TEST(GpuMemory, WhatDoesNotFitIsRefusedWithWhatIsMissing) {
  DSV3_NEEDS_GPU();
  auto planned = testing::plan_gpu({});
  planned.options.memory.cache_bytes = int64_t{1} << 43;
  const auto ops = make_cuda_ops({.max_slots = 1, .max_rows = 64, .max_context_tokens = 64, .num_blocks = 1, .cache_layers = 1, .cache_row = 576,
                                  .vocab = 4096, .known_vocab = 4096},
                                 planned.options);
  ASSERT_FALSE(ops.ok());
  EXPECT_EQ(ops.status().code(), Code::kOutOfMemory);
  EXPECT_NE(ops.status().message().find("MiB are missing"), std::string::npos) << ops.status().message();
  EXPECT_NE(ops.status().message().find("--mem-fraction-static"), std::string::npos);
}

TEST(GpuMemory, APlanThatIsTooSmallIsRefusedAtStart) {
  DSV3_NEEDS_GPU();
  auto planned = testing::plan_gpu({});
  planned.options.memory.step_bytes = 1 << 20;
  const auto ops = make_cuda_ops({.max_slots = 32, .max_rows = 2048, .max_context_tokens = 8192, .num_blocks = 400, .cache_layers = 4,
                                  .cache_row = 576, .vocab = 4096, .known_vocab = 4096},
                                 planned.options);
  ASSERT_FALSE(ops.ok());
  EXPECT_NE(ops.status().message().find("memory plan: step"), std::string::npos) << ops.status().message();
}

}  // namespace
}  // namespace dsv3
