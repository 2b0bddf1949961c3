// Sampling on the GPU against the CPU's sampler: the same token from the same logits, rules and history.
#include <memory>

#include "harness.h"
#include "kernels/cpu/sampler.h"
#include "kernels/cuda/sampling/sampling.h"
#include "kernels/cuda/sampling/slot_memory.h"

namespace dsv3::cuda {
namespace {

using namespace testing;  // NOLINT

constexpr int32_t kContext = 192;

struct Case {
  SamplingParams params;
  std::vector<int32_t> prompt, output;
};

/// Slot i samples row i of the logits: a segment of one row, as at the end of a prompt.
class Sampler {
 public:
  Sampler(int32_t slots, int32_t vocab, int32_t known_vocab)
      : limits_{.max_slots = slots, .max_context_tokens = kContext, .max_blocks = 4, .num_drafts = 3, .vocab = vocab, .known_vocab = known_vocab,
                .max_rows = slots, .max_logit_rows = slots, .max_top_logprobs = 20},
        memory_(static_cast<size_t>(SlotState::bytes(limits_))) {
    memory_.zero();
    auto made = SlotState::create(limits_, memory_.get());
    EXPECT_TRUE(made.ok()) << made.status().message();
    if (made.ok()) state_ = std::move(made).value();
  }

  /// Rows of stride `vocab` rounded up to 4.
  std::vector<SegmentResult> run(const std::vector<Case>& cases, const std::vector<std::vector<float>>& logits) {
    const auto rows = static_cast<int32_t>(cases.size());
    const int64_t stride = (limits_.vocab + 3) / 4 * 4;
    std::vector<float> flat(static_cast<size_t>(rows * stride), NAN);
    std::vector<StepSegment> segments;
    for (int32_t i = 0; i < rows; ++i) {
      const auto& c = cases[static_cast<size_t>(i)];
      std::vector<int32_t> tokens = c.prompt;
      tokens.insert(tokens.end(), c.output.begin(), c.output.end());
      const auto length = static_cast<int32_t>(tokens.size());
      state_->slot_begin(i, c.params, tokens, static_cast<int32_t>(c.prompt.size()), length - 1);
      state_->slot_grant(i, std::vector<int32_t>{4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3});
      segments.push_back({.slot = i, .start = length - 1, .rows = 1, .row_begin = i, .flags = kSegmentSample, .logit_begin = i, .group_begin = -1});
      std::copy(logits[static_cast<size_t>(i)].begin(), logits[static_cast<size_t>(i)].end(), flat.begin() + i * stride);
    }
    const Guarded<float> device(flat);
    const F32Matrix matrix{device.get(), rows, limits_.vocab, stride};
    EXPECT_OK(state_->begin_step(segments, nullptr));
    EXPECT_OK(state_->prepare_main(rows, rows, rows, 0, nullptr));
    EXPECT_OK(state_->sample(rows, rows, matrix, nullptr));
    EXPECT_OK(state_->end_step(nullptr));
    auto results = state_->collect();
    EXPECT_TRUE(results.ok()) << results.status().message();
    expect_synced();
    EXPECT_TRUE(memory_.guards_intact());
    for (int32_t i = 0; i < rows; ++i) state_->slot_end(i);
    return results.ok() ? std::move(results).value() : std::vector<SegmentResult>(cases.size());
  }
  SlotState& state() { return *state_; }

