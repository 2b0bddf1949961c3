#include "transformer.h"

#include <algorithm>

namespace dsv3 {
namespace {

constexpr float kLatentNormEps = 1e-6f;  // the references' class default, whatever rms_norm_eps says (model.md 3)

/// True if the backend computes the shared expert along with the routed ones.
bool includes_shared(const ModelWeights& w) {
  for (const auto& layer : w.layers) {
    if (layer.experts) return layer.experts->includes_shared;
  }
  return w.mtp && w.mtp->layer.experts && w.mtp->layer.experts->includes_shared;
}

GateShape gate_shape(const ModelConfig& c, const ModelWeights& w) {
  return {.experts = c.n_routed_experts,
          .top_k = c.num_experts_per_tok,
          .groups = c.n_group,
          .top_groups = c.topk_group,
          .sigmoid = c.scoring_func == ScoringFunc::kSigmoid,
          .group_by_top2 = c.topk_method == TopkMethod::kNoauxTc,
          .grouped = c.topk_method != TopkMethod::kGreedy,
          .normalise = c.norm_topk_prob,
          .scale_when_normalised = !c.is_v2(),
          .scale = static_cast<float>(c.routed_scaling_factor),
          .shared_id = includes_shared(w) ? c.n_routed_experts : -1};
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const Shard& shard, ModelWeights weights, MtpHidden mtp_hidden,
                         int64_t max_rows, int64_t max_logit_rows, Ops& ops, Group& group)
    : c_(config), shard_(shard), shape_(attention_shape(config, shard)), gate_(gate_shape(config, weights)),
      mtp_hidden_(mtp_hidden), max_logit_rows_(max_logit_rows), w_(std::move(weights)), ops_(ops), group_(group) {
  const int64_t hidden = c_.hidden_size, q_rank = c_.q_lora_rank;
  int64_t width = std::max(shard.count(c_.intermediate_size), shard.count(c_.n_shared_experts * c_.moe_intermediate_size));
  // The widest MLP's rows may not be whole groups of 128; a narrower one's, which has the same buffer, may.
  if (ops.fp8_inputs()) width = (width + 127) / 128 * 128;
  residual_ = ops.alloc("residual", max_rows, hidden, BufferKind::kResidual);
  normed_ = ops.alloc("normed", max_rows, hidden);
  if (ops.fp8_inputs()) normed_fp8_ = ops.alloc("normed_fp8", max_rows, hidden);
  qkv_a_ = ops.alloc("qkv_a", max_rows, q_rank + c_.cache_row());
  if (q_rank > 0) q_latent_ = ops.alloc("q_latent", max_rows, q_rank);
  q_ = ops.alloc("q", max_rows, shape_.heads * (shape_.nope + shape_.rope));
  attention_ = ops.alloc("attention", max_rows, shape_.heads * shape_.v);
  delta_ = ops.alloc("delta", max_rows, hidden);
  gate_up_ = ops.alloc("gate_up", max_rows, 2 * width);
  middle_ = ops.alloc("middle", max_rows, width);
  if (c_.n_routed_experts > 0) {
    router_ = ops.alloc("router", max_rows, c_.n_routed_experts, BufferKind::kFloat);
    expert_ids_ = ops.alloc("expert_ids", max_rows, gate_.columns(), BufferKind::kInt);
    expert_weights_ = ops.alloc("expert_weights", max_rows, gate_.columns(), BufferKind::kFloat);
  }
  hidden_ = ops.alloc("hidden", max_rows, hidden);
  if (w_.mtp) {
    draft_residual_ = ops.alloc("draft_residual", max_rows, hidden, BufferKind::kResidual);
    draft_hidden_ = ops.alloc("draft_hidden", max_rows, hidden);
    draft_source_ = ops.alloc("draft_source", max_rows, hidden);
    draft_concat_ = ops.alloc("draft_concat", max_rows, 2 * hidden);
  }
  logit_input_ = ops.alloc("logit_input", max_logit_rows, hidden);
  local_logits_ = ops.alloc("local_logits", max_logit_rows, shard.count(c_.vocab_size), BufferKind::kFloat);
  logits_ = shard.size == 1 ? local_logits_
                            : ops.alloc("logits", max_logit_rows, c_.vocab_size, BufferKind::kFloat);
}

void Transformer::embed(const Batch& batch, Tensor out) {
  ops_.embed(batch, w_.embedding, w_.first_id, out);
  group_.all_reduce_sum(batch.rows, out);
}

void Transformer::forward(const Batch& batch) {
  embed(batch, residual_);
  Tensor pending{};  // the branch that the next norm adds
  for (size_t i = 0; i < w_.layers.size(); ++i) {
    layer(w_.layers[i], static_cast<int64_t>(i), batch, residual_, pending);
    pending = delta_;
  }
  ops_.add_rms_norm(batch.rows, residual_, pending, w_.final_norm, static_cast<float>(c_.rms_norm_eps), hidden_, {});
}

void Transformer::forward_draft(const Batch& draft, bool first_pass) {
  const MtpWeights& mtp = *w_.mtp;
  const auto eps = static_cast<float>(c_.rms_norm_eps);
  const bool post = mtp_hidden_ == MtpHidden::kPostNorm;
  const Tensor& source = first_pass ? (post ? hidden_ : residual_) : logit_input_;
  ops_.gather_source_rows(draft, source, draft_source_);
  embed(draft, delta_);
  ops_.rms_norm(draft.rows, delta_, mtp.embed_norm, eps, draft_concat_.slice_cols(0, c_.hidden_size), {});
  ops_.rms_norm(draft.rows, draft_source_, mtp.hidden_norm, eps,
                draft_concat_.slice_cols(c_.hidden_size, c_.hidden_size), {});
  ops_.linear(draft.rows, draft_concat_, *mtp.eh_proj, draft_residual_);
  layer(mtp.layer, c_.num_hidden_layers, draft, draft_residual_, {});
  ops_.add_rms_norm(draft.rows, draft_residual_, delta_, mtp.head_norm, eps, draft_hidden_, {});
}

void Transformer::layer(const LayerWeights& w, int64_t cache_layer, const Batch& batch, Tensor residual,
                        Tensor pending) {
  const auto eps = static_cast<float>(c_.rms_norm_eps);
  ops_.add_rms_norm(batch.rows, residual, pending, w.input_norm, eps, normed_, normed_fp8_);
  attention(w, cache_layer, batch);
  ops_.add_rms_norm(batch.rows, residual, delta_, w.post_norm, eps, normed_, normed_fp8_);
  feed_forward(w, batch.rows);
}

void Transformer::attention(const LayerWeights& w, int64_t cache_layer, const Batch& batch) {
  const int64_t q_rank = c_.q_lora_rank;
  ops_.linear(batch.rows, input_of(*w.qkv_a), *w.qkv_a, qkv_a_);
  if (q_rank > 0) {
    ops_.rms_norm(batch.rows, qkv_a_.slice_cols(0, q_rank), w.q_norm, kLatentNormEps, q_latent_,
                  ops_.fp8_inputs() && w.q_b->fp8 ? q_latent_ : Tensor{});
    ops_.linear(batch.rows, q_latent_, *w.q_b, q_);
  } else {
    ops_.linear(batch.rows, input_of(*w.q_b), *w.q_b, q_);
  }
  ops_.rope_and_cache(batch, shape_, cache_layer, q_, qkv_a_.slice_cols(q_rank, c_.cache_row()), w.kv_norm,
                      kLatentNormEps);
  ops_.attention(batch, shape_, cache_layer, *w.kv_b, q_, attention_);
  ops_.quantise(batch.rows, attention_, *w.o);
  ops_.linear(batch.rows, attention_, *w.o, delta_);
  group_.all_reduce_sum(batch.rows, delta_);
}

void Transformer::feed_forward(const LayerWeights& w, int64_t rows) {
  if (w.mlp) mlp(*w.mlp, rows);
  if (w.experts) {
    ops_.linear(rows, normed_, *w.router, router_);
    ops_.route(rows, gate_, router_, w.router_bias, expert_ids_, expert_weights_);
    ops_.experts(rows, normed_, normed_fp8_, *w.experts, expert_ids_, expert_weights_, w.mlp.has_value(), delta_);
  }
  group_.all_reduce_sum(rows, delta_);
}

void Transformer::mlp(const MlpWeights& w, int64_t rows) {
  const Tensor gate_up = gate_up_.slice_cols(0, w.gate_up->out);
  const Tensor middle = middle_.slice_cols(0, w.down->in);
  ops_.linear(rows, input_of(*w.gate_up), *w.gate_up, gate_up);
  ops_.silu_mul(rows, gate_up, *w.down, middle);
  ops_.linear(rows, middle, *w.down, delta_);
}

Tensor Transformer::head(int64_t rows) {
  ops_.linear(rows, logit_input_, *w_.head, local_logits_);
  if (shard_.size > 1) group_.all_gather_cols(rows, local_logits_, logits_);
  return logits_;
}

Tensor Transformer::logits(const Batch& batch) {
  ops_.gather_logit_rows(batch, hidden_, logit_input_);
  return head(batch.num_logit_rows);
}

Tensor Transformer::logits_of(std::span<const int32_t> rows) {
  ops_.gather_rows(hidden_, rows, logit_input_);
  return head(static_cast<int64_t>(rows.size()));
}

Tensor Transformer::draft_logits(const Batch& draft) {
  ops_.gather_logit_rows(draft, draft_hidden_, logit_input_);
  const Tensor result = head(draft.num_logit_rows);
  // The next pass reads these rows: after shared_head.norm, or before it.
  if (mtp_hidden_ == MtpHidden::kPreNorm) ops_.gather_logit_rows(draft, draft_residual_, logit_input_);
  return result;
}

}  // namespace dsv3
