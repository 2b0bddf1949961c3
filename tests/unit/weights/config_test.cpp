#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint_files.h"
#include "dsv3/weights/model_config.h"

namespace dsv3 {
namespace {

using test::parsed;
using test::small_config;
using testing::HasSubstr;
using testing::Not;

const std::string kV3 =
    R"({"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
  "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
  "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1,
  "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
  "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
  "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
  "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                          "weight_block_size": [128, 128]},
  "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
  "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000,
  "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false, "topk_group": 4,
  "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": true, "v_head_dim": 128, "vocab_size": 129280})";

/// V3 with other numbers; null removes a field.
std::string v3_with(const std::string& patch) {
  Json config = Json::parse(kV3);
  config.merge_patch(Json::parse(patch));
  return config.dump();
}

std::string v2_lite() {
  return v3_with(R"({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400,
    "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
    "intermediate_size": 10944, "first_k_dense_replace": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1, "scoring_func": "softmax",
    "topk_method": "greedy", "norm_topk_prob": false, "routed_scaling_factor": 1.0, "q_lora_rank": null,
    "rope_scaling": {"mscale": 0.707, "mscale_all_dim": 0.707}, "bos_token_id": 100000, "eos_token_id": 100001,
    "num_nextn_predict_layers": null, "quantization_config": null})");
}

std::string moonlight() {
  return v3_with(R"({"vocab_size": 163840, "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "intermediate_size": 11264, "first_k_dense_replace": 1, "n_routed_experts": 64,
    "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 2.446, "q_lora_rank": null, "rope_scaling": null, "rope_theta": 50000.0,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "num_nextn_predict_layers": 0, "bos_token_id": 163584,
    "eos_token_id": 163586, "quantization_config": null})");
}

std::string kimi_k2() {
  return v3_with(
      R"({"model_type": "kimi_k2", "vocab_size": 163840, "num_attention_heads": 64, "num_key_value_heads": 64,
    "first_k_dense_replace": 1, "n_routed_experts": 384, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
    "rope_theta": 50000.0, "rope_scaling": {"factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0},
    "num_nextn_predict_layers": 0, "bos_token_id": 163584, "eos_token_id": [163585, 163586]})");
}

std::string message_of(const std::string& json) {
  const auto config = parse_model_config(json);
  EXPECT_FALSE(config.ok()) << json;
  EXPECT_TRUE(config.status().code() == Code::kBadModelFile || config.status().code() == Code::kUnsupported);
  EXPECT_THAT(config.status().message(), Not(HasSubstr("\n")));
  EXPECT_LT(config.status().message().size(), 400u);
  return config.status().message();
}

TEST(ModelConfig, ReadsDeepSeekV3) {
  const ModelConfig c = parsed(kV3);
  EXPECT_EQ(c.model_type, "deepseek_v3");
  EXPECT_EQ(c.vocab_size, 129280);
  EXPECT_EQ(c.hidden_size, 7168);
  EXPECT_EQ(c.num_hidden_layers, 61);
  EXPECT_EQ(c.num_nextn_predict_layers, 1);
  EXPECT_EQ(c.n_group, 8);
  EXPECT_EQ(c.topk_group, 4);
  EXPECT_EQ(c.scoring_func, ScoringFunc::kSigmoid);
  EXPECT_EQ(c.topk_method, TopkMethod::kNoauxTc);
  EXPECT_EQ(c.eos_token_ids, std::vector<int32_t>{1});
  EXPECT_TRUE(c.fp8);
  EXPECT_FALSE(c.scale_ue8m0);
  EXPECT_FALSE(c.is_moe_layer(2));
  EXPECT_TRUE(c.is_moe_layer(3));
  EXPECT_EQ(c.cache_row(), 576);
  EXPECT_EQ(c.torch_dtype, "bfloat16");
  EXPECT_TRUE(parsed(v3_with(R"({"quantization_config": {"scale_fmt": "ue8m0"}})")).scale_ue8m0);
}

