#include "model_weights.h"

#include <algorithm>
#include <string>

namespace dsv3 {
namespace {

/// Slices of one or more tensors, stacked by rows.
class SliceReader final : public MatrixReader {
 public:
  struct Part {
    std::string name;
    Slice slice;
  };
  SliceReader(const WeightSource& source, std::vector<Part> parts) : source_(source), parts_(std::move(parts)) {}

  int64_t rows() const override {
    int64_t rows = 0;
    for (const auto& part : parts_) rows += part.slice.rows();
    return rows;
  }
  int64_t cols() const override { return parts_.front().slice.cols(); }
  bool is_fp8() const override {
    for (const auto& part : parts_) {
      const TensorInfo* info = source_.find(part.name);
      if (info == nullptr || info->dtype != DType::kF8E4M3) return false;
    }
    return true;
  }
  Status read_f32(float* out) const override {
    for (const auto& part : parts_) {
      DSV3_TRY(source_.read_f32(part.name, part.slice, out));
      out += part.slice.rows() * part.slice.cols();
    }
    return {};
  }

  bool has_whole_blocks() const override {
    const auto on_block = [](int64_t n) { return n % kScaleBlock == 0; };
    for (size_t i = 0; i < parts_.size(); ++i) {
      const Slice& s = parts_[i].slice;
      if (!on_block(s.row_begin) || !on_block(s.col_begin) || !on_block(s.cols())) return false;
      if (i + 1 < parts_.size() && !on_block(s.rows())) return false;
    }
    return true;
  }

  Status read_fp8(int64_t begin, int64_t end, uint8_t* out) const override {
    return for_rows(begin, end, [&](const Part& part, const Slice& slice) {
      DSV3_TRY(source_.read_raw(part.name, slice, out));
      out += slice.rows() * slice.cols();
      return Status();
    });
  }

  Status read_scales(float* out) const override {
    for (const auto& part : parts_) {
      const Slice& s = part.slice;
      const auto up = [](int64_t n) { return (n + kScaleBlock - 1) / kScaleBlock; };
      const Slice grid{s.row_begin / kScaleBlock, up(s.row_end), s.col_begin / kScaleBlock, up(s.col_end)};
      DSV3_TRY(source_.read_f32(part.name + "_scale_inv", grid, out));
      out += grid.rows() * grid.cols();
    }
    return {};
  }

  Status read_bf16(int64_t begin, int64_t end, uint16_t* out) const override {
    std::vector<float> wide;
    return for_rows(begin, end, [&](const Part& part, const Slice& slice) {
      const auto count = static_cast<size_t>(slice.rows() * slice.cols());
      const TensorInfo* info = source_.find(part.name);
      if (info != nullptr && info->dtype == DType::kBF16) {
        DSV3_TRY(source_.read_raw(part.name, slice, out));
      } else {
        wide.resize(count);
        DSV3_TRY(source_.read_f32(part.name, slice, wide.data()));
        for (size_t i = 0; i < count; ++i) out[i] = f32_to_bf16(wide[i]);
      }
      out += count;
      return Status();
    });
  }

  std::unique_ptr<MatrixReader> clone() const override { return std::make_unique<SliceReader>(source_, parts_); }

 private:
  static constexpr int64_t kScaleBlock = 128;

  /// body(part, the slice of it that rows [begin, end) of the stack cover), in order.
  template <class Body>
  Status for_rows(int64_t begin, int64_t end, Body&& body) const {
    int64_t first = 0;
    for (const auto& part : parts_) {
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, part.slice.rows());
      first += part.slice.rows();
      if (from >= to) continue;
      Slice slice = part.slice;
      slice.row_end = slice.row_begin + to;
      slice.row_begin += from;
      DSV3_TRY(body(part, slice));
    }
    return {};
  }

  const WeightSource& source_;
  std::vector<Part> parts_;
};

class Loader {
 public:
  Loader(const ModelConfig& config, const WeightSource& source, const Shard& shard, Ops& ops)
      : c_(config), source_(source), shard_(shard), ops_(ops) {}

