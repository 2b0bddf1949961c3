#include "moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "support/numbers.h"

namespace dsv3::cpu {
namespace {

using testing::normal_floats;

struct Choice {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

/// Written from the formulas in float64, by full sorts.
Choice reference(const GateShape& gate, const std::vector<float>& logits, const std::vector<float>& bias) {
  const auto n = static_cast<size_t>(gate.experts);
  std::vector<double> score(n), choice(n);
  double sum = 0;
  for (size_t e = 0; e < n; ++e) sum += std::exp(static_cast<double>(logits[e]));
  for (size_t e = 0; e < n; ++e) {
    const double x = logits[e];
    score[e] = gate.sigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x) / sum;
    choice[e] = score[e] + (bias.empty() ? 0.0 : static_cast<double>(bias[e]));
  }
  const auto order_of = [](const std::vector<double>& v) {
    std::vector<int32_t> order(v.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return v[static_cast<size_t>(a)] > v[static_cast<size_t>(b)]; });
    return order;
  };
  if (gate.grouped && gate.groups > 1) {
    const auto size = n / static_cast<size_t>(gate.groups);
    std::vector<double> group(static_cast<size_t>(gate.groups));
    for (size_t g = 0; g < group.size(); ++g) {
      std::vector<double> members(choice.begin() + static_cast<int64_t>(g * size),
                                  choice.begin() + static_cast<int64_t>((g + 1) * size));
      std::sort(members.rbegin(), members.rend());
      group[g] = gate.group_by_top2 ? members[0] + members[1] : members[0];
    }
    auto best = order_of(group);
    best.resize(static_cast<size_t>(gate.top_groups));
    for (size_t e = 0; e < n; ++e) {
      if (std::find(best.begin(), best.end(), static_cast<int32_t>(e / size)) == best.end()) choice[e] = -1e300;
    }
  }
  Choice result;
  result.ids = order_of(choice);
  result.ids.resize(static_cast<size_t>(gate.top_k));
  double total = 0;
  for (int32_t id : result.ids) total += score[static_cast<size_t>(id)];
  for (int32_t id : result.ids) {
    const double s = score[static_cast<size_t>(id)];
    const bool normalise = gate.normalise && gate.top_k > 1;
    result.weights.push_back((normalise ? s / (total + 1e-20) : s) *
                             (normalise && !gate.scale_when_normalised ? 1.0 : static_cast<double>(gate.scale)));
  }
  return result;
}

TEST(Route, AgreesWithTheFormulasForEveryFamily) {
  const GateShape v3{.experts = 256, .top_k = 8, .groups = 8, .top_groups = 4, .scale = 2.5f};
  const GateShape tiny{.experts = 16, .top_k = 4, .groups = 4, .top_groups = 2, .scale = 2.5f};
  const GateShape kimi{.experts = 384, .top_k = 8, .scale = 2.827f};
  const GateShape v2{.experts = 160, .top_k = 6, .groups = 8, .top_groups = 3, .sigmoid = false,
                     .group_by_top2 = false, .normalise = false, .scale_when_normalised = false, .scale = 16.0f};
  const GateShape lite{.experts = 64, .top_k = 6, .sigmoid = false, .grouped = false, .normalise = false};
  const GateShape v2_normalised{.experts = 60, .top_k = 6, .sigmoid = false, .grouped = false, .normalise = true,
                                .scale_when_normalised = false, .scale = 3.0f};
  int seed = 0;
  for (const auto& gate : {v3, tiny, kimi, v2, lite, v2_normalised}) {
    for (int repeat = 0; repeat < 200; ++repeat) {
      const auto n = static_cast<size_t>(gate.experts);
      const auto logits = normal_floats(n, static_cast<uint64_t>(++seed), 2.0f);
      const auto bias = gate.sigmoid ? normal_floats(n, static_cast<uint64_t>(++seed), 0.3f) : std::vector<float>{};
      std::vector<int32_t> ids(static_cast<size_t>(gate.top_k));
      std::vector<float> weights(static_cast<size_t>(gate.top_k));
      route_row(gate, logits.data(), bias.empty() ? nullptr : bias.data(), ids.data(), weights.data());
      const Choice want = reference(gate, logits, bias);
      ASSERT_EQ(ids, want.ids) << "seed " << seed;
      for (size_t k = 0; k < ids.size(); ++k) EXPECT_NEAR(weights[k], want.weights[k], 1e-5 * gate.scale);
    }
  }
}

TEST(Route, NeverLeavesTheKeptGroupsEvenWithABadBias) {
  const GateShape gate{.experts = 16, .top_k = 4, .groups = 4, .top_groups = 2, .scale = 1.0f};
  std::vector<float> logits(16, 0.0f), bias(16, -5.0f);  // every choice score is negative
  bias[0] = bias[1] = 0.0f;                              // group 0 wins
  std::vector<int32_t> ids(4);
  std::vector<float> weights(4);
  route_row(gate, logits.data(), bias.data(), ids.data(), weights.data());
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 1, 2, 3}));  // ties: lowest index, group 1 is the second kept one
}

