// Norms, quantisation, activation and copies of rows against float64.
#include <cstring>
#include <type_traits>

#include "kernels/cuda/norm/norm.h"
#include "rows_reference.h"

namespace dsv3::cuda::testing {
namespace {

constexpr float kEps = 1e-6f;
// One rounding to BF16: 2^-8 at most. Float32 sums add nothing that shows.
constexpr double kBf16Error = 4e-3;
// Float32 arithmetic before quantisation: a few units of 2^-24.
constexpr double kF32Error = 2e-6;

float to_float(Bf16 x) {
  return from_bf16(x);
}
float to_float(float x) {
  return x;
}
std::vector<Bf16> converted(const std::vector<float>& x, Bf16) {
  return to_bf16(x);
}
std::vector<float> converted(const std::vector<float>& x, float) {
  return x;
}

/// T: Bf16 or float; M: its matrix.
template <class T, class M>
struct MatrixOf {
  MatrixOf(int64_t rows, int64_t cols, uint32_t seed, float scale = 1.0f)
      : rows(rows),
        cols(cols),
        stride(cols + 16),
        host(converted(normal_values(static_cast<size_t>(rows * stride), seed, scale), T{})),
        device(std::max<size_t>(host.size(), 1)) {
    if (!host.empty()) device.upload(host);
  }
  M view() const { return {device.get(), rows, cols, stride}; }
  double at(int64_t r, int64_t c) const { return to_float(host[static_cast<size_t>(r * stride + c)]); }
  /// What is on the device now, packed.
  std::vector<float> download() const {
    const auto all = device.download();
    std::vector<float> packed;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) packed.push_back(to_float(all[static_cast<size_t>(r * stride + c)]));
    }
    return packed;
  }
  int64_t rows, cols, stride;
  std::vector<T> host;
  Guarded<T> device;
};
using Matrix = MatrixOf<Bf16, Bf16Matrix>;
using Residual = MatrixOf<float, F32Matrix>;

std::string name_of(int64_t rows, int64_t cols, bool ue8m0 = false) {
  return std::to_string(rows) + " x " + std::to_string(cols) + (ue8m0 ? " ue8m0" : "");
}

enum class Form { kPlain, kResidual, kResidualAndDelta };

template <class X>
void check_norm(int64_t rows, int64_t cols, Form form, bool ue8m0) {
  const bool with_delta = form == Form::kResidualAndDelta;
  const std::string what = name_of(rows, cols, ue8m0) + (with_delta ? " with delta" : form == Form::kResidual ? " residual" : "");
  SCOPED_TRACE(what);
  const X x(rows, cols, 1);
  const Matrix delta(rows, cols, 2), out(rows, cols, 3);
  const auto gain = normal_values(static_cast<size_t>(cols), 4);
  const Guarded<float> gain_device(gain);
  const bool fp8 = cols % 128 == 0;
  const Fp8Buffer quantised(rows, fp8 ? cols : 128);
  const Fp8Rows target = fp8 ? quantised.view() : Fp8Rows{};
  if constexpr (std::is_same_v<X, Residual>) {
    const Bf16Matrix added = with_delta ? delta.view() : Bf16Matrix{};
    ASSERT_OK(add_rms_norm(x.view(), added, gain_device.get(), kEps, out.view(), target, ue8m0, nullptr));
  } else {
    ASSERT_OK(rms_norm(x.view(), gain_device.get(), kEps, out.view(), target, ue8m0, nullptr));
  }
  expect_synced();
  std::vector<double> residual, exact;
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) {
      double v = x.at(r, c);
      if (with_delta) v = static_cast<float>(v) + static_cast<float>(delta.at(r, c));  // one float32 sum: compared bit by bit
      residual.push_back(v);
      squares += v * v;
    }
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(cols) + static_cast<double>(kEps));
    for (int64_t c = 0; c < cols; ++c)
      exact.push_back(residual[static_cast<size_t>(r * cols + c)] * inverse * gain[static_cast<size_t>(c)]);
  }
  EXPECT_EQ(relative_l2(x.download(), residual, cols).all, 0) << what;
  const Error error = relative_l2(out.download(), exact, cols);
  EXPECT_LT(error.worst_row, kBf16Error) << what << ", row " << error.worst;
  if (fp8) expect_fp8(quantised, exact, ue8m0, kF32Error, what);
  EXPECT_TRUE(x.device.guards_intact() && out.device.guards_intact()) << what;
}

