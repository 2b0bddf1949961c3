// POST /v1/completions: prompts in all four forms, echo, and both forms of the answer. api.md section 12.
#include <optional>

#include "body.h"
#include "errors.h"
#include "openai_fields.h"
#include "openai_responses.h"
#include "prompt_input.h"
#include "routes.h"

namespace dsv3::api {
namespace {

struct CompletionRequest {
  OpenAiFields common;
  std::vector<PromptInput> prompts;
  bool echo = false;
  std::optional<int32_t> logprobs;
};

/// An integer; `false` is tolerated as null.
std::optional<int32_t> read_logprobs(FieldReader& reader, const ApiContext& context) {
  const Json* value = reader.any("logprobs");
  if (value == nullptr || (value->is_boolean() && !value->get<bool>())) return std::nullopt;
  const auto count = reader.integer("logprobs", 0, context.config.max_logprobs);
  return count ? std::optional(static_cast<int32_t>(*count)) : std::nullopt;
}

Result<CompletionRequest> parse_completion_request(const Json& body, const ApiContext& context) {
  FieldReader reader(body);
  CompletionRequest out;
  out.common = read_openai_fields(reader, context);
  reader.require("prompt");
  const Json* prompt = reader.any("prompt");
  const bool special = reader.boolean("add_special_tokens").value_or(true);
  out.common.sampling.max_tokens = reader.integer("max_tokens", 0).value_or(16);
  out.echo = reader.boolean("echo").value_or(false);
  out.logprobs = read_logprobs(reader, context);
  if (reader.integer("best_of", 1).value_or(1) != 1) {
    reader.fail(unsupported_parameter("best_of", "only 1 is; use n"));
  }
  reader.refuse({"suffix"}, "filling in the middle is not built");
  DSV3_TRY(reader.finish(context.config.strict_fields));
  DSV3_ASSIGN(out.prompts, parse_prompts(*prompt, "prompt", special, context));
  return out;
}

struct CompletionFormat {
  bool echo = false;
  std::optional<int32_t> logprobs;
  bool return_token_ids = false;
};

/// The parts of a choice that both forms need; keeps what has been told of it.
class CompletionChoice {
 public:
  CompletionChoice(const ApiContext& context, const PromptJob& prompt, const CompletionFormat& format)
      : logprobs_(*context.tokenizer, prompt.parser.skip_special_tokens, format.logprobs.value_or(0)),
        format_(format) {}

  /// Log probabilities of prompt (first time, with echo) and of the tokens up to `end`; null if there is nothing.
  Json logprobs(const GenerationState& state, const Choice& choice, size_t end) {
    if (!format_.logprobs) return nullptr;
    const bool prompt_now = format_.echo && !prompt_told_;
    if (end <= tokens_told_ && !prompt_now) return nullptr;
    if (prompt_now) {
      prompt_told_ = true;
      logprobs_.add_first_prompt_token(state.job.prompts[choice.prompt].request.prompt_ids[0]);
      for (const auto& token : state.prompts[choice.prompt].prompt_logprobs) logprobs_.add(token);
    }
    for (; tokens_told_ < end; ++tokens_told_) logprobs_.add(choice.tokens[tokens_told_]);
    return logprobs_.take();
  }

  bool echoed = false;

 private:
  CompletionLogprobs logprobs_;
  const CompletionFormat format_;
  bool prompt_told_ = false;
  size_t tokens_told_ = 0;
};

Json choice_json(const Choice& choice, std::string text, Json logprobs, bool closing) {
  Json out;
  out["index"] = choice.index;
  out["text"] = std::move(text);
  out["logprobs"] = std::move(logprobs);
  out["finish_reason"] = closing ? finish_reason_json(choice) : Json(nullptr);
  if (closing) out["matched_stop"] = matched_stop_json(choice);
  return out;
}

Json token_ids_json(const Choice& choice, size_t begin, size_t end) {
  Json ids = Json::array();
  for (size_t i = begin; i < end; ++i) ids.push_back(choice.tokens[i].id);
  return ids;
}

class WholeCompletion final : public Answer {
 public:
  WholeCompletion(std::shared_ptr<ApiContext> context, std::shared_ptr<Exchange> exchange, CompletionFormat format)
      : context_(std::move(context)), exchange_(std::move(exchange)), format_(format) {}

