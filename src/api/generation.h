// A running request: submits its prompts to the engine, turns token updates into text and calls, and tells an Answer,
// which knows the route's format. Everything after start() happens on one strand, one task at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "context.h"
#include "dsv3/api/exchange.h"
#include "dsv3/api/output_parser.h"
#include "errors.h"
#include "generation_job.h"

namespace dsv3::api {

struct ToolCall {
  std::string id, name, arguments;
};

/// One sequence, as far as it got.
struct Choice {
  int32_t index = 0;   ///< in the answer: prompt-major, then the prompt's choices
  size_t prompt = 0;   ///< in GenerationJob::prompts
  std::unique_ptr<OutputParser> parser;
  std::string content, reasoning;
  std::vector<ToolCall> tool_calls;
  std::vector<SampledToken> tokens;  ///< all generated ones, a matched stop id included
  FinishReason finish = FinishReason::kNone;
  int32_t matched_id = -1;    ///< the stop id that ended it, or
  std::string matched_stop;   ///< the stop string that did

  bool finished() const { return finish != FinishReason::kNone; }
};

struct PromptState {
  int32_t cached_tokens = 0;
  std::vector<SampledToken> prompt_logprobs;
};

struct GenerationState {
  GenerationJob job;
  std::vector<PromptState> prompts;  ///< as job.prompts
  std::vector<Choice> choices;
  int64_t started_us = 0;            ///< now_us() at start
  int64_t created_unix_s = 0;
};

/// An event, and the token of the choice that completed it.
struct TimedEvent {
  size_t token = 0;
  OutputEvent event;
};

/// What one update of the engine brought to one choice.
struct Progress {
  const Choice& choice;
  size_t first_token = 0;  ///< choice.tokens from here on are new
  std::span<const TimedEvent> events;
};

/// Writes the answer of one request in the format of its route. Called on the strand only. Between accepted() and
/// complete() or failed(), of which exactly one is called.
class Answer {
 public:
  virtual ~Answer() = default;
  virtual void accepted(const GenerationState&) {}  ///< every prompt is in the engine
  virtual void progress(const GenerationState&, const Progress&) {}  ///< new tokens, or the end of a choice
  virtual void complete(const GenerationState&) = 0;                 ///< every choice has finished
  virtual void failed(const Status&) = 0;  ///< before or after accepted(); the status has a client's message
};

/// Starts a generation and returns; the answer comes on the pool. The exchange is the answer's as well.
void start_generation(std::shared_ptr<ApiContext> context, GenerationJob job, std::unique_ptr<Answer> answer,
                      std::shared_ptr<Exchange> exchange);

/// Draining servers take no new generations (kUnavailable).
Status check_not_draining(const ApiContext& context);

}  // namespace dsv3::api
