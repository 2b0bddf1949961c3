// What is refused before it costs anything, and whether the refusal says why.
#include "admission.h"

#include <gtest/gtest.h>

#include <limits>

namespace dsv3::scheduling {
namespace {

ExecutorLimits limits() {
  ExecutorLimits limits;
  limits.max_slots = 4;
  limits.num_blocks = 10;
  limits.block_tokens = 8;
  limits.max_context_tokens = 100;
  limits.max_step_tokens = 64;
  limits.num_drafts = 2;
  limits.vocab_size = 50;
  return limits;
}

GenerationRequest request(size_t prompt, int64_t max_new) {
  GenerationRequest request;
  request.prompt_ids.assign(prompt, 7);
  request.max_new_tokens = max_new;
  return request;
}

TEST(CheckRequest, ContextAtBelowAndAboveTheLimit) {
  ExecutorLimits wide = limits();
  wide.num_blocks = 100;
  EXPECT_TRUE(check_request(request(60, 39), wide).ok());
  EXPECT_TRUE(check_request(request(60, 40), wide).ok());
  EXPECT_TRUE(check_request(request(100, 0), wide).ok());
  const Status over = check_request(request(60, 41), wide);
  EXPECT_EQ(over.code(), Code::kContextLength);
  EXPECT_EQ(over.reason(), "context_length_exceeded");
  EXPECT_NE(over.message().find("60"), std::string::npos);
  EXPECT_NE(over.message().find("41"), std::string::npos);
  EXPECT_NE(over.message().find("100"), std::string::npos);
  EXPECT_EQ(check_request(request(101, 0), wide).code(), Code::kContextLength);
}

TEST(CheckRequest, WorstCaseMustFitThePoolAlone) {
  EXPECT_TRUE(check_request(request(40, 40), limits()).ok());
  const Status over = check_request(request(40, 41), limits());
  EXPECT_EQ(over.code(), Code::kContextLength);
  EXPECT_NE(over.message().find("KV cache of 80 tokens"), std::string::npos) << over.message();
}

TEST(CheckRequest, HugeNumbersDoNotOverflow) {
  EXPECT_EQ(check_request(request(10, std::numeric_limits<int64_t>::max()), limits()).code(), Code::kContextLength);
  EXPECT_EQ(check_request(request(10, std::numeric_limits<int64_t>::min()), limits()).code(), Code::kInvalidArgument);
}

TEST(CheckRequest, NamesTheFieldAtFault) {
  const auto param = [](const GenerationRequest& bad) {
    const Status status = check_request(bad, limits());
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    return status.param();
  };
  EXPECT_EQ(param(request(0, 1)), "prompt");
  EXPECT_EQ(param(request(3, -1)), "max_tokens");
  auto bad = request(3, 1);
  bad.n = 0;
  EXPECT_EQ(param(bad), "n");
  bad.n = 1'000'000'000;
  EXPECT_EQ(param(bad), "n");
  bad = request(3, 1);
  bad.prompt_ids[1] = 50;
  EXPECT_EQ(param(bad), "prompt");
  bad.prompt_ids[1] = -1;
  EXPECT_EQ(param(bad), "prompt");
  bad = request(3, 1);
  bad.stop_ids = {49, 50};
  EXPECT_EQ(param(bad), "stop_token_ids");
  bad = request(3, 1);
  bad.sampling.suppressed_ids = {-3};
  EXPECT_EQ(param(bad), "suppressed_ids");
  bad = request(3, 1);
  bad.sampling.logit_bias = {{99, 1.0f}};
  EXPECT_EQ(param(bad), "logit_bias");
}

TEST(CheckConfig, RefusesWhatTheExecutorCannotDo) {
  EngineConfig good;
  good.max_running_requests = 4;
  good.num_drafts = 2;
  EXPECT_TRUE(check_config(good, limits()).ok());
  const auto param = [&](auto change) {
    EngineConfig bad = good;
    change(bad);
    return check_config(bad, limits()).param();
  };
  EXPECT_EQ(param([](EngineConfig& c) { c.max_running_requests = 5; }), "max_running_requests");
  EXPECT_EQ(param([](EngineConfig& c) { c.max_running_requests = 0; }), "max_running_requests");
  EXPECT_EQ(param([](EngineConfig& c) { c.max_queued_requests = 0; }), "max_queued_requests");
  EXPECT_EQ(param([](EngineConfig& c) { c.max_queued_tokens = 0; }), "max_queued_tokens");
  EXPECT_EQ(param([](EngineConfig& c) { c.chunked_prefill_tokens = 0; }), "chunked_prefill_tokens");
  EXPECT_EQ(param([](EngineConfig& c) { c.num_drafts = 3; }), "num_drafts");
  EXPECT_EQ(param([](EngineConfig& c) { c.lookahead = 2; }), "lookahead");
  EXPECT_EQ(param([](EngineConfig& c) { c.step_timeout_us = 0; }), "step_timeout_us");
  ExecutorLimits none = limits();
  none.num_blocks = 0;
  EXPECT_FALSE(check_config(good, none).ok());
}

}  // namespace
}  // namespace dsv3::scheduling
