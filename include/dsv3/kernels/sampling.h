// What a request asks of sampling, and what sampling answers. Plain structs, shared by scheduler, model and kernels.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace dsv3 {

/// One sequence's sampling rules, already validated (api). Applied to raw float32 logits in this order: suppressed
/// ids and logit_bias; repetition, frequency, presence penalties; temperature; top_k; top_p; min_p; one draw.
///
/// Each draw uses a counter-based generator keyed by (seed, index of the output token): the same request gives the
/// same tokens whatever else runs, in whatever batch, with or without speculation.
struct SamplingParams {
  float temperature = 1.0f;  ///< 0 (or < 1e-6): greedy, lowest id on equal logits
  float top_p = 1.0f;        ///< (0, 1]
  float min_p = 0.0f;        ///< [0, 1]
  int32_t top_k = -1;        ///< -1 or 0: off
  float repetition_penalty = 1.0f;  ///< > 0; over prompt and output
  float frequency_penalty = 0.0f;   ///< -2..2; over output
  float presence_penalty = 0.0f;    ///< -2..2; over output
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  ///< added; -100..100
  std::vector<int32_t> suppressed_ids;                ///< never sampled while the output is shorter than min_tokens
  int32_t min_tokens = 0;
  int32_t num_logprobs = -1;  ///< -1: none; 0: of the chosen token; k: and of the k best. Of raw logits, natural log

  bool greedy() const { return temperature < 1e-6f; }
};

/// Entries of logit_bias that a backend keeps for a slot; more are refused where a request is read.
inline constexpr int kMaxLogitBias = 1024;

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0.0f;
  bool operator==(const TokenLogprob&) const = default;
};

/// A sampled (or, for prompt logprobs, a given) token.
struct SampledToken {
  int32_t id = 0;
  float logprob = 0.0f;             ///< of the raw logits; 0 unless num_logprobs >= 0
  std::vector<TokenLogprob> top;    ///< best first; empty unless num_logprobs > 0
};

}  // namespace dsv3
