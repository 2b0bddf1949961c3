#include "moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "dsv3/kernels/cpu/quantize.h"

namespace dsv3::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

void score(const GateShape& gate, const float* logits, std::vector<float>& scores) {
  const auto experts = static_cast<size_t>(gate.experts);
  scores.resize(experts);
  if (gate.sigmoid) {
    for (size_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float top = *std::max_element(logits, logits + experts);
  double sum = 0;
  for (size_t e = 0; e < experts; ++e) sum += scores[e] = std::exp(logits[e] - top);
  for (auto& s : scores) s = static_cast<float>(s / sum);
}

/// Indices of the `count` largest values, lowest index first on ties.
std::vector<int32_t> largest(const std::vector<float>& values, int64_t count) {
  std::vector<int32_t> order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    const float x = values[static_cast<size_t>(a)], y = values[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  order.resize(static_cast<size_t>(count));
  return order;
}

}  // namespace

void route_row(const GateShape& gate, const float* logits, const float* bias, int32_t* ids, float* weights) {
  std::vector<float> scores;
  score(gate, logits, scores);
  std::vector<float> choice = scores;
  if (bias != nullptr) {
    for (size_t e = 0; e < choice.size(); ++e) choice[e] += bias[e];
  }
  if (gate.grouped && gate.groups > 1) {
    const int64_t size = gate.experts / gate.groups;
    std::vector<float> group_scores(static_cast<size_t>(gate.groups));
    for (int64_t g = 0; g < gate.groups; ++g) {
      std::vector<float> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      const int64_t counted = gate.group_by_top2 ? std::min<int64_t>(2, size) : 1;
      std::partial_sort(members.begin(), members.begin() + counted, members.end(), std::greater<>());
      for (int64_t i = 0; i < counted; ++i) group_scores[static_cast<size_t>(g)] += members[static_cast<size_t>(i)];
    }
    std::vector<bool> kept(static_cast<size_t>(gate.groups));
    for (int32_t g : largest(group_scores, gate.top_groups)) kept[static_cast<size_t>(g)] = true;
    for (int64_t e = 0; e < gate.experts; ++e) {
      if (!kept[static_cast<size_t>(e / size)]) choice[static_cast<size_t>(e)] = kMinusInfinity;
    }
  }
  const auto chosen = largest(choice, gate.top_k);
  float sum = 0;
  for (int64_t k = 0; k < gate.top_k; ++k) {
    ids[k] = chosen[static_cast<size_t>(k)];
    weights[k] = scores[static_cast<size_t>(ids[k])];
    sum += weights[k];
  }
  const bool normalise = gate.normalise && gate.top_k > 1;
  const float factor = normalise && !gate.scale_when_normalised ? 1.0f : gate.scale;
  for (int64_t k = 0; k < gate.top_k; ++k) weights[k] = (normalise ? weights[k] / (sum + 1e-20f) : weights[k]) * factor;
}

void run_experts(ForkJoin& pool, int64_t rows, const Tensor& x, const CpuExperts& experts, const Tensor& ids,
                 const Tensor& weights, Tensor out, AlignedFloats& scratch) {
  const int64_t top_k = ids.cols, hidden = x.cols;
  struct Use {
    int64_t row, k;
  };
  std::vector<std::vector<Use>> uses(experts.experts.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < top_k; ++k) uses[static_cast<size_t>(ids.i32(r)[k])].push_back({r, k});
  }
  std::vector<size_t> busy;
  for (size_t e = 0; e < uses.size(); ++e) {
    if (!uses[e].empty()) busy.push_back(e);
  }
  // results [rows, top_k, hidden]: every use has its own place, so the sum below has one fixed order.
  scratch.resize(static_cast<size_t>(rows * top_k * hidden));
  pool.run(static_cast<int64_t>(busy.size()), [&](int64_t task) {
    const auto& expert = experts.experts[busy[static_cast<size_t>(task)]];
    const auto& list = uses[busy[static_cast<size_t>(task)]];
    const auto count = static_cast<int64_t>(list.size());
    const int64_t width = expert.down.in();
    AlignedFloats input(static_cast<size_t>(count * hidden)), gate_up(static_cast<size_t>(count * 2 * width)),
        middle(static_cast<size_t>(count * width)), result(static_cast<size_t>(count * hidden));
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(input.data() + i * hidden, x.f32(list[static_cast<size_t>(i)].row),
                  static_cast<size_t>(hidden) * sizeof(float));
    }
    for (int64_t p = 0; p < expert.gate_up.panels(); ++p) {
      gemm_panel(count, input.data(), hidden, expert.gate_up, p, gate_up.data() + p * kPanelCols, 2 * width);
    }
    for (int64_t i = 0; i < count; ++i) {
      float* row = middle.data() + i * width;
      simd().silu_mul(gate_up.data() + i * 2 * width, gate_up.data() + i * 2 * width + width, row, width);
      if (experts.rounded_inputs) round_to_fp8(row, width, 128, experts.ue8m0);
    }
    for (int64_t p = 0; p < expert.down.panels(); ++p) {
      gemm_panel(count, middle.data(), width, expert.down, p, result.data() + p * kPanelCols, hidden);
    }
    for (int64_t i = 0; i < count; ++i) {
      const Use use = list[static_cast<size_t>(i)];
      std::memcpy(scratch.data() + (use.row * top_k + use.k) * hidden, result.data() + i * hidden,
                  static_cast<size_t>(hidden) * sizeof(float));
    }
  });
  for_rows(pool, rows, [&](int64_t r) {
    for (int64_t k = 0; k < top_k; ++k) {
      simd().axpy(weights.f32(r)[k], scratch.data() + (r * top_k + k) * hidden, out.f32(r), hidden);
    }
  });
}

}  // namespace dsv3::cpu