TEST(ModelConfig, ReadsTheOthersOfTheFamily) {
  const ModelConfig lite = parsed(v2_lite());
  EXPECT_TRUE(lite.is_v2());
  EXPECT_EQ(lite.q_lora_rank, 0);
  EXPECT_EQ(lite.num_nextn_predict_layers, 0);
  EXPECT_EQ(lite.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_EQ(lite.topk_method, TopkMethod::kGreedy);
  EXPECT_FALSE(lite.fp8);
  EXPECT_EQ(lite.bos_token_id, 100000);

  const ModelConfig v2 = parsed(v3_with(R"({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "n_routed_experts": 160, "n_group": 8, "topk_group": 3, "num_experts_per_tok": 6, "scoring_func": "softmax",
    "topk_method": "group_limited_greedy", "norm_topk_prob": false, "routed_scaling_factor": 16.0})"));
  EXPECT_EQ(v2.topk_method, TopkMethod::kGroupLimitedGreedy);
  EXPECT_EQ(v2.routed_scaling_factor, 16.0);

  const ModelConfig moon = parsed(moonlight());
  EXPECT_EQ(moon.rope_scaling.factor, 1.0);
  EXPECT_EQ(moon.rms_norm_eps, 1e-5);
  EXPECT_EQ(moon.n_shared_experts, 2);

  const ModelConfig kimi = parsed(kimi_k2());
  EXPECT_EQ(kimi.model_type, "kimi_k2");
  EXPECT_EQ(kimi.eos_token_ids, (std::vector<int32_t>{163585, 163586}));
}

TEST(ModelConfig, ReadsTheTinyModel) {
  const auto config = load_model_config(DSV3_TEST_DATA "/dsv3-tiny");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->hidden_size, 384);
  EXPECT_EQ(config->rope_scaling.factor, 4.0);
  EXPECT_EQ(config->rope_scaling.original_max_position_embeddings, 2048);
}

TEST(ModelConfig, SoftmaxScaleAsPublished) {
  EXPECT_NEAR(parsed(kV3).softmax_scale(), 0.1352337788608801, 1e-15);
  EXPECT_NEAR(parsed(v2_lite()).softmax_scale(), 0.1147213867929261, 1e-15);
  EXPECT_NEAR(parsed(kimi_k2()).softmax_scale(), 0.1308607999629501, 1e-15);
  EXPECT_NEAR(parsed(v3_with(R"({"rope_scaling": {"factor": 64}})")).softmax_scale(), 0.14467962580268925, 1e-15);
  EXPECT_NEAR(parsed(moonlight()).softmax_scale(), 0.0721687836487032, 1e-15);
}

TEST(ModelConfig, CosFactorIsTheQuotientOfTheTemperatures) {
  for (const auto& config : {kV3, v2_lite(), moonlight(), kimi_k2()}) EXPECT_EQ(parsed(config).rope_cos_factor(), 1.0);
  const ModelConfig only_mscale = parsed(v3_with(R"({"rope_scaling": {"mscale_all_dim": 0}})"));
  EXPECT_NEAR(only_mscale.rope_cos_factor(), 1.3688879454113936, 1e-15);
  EXPECT_NEAR(only_mscale.softmax_scale(), 1.0 / std::sqrt(192.0), 1e-15);
}

TEST(ModelConfig, FrequenciesAsPublished) {
  const auto f = parsed(kV3).rope_frequencies();
  ASSERT_EQ(f.size(), 32u);
  EXPECT_EQ(f[0], 1.0);
  EXPECT_NEAR(f[1], 0.7498942093, 1e-10);
  EXPECT_NEAR(f[10], 0.0562341325, 1e-10);
  EXPECT_NEAR(f[11], 0.0390069266, 1e-10);
  EXPECT_NEAR(f[16], 0.0055, 1e-10);
  EXPECT_NEAR(f[22], 0.0001778279, 1e-10);
  EXPECT_NEAR(f[23], 3.3338036e-5, 1e-12);
  EXPECT_NEAR(f[31], 3.3338036e-6, 1e-13);
  const auto plain = parsed(moonlight()).rope_frequencies();
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_NEAR(plain[i], std::pow(50000.0, -2.0 * double(i) / 64), 1e-15);
  // beta_fast = beta_slow: the ramp is one pair wide.
  for (const double value : parsed(kimi_k2()).rope_frequencies()) EXPECT_TRUE(std::isfinite(value));
}

