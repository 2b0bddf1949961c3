// SGLang's /generate: batches, n, log probabilities; streams carry the whole text so far. api.md section 14.
#include "body.h"
#include "dsv3/base/clock.h"
#include "errors.h"
#include "native.h"
#include "native_sampling.h"
#include "openai_fields.h"
#include "openai_responses.h"
#include "prompt_input.h"

namespace dsv3::api {
namespace {

struct SglangFormat {
  bool as_list = false;   ///< a batch, or n > 1
  bool logprobs = false;
  int32_t logprob_start = -1;  ///< -1: of outputs only
  bool logprob_text = false;
  int32_t top_logprobs = 0;
};

struct SglangRequest {
  std::vector<PromptInput> prompts;
  std::vector<SamplingFields> sampling;  ///< one, or one per prompt
  std::vector<std::string> rids;         ///< none, one, or one per prompt
  bool stream = false;
  SglangFormat format;
  std::string cache_salt;
  int32_t priority = 0;
  const char* prompt_field = "text";
};

bool is_batch(const Json& prompt, bool ids) {
  return prompt.is_array() && (!ids || (!prompt.empty() && prompt[0].is_array()));
}

Status read_sampling(const Json* params, const ApiContext& context, SglangRequest& out) {
  const Json none = Json::object();
  const auto read = [&](const Json& object, const std::string& path) -> Status {
    FieldReader reader(object, path);
    out.sampling.push_back(read_sglang_sampling(reader, context));
    return reader.finish();
  };
  if (params == nullptr) return read(none, "sampling_params");
  if (!params->is_array()) return read(*params, "sampling_params");
  if (params->size() != out.prompts.size()) {
    return invalid_value("sampling_params", "has " + std::to_string(params->size()) + " entries for " +
                                                std::to_string(out.prompts.size()) + " prompts");
  }
  for (size_t i = 0; i < params->size(); ++i) {
    DSV3_TRY(read((*params)[i], "sampling_params[" + std::to_string(i) + "]"));
    if (out.sampling[i].n != out.sampling[0].n) {
      return invalid_value("sampling_params[" + std::to_string(i) + "].n", "differs from the first prompt's");
    }
  }
  return {};
}

Status read_rids(const Json* rid, SglangRequest& out) {
  constexpr size_t kMaxBytes = 256;
  if (rid == nullptr) return {};
  const auto add = [&](const Json& value, const std::string& path) -> Status {
    if (!value.is_string()) return invalid_type(path, "a string", value);
    if (value.get_ref<const std::string&>().size() > kMaxBytes) {
      return invalid_value(path, "is longer than " + std::to_string(kMaxBytes) + " bytes");
    }
    out.rids.push_back(value.get<std::string>());
    return {};
  };
  if (!rid->is_array()) return add(*rid, "rid");
  if (rid->size() != out.prompts.size()) {
    return invalid_value("rid", "has " + std::to_string(rid->size()) + " entries for " +
                                    std::to_string(out.prompts.size()) + " prompts");
  }
  for (size_t i = 0; i < rid->size(); ++i) DSV3_TRY(add((*rid)[i], "rid[" + std::to_string(i) + "]"));
  return {};
}

Result<SglangRequest> parse_sglang(const Json& body, const ApiContext& context) {
  FieldReader reader(body);
  SglangRequest out;
  reader.refuse({"input_embeds"}, "send text or input_ids");
  const Json* text = reader.any("text");
  const Json* ids = reader.array("input_ids");
  const Json* params = reader.any("sampling_params");
  const Json* rid = reader.any("rid");
  out.stream = reader.boolean("stream").value_or(false);
  SglangFormat& format = out.format;
  format.logprobs = reader.boolean("return_logprob").value_or(false);
  format.logprob_start = static_cast<int32_t>(
      reader.integer("logprob_start_len", -1, std::numeric_limits<int32_t>::max()).value_or(-1));
  format.top_logprobs =
      static_cast<int32_t>(reader.integer("top_logprobs_num", 0, context.config.max_logprobs).value_or(0));
  format.logprob_text = reader.boolean("return_text_in_logprobs").value_or(false);
  out.cache_salt = reader.string("cache_salt", 256).value_or("");
  out.priority = static_cast<int32_t>(reader.integer("priority", -1'000'000, 1'000'000).value_or(0));
  reader.refuse({"token_ids_logprob"}, "ask for top_logprobs_num");
  reader.refuse({"image_data", "video_data", "audio_data"}, "the model reads text only");
  refuse_unbuilt_features(reader);
  reader.ignore({"model", "modalities", "data_parallel_rank", "log_metrics", "background", "stream_interval"});
  DSV3_TRY(reader.finish(context.config.strict_fields));
  if (text != nullptr && ids != nullptr) return invalid_value("input_ids", "and text exclude each other");
  if (text == nullptr && ids == nullptr) return missing_parameter("text");
  out.prompt_field = text != nullptr ? "text" : "input_ids";
  if (text != nullptr && text->is_array() && !text->empty() && !(*text)[0].is_string()) {
    return invalid_type("text[0]", "a string", (*text)[0]);
  }
  DSV3_ASSIGN(out.prompts, parse_prompts(text != nullptr ? *text : *ids, out.prompt_field, true, context));
  for (size_t i = 0; i < out.prompts.size(); ++i) {
    if (out.prompts[i].is_ids != (ids != nullptr)) {
      return invalid_value(out.prompt_field, "mixes texts and token ids at entry " + std::to_string(i));
    }
  }
  DSV3_TRY(read_sampling(params, context, out));
  DSV3_TRY(read_rids(rid, out));
  format.as_list = is_batch(text != nullptr ? *text : *ids, ids != nullptr) || out.sampling[0].n > 1;
  return out;
}

/// The meta_info of one choice as it stands.
class SglangMeta {
 public:
  SglangMeta(std::shared_ptr<ApiContext> context, SglangFormat format)
      : context_(std::move(context)), format_(format) {}

