// A language model that fits on a page: the next token is a keyed hash of all tokens so far. Pure functions, shared
// by FakeExecutor, which finds its way to the same answers through a paged cache, and by tests, which compare.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dsv3/kernels/random.h"
#include "dsv3/kernels/sampling.h"

namespace dsv3::testing {

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t x = (a ^ 0x9E3779B97F4A7C15ull) + b * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

class ToyModel {
 public:
  ToyModel(uint64_t key, int32_t vocab_size) : key_(key), vocab_size_(vocab_size) {}

  /// The cache row of a token: stands for the token, its position and everything before it.
  uint64_t row(uint64_t previous_row, int32_t token, int32_t position) const {
    return mix(mix(previous_row, static_cast<uint64_t>(token)), key_ + static_cast<uint64_t>(position));
  }
  static constexpr uint64_t kNoRow = 0x5EEDull;  ///< previous_row of position 0

  /// "Attention": a fold over all rows, oldest first.
  static uint64_t attend(uint64_t state, uint64_t row) { return mix(state, row); }

  SampledToken sample(uint64_t state, const SamplingParams& sampling, int32_t index) const {
    uint64_t draw = 0;
    if (!sampling.greedy()) {
      draw = static_cast<uint64_t>(uniform_draw(sampling.seed, static_cast<uint64_t>(index)) * 0x1.0p53) + 1;
    }
    int32_t id = 0;
    for (uint64_t attempt = 0; attempt < 1000; ++attempt) {
      id = static_cast<int32_t>(mix(mix(state, draw), attempt) % static_cast<uint64_t>(vocab_size_));
      const auto& no = sampling.suppressed_ids;
      if (index >= sampling.min_tokens || std::find(no.begin(), no.end(), id) == no.end()) break;
    }
    return with_logprobs(id, state, sampling);
  }

  /// A given token with its logprob, as prompts report it.
  SampledToken with_logprobs(int32_t id, uint64_t state, const SamplingParams& sampling) const {
    SampledToken token;
    token.id = id;
    if (sampling.num_logprobs >= 0) token.logprob = logprob(state, id);
    for (int32_t k = 0; k < sampling.num_logprobs; ++k) token.top.push_back({k, logprob(state, k)});
    return token;
  }

 private:
  static float logprob(uint64_t state, int32_t id) {
    return -static_cast<float>(mix(state, static_cast<uint64_t>(id) + 77) % 4096) / 256.0f;
  }

  uint64_t key_;
  int32_t vocab_size_;
};

/// What a request must answer, computed without any cache: up to `max_tokens` tokens.
struct Reference {
  std::vector<SampledToken> tokens;
  std::vector<SampledToken> prompt_logprobs;  ///< of positions 1, 2, ... of the prompt
};

inline Reference reference_output(const ToyModel& model, const std::vector<int32_t>& prompt,
                                  const SamplingParams& sampling, int64_t max_tokens) {
  Reference reference;
  uint64_t row = ToyModel::kNoRow, state = 0;
  int32_t position = 0;
  const auto feed = [&](int32_t token) {
    row = model.row(row, token, position++);
    state = ToyModel::attend(state, row);
  };
  for (int32_t token : prompt) {
    if (position > 0) reference.prompt_logprobs.push_back(model.with_logprobs(token, state, sampling));
    feed(token);
  }
  for (int64_t i = 0; i < max_tokens; ++i) {
    reference.tokens.push_back(model.sample(state, sampling, static_cast<int32_t>(i)));
    feed(reference.tokens.back().id);
  }
  return reference;
}

}  // namespace dsv3::testing