TEST(RunExperts, AgreesWithFloat64) {
  const int64_t rows = 21, hidden = 48, width = 20, top_k = 3, count = 7;
  CpuExperts experts;
  std::vector<std::vector<float>> gate_up, down;
  for (int64_t e = 0; e < count; ++e) {
    gate_up.push_back(normal_floats(static_cast<size_t>(2 * width * hidden), static_cast<uint64_t>(100 + e), 0.2f));
    down.push_back(normal_floats(static_cast<size_t>(hidden * width), static_cast<uint64_t>(200 + e), 0.2f));
    experts.experts.push_back({PackedMatrix(gate_up.back().data(), 2 * width, hidden, hidden),
                               PackedMatrix(down.back().data(), hidden, width, width)});
  }
  auto x = normal_floats(static_cast<size_t>(rows * hidden), 1);
  auto out = normal_floats(static_cast<size_t>(rows * hidden), 2);
  auto weights = normal_floats(static_cast<size_t>(rows * top_k), 3);
  std::vector<int32_t> ids;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < top_k; ++k) ids.push_back(static_cast<int32_t>((r * 3 + k * 2) % (count - 1)));  // one idle
  }
  std::vector<double> want(out.begin(), out.end());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < top_k; ++k) {
      const auto e = static_cast<size_t>(ids[static_cast<size_t>(r * top_k + k)]);
      std::vector<double> middle(static_cast<size_t>(width));
      for (int64_t j = 0; j < width; ++j) {
        double gate = 0, up = 0;
        for (int64_t i = 0; i < hidden; ++i) {
          const double xi = x[static_cast<size_t>(r * hidden + i)];
          gate += xi * gate_up[e][static_cast<size_t>(j * hidden + i)];
          up += xi * gate_up[e][static_cast<size_t>((width + j) * hidden + i)];
        }
        middle[static_cast<size_t>(j)] = gate / (1 + std::exp(-gate)) * up;
      }
      for (int64_t i = 0; i < hidden; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < width; ++j) sum += middle[static_cast<size_t>(j)] * down[e][static_cast<size_t>(i * width + j)];
        want[static_cast<size_t>(r * hidden + i)] += weights[static_cast<size_t>(r * top_k + k)] * sum;
      }
    }
  }
  ForkJoin pool(3);
  AlignedFloats scratch;
  run_experts(pool, rows, {x.data(), DType::kF32, rows, hidden, hidden}, experts,
              {ids.data(), DType::kI32, rows, top_k, top_k}, {weights.data(), DType::kF32, rows, top_k, top_k},
              {out.data(), DType::kF32, rows, hidden, hidden}, scratch);
  EXPECT_LE(testing::relative_l2(out.data(), want.data(), want.size()), 1e-6);
}

}  // namespace
}  // namespace dsv3::cpu