TEST(ModelConfig, AcceptsEverySpellingOfYarn) {
  const auto want = parsed(kV3).rope_frequencies();
  Json config = Json::parse(kV3);
  Json yarn = config["rope_scaling"];
  yarn.erase("type");
  yarn["rope_type"] = "yarn";
  config["rope_scaling"] = yarn;
  EXPECT_EQ(parsed(config.dump()).rope_frequencies(), want);
  config.erase("rope_scaling");
  config.erase("rope_theta");
  yarn["rope_theta"] = 10000.0;
  config["rope_parameters"] = yarn;
  EXPECT_EQ(parsed(config.dump()).rope_frequencies(), want);
  config["rope_parameters"]["rope_theta"] = 50000.0;
  EXPECT_EQ(parsed(config.dump()).rope_theta, 50000.0);
  config["rope_scaling"] = yarn;
  config["rope_scaling"]["factor"] = 20;
  EXPECT_THAT(message_of(config.dump()), HasSubstr("rope_scaling and rope_parameters say different things"));
  EXPECT_EQ(parsed(v3_with(R"({"rope_scaling": null, "rope_parameters": {"rope_type": "default", "rope_theta": 7}})"))
                .rope_scaling.factor,
            1.0);
}

TEST(ModelConfig, RefusesOtherNetworksByName) {
  EXPECT_THAT(message_of(v3_with(R"({"model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"]})")),
              HasSubstr("DeepSeek-V3.2"));
  EXPECT_THAT(message_of(v3_with(R"({"index_topk": 2048})")), HasSubstr("DeepSeek-V3.2"));
  EXPECT_THAT(message_of(v3_with(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})")),
              testing::AllOf(HasSubstr("\"LlamaForCausalLM\" is not supported"), HasSubstr("DeepSeek-V2")));
  EXPECT_THAT(message_of(v3_with(R"({"model_type": "qwen3"})")), HasSubstr("model_type \"qwen3\" is not supported"));
  EXPECT_THAT(message_of(v3_with(R"({"architectures": [], "model_type": null})")), HasSubstr("architectures"));
  EXPECT_THAT(message_of("{}"), HasSubstr("model_type is missing"));
  EXPECT_THAT(message_of(v3_with(R"({"attention_bias": true})")), HasSubstr("attention_bias is true"));
  EXPECT_THAT(message_of(v3_with(R"({"hidden_act": "gelu"})")), HasSubstr("hidden_act is \"gelu\""));
  EXPECT_THAT(message_of(v3_with(R"({"rope_interleave": false})")), HasSubstr("rope_interleave is false"));
  EXPECT_THAT(message_of(v3_with(R"({"rope_scaling": {"type": "linear"}})")),
              HasSubstr("rope_scaling.type is \"linear\""));
}

TEST(ModelConfig, RefusesOtherQuantizationByName) {
  for (const char* method : {"awq", "blockwise_int8", "w8a8_int8", "gptq", "compressed-tensors", "mxfp4"}) {
    const auto config =
        parse_model_config(v3_with(R"({"quantization_config": {"quant_method": ")" + std::string(method) + "\"}}"));
    ASSERT_FALSE(config.ok());
    EXPECT_EQ(config.status().code(), Code::kUnsupported);
    EXPECT_THAT(config.status().message(),
                HasSubstr("quant_method is \"" + std::string(method) + "\", not supported yet"));
  }
  EXPECT_THAT(message_of(v3_with(R"({"quantization_config": {"weight_block_size": [64, 128]}})")),
              HasSubstr("weight_block_size is [64,128], only [128, 128]"));
  EXPECT_THAT(message_of(v3_with(R"({"quantization_config": {"weight_block_size": null}})")), HasSubstr("missing"));
  EXPECT_THAT(message_of(v3_with(R"({"quantization_config": {"activation_scheme": "static"}})")), HasSubstr("static"));
  EXPECT_THAT(message_of(v3_with(R"({"quantization_config": {"fmt": "e5m2"}})")), HasSubstr("e5m2"));
  EXPECT_THAT(message_of(v3_with(R"({"compression_config": {"x": 1}})")), HasSubstr("compression_config"));
}

