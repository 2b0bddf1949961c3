// What tests of row-wise kernels share: checks of e4m3 rows against exact values.
#pragma once

#include <algorithm>

#include "harness.h"

namespace dsv3::cuda::testing {

/// Device buffers of an Fp8Rows.
struct Fp8Buffer {
  Fp8Buffer(int64_t rows, int64_t cols)
      : rows(rows),
        cols(cols),
        scale_stride((rows + 3) / 4 * 4 + 4),
        data(static_cast<size_t>(std::max<int64_t>(rows * cols, 16))),
        scales(static_cast<size_t>(cols / 128 * scale_stride)) {}
  Fp8Rows view() const { return {data.get(), scales.get(), rows, cols, scale_stride}; }
  bool guards_intact() const { return data.guards_intact() && scales.guards_intact(); }
  int64_t rows, cols, scale_stride;
  Guarded<uint8_t> data;
  Guarded<float> scales;
};

/// Every value within half an e4m3 step of the exact one; scales amax / 448 within `scale_error`, or powers of two not below it.
/// exact: [rows, cols]; rows with skip[r] are not looked at.
inline void expect_fp8(const Fp8Buffer& got, const std::vector<double>& exact, bool ue8m0, double scale_error, const std::string& what,
                       const std::vector<bool>& skip = {}) {
  const auto data = got.data.download();
  const auto scales = got.scales.download();
  EXPECT_TRUE(got.guards_intact()) << what;
  for (int64_t r = 0; r < got.rows; ++r) {
    if (!skip.empty() && skip[static_cast<size_t>(r)]) continue;
    for (int64_t g = 0; g < got.cols / 128; ++g) {
      const double* x = exact.data() + r * got.cols + g * 128;
      double amax = 1e-4;
      for (int i = 0; i < 128; ++i) amax = std::max(amax, std::fabs(x[i]));
      const double scale = scales[static_cast<size_t>(g * got.scale_stride + r)];
      if (ue8m0) {
        int exponent = 0;
        ASSERT_EQ(std::frexp(scale, &exponent), 0.5) << what << ": row " << r << ", group " << g << ", scale " << scale;
        ASSERT_GE(scale, amax / 448 * (1 - scale_error)) << what << ": row " << r << ", group " << g;
        ASSERT_LT(scale, amax / 224 * (1 + scale_error)) << what << ": row " << r << ", group " << g;
      } else {
        ASSERT_NEAR(scale / (amax / 448), 1.0, scale_error) << what << ": row " << r << ", group " << g;
      }
      for (int i = 0; i < 128; ++i) {
        const double value = e4m3_to_f32(data[static_cast<size_t>(r * got.cols + g * 128 + i)]) * scale;
        // Half a step is 2^-4 of the value, or 2^-10 scales below the smallest normal; float32 rounding moves a tie a little.
        const double allowed = std::max(std::fabs(x[i]) / 16, scale / 1024) * (1 + 1e-4) + scale_error * amax;
        ASSERT_LE(std::fabs(value - x[i]), allowed)
            << what << ": row " << r << ", column " << g * 128 + i << ", " << value << " for " << x[i];
      }
    }
  }
}

}  // namespace dsv3::cuda::testing
