#include "layer_limits.h"

#include <algorithm>
#include <cmath>

namespace dsv3 {
namespace {

class Parts {
 public:
  explicit Parts(const DeviceRoofs& roofs) : roofs_(roofs) {}

  /// y[rows, n] = x[rows, k] W^T with FP8 weights (times `count` of them read, rows * uses multiplied).
  void fp8(double rows, double n, double k, double weights_read = 1, double uses = 1) {
    add(weights_read * n * k + rows * uses * (k + 2 * n), 2 * rows * uses * n * k / roofs_.fp8_flop_per_us);
  }
  void bf16(double rows, double n, double k, double weight_bytes) {
    add(weight_bytes + rows * 2 * (k + n), 2 * rows * n * k / roofs_.bf16_flop_per_us);
  }
  void bytes_and_flop(double bytes, double flop) { add(bytes, flop / roofs_.bf16_flop_per_us); }
  double us() const { return us_; }

 private:
  void add(double bytes, double compute_us) { us_ += std::max(bytes / roofs_.hbm_bytes_per_us, compute_us); }
  const DeviceRoofs& roofs_;
  double us_ = 0;
};

}  // namespace

LayerLimit layer_limit(const ModelConfig& c, bool moe, int64_t rows, int64_t context, bool prefill, const DeviceRoofs& roofs) {
  const auto m = static_cast<double>(rows), h = static_cast<double>(c.hidden_size), heads = static_cast<double>(c.num_attention_heads);
  const auto rank = static_cast<double>(c.q_lora_rank), row = static_cast<double>(c.cache_row()), latent = static_cast<double>(c.kv_lora_rank);
  const auto qk = static_cast<double>(c.qk_head_dim()), v = static_cast<double>(c.v_head_dim), nope = static_cast<double>(c.qk_nope_head_dim);
  Parts attention(roofs);
  if (rank > 0) {
    attention.fp8(m, rank + row, h);
    attention.fp8(m, heads * qk, rank);
  } else {
    attention.fp8(m, row, h);
    attention.fp8(m, heads * qk, h);
  }
  if (prefill) {
    attention.bf16(m, heads * (nope + v), latent, heads * (nope + v) * latent * 2);
    attention.bytes_and_flop(m * heads * (2 * qk + 2 * v) * 2, heads * m * m * (qk + v));  // causal: half of the square, 2 operations each
  } else {
    attention.bf16(m, heads * latent, nope, heads * nope * latent * 2);
    attention.bytes_and_flop(m * static_cast<double>(context) * row * 2, m * static_cast<double>(context) * heads * 2 * (row + latent));
    attention.bf16(m, heads * v, latent, heads * v * latent * 2);
  }
  attention.fp8(m, h, heads * v);

  Parts mlp(roofs);
  if (!moe) {
    mlp.fp8(m, 2 * static_cast<double>(c.intermediate_size), h);
    mlp.fp8(m, h, static_cast<double>(c.intermediate_size));
  } else {
    const auto experts = static_cast<double>(c.n_routed_experts), k = static_cast<double>(c.num_experts_per_tok);
    const auto width = static_cast<double>(c.moe_intermediate_size), shared = width * static_cast<double>(c.n_shared_experts);
    const double hit = experts * (1 - std::pow(1 - k / experts, m));
    mlp.bf16(m, experts, h, experts * h * 2);
    mlp.fp8(m, 2 * width, h, hit, k);
    mlp.fp8(m, h, width, hit, k);
    if (shared > 0) {
      mlp.fp8(m, 2 * shared, h);
      mlp.fp8(m, h, shared);
    }
  }
  return {attention.us(), mlp.us()};
}

double head_limit_us(const ModelConfig& c, int64_t logit_rows, const DeviceRoofs& roofs) {
  Parts head(roofs);
  const auto vocab = static_cast<double>(c.vocab_size), h = static_cast<double>(c.hidden_size);
  head.bf16(static_cast<double>(logit_rows), vocab, h, vocab * h * 2);
  return head.us();
}

}  // namespace dsv3
