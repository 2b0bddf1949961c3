// See the header. Ranges are those of api.md sections 5.1, 5.2 and 14.1.
#include "sampling_fields.h"

#include <algorithm>
#include <charconv>

#include "dsv3/base/clock.h"
#include "errors.h"

namespace dsv3::api {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxStopIds = 1024;

Status check_stop(const std::string& text, const std::string& path, const ApiContext& context) {
  if (text.empty()) return invalid_value(path, "is an empty string");
  if (text.size() > static_cast<size_t>(context.config.max_stop_bytes)) {
    return invalid_value(path, "has " + std::to_string(text.size()) + " bytes, allowed " +
                                   std::to_string(context.config.max_stop_bytes));
  }
  return {};
}

}  // namespace

SamplingFields default_sampling(const ApiContext& context) {
  SamplingFields out;
  if (!context.config.sampling_defaults_from_model) return out;
  const GenerationDefaults& model = context.config.generation_defaults;
  if (model.temperature >= 0) out.params.temperature = static_cast<float>(model.temperature);
  if (model.top_p > 0) out.params.top_p = static_cast<float>(model.top_p);
  if (model.top_k >= 0) out.params.top_k = model.top_k;
  if (model.repetition_penalty > 0) out.params.repetition_penalty = static_cast<float>(model.repetition_penalty);
  return out;
}

std::vector<std::string> read_stop(FieldReader& reader, std::string_view name, const ApiContext& context) {
  std::vector<std::string> out;
  const Json* value = reader.any(name);
  if (value == nullptr) return out;
  const std::string path = reader.path_of(name);
  if (value->is_string()) {
    out.push_back(value->get<std::string>());
    if (const Status fault = check_stop(out.back(), path, context); !fault.ok()) reader.fail(fault);
    return out;
  }
  if (!value->is_array()) {
    reader.fail(invalid_type(path, "a string or an array of strings", *value));
    return out;
  }
  if (value->size() > static_cast<size_t>(context.config.max_stop_strings)) {
    reader.fail(invalid_value(path, "has " + std::to_string(value->size()) + " entries, allowed " +
                                        std::to_string(context.config.max_stop_strings)));
    return out;
  }
  for (size_t i = 0; i < value->size(); ++i) {
    const Json& entry = (*value)[i];
    const std::string entry_path = path + "[" + std::to_string(i) + "]";
    if (!entry.is_string()) {
      reader.fail(invalid_type(entry_path, "a string", entry));
      return out;
    }
    out.push_back(entry.get<std::string>());
    if (const Status fault = check_stop(out.back(), entry_path, context); !fault.ok()) reader.fail(fault);
  }
  return out;
}

Result<std::vector<int32_t>> to_token_ids(const Json& list, const std::string& path, const ApiContext& context) {
  std::vector<int32_t> out;
  out.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const Json& value = list[i];
    // The path is only built where it is needed: prompts of 100,000 ids pass here.
    if (value.is_number_unsigned() && value.get<uint64_t>() < static_cast<uint64_t>(context.vocab_size)) {
      out.push_back(static_cast<int32_t>(value.get<uint64_t>()));
      continue;
    }
    auto id = to_integer(value, path + "[" + std::to_string(i) + "]", 0, context.vocab_size - 1);
    if (!id.ok()) {
      // OpenAI's vocabulary blames the list, the message says which entry.
      return Status(id.status().code(), id.status().message(), path, id.status().reason());
    }
    out.push_back(static_cast<int32_t>(*id));
  }
  return out;
}

std::vector<int32_t> read_token_ids(FieldReader& reader, std::string_view name, const ApiContext& context) {
  const Json* list = reader.array(name);
  if (list == nullptr) return {};
  if (list->size() > kMaxStopIds) {
    reader.fail(invalid_value(reader.path_of(name), "has " + std::to_string(list->size()) + " entries, allowed " +
                                                        std::to_string(kMaxStopIds)));
    return {};
  }
  auto ids = to_token_ids(*list, reader.path_of(name), context);
  if (ids.ok()) return std::move(ids).value();
  reader.fail(ids.status());
  return {};
}

std::vector<std::pair<int32_t, float>> read_logit_bias(FieldReader& reader, const ApiContext& context) {
  std::vector<std::pair<int32_t, float>> out;
  const Json* map = reader.object("logit_bias");
  if (map == nullptr) return out;
  const std::string path = reader.path_of("logit_bias");
  if (map->size() > static_cast<size_t>(kMaxLogitBias)) {
    reader.fail(invalid_value(path, "has " + std::to_string(map->size()) + " entries, allowed at most " + std::to_string(kMaxLogitBias)));
    return out;
  }
  out.reserve(map->size());
  for (const auto& [key, value] : map->get_ref<const Json::object_t&>()) {
    int32_t id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool canonical = key == "0" || (!key.empty() && key[0] >= '1' && key[0] <= '9');
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || !canonical || id >= context.vocab_size) {
      reader.fail(invalid_value(path, "has the key " + describe(Json(key)) + ", allowed token ids 0 to " +
                                          std::to_string(context.vocab_size - 1)));
      return out;
    }
    const std::string entry_path = path + "." + key;
    if (!value.is_number()) {
      reader.fail(invalid_type(entry_path, "a number", value));
      return out;
    }
    const double bias = value.get<double>();
    if (!(bias >= -100 && bias <= 100)) {
      reader.fail(invalid_value(entry_path, "is " + describe(value) + ", allowed -100 to 100"));
      return out;
    }
    out.emplace_back(id, static_cast<float>(bias));
  }
  std::sort(out.begin(), out.end());
  return out;
}

