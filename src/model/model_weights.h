// One rank's weights: the slices of every layer, prepared by its Ops. Knows names and shapes of tensors (model.md 2),
// nothing about arithmetic.
#pragma once

#include <optional>
#include <vector>

#include "dsv3/kernels/ops.h"
#include "dsv3/weights/model_config.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3 {

/// This rank's part of every dimension that tensor parallelism cuts.
struct Shard {
  int rank = 0, size = 1;
  int64_t begin(int64_t n) const { return n * rank / size; }
  int64_t end(int64_t n) const { return n * (rank + 1) / size; }
  int64_t count(int64_t n) const { return end(n) - begin(n); }
};

struct MlpWeights {      // width = this rank's part of the intermediate size
  LinearPtr gate_up;     // [2 * width, H]
  LinearPtr down;        // [H, width]
};

struct LayerWeights {
  Tensor input_norm, post_norm;  // [1, H]
  LinearPtr qkv_a;               // [q_rank + latent + rope, H]; without q compression [latent + rope, H]
  Tensor q_norm, kv_norm;        // [1, q_rank], [1, latent]
  LinearPtr q_b;                 // [heads * qk, q_rank]; without q compression [heads * qk, H]
  KvProjectionPtr kv_b;
  LinearPtr o;                   // [H, heads * v]
  std::optional<MlpWeights> mlp;     // dense layers: the MLP; MoE layers: the shared experts, if `experts` does not include them
  LinearPtr router;                  // [experts, H]; null in dense layers
  Tensor router_bias;                // [1, experts]; no data without one
  ExpertsPtr experts;
};

struct MtpWeights {
  Tensor embed_norm, hidden_norm;  // [1, H]
  LinearPtr eh_proj;               // [H, 2H], the embedding's half first
  LayerWeights layer;
  Tensor head_norm;                // [1, H]
};

struct ModelWeights {
  Tensor embedding;          // [this rank's ids, H]
  int64_t first_id = 0;
  std::vector<LayerWeights> layers;
  Tensor final_norm;         // [1, H]
  LinearPtr head;            // [this rank's ids, H]
  std::optional<MtpWeights> mtp;
};

AttentionShape attention_shape(const ModelConfig& config, const Shard& shard);

Result<ModelWeights> load_weights(const ModelConfig& config, const WeightSource& source, const Shard& shard,
                                  bool with_mtp, Ops& ops);

}  // namespace dsv3