  Json meta_info(const GenerationState& state, const Choice& choice) const {
    const PromptJob& prompt = state.job.prompts[choice.prompt];
    Json meta;
    meta["id"] = prompt.client_rid.empty() ? state.job.id : prompt.client_rid;
    meta["finish_reason"] = finish(choice, prompt);
    meta["prompt_tokens"] = prompt.request.prompt_ids.size();
    meta["completion_tokens"] = choice.tokens.size();
    meta["cached_tokens"] = state.prompts[choice.prompt].cached_tokens;
    meta["weight_version"] = "default";
    if (format_.logprobs) add_logprobs(meta, state, choice);
    if (choice.finished()) meta["e2e_latency"] = static_cast<double>(now_us() - state.started_us) * 1e-6;
    return meta;
  }

  bool as_list() const { return format_.as_list; }

 private:
  static Json finish(const Choice& choice, const PromptJob& prompt) {
    Json out;
    switch (choice.finish) {
      case FinishReason::kNone: return nullptr;
      case FinishReason::kStop:
        out["type"] = "stop";
        out["matched"] = matched_stop_json(choice);
        return out;
      case FinishReason::kLength:
        out["type"] = "length";
        out["length"] = prompt.request.max_new_tokens;
        return out;
      case FinishReason::kAbort:
      case FinishReason::kError: break;
    }
    out["type"] = "abort";
    out["message"] = "the request was aborted";
    return out;
  }

  Json entry(Json logprob, int32_t id) const {
    return Json::array({std::move(logprob), id,
                        format_.logprob_text ? Json(token_text(*context_->tokenizer, id)) : Json(nullptr)});
  }

  Json top(const SampledToken& token) const {
    Json list = Json::array();
    for (const auto& other : token.top) list.push_back(entry(finite_logprob(other.logprob), other.id));
    return list;
  }

  void add_logprobs(Json& meta, const GenerationState& state, const Choice& choice) const {
    Json inputs = Json::array(), input_tops = Json::array(), outputs = Json::array(), output_tops = Json::array();
    const auto& prompt_ids = state.job.prompts[choice.prompt].request.prompt_ids;
    const int32_t start = format_.logprob_start;
    if (start >= 0 && static_cast<size_t>(start) < prompt_ids.size()) {
      inputs.push_back(entry(nullptr, prompt_ids[static_cast<size_t>(start)]));  // nothing judged the first one
      input_tops.push_back(nullptr);
      for (const auto& token : state.prompts[choice.prompt].prompt_logprobs) {
        inputs.push_back(entry(finite_logprob(token.logprob), token.id));
        input_tops.push_back(top(token));
      }
    }
    for (const auto& token : choice.tokens) {
      outputs.push_back(entry(finite_logprob(token.logprob), token.id));
      output_tops.push_back(top(token));
    }
    meta["input_token_logprobs"] = std::move(inputs);
    meta["output_token_logprobs"] = std::move(outputs);
    if (format_.top_logprobs > 0) {
      meta["input_top_logprobs"] = std::move(input_tops);
      meta["output_top_logprobs"] = std::move(output_tops);
    }
  }

