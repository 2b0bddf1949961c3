// What the experts' gate and up product wrote, and its check against products in float64.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "fp8_case.cuh"

namespace dsv3::cuda::testing {

/// What a run wrote. Starts as poison.
struct Out {
  Guarded<uint8_t> data;
  Guarded<float> scales;
  Fp8Rows rows;
  Out(int64_t m, int64_t width) : data(m * width), scales((m + 3) / 4 * 4 * (width / 128)) {
    rows = {data.get(), scales.get(), m, width, (m + 3) / 4 * 4};
  }
};
struct Bits {
  std::vector<uint8_t> data;
  std::vector<float> scales;
  explicit Bits(const Out& out) : data(out.data.download()), scales(out.scales.download()) {}
  bool operator==(const Bits& other) const {
    return data == other.data && std::memcmp(scales.data(), other.scales.data(), scales.size() * sizeof(float)) == 0;
  }
};

/// products: gate and up in float64 [rows, 2 * width]. Rows with expert -1 must be as they were.
inline void check_gate_up(const Out& out, const std::vector<double>& products, const std::vector<int>& expert_of_row, bool ue8m0) {
  EXPECT_TRUE(out.data.guards_intact() && out.scales.guards_intact());
  const Bits got(out);
  const int64_t width = out.rows.cols, stride = out.rows.scale_stride;
  std::vector<double> want(128);
  for (int64_t r = 0; r < stride; ++r) {
    const bool used = r < out.rows.rows && expert_of_row[r] >= 0;
    for (int64_t g = 0; g < width / 128; ++g) {
      SCOPED_TRACE("row " + std::to_string(r) + ", group " + std::to_string(g));
      const float scale = got.scales[g * stride + r];
      if (!used) {
        ASSERT_TRUE(std::isnan(scale)) << "a scale of a row in no tile was written";
        for (int64_t c = 0; c < 128 && r < out.rows.rows; ++c) ASSERT_EQ(got.data[r * width + g * 128 + c], 0xFF);
        continue;
      }
      double most = 1e-4;
      for (int64_t c = 0; c < 128; ++c) {
        const double gate = products[r * 2 * width + g * 128 + c], up = products[r * 2 * width + width + g * 128 + c];
        want[c] = gate / (1 + std::exp(-gate)) * up;
        most = std::max(most, std::abs(want[c]));
      }
      // Tensor-core sums are off by 1.2e-4 of their size (rms); 2e-3 covers the largest of a group in gate and up.
      if (ue8m0) {
        uint32_t bits = 0;
        std::memcpy(&bits, &scale, 4);
        ASSERT_EQ(bits & 0x7fffffu, 0u) << scale;
        ASSERT_TRUE(scale >= most / 448 * 0.998 && scale <= most / 448 * 2.004) << scale << " for " << most;
      } else {
        ASSERT_NEAR(scale, most / 448, most / 448 * 2e-3);
      }
      for (int64_t c = 0; c < 128; ++c) {
        __nv_fp8_e4m3 code;
        code.__x = got.data[r * width + g * 128 + c];
        // Half a step of e4m3 is 1/16 of the value, or 2^-10 of the scale where it is subnormal; then the sums' error, as above.
        const double allowed = std::abs(want[c]) / 16 * 1.01 + scale * 0x1p-10 * 1.01 + 2e-3 * most;
        const double value = static_cast<double>(static_cast<float>(code)) * static_cast<double>(scale);
        ASSERT_TRUE(std::abs(value - want[c]) <= allowed) << "column " << c << ": " << value << ", wanted " << want[c];
      }
    }
  }
}

}  // namespace dsv3::cuda::testing
