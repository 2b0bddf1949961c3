// See the header; the tables are api.md 5.1 and 5.2.
#include "openai_fields.h"

#include "errors.h"

namespace dsv3::api {
namespace {

constexpr size_t kMaxIdBytes = 256;
constexpr size_t kMaxSaltBytes = 256;
constexpr char kNoGrammar[] = "constrained decoding is not built into this server";

void read_stream_options(FieldReader& reader, OpenAiFields& out) {
  const Json* options = reader.object("stream_options");
  if (options == nullptr) return;
  FieldReader inner(*options, "stream_options");
  out.include_usage = inner.boolean("include_usage").value_or(false);
  out.continuous_usage = inner.boolean("continuous_usage_stats").value_or(false);
  inner.ignore({"include_obfuscation"});
  if (const Status status = inner.finish(); !status.ok()) reader.fail(status);
}

void read_response_format(FieldReader& reader) {
  const Json* format = reader.object("response_format");
  if (format == nullptr) return;
  FieldReader inner(*format, "response_format");
  inner.require("type");
  const std::string type = inner.string("type").value_or("text");
  if (!inner.ok()) return reader.fail(inner.finish());
  if (type == "text") return;
  if (type == "json_object" || type == "json_schema" || type == "structural_tag") {
    return reader.fail(unsupported_parameter("response_format", kNoGrammar));
  }
  reader.fail(invalid_value("response_format.type",
                            "is " + describe(Json(type)) + ", allowed text, json_object, json_schema"));
}

}  // namespace

void check_model(FieldReader& reader, const ApiContext& context) {
  const auto model = reader.string("model");
  if (!model || context.serves_model(*model)) return;
  reader.fail(context.unknown_model(*model));
}

std::string read_rid(FieldReader& reader) {
  const auto request_id = reader.string("request_id", kMaxIdBytes);
  return reader.string("rid", kMaxIdBytes).value_or(request_id.value_or(""));
}

void refuse_unbuilt_features(FieldReader& reader) {
  reader.refuse({"regex", "ebnf", "json_schema", "structural_tag", "guided_json", "guided_regex", "guided_choice",
                 "guided_grammar", "structured_outputs", "grammar"},
                kNoGrammar);
  reader.refuse({"stop_regex"}, "use stop, or stop_token_ids");
  reader.refuse({"return_hidden_states", "return_routed_experts"}, "hidden states are not returned");
  reader.refuse({"lora_path", "lora_id"}, "adapters are not served");
  reader.refuse({"session_params", "custom_logit_processor", "custom_params"}, "not built into this server");
  // Numbers are values here, 0 included: any bootstrap field asks for a split of prefill and decode.
  reader.refuse({"bootstrap_host", "bootstrap_port", "bootstrap_room"}, "prefill and decode run together here");
}

OpenAiFields read_openai_fields(FieldReader& reader, const ApiContext& context) {
  OpenAiFields out;
  out.sampling = default_sampling(context);
  check_model(reader, context);
  read_openai_sampling(reader, context, out.sampling);
  out.stream = reader.boolean("stream").value_or(false);
  read_stream_options(reader, out);
  read_response_format(reader);
  refuse_unbuilt_features(reader);
  out.rid = read_rid(reader);
  out.cache_salt = reader.string("cache_salt", kMaxSaltBytes).value_or("");
  out.priority = static_cast<int32_t>(reader.integer("priority", -1'000'000, 1'000'000).value_or(0));
  out.return_token_ids = reader.boolean("return_token_ids").value_or(false);
  reader.ignore({"user", "metadata", "store", "safety_identifier", "service_tier", "prompt_cache_key",
                 "prompt_cache_options", "prompt_cache_retention", "verbosity", "prediction", "moderation",
                 "spaces_between_special_tokens", "log_metrics", "data_parallel_rank", "stream_interval"});
  return out;
}

void apply_openai_fields(const OpenAiFields& fields, PromptJob& job) {
  job.request.cache_salt = fields.cache_salt;
  job.request.priority = fields.priority;
  job.client_rid = fields.rid;
}

}  // namespace dsv3::api