TEST(CudaNorm, AgreesWithFloat64) {
  DSV3_NEEDS_GPU();
  for (const int64_t rows : {0, 1, 5, 300}) {
    for (const int64_t cols : {7168, 384, 1536, 512, 128, 1000, 8}) {
      check_norm<Residual>(rows, cols, Form::kResidualAndDelta, false);
      check_norm<Residual>(rows, cols, Form::kResidual, true);
      check_norm<Matrix>(rows, cols, Form::kPlain, true);
    }
  }
  check_norm<Residual>(5, 16384, Form::kResidualAndDelta, true);
}

TEST(CudaNorm, RowsHaveTheSameBitsAloneAndInABatch) {
  DSV3_NEEDS_GPU();
  for (const int64_t cols : {7168, 384, 1536, 1000}) {
    const int64_t rows = 300;
    const Matrix x(rows, cols, 5), many(rows, cols, 6), few(3, cols, 7);
    const Guarded<float> gain(normal_values(static_cast<size_t>(cols), 8));
    ASSERT_OK(rms_norm(x.view(), gain.get(), kEps, many.view(), {}, false, nullptr));
    Bf16Matrix last = x.view();
    last.data += (rows - 3) * x.stride;
    last.rows = 3;
    ASSERT_OK(rms_norm(last, gain.get(), kEps, few.view(), {}, false, nullptr));
    expect_synced();
    const auto all = many.download(), alone = few.download();
    EXPECT_EQ(std::memcmp(alone.data(), all.data() + (rows - 3) * cols, alone.size() * sizeof(float)), 0) << cols << " columns";

    // The residual's form: 300 rows take four passes, 3 rows (a copy of the last ones, since the sum is in place) one.
    const Residual stream(rows, cols, 9);
    const Guarded<float> copy(3 * stream.stride);
    ASSERT_EQ(cudaMemcpy(copy.get(), stream.device.get() + (rows - 3) * stream.stride, copy.size() * sizeof(float), cudaMemcpyDeviceToDevice),
              cudaSuccess);
    ASSERT_OK(add_rms_norm(stream.view(), x.view(), gain.get(), kEps, many.view(), {}, false, nullptr));
    ASSERT_OK(add_rms_norm({copy.get(), 3, cols, stream.stride}, last, gain.get(), kEps, few.view(), {}, false, nullptr));
    expect_synced();
    const auto all_sums = many.download(), few_sums = few.download();
    EXPECT_EQ(std::memcmp(few_sums.data(), all_sums.data() + (rows - 3) * cols, few_sums.size() * sizeof(float)), 0) << cols << " columns";
    EXPECT_TRUE(copy.guards_intact() && stream.device.guards_intact()) << cols << " columns";
  }
}

TEST(CudaNorm, QuantisesAsTheCpuDoes) {
  DSV3_NEEDS_GPU();
  for (const bool ue8m0 : {false, true}) {
    for (const int64_t rows : {0, 1, 5, 300}) {
      for (const int64_t cols : {128, 384, 7168}) {
        const std::string what = name_of(rows, cols, ue8m0);
        const Matrix x(rows, cols, 9, rows == 5 ? 1e-6f : 3.0f);  // 1e-6: below the least amax
        const Fp8Buffer out(rows, cols);
        ASSERT_OK(quantise(x.view(), out.view(), ue8m0, nullptr));
        expect_synced();
        std::vector<double> exact;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < cols; ++c) exact.push_back(x.at(r, c));
        }
        expect_fp8(out, exact, ue8m0, 1.3e-7, what);  // amax is exact, the scale one rounding
        const auto data = out.data.download();
        const auto scales = out.scales.download();
        int64_t different = 0;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            const float scale = scales[static_cast<size_t>(c / 128 * out.scale_stride + r)];
            different += data[static_cast<size_t>(r * cols + c)] != f32_to_e4m3(static_cast<float>(x.at(r, c)) / scale);
          }
        }
        EXPECT_EQ(different, 0) << what;
      }
    }
  }
}

