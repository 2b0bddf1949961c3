// See the header.
#include "native_sampling.h"

#include <algorithm>

#include "errors.h"
#include "openai_fields.h"

namespace dsv3::api {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr double kMaxTemperature = 1e6;  // the peers name no bound; float32 does
constexpr char kNoGrammar[] = "constrained decoding is not built into this server";

void read_penalties(FieldReader& reader, NumberRange range, SamplingParams& p) {
  if (const auto v = reader.number("frequency_penalty", range)) p.frequency_penalty = static_cast<float>(*v);
  if (const auto v = reader.number("presence_penalty", range)) p.presence_penalty = static_cast<float>(*v);
}

void read_repetition_penalty(FieldReader& reader, NumberRange range, SamplingParams& p) {
  if (const auto v = reader.number("repetition_penalty", range)) {
    p.repetition_penalty = std::max(static_cast<float>(*v), std::numeric_limits<float>::min());
  }
}

/// LightLLM's stop_sequences: a string, strings, or lists of ids. One id stops by id, several by their text.
void read_stop_sequences(FieldReader& reader, const ApiContext& context, SamplingFields& out) {
  const Json* value = reader.any("stop_sequences");
  if (value == nullptr) return;
  const std::string path = reader.path_of("stop_sequences");
  const bool has_ids = value->is_array() && std::any_of(value->begin(), value->end(),
                                                        [](const Json& entry) { return entry.is_array(); });
  if (!has_ids) {
    out.stop = read_stop(reader, "stop_sequences", context);
    return;
  }
  if (value->size() > static_cast<size_t>(context.config.max_stop_strings)) {
    return reader.fail(invalid_value(path, "has " + std::to_string(value->size()) + " entries, allowed " +
                                               std::to_string(context.config.max_stop_strings)));
  }
  for (size_t i = 0; i < value->size(); ++i) {
    const Json& entry = (*value)[i];
    const std::string entry_path = path + "[" + std::to_string(i) + "]";
    if (entry.is_array()) {
      auto ids = to_token_ids(entry, entry_path, context);
      if (!ids.ok()) return reader.fail(ids.status());
      if (ids->empty()) return reader.fail(invalid_value(entry_path, "is an empty list"));
      if (ids->size() == 1) {
        out.stop_token_ids.push_back(ids->front());
        continue;
      }
      out.stop.push_back(context.tokenizer->decode(*ids, false));
    } else if (entry.is_string()) {
      out.stop.push_back(entry.get<std::string>());
    } else {
      return reader.fail(invalid_type(entry_path, "a string or a list of token ids", entry));
    }
    if (out.stop.back().empty() || out.stop.back().size() > static_cast<size_t>(context.config.max_stop_bytes)) {
      return reader.fail(invalid_value(entry_path, "has " + std::to_string(out.stop.back().size()) +
                                                       " bytes, allowed 1 to " +
                                                       std::to_string(context.config.max_stop_bytes)));
    }
  }
}

}  // namespace

SamplingFields read_sglang_sampling(FieldReader& reader, const ApiContext& context) {
  SamplingFields out = default_sampling(context);
  SamplingParams& p = out.params;
  out.max_tokens = reader.integer("max_new_tokens", 0).value_or(128);
  if (const auto v = reader.number("temperature", {0, kMaxTemperature})) p.temperature = static_cast<float>(*v);
  if (const auto v = reader.number("top_p", {0, 1, true})) {
    p.top_p = std::max(static_cast<float>(*v), std::numeric_limits<float>::min());
  }
  if (const auto v = reader.integer("top_k", -1, kMaxInt32)) p.top_k = static_cast<int32_t>(*v);
  if (const auto v = reader.number("min_p", {0, 1})) p.min_p = static_cast<float>(*v);
  read_penalties(reader, {-2, 2}, p);
  read_repetition_penalty(reader, {0, 2, true}, p);
  if (const auto v = reader.integer("min_new_tokens", 0, kMaxInt32)) p.min_tokens = static_cast<int32_t>(*v);
  if (const auto v = reader.integer("n", 1, context.config.max_n)) out.n = static_cast<int32_t>(*v);
  if (const auto v = reader.integer("sampling_seed", std::numeric_limits<int64_t>::min())) {
    out.seed = static_cast<uint64_t>(*v);
  }
  out.stop = read_stop(reader, "stop", context);
  out.stop_token_ids = read_token_ids(reader, "stop_token_ids", context);
  p.logit_bias = read_logit_bias(reader, context);
  out.ignore_eos = reader.boolean("ignore_eos").value_or(false);
  out.skip_special_tokens = reader.boolean("skip_special_tokens").value_or(true);
  out.include_stop = reader.boolean("no_stop_trim").value_or(false);
  refuse_unbuilt_features(reader);
  reader.ignore({"spaces_between_special_tokens", "stream_interval"});
  return out;
}

