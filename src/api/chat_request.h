// POST /v1/chat/completions as a plain struct, and its way to token ids.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "context.h"
#include "openai_fields.h"

namespace dsv3::api {

struct ChatRequest {
  OpenAiFields common;
  Json messages = Json::array();   ///< normalised
  Json tools = Json::array();      ///< empty also when tool_choice is none
  Json template_kwargs = Json::object();
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  bool parallel_tool_calls = true;
  bool legacy_functions = false;   ///< asked with `functions`: answer with function_call
  bool separate_reasoning = true;
  bool stream_reasoning = true;
  bool logprobs = false;
  int32_t top_logprobs = 0;
  std::optional<std::vector<int32_t>> input_ids;  ///< instead of messages
};

Result<ChatRequest> parse_chat_request(const Json& body, const ApiContext& context);

struct EncodedChat {
  std::vector<int32_t> ids;
  std::string text;  ///< the rendered prompt, for the log
};

/// Renders and tokenises. Also used by /tokenize.
Result<EncodedChat> encode_chat(const ChatRequest& request, const ApiContext& context);

}  // namespace dsv3::api
