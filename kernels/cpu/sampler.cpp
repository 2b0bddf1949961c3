#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <unordered_set>

#include "dsv3/kernels/random.h"

namespace dsv3::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

void apply_penalties(std::vector<float>& logits, const SamplingParams& params, const SamplingHistory& history) {
  if (params.repetition_penalty != 1.0f) {
    std::unordered_set<int32_t> seen(history.prompt.begin(), history.prompt.end());
    seen.insert(history.output.begin(), history.output.end());
    for (int32_t id : seen) {
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
  }
  if (params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f) {
    std::unordered_map<int32_t, int32_t> counts;
    for (int32_t id : history.output) ++counts[id];
    for (const auto& [id, count] : counts) {
      logits[static_cast<size_t>(id)] -=
          params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
    }
  }
}

struct Candidate {
  int32_t id;
  double weight;
};

/// Candidates best first (lowest id on ties), cut by top_k, top_p and min_p.
std::vector<Candidate> shortlist(std::span<const float> logits, const SamplingParams& params, float top) {
  std::vector<Candidate> list;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == kMinusInfinity) continue;
    list.push_back({static_cast<int32_t>(i), std::exp((static_cast<double>(logits[i]) - top) / params.temperature)});
  }
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
  };
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < list.size()) {
    std::nth_element(list.begin(), list.begin() + params.top_k, list.end(), better);
    list.resize(static_cast<size_t>(params.top_k));
  }
  std::sort(list.begin(), list.end(), better);
  if (params.top_p < 1.0f) {
    double total = 0;
    for (const auto& candidate : list) total += candidate.weight;
    double kept = 0;
    size_t count = 0;
    while (count < list.size() && kept < static_cast<double>(params.top_p) * total) kept += list[count++].weight;
    list.resize(std::max<size_t>(count, 1));
  }
  if (params.min_p > 0.0f) {
    const double least = static_cast<double>(params.min_p) * list.front().weight;
    while (list.back().weight < least) list.pop_back();
  }
  return list;
}

int32_t draw(std::span<const float> logits, const SamplingParams& params, uint64_t index) {
  const auto best = std::max_element(logits.begin(), logits.end());  // the first of equals: the lowest id
  if (params.greedy()) return static_cast<int32_t>(best - logits.begin());
  const double u = uniform_draw(params.seed, index);
  const bool cut = params.top_k > 0 || params.top_p < 1.0f || params.min_p > 0.0f;
  if (cut) {
    const auto list = shortlist(logits, params, *best);
    double total = 0;
    for (const auto& candidate : list) total += candidate.weight;
    double below = 0;
    for (const auto& candidate : list) {
      below += candidate.weight;
      if (u * total < below) return candidate.id;
    }
    return list.back().id;
  }
  double total = 0;
  const auto weight = [&](float logit) {
    return std::exp((static_cast<double>(logit) - *best) / params.temperature);
  };
  for (float logit : logits) total += weight(logit);
  double below = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    below += weight(logits[i]);
    if (u * total < below) return static_cast<int32_t>(i);
  }
  return static_cast<int32_t>(best - logits.begin());
}

}  // namespace

bool all_finite(std::span<const float> logits) {
  return std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
}

SampledToken sample_token(std::span<const float> logits, int64_t known_vocab, const SamplingParams& params,
                          const SamplingHistory& history, std::vector<float>& scratch) {
  scratch.assign(logits.begin(), logits.end());
  const bool suppress = static_cast<int64_t>(history.output.size()) < params.min_tokens;
  apply_penalties(scratch, params, history);
  for (const auto& [id, bias] : params.logit_bias) scratch[static_cast<size_t>(id)] += bias;
  if (suppress) {
    for (int32_t id : params.suppressed_ids) scratch[static_cast<size_t>(id)] = kMinusInfinity;
  }
  if (known_vocab < static_cast<int64_t>(scratch.size())) {
    std::fill(scratch.begin() + known_vocab, scratch.end(), kMinusInfinity);
  }
  const int32_t id = draw(scratch, params, history.output.size());
  if (params.num_logprobs < 0) return {.id = id};
  return logprob_of(logits, id, params.num_logprobs);
}

SampledToken logprob_of(std::span<const float> logits, int32_t id, int32_t num_top) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  const double log_sum = std::log(sum) + top;
  SampledToken token{.id = id, .logprob = static_cast<float>(logits[static_cast<size_t>(id)] - log_sum)};
  if (num_top > 0) {
    std::vector<int32_t> order(logits.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    const auto count = std::min<size_t>(static_cast<size_t>(num_top), order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(count), order.end(),
                      [&](int32_t a, int32_t b) {
                        const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
                        return x != y ? x > y : a < b;
                      });
    for (size_t i = 0; i < count; ++i) {
      token.top.push_back({order[i], static_cast<float>(logits[static_cast<size_t>(order[i])] - log_sum)});
    }
  }
  return token;
}

}  // namespace dsv3::cpu
