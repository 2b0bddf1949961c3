// See the header; shapes are api.md sections 6, 7, 11, 12.
#include "openai_responses.h"

#include <cmath>

#include "router.h"

namespace dsv3::api {

Json usage_json(const GenerationState& state) {
  int64_t prompt = 0, completion = 0, cached = 0, reasoning = 0;
  for (const auto& job : state.job.prompts) prompt += static_cast<int64_t>(job.request.prompt_ids.size());
  for (const auto& p : state.prompts) cached += p.cached_tokens;
  for (const auto& choice : state.choices) {
    completion += static_cast<int64_t>(choice.tokens.size());
    reasoning += choice.parser->reasoning_tokens();
  }
  Json usage;
  usage["prompt_tokens"] = prompt;
  usage["completion_tokens"] = completion;
  usage["total_tokens"] = prompt + completion;
  usage["prompt_tokens_details"]["cached_tokens"] = cached;
  usage["completion_tokens_details"]["reasoning_tokens"] = reasoning;
  usage["prompt_cache_hit_tokens"] = cached;
  usage["prompt_cache_miss_tokens"] = prompt - cached;
  return usage;
}

Json finish_reason_json(const Choice& choice, bool legacy_functions) {
  switch (choice.finish) {
    case FinishReason::kNone: return nullptr;
    case FinishReason::kStop:
      if (choice.parser->has_tool_calls()) return legacy_functions ? "function_call" : "tool_calls";
      return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kAbort:
    case FinishReason::kError: return "abort";
  }
  return nullptr;
}

Json matched_stop_json(const Choice& choice) {
  if (!choice.matched_stop.empty()) return choice.matched_stop;
  if (choice.matched_id >= 0) return choice.matched_id;
  return nullptr;
}

double finite_logprob(float logprob) { return std::isfinite(logprob) ? static_cast<double>(logprob) : -9999.0; }

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  const int32_t ids[] = {id};
  return tokenizer.decode(ids, false);
}

namespace {

Json chat_entry(const Tokenizer& tokenizer, int32_t id, float logprob) {
  Json bytes = Json::array();
  for (const char byte : tokenizer.token_bytes(id)) bytes.push_back(static_cast<unsigned char>(byte));
  Json entry;
  entry["token"] = token_text(tokenizer, id);
  entry["logprob"] = finite_logprob(logprob);
  entry["bytes"] = std::move(bytes);
  return entry;
}

}  // namespace

Json chat_logprobs_json(const Tokenizer& tokenizer, std::span<const SampledToken> tokens) {
  Json content = Json::array();
  for (const auto& token : tokens) {
    Json entry = chat_entry(tokenizer, token.id, token.logprob);
    Json top = Json::array();
    for (const auto& other : token.top) top.push_back(chat_entry(tokenizer, other.id, other.logprob));
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  Json out;
  out["content"] = std::move(content);
  out["refusal"] = nullptr;
  return out;
}

void CompletionLogprobs::add(const SampledToken& token) {
  Json top = nullptr;
  if (num_top_ > 0) {
    top = Json::object();
    // Different tokens may read the same; the better one keeps the name, so that the best value is never lost.
    const auto add_once = [&](int32_t id, float logprob) {
      const std::string text = token_text(tokenizer_, id);
      if (!top.contains(text)) top[text] = finite_logprob(logprob);
    };
    for (const auto& other : token.top) add_once(other.id, other.logprob);
    add_once(token.id, token.logprob);
  }
  add_text(token.id, finite_logprob(token.logprob), std::move(top));
}

void CompletionLogprobs::add_first_prompt_token(int32_t id) { add_text(id, nullptr, nullptr); }

void CompletionLogprobs::add_text(int32_t id, Json logprob, Json top) {
  tokens_.push_back(token_text(tokenizer_, id));
  logprobs_.push_back(std::move(logprob));
  top_.push_back(std::move(top));
  offsets_.push_back(offset_chars_);
  if (skip_special_tokens_ && tokenizer_.is_special(id)) return;
  for (const char byte : tokenizer_.token_bytes(id)) {
    if ((static_cast<unsigned char>(byte) & 0xc0) != 0x80) ++offset_chars_;  // a character counts with its first byte
  }
}

Json CompletionLogprobs::take() {
  Json out;
  out["tokens"] = std::exchange(tokens_, Json::array());
  out["token_logprobs"] = std::exchange(logprobs_, Json::array());
  out["top_logprobs"] = num_top_ > 0 ? std::exchange(top_, Json::array()) : Json(nullptr);
  out["text_offset"] = std::exchange(offsets_, Json::array());
  if (num_top_ == 0) top_ = Json::array();
  return out;
}

void EventStream::fail(const Status& status, ErrorShape shape, bool with_done) {
  if (!begun_) return exchange_->respond(error_response(status, shape));
  send(dump_json(error_body(status, shape)));
  end(with_done);
}

Json answer_head(const GenerationState& state, const ApiContext& context, std::string_view object) {
  Json head;
  head["id"] = state.job.id;
  head["object"] = object;
  head["created"] = state.created_unix_s;
  head["model"] = context.model_name;
  head["system_fingerprint"] = nullptr;
  return head;
}

void ChunkWriter::begin(const GenerationState& state, const ApiContext& context, std::string_view object) {
  head_ = dump_json(answer_head(state, context, object));
  head_.back() = ',';  // the closing brace
  head_ += "\"choices\":[";
  events_.begin();
}

void ChunkWriter::send(const GenerationState& state, const Json& choice) {
  std::string chunk = head_ + dump_json(choice) + "]";
  if (continuous_usage_) {
    chunk += ",\"usage\":" + dump_json(usage_json(state));
  } else if (include_usage_) {
    chunk += ",\"usage\":null";
  }
  events_.send(chunk + "}");
}

void ChunkWriter::finish(const GenerationState& state) {
  if (include_usage_) events_.send(head_ + "],\"usage\":" + dump_json(usage_json(state)) + "}");
  events_.end(true);
}

}  // namespace dsv3::api
