// Which tensors a config calls for: names and shapes of model.md 2.1.
#include <string>

#include "dsv3/weights/weight_source.h"

namespace dsv3 {
namespace {

class Lister {
 public:
  explicit Lister(const ModelConfig& config) : c_(config) {}

  std::vector<ExpectedTensor> run() {
    add("model.embed_tokens.weight", {c_.vocab_size, c_.hidden_size});
    const int64_t layers = c_.num_hidden_layers + c_.num_nextn_predict_layers;
    for (int64_t i = 0; i < layers; ++i) {
      mtp_ = i >= c_.num_hidden_layers;
      layer(i);
    }
    mtp_ = false;
    add("model.norm.weight", {c_.hidden_size});
    // A tied head is the embedding under a second name; what a file stores as lm_head is not looked at.
    add("lm_head.weight", {c_.vocab_size, c_.hidden_size});
    if (c_.tie_word_embeddings) out_.back().shared_with = "model.embed_tokens.weight";
    return std::move(out_);
  }

 private:
  void add(std::string name, std::vector<int64_t> shape, bool quantizable = false) {
    out_.push_back({std::move(name), std::move(shape), quantizable, mtp_, {}});
  }
  void linear(const std::string& name, int64_t rows, int64_t cols) { add(name + ".weight", {rows, cols}, true); }

  void layer(int64_t i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    if (mtp_) {
      add(prefix + "embed_tokens.weight", {c_.vocab_size, c_.hidden_size});
      out_.back().shared_with = "model.embed_tokens.weight";
      add(prefix + "enorm.weight", {c_.hidden_size});
      add(prefix + "hnorm.weight", {c_.hidden_size});
      add(prefix + "eh_proj.weight", {c_.hidden_size, 2 * c_.hidden_size});
    }
    add(prefix + "input_layernorm.weight", {c_.hidden_size});
    attention(prefix + "self_attn.");
    add(prefix + "post_attention_layernorm.weight", {c_.hidden_size});
    // An MTP module is a MoE layer whatever moe_layer_freq says.
    if (mtp_ ? c_.n_routed_experts > 0 : c_.is_moe_layer(i)) {
      experts(prefix + "mlp.");
    } else {
      mlp(prefix + "mlp.", c_.intermediate_size);
    }
    if (mtp_) {
      add(prefix + "shared_head.norm.weight", {c_.hidden_size});
      add(prefix + "shared_head.head.weight", {c_.vocab_size, c_.hidden_size});
      out_.back().shared_with = c_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    }
  }

  void attention(const std::string& prefix) {
    const int64_t heads = c_.num_attention_heads;
    if (c_.q_lora_rank > 0) {
      linear(prefix + "q_a_proj", c_.q_lora_rank, c_.hidden_size);
      add(prefix + "q_a_layernorm.weight", {c_.q_lora_rank});
      linear(prefix + "q_b_proj", heads * c_.qk_head_dim(), c_.q_lora_rank);
    } else {
      linear(prefix + "q_proj", heads * c_.qk_head_dim(), c_.hidden_size);
    }
    linear(prefix + "kv_a_proj_with_mqa", c_.cache_row(), c_.hidden_size);
    add(prefix + "kv_a_layernorm.weight", {c_.kv_lora_rank});
    linear(prefix + "kv_b_proj", heads * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank);
    linear(prefix + "o_proj", c_.hidden_size, heads * c_.v_head_dim);
  }

  void mlp(const std::string& prefix, int64_t width) {
    linear(prefix + "gate_proj", width, c_.hidden_size);
    linear(prefix + "up_proj", width, c_.hidden_size);
    linear(prefix + "down_proj", c_.hidden_size, width);
  }

  void experts(const std::string& prefix) {
    add(prefix + "gate.weight", {c_.n_routed_experts, c_.hidden_size});
    if (c_.topk_method == TopkMethod::kNoauxTc) add(prefix + "gate.e_score_correction_bias", {c_.n_routed_experts});
    for (int64_t e = 0; e < c_.n_routed_experts; ++e) {
      mlp(prefix + "experts." + std::to_string(e) + ".", c_.moe_intermediate_size);
    }
    if (c_.n_shared_experts > 0) mlp(prefix + "shared_experts.", c_.moe_intermediate_size * c_.n_shared_experts);
  }

  const ModelConfig& c_;
  bool mtp_ = false;
  std::vector<ExpectedTensor> out_;
};

}  // namespace

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config) {
  return Lister(config).run();
}

}  // namespace dsv3