TEST(CudaNorm, SiluMul) {
  DSV3_NEEDS_GPU();
  for (const int64_t rows : {0, 1, 5, 300}) {
    for (const int64_t width : {2048, 128, 1152, 1000, 8}) {
      const std::string what = name_of(rows, width);
      const Matrix x(rows, 2 * width, 10, 2.0f), out(rows, width, 11);
      const bool fp8 = width % 128 == 0;
      const Fp8Buffer quantised(rows, fp8 ? width : 128);
      ASSERT_OK(silu_mul(x.view(), out.view(), fp8 ? quantised.view() : Fp8Rows{}, rows == 5, nullptr));
      expect_synced();
      std::vector<double> exact;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < width; ++c) exact.push_back(x.at(r, c) / (1 + std::exp(-x.at(r, c))) * x.at(r, width + c));
      }
      EXPECT_LT(relative_l2(out.download(), exact, width).worst_row, kBf16Error) << what;
      if (fp8) expect_fp8(quantised, exact, rows == 5, kF32Error, what);
      EXPECT_TRUE(out.device.guards_intact()) << what;
    }
  }
}

TEST(CudaNorm, CopiesZerosAndSums) {
  DSV3_NEEDS_GPU();
  for (const int64_t rows : {1, 5, 300}) {
    const int64_t cols = 1000, first = 50;
    const Matrix table(40, cols, 12), out(rows, cols, 13), gathered(rows, cols, 14), sum(rows, cols, 15), rounded(rows, cols, 16);
    const Residual stream(40, cols, 17), start(rows, cols, 18);
    std::vector<int32_t> ids;
    for (int64_t r = 0; r < rows; ++r) ids.push_back(static_cast<int32_t>(45 + r % 50));
    std::vector<int32_t> wanted;
    for (int64_t r = 0; r < rows; ++r) wanted.push_back(static_cast<int32_t>(r % 41) - 1);
    const Guarded<int32_t> ids_device(ids), wanted_device(wanted);
    ASSERT_OK(embed(ids_device.get(), table.view(), first, out.view(), nullptr));
    ASSERT_OK(gather_rows(table.view(), wanted_device.get(), gathered.view(), nullptr));
    ASSERT_OK(embed(ids_device.get(), table.view(), first, start.view(), nullptr));
    ASSERT_OK(gather_rows(stream.view(), wanted_device.get(), rounded.view(), nullptr));
    ASSERT_OK(add_rows(sum.view(), out.view(), nullptr));
    expect_synced();
    const auto embedded = out.download(), rows_got = gathered.download(), sums = sum.download();
    const auto started = start.download(), rounded_got = rounded.download();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const auto i = static_cast<size_t>(r * cols + c);
        const int64_t id = ids[static_cast<size_t>(r)] - first, from = wanted[static_cast<size_t>(r)];
        const double want = id >= 0 && id < 40 ? table.at(id, c) : 0.0;
        ASSERT_EQ(embedded[i], want) << "row " << r << ", column " << c;
        ASSERT_EQ(started[i], want) << "row " << r << ", column " << c;
        const double near = from >= 0 ? from_bf16(to_bf16(static_cast<float>(stream.at(from, c)))) : 0.0f;
        ASSERT_EQ(rounded_got[i], near) << "row " << r << ", column " << c;
        ASSERT_EQ(rows_got[i], from >= 0 ? table.at(from, c) : 0.0) << "row " << r << ", column " << c;
        ASSERT_EQ(sums[i], from_bf16(to_bf16(static_cast<float>(sum.at(r, c)) + static_cast<float>(want)))) << "row " << r;
      }
    }
    ASSERT_OK(zero_rows(out.view(), nullptr));
    const Guarded<float> floats(1001);
    ASSERT_OK(zero_floats(floats.get(), 1001, nullptr));
    expect_synced();
    for (const float value : out.download()) ASSERT_EQ(value, 0.0f);
    for (const float value : floats.download()) ASSERT_EQ(value, 0.0f);
    EXPECT_TRUE(start.device.guards_intact() && rounded.device.guards_intact());
    EXPECT_TRUE(out.device.guards_intact() && gathered.device.guards_intact() && sum.device.guards_intact() && floats.guards_intact());
  }
}

TEST(CudaNorm, RefusesWhatItCannotRead) {
  const float gain[8] = {};
  Bf16 values[64];
  EXPECT_FALSE(rms_norm({values, 1, 12, 16}, gain, kEps, {}, {}, false, nullptr).ok());
  float floats[64];
  EXPECT_FALSE(add_rms_norm({floats, 1, 12, 16}, {}, gain, kEps, {}, {}, false, nullptr).ok());
  EXPECT_FALSE(quantise({values, 1, 64, 64}, {}, false, nullptr).ok());
  EXPECT_OK(rms_norm({nullptr, 0, 8, 8}, nullptr, kEps, {}, {}, false, nullptr));
}

}  // namespace
}  // namespace dsv3::cuda::testing
