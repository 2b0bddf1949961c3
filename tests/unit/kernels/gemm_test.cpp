#include "gemm.h"

#include <gtest/gtest.h>

#include "support/numbers.h"

namespace dsv3::cpu {
namespace {

using testing::normal_floats;
using testing::relative_l2;

struct Case {
  int64_t rows, out, in;
};

class Gemm : public ::testing::TestWithParam<Case> {};

TEST_P(Gemm, AgreesWithFloat64AndWritesNothingElse) {
  const auto [rows, out, in] = GetParam();
  const int64_t x_stride = in + 3, y_stride = out + 5;
  const auto x = normal_floats(static_cast<size_t>(std::max<int64_t>(rows, 1) * x_stride), 1);
  const auto w = normal_floats(static_cast<size_t>(out * in), 2);
  constexpr float kGuard = -12345.0f;
  std::vector<float> y(static_cast<size_t>(std::max<int64_t>(rows, 1) * y_stride), kGuard);
  ForkJoin pool(2);
  gemm(pool, rows, x.data(), x_stride, PackedMatrix(w.data(), out, in, in), y.data(), y_stride);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> want(static_cast<size_t>(out));
    for (int64_t j = 0; j < out; ++j) {
      for (int64_t k = 0; k < in; ++k) {
        want[static_cast<size_t>(j)] += static_cast<double>(x[static_cast<size_t>(r * x_stride + k)]) *
                                        w[static_cast<size_t>(j * in + k)];
      }
    }
    // Sums of `in` float32 products in sequence: error grows like sqrt(in) * 2^-24.
    EXPECT_LE(relative_l2(y.data() + r * y_stride, want.data(), want.size()),
              2.0 * std::sqrt(static_cast<double>(in)) * 6e-8);
    for (int64_t j = out; j < y_stride; ++j) EXPECT_EQ(y[static_cast<size_t>(r * y_stride + j)], kGuard);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Gemm,
                         ::testing::Values(Case{0, 32, 8}, Case{1, 1, 1}, Case{1, 32, 128}, Case{3, 33, 7},
                                           Case{12, 64, 384}, Case{13, 100, 65}, Case{40, 576, 384},
                                           Case{5, 2048, 512}, Case{2, 31, 1024}));

TEST(Gemm, ARowDoesNotDependOnItsNeighbours) {
  const int64_t in = 391, out = 200;
  const auto x = normal_floats(64 * in, 3);
  const auto w_values = normal_floats(static_cast<size_t>(out * in), 4);
  const PackedMatrix w(w_values.data(), out, in, in);
  std::vector<float> together(64 * out), alone(out);
  ForkJoin many(3), one(1);
  gemm(many, 64, x.data(), in, w, together.data(), out);
  for (int64_t r = 0; r < 64; ++r) {
    gemm(one, 1, x.data() + r * in, in, w, alone.data(), out);
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + r * out)) << "row " << r;
  }
}

TEST(Simd, EverySetAgreesWithTheGenericOne) {
  std::vector<const SimdKernels*> sets{&simd_generic(), &simd()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&simd_avx2());
#endif
  const auto a = normal_floats(12 * 96, 5), b = normal_floats(96 * kPanelCols, 6);
  for (const auto* set : sets) {
    SCOPED_TRACE(set->name);
    std::vector<float> want(12 * kPanelCols), got(12 * kPanelCols);
    simd_generic().panel(12, 96, a.data(), 96, b.data(), kPanelCols, want.data(), kPanelCols, false);
    set->panel(12, 96, a.data(), 96, b.data(), kPanelCols, got.data(), kPanelCols, false);
    EXPECT_LE(relative_l2(got.data(), want.data(), want.size()), 1e-6);
    float dots[12];
    set->dots(12, 91, a.data(), 96, b.data(), dots, 1);
    for (int r = 0; r < 12; ++r) {
      double sum = 0;
      for (int i = 0; i < 91; ++i) sum += static_cast<double>(a[static_cast<size_t>(r * 96 + i)]) * b[static_cast<size_t>(i)];
      EXPECT_NEAR(dots[r], sum, 1e-4);
    }
  }
}

TEST(Simd, ExpIsAccurateAndZeroFarBelow) {
  std::vector<float> x;
  for (int i = 0; i < 1600; ++i) x.push_back(-static_cast<float>(i) * 0.05f);
  x.resize(1616, -INFINITY);
  const auto input = x;
  const float sum = simd().exp_sum(x.data(), static_cast<int64_t>(x.size()), 0.5f);
  double want_sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(static_cast<double>(input[i] - 0.5f));
    want_sum += want;
    EXPECT_NEAR(x[i], want, want * 3e-7) << input[i];
  }
  EXPECT_NEAR(sum, want_sum, want_sum * 1e-6);
  EXPECT_EQ(x.back(), 0.0f);
}

TEST(Simd, SiluTimesUp) {
  const auto gate = normal_floats(133, 7, 4.0f), up = normal_floats(133, 8);
  std::vector<float> out(133);
  simd().silu_mul(gate.data(), up.data(), out.data(), 133);
  for (size_t i = 0; i < 133; ++i) {
    const double z = gate[i], want = z / (1 + std::exp(-z)) * up[i];
    EXPECT_NEAR(out[i], want, std::fabs(want) * 1e-6 + 1e-9);
  }
}

}  // namespace
}  // namespace dsv3::cpu