  Result<ModelWeights> load(bool with_mtp) {
    ModelWeights w;
    const int64_t hidden = c_.hidden_size;
    w.first_id = shard_.begin(c_.vocab_size);
    const Slice ids{shard_.begin(c_.vocab_size), shard_.end(c_.vocab_size), 0, hidden};
    const std::string embedding = "model.embed_tokens.weight";
    DSV3_ASSIGN(w.embedding, ops_.load_table(reader(embedding, ids)));
    DSV3_ASSIGN(w.head, ops_.load_linear(reader(c_.tie_word_embeddings ? embedding : "lm_head.weight", ids)));
    DSV3_ASSIGN(w.final_norm, vector("model.norm.weight", hidden));
    for (int64_t i = 0; i < c_.num_hidden_layers; ++i) {
      DSV3_ASSIGN(auto layer, load_layer(i, c_.is_moe_layer(i)));
      w.layers.push_back(std::move(layer));
    }
    if (with_mtp) {
      const int64_t i = c_.num_hidden_layers;
      const std::string prefix = "model.layers." + std::to_string(i) + ".";
      MtpWeights& mtp = w.mtp.emplace();
      DSV3_ASSIGN(mtp.embed_norm, vector(prefix + "enorm.weight", hidden));
      DSV3_ASSIGN(mtp.hidden_norm, vector(prefix + "hnorm.weight", hidden));
      DSV3_ASSIGN(mtp.head_norm, vector(prefix + "shared_head.norm.weight", hidden));
      DSV3_ASSIGN(mtp.eh_proj, ops_.load_linear(reader(prefix + "eh_proj.weight", {0, hidden, 0, 2 * hidden})));
      DSV3_ASSIGN(mtp.layer, load_layer(i, c_.n_routed_experts > 0));
    }
    return w;
  }

 private:
  SliceReader reader(const std::string& name, const Slice& slice) const { return {source_, {{name, slice}}}; }
  Result<Tensor> vector(const std::string& name, int64_t n) { return ops_.load_vector(reader(name, {0, 1, 0, n})); }

