// The network, written once over Ops: decoder layers, final norm and logits, and the MTP module. Runs on its rank's
// thread; all ranks of the group call the same functions with the same batches.
#pragma once

#include <span>

#include "dsv3/kernels/ops.h"
#include "dsv3/model/model_executor.h"
#include "dsv3/parallel/group.h"
#include "model_weights.h"

namespace dsv3 {

class Transformer {
 public:
  Transformer(const ModelConfig& config, const Shard& shard, ModelWeights weights, MtpHidden mtp_hidden,
              int64_t max_rows, int64_t max_logit_rows, Ops& ops, Group& group);

  /// All layers over the batch. Hidden states stay inside until the next forward().
  void forward(const Batch& batch);

  /// The MTP layer over a draft batch; its hidden states come from forward() (first pass) or from the pass before.
  void forward_draft(const Batch& draft, bool first_pass);

  /// Float32 logits [rows, vocab] of the batch's logit rows of the last forward() / forward_draft(), or of given rows of
  /// forward(). At most max_logit_rows. Valid until the next call.
  Tensor logits(const Batch& batch);
  Tensor logits_of(std::span<const int32_t> rows);
  Tensor draft_logits(const Batch& draft);

  int64_t max_logit_rows() const { return max_logit_rows_; }

 private:
  void embed(const Batch& batch, Tensor out);
  /// residual += the layer's two branches, the last of which is left in delta_ for the next norm to add.
  void layer(const LayerWeights& w, int64_t cache_layer, const Batch& batch, Tensor residual, Tensor pending);
  void attention(const LayerWeights& w, int64_t cache_layer, const Batch& batch);
  void feed_forward(const LayerWeights& w, int64_t rows);
  void mlp(const MlpWeights& w, int64_t rows);
  Tensor head(int64_t rows);
  /// What a linear with weight `w` reads of the last norm.
  const Tensor& input_of(const Linear& w) const { return ops_.fp8_inputs() && w.fp8 ? normed_fp8_ : normed_; }

  const ModelConfig c_;
  const Shard shard_;
  const AttentionShape shape_;
  const GateShape gate_;
  const MtpHidden mtp_hidden_;
  const int64_t max_logit_rows_;
  ModelWeights w_;
  Ops& ops_;
  Group& group_;

  // Activations; T = max_rows, H = hidden size, R = q_lora_rank, h = heads of this rank.
  Tensor residual_;                     // [T, H]
  Tensor normed_, normed_fp8_;          // [T, H]
  Tensor qkv_a_;                        // [T, R + latent + rope]
  Tensor q_latent_;                     // [T, R]
  Tensor q_;                            // [T, h * (nope + rope)]
  Tensor attention_;                    // [T, h * v]
  Tensor delta_;                        // [T, H] a branch's output, not yet added to the residual
  Tensor gate_up_, middle_;             // [T, 2 * width], [T, width] of the widest MLP
  Tensor router_, expert_ids_, expert_weights_;  // [T, experts], [T, top_k (and the shared one)] twice
  Tensor hidden_;                       // [T, H] after the final norm
  Tensor draft_residual_, draft_hidden_, draft_source_;  // [T, H] of the MTP layer
  Tensor draft_concat_;                 // [T, 2H]
  Tensor logit_input_;                  // [L, H], L = max_logit_rows
  Tensor local_logits_, logits_;        // [L, vocab / ranks], [L, vocab]
};

}  // namespace dsv3
