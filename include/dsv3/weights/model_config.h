// config.json of the DeepSeek-V3 family as one checked struct. Field names are the file's (model.md section 1).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"

namespace dsv3 {

enum class ScoringFunc { kSigmoid, kSoftmax };
enum class TopkMethod { kNoauxTc, kGreedy, kGroupLimitedGreedy };

struct RopeScaling {  ///< YaRN; factor 1 means none
  double factor = 1.0;
  int64_t original_max_position_embeddings = 4096;
  double beta_fast = 32.0, beta_slow = 1.0;
  double mscale = 1.0, mscale_all_dim = 0.0;
};

struct ModelConfig {
  std::string model_type;       ///< deepseek_v2, deepseek_v3, kimi_k2
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;      ///< dense MLP width
  int64_t moe_intermediate_size = 0;  ///< one expert's width
  int64_t num_hidden_layers = 0;
  int64_t num_nextn_predict_layers = 0;
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;
  int64_t num_attention_heads = 0;
  int64_t q_lora_rank = 0;  ///< 0: no query compression (one q_proj)
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t n_routed_experts = 0;  ///< 0: every layer is dense
  int64_t n_shared_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t n_group = 1, topk_group = 1;
  ScoringFunc scoring_func = ScoringFunc::kSigmoid;
  TopkMethod topk_method = TopkMethod::kNoauxTc;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1.0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  int64_t max_position_embeddings = 0;
  bool attention_bias = false;
  bool tie_word_embeddings = false;
  int32_t bos_token_id = 0;
  std::vector<int32_t> eos_token_ids;
  std::string torch_dtype;
  bool fp8 = false;               ///< quantization_config says fp8; each tensor's own dtype decides all the same
  bool scale_ue8m0 = false;       ///< quantization_config.scale_fmt == "ue8m0"
  int64_t weight_block = 128;     ///< both edges of a weight scale block

  bool is_v2() const { return model_type == "deepseek_v2"; }
  bool is_moe_layer(int64_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t cache_row() const { return kv_lora_rank + qk_rope_head_dim; }  ///< numbers cached per token and layer
  /// scale of q k^T: qk_head_dim^-0.5 * m^2 with m from mscale_all_dim (model.md 4.5)
  double softmax_scale() const;
  /// factor of cos and sin: getm(mscale) / getm(mscale_all_dim) (model.md 4.5)
  double rope_cos_factor() const;
  /// the qk_rope_head_dim/2 YaRN frequencies, radians per position (model.md 5.2)
  std::vector<double> rope_frequencies() const;
};

/// Parses config.json. `override_json` (may be empty) is an object whose fields replace the file's, as SGLang's
/// --json-model-override-args: a field that is an object is replaced as a whole. Every number has a range; the message names the field, what was seen and what is
/// allowed. Unknown architectures, and DeepSeek-V3.2 in particular, are refused by name.
Result<ModelConfig> parse_model_config(std::string_view config_json, std::string_view override_json = {});
Result<ModelConfig> load_model_config(const std::string& model_dir, std::string_view override_json = {});

/// What generation_config.json recommends; absent fields are negative.
struct GenerationDefaults {
  double temperature = -1, top_p = -1, repetition_penalty = -1;
  int top_k = -1;
  std::vector<int32_t> eos_token_ids;
};
Result<GenerationDefaults> load_generation_defaults(const std::string& model_dir);  ///< all absent without the file

}  // namespace dsv3