  void complete(const GenerationState& state) override {
    Json body = answer_head(state, *context_, "text_completion");
    Json choices = Json::array();
    for (const auto& choice : state.choices) {
      const PromptJob& prompt = state.job.prompts[choice.prompt];
      CompletionChoice parts(*context_, prompt, format_);
      Json entry = choice_json(choice, (format_.echo ? prompt.text : "") + choice.content,
                               parts.logprobs(state, choice, choice.tokens.size()), true);
      if (format_.return_token_ids) {
        entry["token_ids"] = token_ids_json(choice, 0, choice.tokens.size());
        entry["prompt_token_ids"] = prompt.request.prompt_ids;
      }
      choices.push_back(std::move(entry));
    }
    body["choices"] = std::move(choices);
    body["usage"] = usage_json(state);
    respond_json(*exchange_, body);
  }

  void failed(const Status& status) override { exchange_->respond(error_response(status, ErrorShape::kOpenAi)); }

 private:
  const std::shared_ptr<ApiContext> context_;
  const std::shared_ptr<Exchange> exchange_;
  const CompletionFormat format_;
};

class CompletionStream final : public Answer {
 public:
  CompletionStream(std::shared_ptr<ApiContext> context, ChunkWriter writer, CompletionFormat format)
      : context_(std::move(context)), writer_(std::move(writer)), format_(format) {}

  void accepted(const GenerationState& state) override {
    for (const auto& choice : state.choices) {
      per_choice_.emplace_back(*context_, state.job.prompts[choice.prompt], format_);
    }
    tokens_sent_.resize(state.choices.size());
    writer_.begin(state, *context_, "text_completion");
  }

  void progress(const GenerationState& state, const Progress& progress) override {
    const Choice& choice = progress.choice;
    CompletionChoice& parts = per_choice_[static_cast<size_t>(choice.index)];
    std::string text;
    if (format_.echo && !parts.echoed) text = state.job.prompts[choice.prompt].text;
    const bool first_echo = format_.echo && !parts.echoed;
    parts.echoed = true;
    size_t end = 0;
    for (const auto& timed : progress.events) {
      text += timed.event.text;
      end = std::min(timed.token + 1, choice.tokens.size());
    }
    if (!text.empty() || first_echo) send(state, choice, std::move(text), parts.logprobs(state, choice, end), end, false);
    if (choice.finished()) {
      end = choice.tokens.size();
      send(state, choice, "", parts.logprobs(state, choice, end), end, true);
    }
  }

  void complete(const GenerationState& state) override { writer_.finish(state); }
  void failed(const Status& status) override { writer_.fail(status); }

 private:
  void send(const GenerationState& state, const Choice& choice, std::string text, Json logprobs, size_t end,
            bool closing) {
    Json entry = choice_json(choice, std::move(text), std::move(logprobs), closing);
    size_t& sent = tokens_sent_[static_cast<size_t>(choice.index)];
    if (format_.return_token_ids) entry["token_ids"] = token_ids_json(choice, sent, std::max(sent, end));
    sent = std::max(sent, end);
    writer_.send(state, entry);
  }

  const std::shared_ptr<ApiContext> context_;
  ChunkWriter writer_;
  const CompletionFormat format_;
  std::vector<CompletionChoice> per_choice_;
  std::vector<size_t> tokens_sent_;
};

}  // namespace

Status handle_completions(Call& call) {
  const ApiContext& context = *call.context;
  DSV3_TRY(check_not_draining(context));
  DSV3_ASSIGN(const Json body, parse_body(call.request));
  DSV3_ASSIGN(CompletionRequest request, parse_completion_request(body, context));
  GenerationJob generation;
  generation.id = "cmpl-" + call.context->ids.hex(32);
  generation.route = call.request.path;
  generation.param = "prompt";
  generation.request_id = call.request.request_id;
  generation.stream = request.common.stream;
  for (auto& prompt : request.prompts) {
    DSV3_ASSIGN(PromptJob job, make_prompt_job(context, request.common.sampling, std::move(prompt.ids), {}));
    apply_openai_fields(request.common, job);
    if (request.logprobs) job.request.sampling.num_logprobs = *request.logprobs;
    if (request.logprobs && request.echo) job.request.prompt_logprobs_from = 0;
    if (request.echo && prompt.is_ids) {
      prompt.text = context.tokenizer->decode(job.request.prompt_ids, request.common.sampling.skip_special_tokens);
    }
    job.text = std::move(prompt.text);
    generation.prompts.push_back(std::move(job));
  }
  const CompletionFormat format{request.echo, request.logprobs, request.common.return_token_ids};
  std::unique_ptr<Answer> answer;
  if (request.common.stream) {
    answer = std::make_unique<CompletionStream>(
        call.context, ChunkWriter(call.exchange, request.common.include_usage, request.common.continuous_usage), format);
  } else {
    answer = std::make_unique<WholeCompletion>(call.context, call.exchange, format);
  }
  start_generation(call.context, std::move(generation), std::move(answer), call.exchange);
  return {};
}

}  // namespace dsv3::api