  const std::shared_ptr<ApiContext> context_;
  const SglangFormat format_;
};

class WholeSglang final : public Answer {
 public:
  WholeSglang(SglangMeta meta, std::shared_ptr<Exchange> exchange)
      : meta_(std::move(meta)), exchange_(std::move(exchange)) {}

  void complete(const GenerationState& state) override {
    Json list = Json::array();
    for (const auto& choice : state.choices) {
      Json ids = Json::array();
      for (const auto& token : choice.tokens) ids.push_back(token.id);
      Json out;
      out["text"] = choice.content;
      out["output_ids"] = std::move(ids);
      out["meta_info"] = meta_.meta_info(state, choice);
      list.push_back(std::move(out));
    }
    respond_json(*exchange_, meta_.as_list() ? list : list[0]);
  }
  void failed(const Status& status) override { exchange_->respond(error_response(status, ErrorShape::kSglang)); }

 private:
  const SglangMeta meta_;
  const std::shared_ptr<Exchange> exchange_;
};

/// Each event repeats all text and ids so far, so their JSON is kept and only added to.
class SglangStream final : public Answer {
 public:
  SglangStream(SglangMeta meta, std::shared_ptr<Exchange> exchange)
      : meta_(std::move(meta)), events_(std::move(exchange)) {}

  void accepted(const GenerationState& state) override {
    so_far_.resize(state.choices.size());
    events_.begin();
  }

  void progress(const GenerationState& state, const Progress& progress) override {
    const Choice& choice = progress.choice;
    SoFar& so_far = so_far_[static_cast<size_t>(choice.index)];
    for (const auto& timed : progress.events) {
      const std::string quoted = dump_json(Json(timed.event.text));  // whole characters: pieces join
      so_far.text.append(quoted, 1, quoted.size() - 2);
    }
    for (size_t i = progress.first_token; i < choice.tokens.size(); ++i) {
      if (i > 0) so_far.ids += ',';
      so_far.ids += std::to_string(choice.tokens[i].id);
    }
    std::string event;
    event.append("{\"text\":\"").append(so_far.text).append("\",\"output_ids\":[").append(so_far.ids);
    event.append("],\"meta_info\":").append(dump_json(meta_.meta_info(state, choice)));
    if (meta_.as_list()) event.append(",\"index\":").append(std::to_string(choice.index));
    events_.send(event.append("}"));
  }
  void complete(const GenerationState&) override { events_.end(true); }
  void failed(const Status& status) override { events_.fail(status, ErrorShape::kSglang, true); }

 private:
  struct SoFar {
    std::string text;  ///< JSON, without the quotes
    std::string ids;   ///< JSON, without the brackets
  };

  const SglangMeta meta_;
  EventStream events_;
  std::vector<SoFar> so_far_;
};

}  // namespace

Status start_sglang(Call& call, const Json& body) {
  const ApiContext& context = *call.context;
  DSV3_TRY(check_not_draining(context));
  DSV3_ASSIGN(SglangRequest request, parse_sglang(body, context));
  GenerationJob generation;
  generation.id = call.context->ids.hex(32);
  generation.route = call.request.path;
  generation.param = request.prompt_field;
  generation.request_id = call.request.request_id;
  generation.stream = request.stream;
  const SglangFormat& format = request.format;
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    const SamplingFields& sampling = request.sampling[request.sampling.size() > 1 ? i : 0];
    DSV3_ASSIGN(PromptJob job, make_prompt_job(context, sampling, std::move(request.prompts[i].ids),
                                               {request.prompt_field, "sampling_params.max_new_tokens",
                                                "sampling_params.min_new_tokens"}));
    if (format.logprobs) {
      job.request.sampling.num_logprobs = format.top_logprobs;
      job.request.prompt_logprobs_from = format.logprob_start;
    }
    job.request.cache_salt = request.cache_salt;
    job.request.priority = request.priority;
    if (!request.rids.empty()) job.client_rid = request.rids[request.rids.size() > 1 ? i : 0];
    job.text = std::move(request.prompts[i].text);
    generation.prompts.push_back(std::move(job));
  }
  SglangMeta meta(call.context, format);
  std::unique_ptr<Answer> answer;
  if (request.stream) {
    answer = std::make_unique<SglangStream>(std::move(meta), call.exchange);
  } else {
    answer = std::make_unique<WholeSglang>(std::move(meta), call.exchange);
  }
  start_generation(call.context, std::move(generation), std::move(answer), call.exchange);
  return {};
}

}  // namespace dsv3::api
