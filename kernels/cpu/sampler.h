// Sampling on the CPU: one row of raw logits and one set of rules in, one token out. The reference for every backend.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dsv3/kernels/sampling.h"

namespace dsv3::cpu {

/// What came before the token that is drawn.
struct SamplingHistory {
  std::span<const int32_t> prompt;
  std::span<const int32_t> output;
};

/// False if any logit is NaN or infinite.
bool all_finite(std::span<const float> logits);

/// Draws output token number history.output.size(). Ids >= known_vocab are never drawn. `scratch` is reused.
SampledToken sample_token(std::span<const float> logits, int64_t known_vocab, const SamplingParams& params,
                          const SamplingHistory& history, std::vector<float>& scratch);

/// Logprob of `id` under softmax of the raw logits, and of the num_top best (lowest id first on ties).
SampledToken logprob_of(std::span<const float> logits, int32_t id, int32_t num_top);

}  // namespace dsv3::cpu
