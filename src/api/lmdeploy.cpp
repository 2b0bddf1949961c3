// LMDeploy's /generate: one prompt; stream events carry only what is new. api.md section 17.
#include "errors.h"
#include "native.h"
#include "native_sampling.h"
#include "openai_fields.h"
#include "openai_responses.h"
#include "prompt_input.h"

namespace dsv3::api {
namespace {

Json lmdeploy_object(const GenerationState& state, const Choice& choice, std::string text, size_t first, bool logprobs) {
  Json ids = Json::array(), values = Json::array();
  for (size_t i = first; i < choice.tokens.size(); ++i) {
    ids.push_back(choice.tokens[i].id);
    values.push_back(Json::array({finite_logprob(choice.tokens[i].logprob), choice.tokens[i].id}));
  }
  Json finish = nullptr;
  if (choice.finished()) {
    const Json reason = finish_reason_json(choice);
    finish = Json::object();
    finish["type"] = reason;
  }
  Json meta;
  meta["prompt_tokens"] = state.job.prompts[0].request.prompt_ids.size();
  meta["completion_tokens"] = choice.tokens.size();
  meta["finish_reason"] = std::move(finish);
  meta["output_token_logprobs"] = logprobs ? std::move(values) : Json(nullptr);
  Json out;
  out["text"] = std::move(text);
  out["output_ids"] = std::move(ids);
  out["meta_info"] = std::move(meta);
  return out;
}

class WholeLmdeploy final : public Answer {
 public:
  WholeLmdeploy(bool logprobs, std::shared_ptr<Exchange> exchange)
      : logprobs_(logprobs), exchange_(std::move(exchange)) {}
  void complete(const GenerationState& state) override {
    const Choice& choice = state.choices[0];
    respond_json(*exchange_, lmdeploy_object(state, choice, choice.content, 0, logprobs_));
  }
  void failed(const Status& status) override { exchange_->respond(error_response(status, ErrorShape::kLmdeploy)); }

 private:
  const bool logprobs_;
  const std::shared_ptr<Exchange> exchange_;
};

class LmdeployStream final : public Answer {
 public:
  LmdeployStream(bool logprobs, std::shared_ptr<Exchange> exchange) : logprobs_(logprobs), events_(std::move(exchange)) {}
  void accepted(const GenerationState&) override { events_.begin(); }
  void progress(const GenerationState& state, const Progress& progress) override {
    std::string text;
    for (const auto& timed : progress.events) text += timed.event.text;
    events_.send(dump_json(lmdeploy_object(state, progress.choice, std::move(text), progress.first_token, logprobs_)));
  }
  void complete(const GenerationState&) override { events_.end(true); }
  void failed(const Status& status) override { events_.fail(status, ErrorShape::kLmdeploy, true); }

 private:
  const bool logprobs_;
  EventStream events_;
};

}  // namespace

Status start_lmdeploy(Call& call, const Json& body) {
  const ApiContext& context = *call.context;
  DSV3_TRY(check_not_draining(context));
  FieldReader reader(body);
  const SamplingFields sampling = read_lmdeploy_sampling(reader, context);
  const Json* prompt = reader.any("prompt");
  const Json* ids = reader.array("input_ids");
  const bool stream = reader.boolean("stream").value_or(false);
  const bool logprobs = reader.boolean("return_logprob").value_or(false);
  const int64_t session = reader.integer("session_id", -1).value_or(-1);
  reader.refuse({"image_data"}, "the model reads text only");
  if (prompt != nullptr && ids != nullptr) reader.fail(invalid_value("input_ids", "and prompt exclude each other"));
  if (prompt != nullptr && !prompt->is_string()) reader.fail(invalid_type("prompt", "a string", *prompt));
  if (ids != nullptr && !ids->empty() && (*ids)[0].is_array()) {
    reader.fail(invalid_type("input_ids[0]", "an integer", (*ids)[0]));
  }
  DSV3_TRY(reader.finish(context.config.strict_fields));
  const char* field = prompt != nullptr ? "prompt" : "input_ids";
  DSV3_ASSIGN(auto prompts, parse_prompts(prompt != nullptr ? *prompt : *ids, field, true, context));
  if (prompts.size() != 1 || (ids != nullptr && !prompts[0].is_ids)) {
    return invalid_type(field, "a list of token ids", prompt != nullptr ? *prompt : *ids);
  }
  DSV3_ASSIGN(PromptJob job, make_prompt_job(context, sampling, std::move(prompts[0].ids), {field}));
  if (logprobs) job.request.sampling.num_logprobs = 0;
  if (session >= 0) job.client_rid = "session-" + std::to_string(session);
  job.text = std::move(prompts[0].text);
  GenerationJob generation;
  generation.id = call.context->ids.hex(32);
  generation.route = call.request.path;
  generation.param = field;
  generation.request_id = call.request.request_id;
  generation.stream = stream;
  generation.prompts.push_back(std::move(job));
  std::unique_ptr<Answer> answer;
  if (stream) {
    answer = std::make_unique<LmdeployStream>(logprobs, call.exchange);
  } else {
    answer = std::make_unique<WholeLmdeploy>(logprobs, call.exchange);
  }
  start_generation(call.context, std::move(generation), std::move(answer), call.exchange);
  return {};
}

}  // namespace dsv3::api