void read_openai_sampling(FieldReader& reader, const ApiContext& context, SamplingFields& out) {
  SamplingParams& p = out.params;
  if (const auto v = reader.integer("n", 1, context.config.max_n)) out.n = static_cast<int32_t>(*v);
  if (const auto v = reader.integer("seed", std::numeric_limits<int64_t>::min())) out.seed = static_cast<uint64_t>(*v);
  if (const auto v = reader.number("temperature", {0, 2})) p.temperature = static_cast<float>(*v);
  if (const auto v = reader.number("top_p", {0, 1})) {
    p.top_p = static_cast<float>(*v);
    if (!(p.top_p > 0)) {  // the smallest nucleus is the best token
      p.top_p = 1;
      p.temperature = 0;
    }
  }
  if (const auto v = reader.integer("top_k", -1, kMaxInt32)) p.top_k = static_cast<int32_t>(*v);
  if (const auto v = reader.number("min_p", {0, 1})) p.min_p = static_cast<float>(*v);
  if (const auto v = reader.number("repetition_penalty", {0, 2, true})) {
    p.repetition_penalty = std::max(static_cast<float>(*v), std::numeric_limits<float>::min());
  }
  if (const auto v = reader.number("frequency_penalty", {-2, 2})) p.frequency_penalty = static_cast<float>(*v);
  if (const auto v = reader.number("presence_penalty", {-2, 2})) p.presence_penalty = static_cast<float>(*v);
  if (const auto v = reader.integer("min_tokens", 0, kMaxInt32)) p.min_tokens = static_cast<int32_t>(*v);
  p.logit_bias = read_logit_bias(reader, context);
  out.stop = read_stop(reader, "stop", context);
  out.stop_token_ids = read_token_ids(reader, "stop_token_ids", context);
  out.ignore_eos = reader.boolean("ignore_eos").value_or(false);
  out.skip_special_tokens = reader.boolean("skip_special_tokens").value_or(true);
  const bool no_trim = reader.boolean("no_stop_trim").value_or(false);
  out.include_stop = reader.boolean("include_stop_str_in_output").value_or(no_trim);
}

Result<PromptJob> make_prompt_job(const ApiContext& context, const SamplingFields& fields, std::vector<int32_t> ids,
                                  const FieldNames& names) {
  const auto prompt_tokens = static_cast<int64_t>(ids.size());
  if (ids.empty()) return invalid_value(names.prompt, "holds no tokens, at least one is needed");
  const std::string limit = std::to_string(context.context_tokens);
  const int64_t room = context.context_tokens - prompt_tokens;
  if (room < 0 || (room == 0 && fields.max_tokens != 0)) {
    return Status(Code::kContextLength,
                  std::string(names.prompt) + " has " + std::to_string(prompt_tokens) + " tokens, the context is " +
                      limit + " with the output",
                  std::string(names.prompt));
  }
  if (fields.max_tokens.value_or(0) > room) {
    return Status(Code::kContextLength,
                  std::string(names.prompt) + " has " + std::to_string(prompt_tokens) + " tokens and " +
                      std::string(names.max_tokens) + " is " + std::to_string(*fields.max_tokens) +
                      ", the context is " + limit + " for both, so " + std::string(names.max_tokens) +
                      " may be at most " + std::to_string(room),
                  std::string(names.prompt));
  }
  const int64_t max_new_tokens = fields.max_tokens.value_or(room);
  if (fields.params.min_tokens > max_new_tokens) {
    return invalid_value(names.min_tokens, "is " + std::to_string(fields.params.min_tokens) + ", allowed 0 to " +
                                               std::string(names.max_tokens) + ", " + std::to_string(max_new_tokens));
  }

  PromptJob job;
  GenerationRequest& request = job.request;
  request.prompt_ids = std::move(ids);
  request.n = fields.n;
  request.sampling = fields.params;
  request.seed = fields.seed;
  request.max_new_tokens = max_new_tokens;
  if (!fields.ignore_eos) request.stop_ids = context.eos_ids;
  request.stop_ids.insert(request.stop_ids.end(), fields.stop_token_ids.begin(), fields.stop_token_ids.end());
  std::sort(request.stop_ids.begin(), request.stop_ids.end());
  request.stop_ids.erase(std::unique(request.stop_ids.begin(), request.stop_ids.end()), request.stop_ids.end());
  if (request.sampling.min_tokens > 0) request.sampling.suppressed_ids = request.stop_ids;
  if (context.config.request_timeout_us > 0) request.deadline_us = now_us() + context.config.request_timeout_us;
  job.parser.stop = fields.stop;
  job.parser.include_stop = fields.include_stop;
  job.parser.skip_special_tokens = fields.skip_special_tokens;
  return job;
}

}  // namespace dsv3::api
