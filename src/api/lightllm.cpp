// LightLLM's /generate and /generate_stream: one event per token, `data:` without a blank, no [DONE]. api.md
// section 15.
#include "body.h"
#include "errors.h"
#include "native.h"
#include "native_sampling.h"
#include "openai_responses.h"
#include "prompt_input.h"
#include "routes.h"

namespace dsv3::api {
namespace {

Json token_json(const Tokenizer& tokenizer, const SampledToken& token, std::string text) {
  Json out;
  out["id"] = token.id;
  out["text"] = std::move(text);
  out["logprob"] = finite_logprob(token.logprob);
  out["special"] = tokenizer.is_special(token.id);
  return out;
}

class WholeLightllm final : public Answer {
 public:
  WholeLightllm(std::shared_ptr<ApiContext> context, bool details, std::shared_ptr<Exchange> exchange)
      : context_(std::move(context)), details_(details), exchange_(std::move(exchange)) {}

  void complete(const GenerationState& state) override {
    Json texts = Json::array(), counts = Json::array(), reasons = Json::array(), tokens = Json::array();
    for (const auto& choice : state.choices) {
      texts.push_back(choice.content);
      counts.push_back(choice.tokens.size());
      reasons.push_back(finish_reason_json(choice));
      Json list = Json::array();
      for (const auto& token : choice.tokens) {
        list.push_back(token_json(*context_->tokenizer, token, token_text(*context_->tokenizer, token.id)));
      }
      tokens.push_back(std::move(list));
    }
    const bool one = state.choices.size() == 1;  // then all but the text lose their list
    Json body;
    body["generated_text"] = std::move(texts);
    body["count_output_tokens"] = one ? counts[0] : counts;
    body["finish_reason"] = one ? reasons[0] : reasons;
    body["prompt_tokens"] = state.job.prompts[0].request.prompt_ids.size();
    if (details_) body["tokens"] = one ? tokens[0] : tokens;
    respond_json(*exchange_, body);
  }
  void failed(const Status& status) override { exchange_->respond(error_response(status, ErrorShape::kLightllm)); }

 private:
  const std::shared_ptr<ApiContext> context_;
  const bool details_;
  const std::shared_ptr<Exchange> exchange_;
};

class LightllmStream final : public Answer {
 public:
  LightllmStream(std::shared_ptr<ApiContext> context, std::shared_ptr<Exchange> exchange)
      : context_(std::move(context)), events_(std::move(exchange), "data:") {}

  void accepted(const GenerationState&) override { events_.begin(); }

  void progress(const GenerationState& state, const Progress& progress) override {
    const Choice& choice = progress.choice;
    size_t event = 0;
    for (size_t i = progress.first_token; i < choice.tokens.size(); ++i) {
      std::string text;
      for (; event < progress.events.size() && progress.events[event].token == i; ++event) {
        text += progress.events[event].event.text;
      }
      send(state, choice, i, std::move(text), choice.finished() && i + 1 == choice.tokens.size());
    }
    if (progress.first_token < choice.tokens.size() || choice.tokens.empty()) return;
    // Ended without a new token (an abort): the last one is repeated to say so, with the text that was held back.
    std::string text;
    for (const auto& timed : progress.events) text += timed.event.text;
    send(state, choice, choice.tokens.size() - 1, std::move(text), true);
  }

  void complete(const GenerationState&) override { events_.end(false); }
  void failed(const Status& status) override { events_.fail(status, ErrorShape::kLightllm, false); }

 private:
  void send(const GenerationState& state, const Choice& choice, size_t index, std::string text, bool last) {
    Json token = token_json(*context_->tokenizer, choice.tokens[index], std::move(text));
    token["count_output_tokens"] = index + 1;
    token["prompt_tokens"] = state.job.prompts[0].request.prompt_ids.size();
    Json out;
    out["token"] = std::move(token);
    out["generated_text"] = nullptr;
    out["finished"] = last;
    out["finish_reason"] = last ? finish_reason_json(choice) : Json(nullptr);
    out["details"] = nullptr;
    events_.send(dump_json(out));
  }

  const std::shared_ptr<ApiContext> context_;
  EventStream events_;
};

}  // namespace

Status start_lightllm(Call& call, const Json& body, bool stream) {
  const ApiContext& context = *call.context;
  DSV3_TRY(check_not_draining(context));
  FieldReader reader(body);
  reader.require("inputs");
  const Json* inputs = reader.any("inputs");
  const Json* parameters = reader.object("parameters");
  reader.refuse({"multimodal_params"}, "the model reads text only");
  reader.ignore({"stream"});  // said by the route, or read by handle_root
  DSV3_TRY(reader.finish(context.config.strict_fields));
  if (!inputs->is_string() && !(inputs->is_array() && !inputs->empty() && (*inputs)[0].is_number())) {
    return invalid_type("inputs", "a string or a list of token ids", *inputs);
  }
  const Json none = Json::object();
  FieldReader fields(parameters != nullptr ? *parameters : none, "parameters");
  const SamplingFields sampling = read_lightllm_sampling(fields, context);
  const bool special = fields.boolean("add_special_tokens").value_or(true);
  const bool details = fields.boolean("return_details").value_or(false);
  if (stream && sampling.n > 1) fields.fail(unsupported_parameter("parameters.n", "only 1 is on this route"));
  DSV3_TRY(fields.finish(context.config.strict_fields));
  DSV3_ASSIGN(auto prompts, parse_prompts(*inputs, "inputs", special, context));
  DSV3_ASSIGN(PromptJob job, make_prompt_job(context, sampling, std::move(prompts[0].ids),
                                             {"inputs", "parameters.max_new_tokens", "parameters.min_new_tokens"}));
  if (stream || details) job.request.sampling.num_logprobs = 0;
  job.text = std::move(prompts[0].text);
  GenerationJob generation;
  generation.id = call.context->ids.hex(32);
  generation.route = call.request.path;
  generation.param = "inputs";
  generation.request_id = call.request.request_id;
  generation.stream = stream;
  generation.prompts.push_back(std::move(job));
  std::unique_ptr<Answer> answer;
  if (stream) {
    answer = std::make_unique<LightllmStream>(call.context, call.exchange);
  } else {
    answer = std::make_unique<WholeLightllm>(call.context, details, call.exchange);
  }
  start_generation(call.context, std::move(generation), std::move(answer), call.exchange);
  return {};
}

Status handle_generate_stream(Call& call) {
  DSV3_ASSIGN(const Json body, parse_body(call.request));
  return start_lightllm(call, body, true);
}

Status handle_root(Call& call) {
  DSV3_ASSIGN(const Json body, parse_body(call.request));
  FieldReader reader(body);
  const bool stream = reader.boolean("stream").value_or(false);
  DSV3_TRY(reader.finish());
  return start_lightllm(call, body, stream);
}

}  // namespace dsv3::api
