// Float64 products on the GPU for the tests of simple.cu and blas.cpp: views that give an element, one thread an output.
#pragma once

#include <algorithm>

#include "harness.h"
#include "kernels/cuda/gemm/gemm.h"

namespace dsv3::cuda::testing {

struct Bf16View {
  const Bf16* data;
  int64_t row_stride, col_stride = 1;
  __device__ double at(int64_t row, int64_t col) const { return __bfloat162float(data[row * row_stride + col * col_stride]); }
};
__device__ inline double e4m3_value(uint8_t code) { return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3))); }
struct Fp8RowsView {
  const uint8_t* data;
  const float* scales;
  int64_t cols, scale_stride;
  __device__ double at(int64_t row, int64_t col) const {
    return e4m3_value(data[row * cols + col]) * static_cast<double>(scales[col / 128 * scale_stride + row]);
  }
};
struct Fp8WeightView {
  const uint8_t* data;
  const float* scales;
  int64_t k;
  __device__ double at(int64_t row, int64_t col) const {
    return e4m3_value(data[row * k + col]) * static_cast<double>(scales[row / 128 * (k / 128) + col / 128]);
  }
};

template <class X, class W>
__global__ void reference_kernel(X x, W w, double* y, int64_t rows, int64_t n, int64_t k) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= rows * n) return;
  double sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += x.at(at / n, i) * w.at(at % n, i);
  y[at] = sum;
}

/// x [rows, k] times the transpose of W [n, k].
template <class X, class W>
std::vector<double> reference_product(const X& x, const W& w, int64_t rows, int64_t n, int64_t k) {
  Guarded<double> y(static_cast<size_t>(rows * n));
  if (rows * n > 0) reference_kernel<<<static_cast<unsigned>((rows * n + 127) / 128), 128>>>(x, w, y.get(), rows, n, k);
  expect_synced();
  return y.download();
}

inline std::vector<Bf16> random_bf16(int64_t count, uint32_t seed, float scale = 1.0f) {
  return to_bf16(normal_values(static_cast<size_t>(count), seed, scale));
}
/// e4m3 codes of normal values that use most of the range.
inline std::vector<uint8_t> random_e4m3(int64_t count, uint32_t seed) {
  const std::vector<float> values = normal_values(static_cast<size_t>(count), seed, 64.0f);
  std::vector<uint8_t> codes(values.size());
  for (size_t i = 0; i < values.size(); ++i) codes[i] = __nv_cvt_float_to_fp8(values[i], __NV_SATFINITE, __NV_E4M3);
  return codes;
}
inline std::vector<float> random_scales(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(0.002f, 0.02f);
  std::vector<float> values(static_cast<size_t>(count));
  for (auto& value : values) value = uniform(generator);
  return values;
}

/// `rows` rows of `cols` values out of rows of `stride`; what lies between the rows must still be poison (0xFF bytes).
template <class T>
std::vector<T> rows_of(const std::vector<T>& all, int64_t rows, int64_t cols, int64_t stride, const std::string& name) {
  std::vector<T> picked;
  for (int64_t row = 0; row < rows; ++row) {
    const T* begin = all.data() + row * stride;
    picked.insert(picked.end(), begin, begin + cols);
    const auto* gap = reinterpret_cast<const uint8_t*>(begin + cols);
    const bool untouched =
        std::all_of(gap, gap + static_cast<size_t>(stride - cols) * sizeof(T), [](uint8_t byte) { return byte == 0xFF; });
    EXPECT_TRUE(untouched) << name << ": written beyond row " << row;
  }
  return picked;
}

// Rounding to BF16 alone: at most 2^-8 = 3.9e-3 of an element, 1.7e-3 in the mean of squares. Sums of the tensor core are cut off
// after each step of 16: about K / 16 * 2^-24 of the result, 3e-5 at K = 7168.
inline constexpr double kBf16Worst = 4.2e-3, kBf16All = 2.5e-3, kF32Tolerance = 1e-4;

inline void expect_close(const std::vector<float>& got, const std::vector<double>& want, int64_t cols, bool f32, const std::string& name) {
  const Error error = relative_l2(got, want, cols);
  EXPECT_LE(error.all, f32 ? kF32Tolerance : want.size() >= 64 ? kBf16All : kBf16Worst) << name;
  EXPECT_LE(error.worst_row, f32 ? kF32Tolerance * 4 : kBf16Worst) << name << ", row " << error.worst;
}
inline std::vector<float> as_floats(const std::vector<float>& values) { return values; }
inline std::vector<float> as_floats(const std::vector<Bf16>& values) { return from_bf16(values); }
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         std::equal(reinterpret_cast<const uint8_t*>(a.data()), reinterpret_cast<const uint8_t*>(a.data() + a.size()),
                    reinterpret_cast<const uint8_t*>(b.data()));
}

/// One shape of a head product and how its operands lie.
struct HeadCase {
  int64_t rows, heads, n, k;
  bool transposed;
  int64_t y_gap;             ///< elements behind a head's outputs, which must stay as they are
  int64_t w_stride, w_head;  ///< of a row of W, of a head of W
};
/// `product` (HeadProduct to Status) against float64.
template <class Product>
void check_head_product(const HeadCase& c, const Product& product) {
  const std::string name = std::to_string(c.rows) + " rows, n " + std::to_string(c.n) + (c.transposed ? ", transposed" : "");
  const int64_t x_head = c.k + 64, x_row = c.heads * x_head, y_head = c.n + c.y_gap, y_row = c.heads * y_head;
  const Guarded<Bf16> x(random_bf16(c.rows * x_row, 21)), w(random_bf16(c.heads * c.w_head, 22, 0.1f)),
      y(static_cast<size_t>(c.rows * y_row));
  EXPECT_OK(product(HeadProduct{x.get(), x_row, x_head, w.get(), c.w_head, c.w_stride, c.transposed, y.get(), y_row, y_head, c.rows,
                                c.heads, c.n, c.k}));
  expect_synced();
  const std::vector<Bf16> all = rows_of(y.download(), c.rows * c.heads, c.n, y_head, name);
  for (int64_t head = 0; head < c.heads && c.rows > 0; ++head) {
    std::vector<float> got;
    for (int64_t row = 0; row < c.rows; ++row) {
      for (int64_t i = 0; i < c.n; ++i) got.push_back(from_bf16(all[static_cast<size_t>((row * c.heads + head) * c.n + i)]));
    }
    const Bf16* data = w.get() + head * c.w_head;
    const Bf16View ws = c.transposed ? Bf16View{data, 1, c.w_stride} : Bf16View{data, c.w_stride, 1};
    expect_close(got, reference_product(Bf16View{x.get() + head * x_head, x_row}, ws, c.rows, c.n, c.k), c.n, false, name);
  }
  EXPECT_TRUE(y.guards_intact()) << name;
}

}  // namespace dsv3::cuda::testing