 private:
  SlotLimits limits_;
  Guarded<char> memory_;
  std::unique_ptr<SlotState> state_;
};

std::vector<SamplingParams> rules(int32_t vocab) {
  std::vector<SamplingParams> list;
  const auto add = [&](auto&& change) {
    SamplingParams p;
    p.temperature = 0.6f;
    change(p);
    list.push_back(p);
  };
  add([](auto& p) { p.temperature = 0; });
  add([](auto&) {});
  add([](auto& p) { p.temperature = 2; });
  add([](auto& p) { p.top_k = 1; });
  add([](auto& p) { p.top_k = 50; });
  add([](auto& p) { p.top_k = 5000; });
  add([](auto& p) { p.top_p = 0.1f; });
  add([](auto& p) { p.top_p = 0.9f; });
  add([](auto& p) { p.top_p = 0.999f; p.temperature = 1.5f; });
  add([](auto& p) { p.min_p = 0.05f; });
  add([](auto& p) { p.min_p = 1.0f; });
  add([](auto& p) { p.top_k = 40; p.top_p = 0.8f; p.min_p = 0.02f; });
  add([](auto& p) { p.temperature = 0.01f; p.top_p = 0.95f; });
  add([](auto& p) { p.temperature = 0; p.repetition_penalty = 1.3f; p.frequency_penalty = 0.7f; p.presence_penalty = 0.4f; });
  add([](auto& p) { p.repetition_penalty = 0.8f; p.frequency_penalty = -1.5f; p.top_p = 0.95f; });
  add([&](auto& p) {
    p.logit_bias = {{vocab / 2, 6.0f}, {3, -100.0f}, {7, 5.5f}, {7, 0.25f}};
    p.suppressed_ids = {7, 11};
    p.min_tokens = 64;
  });
  add([](auto& p) {
    p.temperature = 0;
    for (int32_t id = 1000; id > 0; --id) p.logit_bias.emplace_back(id, 0.01f * static_cast<float>(id));
  });
  return list;
}

/// kind 0, 1: normal; 2: multiples of a half (many ties); 3: all equal; 4: some minus large.
std::vector<float> make_logits(int32_t vocab, int kind, uint32_t seed) {
  auto values = normal_values(static_cast<size_t>(vocab), seed, kind == 0 ? 1.0f : 6.0f);
  for (auto& v : values) {
    if (kind == 2) v = std::round(v * 0.5f) * 0.5f;
    if (kind == 3) v = -1.25f;
    if (kind == 4 && v < 0) v = -1e30f;
  }
  return values;
}

void compare_with_cpu(int32_t vocab, int32_t known_vocab) {
  const auto all = rules(vocab);
  const auto rows = static_cast<int32_t>(all.size());
  Sampler sampler(rows, vocab, known_vocab);
  for (int kind = 0; kind < 5; ++kind) {
    std::vector<Case> cases;
    std::vector<std::vector<float>> logits;
    std::mt19937 random(static_cast<uint32_t>(kind * 1000 + vocab));
    const auto some_ids = [&](size_t count, int32_t below) {
      std::vector<int32_t> ids(count);
      for (auto& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(below));
      return ids;
    };
    for (int32_t i = 0; i < rows; ++i) {
      Case c{all[static_cast<size_t>(i)], some_ids(1 + random() % 60, known_vocab), some_ids(random() % 60, known_vocab)};
      logits.push_back(make_logits(vocab, kind, random()));
      // The best ids are in the history, or penalties would never be felt.
      const auto best = std::max_element(logits.back().begin(), logits.back().begin() + known_vocab) - logits.back().begin();
      if (i % 2 == 0) c.prompt.push_back(static_cast<int32_t>(best));
      if (i % 3 == 0) c.output.insert(c.output.end(), 3, static_cast<int32_t>(best));
      c.params.seed = (uint64_t{random()} << 32) | random();
      c.params.num_logprobs = i % 4 - 1 > 0 ? 10 * (i % 4 - 1) : i % 4 - 1;
      cases.push_back(std::move(c));
    }
    const auto got = sampler.run(cases, logits), again = sampler.run(cases, logits);
    std::vector<float> scratch;
    for (size_t i = 0; i < cases.size(); ++i) {
      const std::string name = "vocab " + std::to_string(vocab) + ", kind " + std::to_string(kind) + ", rules " + std::to_string(i);
      const auto want = cpu::sample_token(logits[i], known_vocab, cases[i].params, {cases[i].prompt, cases[i].output}, scratch);
      ASSERT_EQ(got[i].tokens.size(), 1u) << name;
      const auto& token = got[i].tokens[0];
      EXPECT_FALSE(got[i].bad_logits) << name;
      EXPECT_EQ(token.id, want.id) << name;  // weights are exact to 2^-45 of the best: a boundary that close would be a rare accident
      EXPECT_EQ(token.id, again[i].tokens[0].id) << name;
      EXPECT_EQ(token.logprob, again[i].tokens[0].logprob) << name;
      EXPECT_NEAR(token.logprob, want.logprob, 1e-5 * (1 + std::abs(want.logprob))) << name;  // two roundings to float32
      ASSERT_EQ(token.top.size(), want.top.size()) << name;
      for (size_t k = 0; k < want.top.size(); ++k) {
        EXPECT_EQ(token.top[k].id, want.top[k].id) << name << ", best " << k;
        EXPECT_NEAR(token.top[k].logprob, want.top[k].logprob, 1e-5 * (1 + std::abs(want.top[k].logprob))) << name << ", best " << k;
      }
    }
    // A row's bits do not depend on the others.
    for (const size_t i : {size_t{7}, size_t{14}}) {
      const auto alone = sampler.run({cases[i]}, {logits[i]});
      EXPECT_EQ(alone[0].tokens.at(0).id, got[i].tokens[0].id) << "alone, rules " << i;
      EXPECT_EQ(alone[0].tokens.at(0).logprob, got[i].tokens[0].logprob) << "alone, rules " << i;
    }
  }
}

TEST(SamplingLayout, BytesGrowWithLimits) {
  SlotLimits limits{.max_slots = 4, .max_context_tokens = 100, .max_blocks = 2, .num_drafts = 1, .vocab = 1000, .known_vocab = 900,
                    .max_rows = 8, .max_logit_rows = 8, .max_top_logprobs = 20};
  const int64_t few = SlotState::bytes(limits);
  EXPECT_TRUE(check_limits(limits).ok());
  limits.max_slots = 8;
  EXPECT_GE(SlotState::bytes(limits), few + 4 * (1000 + 100) * 4);
  EXPECT_EQ(SlotState::bytes(limits) % 256, 0);
  limits.num_drafts = 8;
  EXPECT_FALSE(check_limits(limits).ok());
}

TEST(Sampling, MatchesCpuSmallVocab) {
  DSV3_NEEDS_GPU();
  compare_with_cpu(4096, 4000);
}

TEST(Sampling, MatchesCpuOddVocab) {
  DSV3_NEEDS_GPU();
  compare_with_cpu(5003, 5003);
}

TEST(Sampling, MatchesCpuLargeVocab) {
  DSV3_NEEDS_GPU();
  compare_with_cpu(129280, 128815);
}

TEST(Sampling, BadRowsFailAlone) {
  DSV3_NEEDS_GPU();
  const int32_t vocab = 4100;
  Sampler sampler(5, vocab, vocab - 2);
  std::vector<Case> cases(5);
  std::vector<std::vector<float>> logits;
  for (uint32_t i = 0; i < 5; ++i) {
    cases[i].prompt = {1, 2};
    cases[i].params.temperature = 0.7f;
    cases[i].params.top_p = i % 2 == 0 ? 0.9f : 1.0f;
    cases[i].params.num_logprobs = 5;
    logits.push_back(make_logits(vocab, 1, 50 + i));
  }
  logits[1][4097] = NAN;
  logits[2][0] = INFINITY;
  logits[3][4099] = -INFINITY;  // an id that nobody knows: still a sign of a broken row
  const auto got = sampler.run(cases, logits);
  std::vector<float> scratch;
  for (size_t i = 0; i < 5; ++i) {
    ASSERT_EQ(got[i].tokens.size(), 1u) << i;
    EXPECT_EQ(got[i].bad_logits, i >= 1 && i <= 3) << i;
    if (got[i].bad_logits) {
      EXPECT_EQ(got[i].tokens[0].id, 0) << i;
    } else {
      EXPECT_EQ(got[i].tokens[0].id, cpu::sample_token(logits[i], vocab - 2, cases[i].params, {cases[i].prompt, {}}, scratch).id) << i;
    }
  }
}

TEST(Sampling, Frequencies) {
  DSV3_NEEDS_GPU();
  const int32_t rows = 256, rounds = 16;
  Sampler sampler(rows, 8, 6);
  const std::vector<float> logits{0.0f, 1.0f, -1.0f, 2.0f, 0.5f, -3.0f, 9.0f, 9.0f};
  double total = 0;
  for (size_t i = 0; i < 6; ++i) total += std::exp(logits[i]);
  std::vector<int> hits(8);
  for (int round = 0; round < rounds; ++round) {
    std::vector<Case> cases(rows);
    for (size_t i = 0; i < cases.size(); ++i) {
      cases[i].prompt = {0};
      cases[i].params.seed = static_cast<uint64_t>(round) * 1000 + i;
      cases[i].params.min_p = i % 2 == 0 ? 0.0f : 1e-6f;  // both walks: by id and best first
    }
    for (const auto& result : sampler.run(cases, std::vector<std::vector<float>>(rows, logits))) ++hits[static_cast<size_t>(result.tokens.at(0).id)];
  }
  double chi = 0;
  for (size_t i = 0; i < 6; ++i) {
    const double want = rows * rounds * std::exp(logits[i]) / total;
    chi += (hits[i] - want) * (hits[i] - want) / want;
  }
  EXPECT_EQ(hits[6] + hits[7], 0);
  EXPECT_LT(chi, 25.7);  // 5 degrees of freedom: one run in ten thousand would exceed it, and seeds are fixed
}

TEST(Sampling, LogprobsOfGivenTokens) {
  DSV3_NEEDS_GPU();
  const int32_t vocab = 10001, rows = 6;
  Sampler sampler(rows, vocab, vocab);
  const int64_t stride = (vocab + 3) / 4 * 4;
  std::vector<float> flat(static_cast<size_t>(rows * stride), NAN);
  std::vector<int32_t> ids;
  for (uint32_t r = 0; r < rows; ++r) {
    const auto row = make_logits(vocab, static_cast<int>(r % 4), 90 + r);
    std::copy(row.begin(), row.end(), flat.begin() + r * stride);
    ids.push_back(static_cast<int32_t>(r * 1999));
  }
  const Guarded<float> device(flat);
  for (const int32_t num_top : {0, 1, 20}) {
    auto got = sampler.state().logprobs_of({device.get(), rows, vocab, stride}, ids, num_top, nullptr);
    ASSERT_TRUE(got.ok()) << got.status().message();
    for (size_t r = 0; r < rows; ++r) {
      const auto want = cpu::logprob_of({flat.data() + static_cast<int64_t>(r) * stride, static_cast<size_t>(vocab)}, ids[r], num_top);
      EXPECT_EQ((*got)[r].id, ids[r]);
      EXPECT_NEAR((*got)[r].logprob, want.logprob, 1e-5 * (1 + std::abs(want.logprob))) << r;
      ASSERT_EQ((*got)[r].top.size(), want.top.size()) << r;
      for (size_t k = 0; k < want.top.size(); ++k) EXPECT_EQ((*got)[r].top[k].id, want.top[k].id) << r << ", best " << k;
    }
  }
  EXPECT_FALSE(sampler.state().logprobs_of({device.get(), rows, vocab, stride}, ids, 21, nullptr).ok());
}

TEST(Sampling, RefusesWhatDoesNotFit) {
  DSV3_NEEDS_GPU();
  Sampler sampler(2, 2000, 2000);
  SamplingParams params;
  for (int32_t id = 0; id <= kMaxLogitBias; ++id) params.logit_bias.emplace_back(id, 1.0f);
  sampler.state().slot_begin(0, params, std::vector<int32_t>{1}, 1, 0);
  EXPECT_EQ(sampler.state().begin_step({}, nullptr).code(), Code::kUnsupported);
  const StepSegment segment{.slot = 5, .rows = 1};
  EXPECT_EQ(sampler.state().begin_step({&segment, 1}, nullptr).code(), Code::kInternal);
  EXPECT_FALSE(sampler.state().collect().ok());
}

}  // namespace
}  // namespace dsv3::cuda