// Every numeric field against every number that has no business there: no crash, one line, the field named.
TEST(ModelConfig, EveryNumberHasARange) {
  const std::vector<std::string> evil = {
      "0",   "-1", "2147483648", "9223372036854775808", "18446744073709551616", "1e308", "-1e308", "1.5", "\"7\"",
      "[1]", "{}", "true"};
  const Json base = Json::parse(kV3);
  const std::set<std::string> ignored = {"attention_dropout", "ep_size", "initializer_range"};
  const std::set<std::string> zero_is_fine = {"first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers",
                                              "q_lora_rank",           "n_routed_experts", "bos_token_id",
                                              "eos_token_id"};
  const std::set<std::string> fraction_is_fine = {
      "rope_theta", "routed_scaling_factor", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"};
  int refused = 0;
  const auto attack = [&](const Json& config, const std::string& name, const std::string& number) {
    const auto result = parse_model_config(config.dump());
    if (number == "0" && (zero_is_fine.contains(name) || name.starts_with("mscale"))) return;
    if (number == "1.5" && fraction_is_fine.contains(name)) return;
    if (number == "[1]" && name == "eos_token_id") return;
    if (number == "2147483648" && name == "rope_theta") return;  // bases of that size are in use
    ASSERT_FALSE(result.ok()) << name << " = " << number;
    const std::string& message = result.status().message();
    EXPECT_THAT(message, HasSubstr(name)) << number;
    EXPECT_THAT(message, Not(HasSubstr("\n")));
    EXPECT_THAT(message, testing::AnyOf(HasSubstr("allowed"), HasSubstr("wants"), HasSubstr("must"))) << number;
    ++refused;
  };
  for (const auto& [name, value] : base.items()) {
    if (!value.is_number() || ignored.contains(name)) continue;
    for (const auto& number : evil) {
      Json config = base;
      config[name] = Json::parse(number);
      attack(config, name, number);
    }
  }
  for (const auto& [name, value] : base["rope_scaling"].items()) {
    if (!value.is_number()) continue;
    for (const auto& number : evil) {
      Json config = base;
      config["rope_scaling"][name] = Json::parse(number);
      attack(config, name, number);
    }
  }
  EXPECT_GT(refused, 300);
}

TEST(ModelConfig, NamesWhatIsMissing) {
  for (const char* name :
       {"vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
        "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "num_experts_per_tok", "max_position_embeddings", "routed_scaling_factor"}) {
    EXPECT_THAT(message_of(v3_with("{\"" + std::string(name) + "\": null}")),
                HasSubstr(std::string(name) + " is missing"));
  }
  EXPECT_EQ(message_of(v3_with(R"({"hidden_size": -1})")), "config.json: hidden_size is -1, allowed 1 to 131072");
  EXPECT_EQ(message_of(v3_with(R"({"hidden_size": "a\nb"})")),
            "config.json: hidden_size is \"a\\nb\", an integer is wanted, allowed 1 to 131072");
}

TEST(ModelConfig, ChecksThatNumbersFitEachOther) {
  EXPECT_THAT(message_of(v3_with(R"({"topk_group": 9})")), HasSubstr("topk_group is 9, allowed 1 to 8"));
  EXPECT_THAT(message_of(v3_with(R"({"n_group": 7})")),
              HasSubstr("n_group is 7, it must divide n_routed_experts, 256"));
  EXPECT_THAT(message_of(v3_with(R"({"n_group": 256, "topk_group": 8})")), HasSubstr("at most 128 groups"));
  EXPECT_THAT(message_of(v3_with(R"({"num_experts_per_tok": 129})")),
              HasSubstr("num_experts_per_tok is 129, allowed 1 to 128"));
  EXPECT_THAT(message_of(v3_with(R"({"qk_rope_head_dim": 63})")), HasSubstr("even"));
  EXPECT_THAT(message_of(v3_with(R"({"num_key_value_heads": 8})")), HasSubstr("num_key_value_heads is 8"));
  EXPECT_THAT(message_of(v3_with(R"({"first_k_dense_replace": 62})")), HasSubstr("allowed 0 to 61"));
  EXPECT_THAT(message_of(v3_with(R"({"n_routed_experts": 4096, "n_group": 1, "topk_group": 1})")),
              HasSubstr("allowed 131072"));
  EXPECT_THAT(message_of(v3_with(R"({"eos_token_id": [1, 129280]})")), HasSubstr("allowed 0 to 129279"));
  EXPECT_THAT(message_of(v3_with(R"({"rope_scaling": {"beta_fast": 0.5}})")), HasSubstr("beta_fast"));
  EXPECT_THAT(message_of(v3_with(R"({"scoring_func": "relu"})")), HasSubstr("scoring_func"));
  EXPECT_THAT(message_of(v3_with(R"({"topk_method": "best"})")), HasSubstr("topk_method"));
}

TEST(ModelConfig, RefusesWhatIsNoJsonObject) {
  for (const char* text : {"", "[]", "null", "{\"a\":1,\"a\":2}", "{\"a\":", "\xff", "{}x"}) message_of(text);
  EXPECT_FALSE(parse_model_config(std::string(5u << 20, ' ')).ok());
}

TEST(ModelConfig, OverridesReplaceFieldsAndObjectsAsAWhole) {
  const auto config =
      parse_model_config(kV3, R"({"num_hidden_layers": 4, "rope_scaling": {"type": "yarn", "factor": 8}})");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->num_hidden_layers, 4);
  EXPECT_EQ(config->rope_scaling.factor, 8.0);
  EXPECT_EQ(config->rope_scaling.mscale_all_dim, 0.0);  // the file's 1.0 went with the file's object
  const auto none = parse_model_config(kV3, R"({"rope_scaling": null})");
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->rope_scaling.factor, 1.0);
  const auto bad = parse_model_config(kV3, R"({"hidden_size": 0})");
  ASSERT_FALSE(bad.ok());
  EXPECT_THAT(bad.status().message(), HasSubstr("config.json with --json-model-override-args: hidden_size is 0"));
  EXPECT_EQ(parse_model_config(kV3, "[1]").status().code(), Code::kInvalidArgument);
  // The other spelling in the file does not survive, but the base inside it does.
  const std::string newer = v3_with(R"({"rope_scaling": null, "rope_theta": null,
    "rope_parameters": {"rope_type": "yarn", "factor": 40, "rope_theta": 50000}})");
  const auto other = parse_model_config(newer, R"({"rope_scaling": {"type": "yarn", "factor": 2}})");
  ASSERT_TRUE(other.ok()) << other.status().message();
  EXPECT_EQ(other->rope_scaling.factor, 2.0);
  EXPECT_EQ(other->rope_theta, 50000.0);
}