  Result<LayerWeights> load_layer(int64_t index, bool moe) {
    LayerWeights w;
    const std::string prefix = "model.layers." + std::to_string(index) + ".";
    const std::string attn = prefix + "self_attn.";
    const int64_t hidden = c_.hidden_size, heads = c_.num_attention_heads;
    const Shard& s = shard_;
    DSV3_ASSIGN(w.input_norm, vector(prefix + "input_layernorm.weight", hidden));
    DSV3_ASSIGN(w.post_norm, vector(prefix + "post_attention_layernorm.weight", hidden));

    std::vector<SliceReader::Part> qkv_a;
    if (c_.q_lora_rank > 0) {
      qkv_a.push_back({attn + "q_a_proj.weight", {0, c_.q_lora_rank, 0, hidden}});
      DSV3_ASSIGN(w.q_norm, vector(attn + "q_a_layernorm.weight", c_.q_lora_rank));
    }
    qkv_a.push_back({attn + "kv_a_proj_with_mqa.weight", {0, c_.cache_row(), 0, hidden}});
    DSV3_ASSIGN(w.qkv_a, ops_.load_linear(SliceReader(source_, std::move(qkv_a))));
    DSV3_ASSIGN(w.kv_norm, vector(attn + "kv_a_layernorm.weight", c_.kv_lora_rank));

    const int64_t qk = c_.qk_head_dim(), kv = c_.qk_nope_head_dim + c_.v_head_dim;
    DSV3_ASSIGN(w.q_b, ops_.load_linear(reader(attn + (c_.q_lora_rank > 0 ? "q_b_proj.weight" : "q_proj.weight"),
                                               {s.begin(heads) * qk, s.end(heads) * qk, 0,
                                                c_.q_lora_rank > 0 ? c_.q_lora_rank : hidden})));
    DSV3_ASSIGN(w.kv_b, ops_.load_kv_projection(reader(attn + "kv_b_proj.weight", {s.begin(heads) * kv,
                                                                                   s.end(heads) * kv, 0,
                                                                                   c_.kv_lora_rank}),
                                                attention_shape(c_, s)));
    DSV3_ASSIGN(w.o, ops_.load_linear(reader(attn + "o_proj.weight", {0, hidden, s.begin(heads) * c_.v_head_dim,
                                                                      s.end(heads) * c_.v_head_dim})));
    const std::string mlp = prefix + "mlp.";
    if (!moe) {
      DSV3_ASSIGN(w.mlp, load_mlp(mlp, c_.intermediate_size));
      return w;
    }
    DSV3_ASSIGN(w.router, ops_.load_linear(reader(mlp + "gate.weight", {0, c_.n_routed_experts, 0, hidden})));
    if (c_.topk_method == TopkMethod::kNoauxTc) {
      DSV3_ASSIGN(w.router_bias, vector(mlp + "gate.e_score_correction_bias", c_.n_routed_experts));
    }
    ExpertReaders readers;
    readers.top_k = c_.num_experts_per_tok;
    for (int64_t e = 0; e < c_.n_routed_experts; ++e) {
      const std::string expert = mlp + "experts." + std::to_string(e) + ".";
      readers.gate_up.push_back(gate_up_reader(expert, c_.moe_intermediate_size));
      readers.down.push_back(down_reader(expert, c_.moe_intermediate_size));
    }
    if (c_.n_shared_experts == 1) {
      readers.shared_gate_up = gate_up_reader(mlp + "shared_experts.", c_.moe_intermediate_size);
      readers.shared_down = down_reader(mlp + "shared_experts.", c_.moe_intermediate_size);
    }
    DSV3_ASSIGN(w.experts, ops_.load_experts(readers));
    if (c_.n_shared_experts > 0 && !w.experts->includes_shared) {
      DSV3_ASSIGN(w.mlp, load_mlp(mlp + "shared_experts.", c_.n_shared_experts * c_.moe_intermediate_size));
    }
    return w;
  }

  std::unique_ptr<MatrixReader> gate_up_reader(const std::string& prefix, int64_t width) const {
    const Slice rows{shard_.begin(width), shard_.end(width), 0, c_.hidden_size};
    return std::make_unique<SliceReader>(
        source_, std::vector<SliceReader::Part>{{prefix + "gate_proj.weight", rows}, {prefix + "up_proj.weight", rows}});
  }
  std::unique_ptr<MatrixReader> down_reader(const std::string& prefix, int64_t width) const {
    return std::make_unique<SliceReader>(
        source_, std::vector<SliceReader::Part>{
                     {prefix + "down_proj.weight", {0, c_.hidden_size, shard_.begin(width), shard_.end(width)}}});
  }

  Result<MlpWeights> load_mlp(const std::string& prefix, int64_t width) {
    MlpWeights mlp;
    DSV3_ASSIGN(mlp.gate_up, ops_.load_linear(*gate_up_reader(prefix, width)));
    DSV3_ASSIGN(mlp.down, ops_.load_linear(*down_reader(prefix, width)));
    return mlp;
  }

  const ModelConfig& c_;
  const WeightSource& source_;
  const Shard& shard_;
  Ops& ops_;
};

}  // namespace

AttentionShape attention_shape(const ModelConfig& config, const Shard& shard) {
  return {.heads = shard.count(config.num_attention_heads),
          .nope = config.qk_nope_head_dim,
          .rope = config.qk_rope_head_dim,
          .v = config.v_head_dim,
          .latent = config.kv_lora_rank,
          .softmax_scale = static_cast<float>(config.softmax_scale()),
          .rope_cos_factor = static_cast<float>(config.rope_cos_factor()),
          .rope_frequencies = config.rope_frequencies()};
}

Result<ModelWeights> load_weights(const ModelConfig& config, const WeightSource& source, const Shard& shard,
                                  bool with_mtp, Ops& ops) {
  return Loader(config, source, shard, ops).load(with_mtp);
}

}  // namespace dsv3
