// config.json and generation_config.json to checked structs. Every field has a range; the first fault is reported.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "config_fields.h"
#include "dsv3/base/json.h"
#include "dsv3/weights/model_config.h"
#include "files.h"
#include "text.h"

namespace dsv3 {
namespace {

using weights::Fields;

constexpr size_t kMaxConfigBytes = 4u << 20;
constexpr JsonLimits kConfigLimits{.max_depth = 32, .max_bytes = kMaxConfigBytes, .max_values = 1'000'000};
constexpr int64_t kMaxPositions = int64_t{1} << 24;
constexpr int64_t kMaxExpertsOfAllLayers = 131072;
constexpr char kServed[] = "DeepSeek-V2, V2.5, V2-Lite, V3, V3-0324, V3.1, R1, R1-0528, Moonlight and Kimi-K2 are";

Status bad(std::string message) {
  return {Code::kBadModelFile, std::move(message)};
}

Result<Json> parse_object(std::string_view text, const std::string& where, Code code = Code::kBadModelFile) {
  auto json = parse_json(text, kConfigLimits);
  if (!json.ok()) return Status(code, where + ": " + json.status().message());
  if (!json->is_object())
    return Status(code, where + ": an object is wanted, this is " + std::string(json->type_name()));
  return std::move(json).value();
}

/// Each field of `overrides` replaces the config's, objects as a whole. `rope_scaling` and `rope_parameters` are two
/// spellings of one thing, so that either replaces the other.
void apply_overrides(Json overrides, Json* config) {
  const auto drop = [&](const char* given, const char* other) {
    if (!overrides.contains(given) || overrides.contains(other) || !config->contains(other)) return;
    // rope_parameters may have held the base, which an override of the scaling does not mean to lose.
    const Json& old = (*config)[other];
    if (old.is_object() && old.contains("rope_theta") && !config->contains("rope_theta")) {
      (*config)["rope_theta"] = Json(old["rope_theta"]);
    }
    config->erase(other);
  };
  drop("rope_scaling", "rope_parameters");
  drop("rope_parameters", "rope_scaling");
  for (auto& [name, value] : overrides.items()) (*config)[name] = std::move(value);
}

/// Refuses every network that is not ours, by its name.
void check_architecture(Fields& fields, ModelConfig* config) {
  config->model_type = fields.text("model_type", "");
  std::string architecture;
  if (const Json* list = fields.get("architectures"); list != nullptr) {
    if (!list->is_array() || list->size() != 1 || !(*list)[0].is_string()) {
      fields.refuse("architectures", "a list of one name is wanted");
      return;
    }
    architecture = (*list)[0].get<std::string>();
  }
  const bool v32 = config->model_type == "deepseek_v32" || architecture.starts_with("DeepseekV32");
  for (const char* indexer : {"index_topk", "index_n_heads", "index_head_dim"}) {
    if (!v32 && fields.get(indexer) == nullptr) continue;
    fields.fault(v32 ? "model_type" : indexer,
                 std::string("DeepSeek-V3.2 (") + (v32 ? "model_type deepseek_v32" : indexer) +
                     ", sparse attention with an indexer) is not supported; " + kServed,
                 Code::kUnsupported);
    return;
  }
  if (config->model_type.empty()) {
    if (architecture == "DeepseekV3ForCausalLM") config->model_type = "deepseek_v3";
    if (architecture == "DeepseekV2ForCausalLM") config->model_type = "deepseek_v2";
  }
  const auto is_one_of = [](const std::string& text, std::initializer_list<const char*> names) {
    return std::find(names.begin(), names.end(), text) != names.end();
  };
  if (!architecture.empty() &&
      !is_one_of(architecture, {"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "KimiK2ForCausalLM"})) {
    fields.fault("architectures", "architecture " + weights::in_quotes(architecture) + " is not supported; " + kServed,
                 Code::kUnsupported);
  }
  if (config->model_type.empty()) fields.refuse("model_type", "a string is wanted");
  if (!is_one_of(config->model_type, {"deepseek_v2", "deepseek_v3", "kimi_k2"})) {
    fields.fault("model_type", "model_type " + weights::in_quotes(config->model_type) + " is not supported; " + kServed,
                 Code::kUnsupported);
  }
}

void parse_sizes(Fields& fields, ModelConfig* c) {
  c->vocab_size = fields.integer("vocab_size", 1, 1 << 24);
  c->hidden_size = fields.integer("hidden_size", 1, 1 << 17);
  c->intermediate_size = fields.integer("intermediate_size", 1, 1 << 20);
  c->num_hidden_layers = fields.integer("num_hidden_layers", 1, 512);
  c->num_nextn_predict_layers = fields.integer("num_nextn_predict_layers", 0, 16, 0);
  c->max_position_embeddings = fields.integer("max_position_embeddings", 1, kMaxPositions);
  c->rms_norm_eps = fields.number("rms_norm_eps", 1e-12, 0.1, 1e-6);
  c->tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  c->torch_dtype = fields.text(fields.get("torch_dtype") != nullptr ? "torch_dtype" : "dtype", "");
  c->bos_token_id = static_cast<int32_t>(fields.integer("bos_token_id", 0, c->vocab_size - 1, 0));
  c->eos_token_ids = fields.token_ids("eos_token_id", c->vocab_size, {});
  if (fields.text("hidden_act", "silu") != "silu")
    fields.refuse("hidden_act", "only \"silu\" is built", Code::kUnsupported);
}

void parse_attention(Fields& fields, ModelConfig* c) {
  c->num_attention_heads = fields.integer("num_attention_heads", 1, 4096);
  c->q_lora_rank = fields.integer("q_lora_rank", 0, 1 << 16, 0);
  c->kv_lora_rank = fields.integer("kv_lora_rank", 1, 1 << 16);
  c->qk_nope_head_dim = fields.integer("qk_nope_head_dim", 1, 4096);
  c->qk_rope_head_dim = fields.integer("qk_rope_head_dim", 2, 4096);
  c->v_head_dim = fields.integer("v_head_dim", 1, 4096);
  if (c->qk_rope_head_dim % 2 != 0) fields.refuse("qk_rope_head_dim", "an even number is wanted");
  if (fields.integer("num_key_value_heads", 1, 4096, c->num_attention_heads) != c->num_attention_heads) {
    fields.refuse("num_key_value_heads",
                  "MLA wants it equal to num_attention_heads, " + std::to_string(c->num_attention_heads));
  }
  c->attention_bias = fields.boolean("attention_bias", false);
  if (c->attention_bias) fields.refuse("attention_bias", "only false is built", Code::kUnsupported);
  if (!fields.boolean("rope_interleave", true)) {
    fields.refuse("rope_interleave", "only true (pairs as DeepSeek stores them) is built", Code::kUnsupported);
  }
}

void parse_experts(Fields& fields, ModelConfig* c) {
  c->n_routed_experts = fields.integer("n_routed_experts", 0, 4096, 0);
  if (c->n_routed_experts == 0) return;
  c->moe_intermediate_size = fields.integer("moe_intermediate_size", 1, 1 << 20);
  c->n_shared_experts = fields.integer("n_shared_experts", 0, 64, 0);
  c->num_experts_per_tok = fields.integer("num_experts_per_tok", 1, 256);
  c->first_k_dense_replace = fields.integer("first_k_dense_replace", 0, c->num_hidden_layers, 0);
  c->moe_layer_freq = fields.integer("moe_layer_freq", 1, 512, 1);
  c->n_group = fields.integer("n_group", 1, c->n_routed_experts, 1);
  c->topk_group = fields.integer("topk_group", 1, c->n_group, 1);
  c->norm_topk_prob = fields.boolean("norm_topk_prob", !c->is_v2());
  // Whoever leaves it out of a V3 means 2.5 or 1.0, depending on where the file came from: ask.
  c->routed_scaling_factor =
      fields.number("routed_scaling_factor", 1e-6, 1e6, c->is_v2() ? std::optional<double>(1.0) : std::nullopt);
  const std::string scoring = fields.text("scoring_func", c->is_v2() ? "softmax" : "sigmoid");
  c->scoring_func = scoring == "softmax" ? ScoringFunc::kSoftmax : ScoringFunc::kSigmoid;
  if (scoring != "softmax" && scoring != "sigmoid") fields.refuse("scoring_func", "allowed \"sigmoid\" or \"softmax\"");
  const std::string method = fields.text("topk_method", c->is_v2() ? "greedy" : "noaux_tc");
  c->topk_method = method == "greedy"                 ? TopkMethod::kGreedy
                   : method == "group_limited_greedy" ? TopkMethod::kGroupLimitedGreedy
                                                      : TopkMethod::kNoauxTc;
  if (c->topk_method == TopkMethod::kNoauxTc && method != "noaux_tc") {
    fields.refuse("topk_method", "allowed \"noaux_tc\", \"group_limited_greedy\" or \"greedy\"");
  }
  if (!fields.status().ok()) return;

  const int64_t group_size = c->n_routed_experts / c->n_group;
  if (c->n_routed_experts % c->n_group != 0) {
    fields.refuse("n_group", "it must divide n_routed_experts, " + std::to_string(c->n_routed_experts));
  }
  if (c->topk_method == TopkMethod::kNoauxTc && c->n_group > 1 && group_size < 2) {
    fields.refuse("n_group", "noaux_tc scores a group by its two best experts, so that " +
                                 std::to_string(c->n_routed_experts) + " experts allow at most " +
                                 std::to_string(c->n_routed_experts / 2) + " groups");
  }
  const bool grouped = c->topk_method != TopkMethod::kGreedy;
  const int64_t choice = grouped ? group_size * c->topk_group : c->n_routed_experts;
  if (c->num_experts_per_tok > choice) {
    fields.refuse("num_experts_per_tok", "allowed 1 to " + std::to_string(choice) + ", the experts to choose from" +
                                             (grouped ? " in topk_group groups" : ""));
  }
  // Bounds the list of tensors that a config can call for.
  const int64_t all = c->n_routed_experts * (c->num_hidden_layers + c->num_nextn_predict_layers);
  if (all > kMaxExpertsOfAllLayers) {
    fields.refuse("n_routed_experts", "with num_hidden_layers " + std::to_string(c->num_hidden_layers) + " these are " +
                                          std::to_string(all) + " experts, allowed " +
                                          std::to_string(kMaxExpertsOfAllLayers));
  }
}

/// One of the spellings: rope_scaling with `type` or `rope_type`, rope_parameters with the base inside.
Status parse_rope_object(const Json& object, const std::string& where, const std::string& name, ModelConfig* c) {
  Fields fields(object, where, name + ".");
  const char* const type_name = fields.get("rope_type") != nullptr ? "rope_type" : "type";
  const std::string type = fields.text(type_name, "");
  c->rope_theta = fields.number("rope_theta", 2.0, 1e12, c->rope_theta);
  if (type == "yarn" || type == "deepseek_yarn") {
    RopeScaling& yarn = c->rope_scaling;
    yarn.factor = fields.number("factor", 1.0, 1e4);
    yarn.original_max_position_embeddings = fields.integer("original_max_position_embeddings", 1, kMaxPositions, 4096);
    yarn.beta_fast = fields.number("beta_fast", 1e-6, 1e6, 32.0);
    yarn.beta_slow = fields.number("beta_slow", 1e-6, 1e6, 1.0);
    yarn.mscale = fields.number("mscale", 0.0, 100.0, 1.0);
    yarn.mscale_all_dim = fields.number("mscale_all_dim", 0.0, 100.0, 0.0);
    if (yarn.beta_fast < yarn.beta_slow) {
      fields.refuse("beta_fast", "it must not be less than beta_slow, " + weights::number_text(yarn.beta_slow));
    }
  } else if (type == "default" || (type.empty() && fields.get("factor") == nullptr)) {
    c->rope_scaling = {};
  } else {
    fields.refuse(type_name, "only \"yarn\" and \"default\" are built",
                  type.empty() ? Code::kBadModelFile : Code::kUnsupported);
  }
  return fields.status();
}

Status parse_rope(Fields& fields, const std::string& where, ModelConfig* c) {
  c->rope_theta = fields.number("rope_theta", 2.0, 1e12, 10000.0);
  const Json* const scaling = fields.object("rope_scaling");
  const Json* const parameters = fields.object("rope_parameters");
  if (scaling != nullptr) DSV3_TRY(parse_rope_object(*scaling, where, "rope_scaling", c));
  if (parameters == nullptr) return {};
  ModelConfig other = *c;
  other.rope_scaling = {};
  DSV3_TRY(parse_rope_object(*parameters, where, "rope_parameters", &other));
  const RopeScaling &a = c->rope_scaling, &b = other.rope_scaling;
  const bool same = a.factor == b.factor && a.original_max_position_embeddings == b.original_max_position_embeddings &&
                    a.beta_fast == b.beta_fast && a.beta_slow == b.beta_slow && a.mscale == b.mscale &&
                    a.mscale_all_dim == b.mscale_all_dim;
  if (scaling != nullptr && !same) {
    return bad(where + ": rope_scaling and rope_parameters say different things; leave one out");
  }
  *c = std::move(other);
  return {};
}

Status parse_quantization(Fields& fields, const std::string& where, ModelConfig* c) {
  constexpr char kAllowed[] =
      "not supported yet; served are \"fp8\" in blocks of 128 x 128 and unquantized checkpoints";
  if (fields.get("compression_config") != nullptr) {
    return Status(Code::kUnsupported, where + ": compression_config (compressed-tensors) is " + kAllowed,
                  "compression_config");
  }
  const Json* const object = fields.object("quantization_config");
  if (object == nullptr) return {};
  Fields quant(*object, where, "quantization_config.");
  const std::string method = quant.text("quant_method", "");
  if (method != "fp8") {
    quant.refuse("quant_method", kAllowed, method.empty() ? Code::kBadModelFile : Code::kUnsupported);
    return quant.status();
  }
  c->fp8 = true;
  if (quant.text("fmt", "e4m3") != "e4m3") quant.refuse("fmt", "only \"e4m3\" is built", Code::kUnsupported);
  if (quant.text("activation_scheme", "dynamic") != "dynamic") {
    quant.refuse("activation_scheme", "only \"dynamic\" is built", Code::kUnsupported);
  }
  const std::string scale_format = quant.text("scale_fmt", "float");
  c->scale_ue8m0 = scale_format == "ue8m0";
  if (!c->scale_ue8m0 && scale_format != "float") quant.refuse("scale_fmt", "allowed \"ue8m0\" or \"float\"");
  const Json* const block = quant.get("weight_block_size");
  if (block == nullptr || *block != Json::array({128, 128})) {
    quant.refuse("weight_block_size", "only [128, 128] is built",
                 block != nullptr && !block->is_array() ? Code::kBadModelFile : Code::kUnsupported);
  }
  return quant.status();
}

}  // namespace

Result<ModelConfig> parse_model_config(std::string_view config_json, std::string_view override_json) {
  std::string where = "config.json";
  DSV3_ASSIGN(Json json, parse_object(config_json, where));
  if (!override_json.empty()) {
    DSV3_ASSIGN(Json overrides, parse_object(override_json, "--json-model-override-args", Code::kInvalidArgument));
    where += " with --json-model-override-args";
    apply_overrides(std::move(overrides), &json);
  }
  ModelConfig config;
  Fields fields(json, where);
  check_architecture(fields, &config);
  DSV3_TRY(fields.status());
  parse_sizes(fields, &config);
  DSV3_TRY(fields.status());
  parse_attention(fields, &config);
  DSV3_TRY(fields.status());
  parse_experts(fields, &config);
  DSV3_TRY(fields.status());
  DSV3_TRY(parse_rope(fields, where, &config));
  DSV3_TRY(fields.status());
  DSV3_TRY(parse_quantization(fields, where, &config));
  DSV3_TRY(fields.status());
  return config;
}

Result<ModelConfig> load_model_config(const std::string& model_dir, std::string_view override_json) {
  const auto text = weights::read_small_file(model_dir + "/config.json", kMaxConfigBytes);
  if (!text.ok()) return Status(text.status().code(), "model folder " + model_dir + ": " + text.status().message());
  auto config = parse_model_config(*text, override_json);
  if (config.ok()) return config;
  const Status& status = config.status();
  return Status(status.code(), model_dir + "/" + status.message(), status.param(), status.reason());
}

Result<GenerationDefaults> load_generation_defaults(const std::string& model_dir) {
  const std::string path = model_dir + "/generation_config.json";
  const auto text = weights::read_small_file(path, kMaxConfigBytes);
  GenerationDefaults defaults;
  if (text.status().code() == Code::kNotFound) return defaults;
  if (!text.ok()) return text.status();
  DSV3_ASSIGN(const Json json, parse_object(*text, path));
  Fields fields(json, path);
  defaults.temperature = fields.number("temperature", 0.0, 100.0, -1.0);
  defaults.top_p = fields.number("top_p", 0.0, 1.0, -1.0);
  defaults.repetition_penalty = fields.number("repetition_penalty", 0.0, 100.0, -1.0);
  defaults.top_k = static_cast<int>(fields.integer("top_k", -1, INT32_MAX, -1));
  defaults.eos_token_ids = fields.token_ids("eos_token_id", INT32_MAX, {});
  DSV3_TRY(fields.status());
  return defaults;
}

}  // namespace dsv3