SamplingFields read_lmdeploy_sampling(FieldReader& reader, const ApiContext& context) {
  SamplingFields out = default_sampling(context);
  SamplingParams& p = out.params;
  out.max_tokens = reader.integer("max_tokens", 0).value_or(128);
  if (const auto v = reader.number("temperature", {0, 2})) p.temperature = static_cast<float>(*v);
  if (const auto v = reader.number("top_p", {0, 1, true})) {
    p.top_p = std::max(static_cast<float>(*v), std::numeric_limits<float>::min());
  }
  if (const auto v = reader.integer("top_k", 0, kMaxInt32)) p.top_k = static_cast<int32_t>(*v);
  if (const auto v = reader.number("min_p", {0, 1})) p.min_p = static_cast<float>(*v);
  read_repetition_penalty(reader, {0, 2, true}, p);
  out.stop = read_stop(reader, "stop", context);
  out.stop_token_ids = read_token_ids(reader, "stop_token_ids", context);
  out.ignore_eos = reader.boolean("ignore_eos").value_or(false);
  out.skip_special_tokens = reader.boolean("skip_special_tokens").value_or(true);
  out.include_stop = reader.boolean("include_stop_str_in_output").value_or(false);
  refuse_unbuilt_features(reader);
  reader.ignore({"spaces_between_special_tokens"});
  return out;
}

SamplingFields read_lightllm_sampling(FieldReader& reader, const ApiContext& context) {
  SamplingFields out;
  SamplingParams& p = out.params;
  const bool do_sample = reader.boolean("do_sample").value_or(false);
  const auto temperature = reader.number("temperature", {0, kMaxTemperature});
  p.temperature = do_sample ? static_cast<float>(temperature.value_or(1.0)) : 0.0f;
  if (const auto v = reader.number("top_p", {0, 1, true})) {
    p.top_p = std::max(static_cast<float>(*v), std::numeric_limits<float>::min());
  }
  if (const auto v = reader.integer("top_k", -1, kMaxInt32)) p.top_k = static_cast<int32_t>(*v);
  read_penalties(reader, {0, 2}, p);
  read_repetition_penalty(reader, {1, 100}, p);
  (void)reader.number("exponential_decay_length_penalty", {1, 1});
  out.max_tokens = reader.integer("max_new_tokens", 1).value_or(16);
  // 1, the default, asks for nothing: an answer of only EOS is one token long.
  const int64_t min_tokens = reader.integer("min_new_tokens", 1, kMaxInt32).value_or(1);
  p.min_tokens = min_tokens > 1 ? static_cast<int32_t>(min_tokens) : 0;
  out.n = static_cast<int32_t>(reader.integer("n", 1, context.config.max_n).value_or(1));
  if (const auto best_of = reader.integer("best_of", 1); best_of && *best_of != out.n) {
    reader.fail(unsupported_parameter(reader.path_of("best_of"), "only the value of n is"));
  }
  read_stop_sequences(reader, context, out);
  out.ignore_eos = reader.boolean("ignore_eos").value_or(false);
  out.skip_special_tokens = reader.boolean("skip_special_tokens").value_or(true);
  out.include_stop = reader.boolean("print_eos_token").value_or(false);
  reader.refuse({"regular_constraint", "guided_grammar", "guided_json", "allowed_token_ids"}, kNoGrammar);
  reader.refuse({"input_penalty"}, "penalties count over the output");
  reader.ignore({"add_spaces_between_special_tokens"});
  return out;
}

}  // namespace dsv3::api
