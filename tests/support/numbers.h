// Random inputs and error measures for numeric tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace dsv3::testing {

inline std::vector<float> normal_floats(size_t n, uint64_t seed, float scale = 1.0f) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (auto& value : values) value = normal(engine);
  return values;
}

/// ||got - want|| / ||want|| over n numbers.
template <class A, class B>
double relative_l2(const A* got, const B* want, size_t n) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    error += d * d;
    norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  return std::sqrt(error) / std::sqrt(norm > 0 ? norm : 1.0);
}

}  // namespace dsv3::testing
