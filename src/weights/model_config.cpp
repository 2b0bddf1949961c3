// What follows from a config by arithmetic (model.md 4.5 and 5.2). Parsing is in config_parser.cpp.
#include "dsv3/weights/model_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dsv3 {
namespace {

/// YaRN's attention temperature m.
double temperature(double factor, double mscale) {
  return factor > 1.0 && mscale != 0.0 ? 0.1 * mscale * std::log(factor) + 1.0 : 1.0;
}

}  // namespace

double ModelConfig::softmax_scale() const {
  const double m = temperature(rope_scaling.factor, rope_scaling.mscale_all_dim);
  return m * m / std::sqrt(static_cast<double>(qk_head_dim()));
}

double ModelConfig::rope_cos_factor() const {
  return temperature(rope_scaling.factor, rope_scaling.mscale) /
         temperature(rope_scaling.factor, rope_scaling.mscale_all_dim);
}

std::vector<double> ModelConfig::rope_frequencies() const {
  const RopeScaling& yarn = rope_scaling;
  const auto dim = static_cast<double>(qk_rope_head_dim);
  // The pair that turns `rotations` times over the original context.
  const auto pair_of = [&](double rotations) {
    const auto context = static_cast<double>(yarn.original_max_position_embeddings);
    return dim * std::log(context / (2.0 * std::numbers::pi * rotations)) / (2.0 * std::log(rope_theta));
  };
  const double low = std::max(std::floor(pair_of(yarn.beta_fast)), 0.0);
  double high = std::min(std::ceil(pair_of(yarn.beta_slow)), dim - 1.0);
  if (low == high) high += 0.001;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < qk_rope_head_dim / 2; ++i) {
    const double plain = std::pow(rope_theta, -2.0 * static_cast<double>(i) / dim);
    const double ramp = yarn.factor > 1.0 ? std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0) : 0.0;
    frequencies.push_back(plain / yarn.factor * ramp + plain * (1.0 - ramp));
  }
  return frequencies;
}

}  // namespace dsv3
