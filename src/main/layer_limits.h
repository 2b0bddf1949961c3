// The least time that a decoder layer's parts need on a Hopper GPU: bytes over memory bandwidth or operations over the tensor
// cores' rate, whichever is longer, part by part. Pure arithmetic.
#pragma once

#include <cstdint>

#include "dsv3/weights/model_config.h"

namespace dsv3 {

/// Bursts measured on an H100 80GB HBM3 (docs/benchmarks.md).
struct DeviceRoofs {
  double hbm_bytes_per_us = 3.10e6;
  double fp8_flop_per_us = 1740e6;
  double bf16_flop_per_us = 870e6;
};

struct LayerLimit {
  double attention_us = 0;  ///< projections and cache
  double mlp_us = 0;        ///< dense MLP, or router, routed and shared experts
  double total() const { return attention_us + mlp_us; }
};

/// `rows` tokens in one step, each seeing `context` cached tokens of its own sequence (decode), or, with `prefill`, a prompt of
/// `rows` tokens from the start. FP8 weights, BF16 cache. Routing is taken as uniform: E * (1 - (1 - k/E)^rows) experts are read.
LayerLimit layer_limit(const ModelConfig& config, bool moe, int64_t rows, int64_t context, bool prefill, const DeviceRoofs& roofs = {});
/// Embedding, final norm and head for `logit_rows` rows.
double head_limit_us(const ModelConfig& config, int64_t logit_rows, const DeviceRoofs& roofs = {});

}  // namespace dsv3