TEST(LoadModelConfig, NamesTheFile) {
  test::TempFolder folder;
  EXPECT_EQ(load_model_config(folder.path()).status().code(), Code::kNotFound);
  folder.write("config.json", small_config(R"({"hidden_size": 0})"));
  EXPECT_THAT(load_model_config(folder.path()).status().message(),
              HasSubstr(folder.path() + "/config.json: hidden_size is 0"));
  folder.write("config.json", small_config());
  EXPECT_TRUE(load_model_config(folder.path()).ok());
}

TEST(GenerationDefaults, ReadsRangesAndAbsence) {
  test::TempFolder folder;
  const auto absent = load_generation_defaults(folder.path());
  ASSERT_TRUE(absent.ok());
  EXPECT_LT(absent->temperature, 0);
  EXPECT_LT(absent->top_k, 0);
  const auto tiny = load_generation_defaults(DSV3_TEST_DATA "/dsv3-tiny");
  ASSERT_TRUE(tiny.ok());
  EXPECT_EQ(tiny->temperature, 0.6);
  EXPECT_EQ(tiny->top_p, 0.95);
  EXPECT_LT(tiny->repetition_penalty, 0);
  EXPECT_EQ(tiny->eos_token_ids, std::vector<int32_t>{1});
  folder.write("generation_config.json", R"({"temperature": -1})");
  const auto bad = load_generation_defaults(folder.path());
  ASSERT_FALSE(bad.ok());
  EXPECT_THAT(bad.status().message(), HasSubstr("temperature is -1, allowed 0 to 100"));
  for (const char* text : {R"({"top_p": 1.5})", R"({"top_k": -2})", R"({"eos_token_id": "x"})", "[]", "{"}) {
    folder.write("generation_config.json", text);
    EXPECT_EQ(load_generation_defaults(folder.path()).status().code(), Code::kBadModelFile) << text;
  }
}

}  // namespace
}  // namespace dsv3
