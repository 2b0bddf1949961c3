#include "sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "support/numbers.h"

namespace dsv3::cpu {
namespace {

std::vector<double> softmax(std::vector<float> logits, double temperature = 1.0) {
  std::vector<double> p;
  double sum = 0;
  for (float logit : logits) sum += p.emplace_back(std::exp(static_cast<double>(logit) / temperature));
  for (auto& value : p) value /= sum;
  return p;
}

SampledToken sample(const std::vector<float>& logits, const SamplingParams& params,
                    const std::vector<int32_t>& output = {}, const std::vector<int32_t>& prompt = {}) {
  std::vector<float> scratch;
  return sample_token(logits, static_cast<int64_t>(logits.size()), params, {prompt, output}, scratch);
}

/// Frequencies over many seeds.
std::map<int32_t, double> frequencies(const std::vector<float>& logits, SamplingParams params, int draws = 20'000) {
  std::map<int32_t, double> counts;
  for (int i = 0; i < draws; ++i) {
    params.seed = static_cast<uint64_t>(i);
    counts[sample(logits, params).id] += 1.0 / draws;
  }
  return counts;
}

const std::vector<float> kLogits{1.0f, 3.0f, 2.0f, 0.0f, -1.0f, 2.5f};

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  EXPECT_EQ(sample({1, 5, 5, 2}, {.temperature = 0}).id, 1);
}

TEST(Sampler, DrawsFromTheSoftmaxAtAnyTemperature) {
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    const auto want = softmax(kLogits, temperature);
    auto got = frequencies(kLogits, {.temperature = temperature});
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[static_cast<int32_t>(i)], want[i], 0.015);
  }
}

TEST(Sampler, CutsKeepTheRightSetAndRenormalise) {
  // Order by probability: 1, 5, 2, 0, 3, 4.
  const auto set_of = [](const std::map<int32_t, double>& f) {
    std::set<int32_t> ids;
    for (const auto& [id, share] : f) ids.insert(id);
    return ids;
  };
  EXPECT_EQ(set_of(frequencies(kLogits, {.top_k = 2})), (std::set<int32_t>{1, 5}));
  const auto p = softmax(kLogits);
  EXPECT_EQ(set_of(frequencies(kLogits, {.top_p = static_cast<float>(p[1] + p[5] / 2)})), (std::set<int32_t>{1, 5}));
  EXPECT_EQ(set_of(frequencies(kLogits, {.top_p = 0.0001f})), (std::set<int32_t>{1}));
  EXPECT_EQ(set_of(frequencies(kLogits, {.min_p = static_cast<float>(p[2] / p[1] * 0.99)})),
            (std::set<int32_t>{1, 2, 5}));
  auto got = frequencies(kLogits, {.top_k = 2});
  EXPECT_NEAR(got[1], p[1] / (p[1] + p[5]), 0.015);
}

TEST(Sampler, PenaltiesAndBias) {
  EXPECT_EQ(sample(kLogits, {.temperature = 0, .repetition_penalty = 2.0f}, {}, {1}).id, 5);  // 3/2 < 2.5
  EXPECT_EQ(sample({-1, -2}, {.temperature = 0, .repetition_penalty = 3.0f}, {0}).id, 1);     // -3 < -2
  EXPECT_EQ(sample(kLogits, {.temperature = 0, .presence_penalty = 0.6f}, {1, 1}).id, 5);     // 2.4 < 2.5
  EXPECT_EQ(sample(kLogits, {.temperature = 0, .presence_penalty = 0.6f}, {}, {1}).id, 1);    // the prompt is spared
  EXPECT_EQ(sample(kLogits, {.temperature = 0, .frequency_penalty = 0.3f}, {1, 1}).id, 5);    // 2.4 < 2.5
  EXPECT_EQ(sample(kLogits, {.temperature = 0, .frequency_penalty = 0.3f}, {1}).id, 1);       // 2.7 > 2.5
  EXPECT_EQ(sample(kLogits, {.temperature = 0, .logit_bias = {{4, 100.0f}}}).id, 4);
}

TEST(Sampler, SuppressionEndsAtMinTokens) {
  const SamplingParams params{.temperature = 0, .suppressed_ids = {1, 5}, .min_tokens = 2};
  EXPECT_EQ(sample(kLogits, params).id, 2);
  EXPECT_EQ(sample(kLogits, params, {0}).id, 2);
  EXPECT_EQ(sample(kLogits, params, {0, 0}).id, 1);
}

TEST(Sampler, UnknownIdsAreNeverDrawn) {
  std::vector<float> scratch;
  EXPECT_EQ(sample_token(kLogits, 1, {.temperature = 0}, {}, scratch).id, 0);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    EXPECT_LT(sample_token(kLogits, 2, {.temperature = 2.0f, .seed = seed}, {}, scratch).id, 2);
  }
}

TEST(Sampler, TheDrawDependsOnSeedAndIndexOnly) {
  const SamplingParams params{.temperature = 2.0f, .seed = 7};
  std::set<int32_t> seen;
  for (int length = 0; length < 50; ++length) {
    const std::vector<int32_t> output(static_cast<size_t>(length), 0);
    const auto token = sample(kLogits, params, output);
    EXPECT_EQ(token.id, sample(kLogits, params, output, {3, 3, 3}).id);
    seen.insert(token.id);
  }
  EXPECT_GT(seen.size(), 2u);
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  const auto p = softmax(kLogits);
  const auto token = sample(kLogits, {.temperature = 0, .logit_bias = {{4, 100.0f}}, .num_logprobs = 3});
  EXPECT_EQ(token.id, 4);
  EXPECT_NEAR(token.logprob, std::log(p[4]), 1e-6);
  ASSERT_EQ(token.top.size(), 3u);
  EXPECT_EQ(token.top[0].id, 1);
  EXPECT_EQ(token.top[1].id, 5);
  EXPECT_EQ(token.top[2].id, 2);
  EXPECT_NEAR(token.top[0].logprob, std::log(p[1]), 1e-6);
  EXPECT_TRUE(sample(kLogits, {.temperature = 0}).top.empty());
  EXPECT_EQ(logprob_of(kLogits, 1, 100).top.size(), kLogits.size());
}

TEST(Sampler, SpotsBadLogits) {
  EXPECT_TRUE(all_finite(kLogits));
  EXPECT_FALSE(all_finite(std::vector<float>{0.0f, NAN}));
  EXPECT_FALSE(all_finite(std::vector<float>{0.0f, -INFINITY}));
}

}  // namespace
}  // namespace dsv3::cpu
