// The checks of admission.h, each with a message that says what would have been allowed.
#include "admission.h"

#include <algorithm>
#include <string>

namespace dsv3::scheduling {
namespace {

constexpr int32_t kMaxChoices = 1024;

std::string number(int64_t value) {
  return std::to_string(value);
}

Status check_range(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return {Code::kInvalidArgument,
          std::string(field) + " is " + number(value) + ", allowed " + number(low) + " to " + number(high), field};
}

Status check_ids(const char* field, const std::vector<int32_t>& ids, int32_t vocab_size) {
  const auto outside = [vocab_size](int32_t id) { return id < 0 || id >= vocab_size; };
  const auto bad = std::find_if(ids.begin(), ids.end(), outside);
  if (bad == ids.end()) return {};
  return {Code::kInvalidArgument,
          std::string(field) + " has token id " + number(*bad) + ", allowed 0 to " + number(vocab_size - 1), field};
}

}  // namespace

Status check_config(const EngineConfig& config, const ExecutorLimits& limits) {
  constexpr int64_t kMany = int64_t{1} << 62;
  if (limits.max_slots < 1 || limits.num_blocks < 1 || limits.block_tokens < 1 || limits.max_context_tokens < 1 ||
      limits.max_step_tokens < 2 || limits.vocab_size < 1 || limits.num_drafts < 0) {
    return {Code::kInvalidArgument, "the executor's limits must be positive, with at least 2 tokens a step"};
  }
  DSV3_TRY(check_range("max_running_requests", config.max_running_requests, 1, limits.max_slots));
  DSV3_TRY(check_range("max_queued_requests", config.max_queued_requests, 1, kMany));
  DSV3_TRY(check_range("max_queued_tokens", config.max_queued_tokens, 1, kMany));
  DSV3_TRY(check_range("chunked_prefill_tokens", config.chunked_prefill_tokens, 1, kMany));
  DSV3_TRY(check_range("num_drafts", config.num_drafts, 0, limits.num_drafts));
  DSV3_TRY(check_range("lookahead", config.lookahead, 0, 1));
  return check_range("step_timeout_us", config.step_timeout_us, 1, kMany);
}

Status check_request(const GenerationRequest& request, const ExecutorLimits& limits) {
  if (request.prompt_ids.empty()) return {Code::kInvalidArgument, "the prompt has no tokens", "prompt"};
  DSV3_TRY(check_range("n", request.n, 1, kMaxChoices));
  if (request.max_new_tokens < 0) {
    return {Code::kInvalidArgument, "max_tokens is " + number(request.max_new_tokens) + ", must not be negative",
            "max_tokens"};
  }
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t context = limits.max_context_tokens;
  const std::string asked =
      "prompt of " + number(prompt) + " tokens plus max_tokens of " + number(request.max_new_tokens);
  // Two comparisons: the sum of two numbers from outside could overflow.
  if (prompt > context || request.max_new_tokens > context - prompt) {
    return {Code::kContextLength, asked + " exceeds the context of " + number(context) + " tokens", "max_tokens",
            "context_length_exceeded"};
  }
  const int64_t pool = int64_t{limits.num_blocks} * limits.block_tokens;
  const int64_t blocks = (prompt + request.max_new_tokens + limits.block_tokens - 1) / limits.block_tokens;
  if (blocks > limits.num_blocks) {
    return {Code::kContextLength, asked + " exceeds the KV cache of " + number(pool) + " tokens", "max_tokens",
            "context_length_exceeded"};
  }
  DSV3_TRY(check_ids("prompt", request.prompt_ids, limits.vocab_size));
  DSV3_TRY(check_ids("suppressed_ids", request.sampling.suppressed_ids, limits.vocab_size));
  DSV3_TRY(check_ids("stop_token_ids", request.stop_ids, limits.vocab_size));
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    DSV3_TRY(check_range("logit_bias", id, 0, limits.vocab_size - 1));
  }
  return {};
}

}  // namespace dsv3::scheduling
