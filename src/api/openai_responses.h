// Pieces that chat and completion answers are made of: usage, log probabilities, finish reasons, stream events.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "context.h"
#include "dsv3/api/exchange.h"
#include "dsv3/tokenizer/tokenizer.h"
#include "generation.h"

namespace dsv3::api {

/// `usage` over all prompts and choices so far.
Json usage_json(const GenerationState& state);

/// OpenAI's finish_reason; null while a choice runs.
Json finish_reason_json(const Choice& choice, bool legacy_functions = false);
/// The stop string or stop id that ended the choice, or null.
Json matched_stop_json(const Choice& choice);

/// A log probability that JSON can hold: minus infinity and NaN become -9999.
double finite_logprob(float logprob);

/// The token's text for people: invalid UTF-8 as U+FFFD.
std::string token_text(const Tokenizer& tokenizer, int32_t id);

/// Chat's {"content":[...],"refusal":null} of some tokens.
Json chat_logprobs_json(const Tokenizer& tokenizer, std::span<const SampledToken> tokens);

/// Completions' four parallel lists, built token by token. Keeps the running text_offset.
class CompletionLogprobs {
 public:
  CompletionLogprobs(const Tokenizer& tokenizer, bool skip_special_tokens, int32_t num_top)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens), num_top_(num_top) {}

  void add(const SampledToken& token);
  void add_first_prompt_token(int32_t id);  ///< nothing stands before it: its entries are null
  Json take();                              ///< the lists since the last take(); offsets go on

 private:
  void add_text(int32_t id, Json logprob, Json top);

  const Tokenizer& tokenizer_;
  const bool skip_special_tokens_;
  const int32_t num_top_;
  int64_t offset_chars_ = 0;
  Json tokens_ = Json::array(), logprobs_ = Json::array(), top_ = Json::array(), offsets_ = Json::array();
};

/// Writes server-sent events, each as one send().
class EventStream {
 public:
  EventStream(std::shared_ptr<Exchange> exchange, std::string prefix = "data: ")
      : exchange_(std::move(exchange)), prefix_(std::move(prefix)) {}

  void begin() {
    begun_ = true;
    exchange_->begin_stream("text/event-stream; charset=utf-8");
  }
  bool begun() const { return begun_; }
  void send(std::string_view json) {
    std::string event;
    event.reserve(prefix_.size() + json.size() + 2);
    exchange_->send(event.append(prefix_).append(json).append("\n\n"));
  }
  void end(bool with_done) {
    if (with_done) exchange_->send("data: [DONE]\n\n");
    exchange_->end();
  }
  /// Before begin(): a plain error response; after it: an error event and the end of the stream.
  void fail(const Status& status, ErrorShape shape, bool with_done);

 private:
  const std::shared_ptr<Exchange> exchange_;
  const std::string prefix_;
  bool begun_ = false;
};

/// The chunks of one OpenAI stream: what all have in common is serialised once.
class ChunkWriter {
 public:
  ChunkWriter(std::shared_ptr<Exchange> exchange, bool include_usage, bool continuous_usage)
      : events_(std::move(exchange)), include_usage_(include_usage), continuous_usage_(continuous_usage) {}

  void begin(const GenerationState& state, const ApiContext& context, std::string_view object);
  void send(const GenerationState& state, const Json& choice);
  void finish(const GenerationState& state);  ///< usage chunk if asked for, [DONE], end
  void fail(const Status& status) { events_.fail(status, ErrorShape::kOpenAi, true); }

 private:
  EventStream events_;
  const bool include_usage_, continuous_usage_;
  std::string head_;  // everything up to and with "choices":[
};

/// The head of a non-stream answer: id, object, created, model.
Json answer_head(const GenerationState& state, const ApiContext& context, std::string_view object);

}  // namespace dsv3::api
