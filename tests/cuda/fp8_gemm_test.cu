// The dispatch of FP8 products: whatever kernel is chosen, the result is right, and deterministic where that was asked for.
#include <string>

#include "fp8_case.cuh"
#include "kernels/cuda/gemm/gemm.h"

namespace dsv3::cuda::testing {
namespace {

TEST(Fp8Gemm, AnyCountOfRows) {
  DSV3_NEEDS_GPU();
  const int64_t n = 576, k = 1536, most = 300;
  const RandomWeight w(n, k, 1);
  const RandomRows x(most, k, 2);
  const std::vector<double> want = product_f64(x.rows, w.weight, most);
  std::vector<Bf16> all;
  for (const int64_t m : {int64_t{300}, int64_t{256}, int64_t{129}, int64_t{128}, int64_t{3}, int64_t{0}}) {
    for (const bool deterministic : {false, true}) {
      SCOPED_TRACE("m " + std::to_string(m) + (deterministic ? ", deterministic" : ""));
      Guarded<Bf16> y(std::max<int64_t>(m, 1) * n);
      ASSERT_OK(fp8_gemm(x.first(m), w.weight, {y.get(), m, n, n}, {.deterministic = deterministic}, nullptr));
      expect_synced();
      EXPECT_TRUE(y.guards_intact());
      if (m == 0) continue;
      const std::vector<Bf16> got = y.download();
      const Error error = relative_l2(from_bf16(got), std::vector<double>(want.begin(), want.begin() + m * n), n);
      EXPECT_LT(error.all, 2.5e-3);  // BF16 rounding is 1.7e-3, sums in the tensor core 1.2e-4
      EXPECT_LT(error.worst_row, 4e-3) << "row " << error.worst;
      if (!deterministic) continue;
      if (all.empty()) all = got;
      EXPECT_TRUE(same_bits(got, all, got.size())) << "a row's bits depend on the batch";
    }
  }
}

/// A product that takes the tensor-core tiles from 33 rows on: ragged and full, on both sides of 64.
TEST(Fp8Gemm, LargeManyWeightRows) {
  DSV3_NEEDS_GPU();
  const int64_t n = 32768, k = 512, most = 128;
  const RandomWeight w(n, k, 3);
  const RandomRows x(most, k, 4);
  const std::vector<double> want = product_f64(x.rows, w.weight, most);
  for (const int64_t m : {int64_t{128}, int64_t{65}, int64_t{64}, int64_t{33}, int64_t{32}}) {
    SCOPED_TRACE("m " + std::to_string(m));
    Guarded<Bf16> y(m * n);
    ASSERT_OK(fp8_gemm(x.first(m), w.weight, {y.get(), m, n, n}, {}, nullptr));
    expect_synced();
    EXPECT_TRUE(y.guards_intact());
    const Error error = relative_l2(from_bf16(y.download()), std::vector<double>(want.begin(), want.begin() + m * n), n);
    EXPECT_LT(error.all, 2.5e-3);  // as above
    EXPECT_LT(error.worst_row, 4e-3) << "row " << error.worst;
  }
}

}  // namespace
}  // namespace dsv3::cuda::testing
