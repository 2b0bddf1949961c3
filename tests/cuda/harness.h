// What the tests of CUDA kernels share: buffers with guard zones and poison, seeded inputs, float64 comparison. On a machine
// without a Hopper GPU every test reports itself skipped.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/tensor/dtype.h"
#include "kernels/cuda/common/types.h"

namespace dsv3::cuda::testing {

inline bool have_gpu() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return false;
  cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major == 9;
}
/// First line of every test: skips it without a GPU.
#define DSV3_NEEDS_GPU() \
  if (!::dsv3::cuda::testing::have_gpu()) GTEST_SKIP() << "no Hopper GPU on this machine"

/// A device buffer between two guard zones. Starts as poison: NaN in every float format.
template <class T>
class Guarded {
 public:
  static constexpr size_t kGuardBytes = 4096;
  explicit Guarded(size_t count) : count_(count) {
    const size_t bytes = count * sizeof(T) + 2 * kGuardBytes;
    EXPECT_EQ(cudaMalloc(&base_, bytes), cudaSuccess);
    EXPECT_EQ(cudaMemset(base_, 0xFF, bytes), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  explicit Guarded(const std::vector<T>& host) : Guarded(host.size()) { upload(host); }
  Guarded(const Guarded&) = delete;
  ~Guarded() { cudaFree(base_); }

  T* get() const { return reinterpret_cast<T*>(static_cast<char*>(base_) + kGuardBytes); }
  size_t size() const { return count_; }
  void upload(const std::vector<T>& host) {
    EXPECT_EQ(host.size(), count_);
    EXPECT_EQ(cudaMemcpy(get(), host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  void zero() { EXPECT_EQ(cudaMemset(get(), 0, count_ * sizeof(T)), cudaSuccess); }
  void poison() { EXPECT_EQ(cudaMemset(get(), 0xFF, count_ * sizeof(T)), cudaSuccess); }
  std::vector<T> download() const {
    std::vector<T> host(count_);
    EXPECT_EQ(cudaMemcpy(host.data(), get(), count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }
  /// Nothing was written outside of the buffer.
  bool guards_intact() const {
    std::vector<uint8_t> zone(kGuardBytes);
    for (const char* at : {static_cast<const char*>(base_), reinterpret_cast<const char*>(get() + count_)}) {
      EXPECT_EQ(cudaMemcpy(zone.data(), at, kGuardBytes, cudaMemcpyDeviceToHost), cudaSuccess);
      for (const uint8_t byte : zone) {
        if (byte != 0xFF) return false;
      }
    }
    return true;
  }

 private:
  size_t count_;
  void* base_ = nullptr;
};

inline std::vector<float> normal_values(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (auto& value : values) value = normal(generator);
  return values;
}
inline Bf16 to_bf16(float value) { return __ushort_as_bfloat16(f32_to_bf16(value)); }
inline float from_bf16(Bf16 value) { return bf16_to_f32(__bfloat16_as_ushort(value)); }
inline std::vector<Bf16> to_bf16(const std::vector<float>& values) {
  std::vector<Bf16> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = to_bf16(values[i]);
  return out;
}
inline std::vector<float> from_bf16(const std::vector<Bf16>& values) {
  std::vector<float> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = from_bf16(values[i]);
  return out;
}

/// |got - want| / |want| over everything, and of the worst row (a mean can hide one broken row). NaN never passes.
struct Error {
  double all = 0, worst_row = 0;
  int64_t worst = -1;
};
template <class Want>
Error relative_l2(const std::vector<float>& got, const std::vector<Want>& want, int64_t cols) {
  Error error;
  double diff = 0, norm = 0;
  for (size_t begin = 0; begin < want.size(); begin += static_cast<size_t>(cols)) {
    double row_diff = 0, row_norm = 0;
    for (size_t i = begin; i < begin + static_cast<size_t>(cols); ++i) {
      const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
      row_diff += d * d;
      row_norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
    }
    diff += row_diff;
    norm += row_norm;
    const double row = std::sqrt(row_diff / std::max(row_norm, 1e-30));
    if (!(row <= error.worst_row)) {
      error.worst_row = row;
      error.worst = static_cast<int64_t>(begin) / cols;
    }
  }
  error.all = std::sqrt(diff / std::max(norm, 1e-30));
  if (std::isnan(diff)) error.all = error.worst_row = INFINITY;
  return error;
}

#define EXPECT_OK(expression)                                   \
  do {                                                          \
    const ::dsv3::Status status_ = (expression);                \
    EXPECT_TRUE(status_.ok()) << #expression << ": " << status_.message(); \
  } while (false)
#define ASSERT_OK(expression)                                   \
  do {                                                          \
    const ::dsv3::Status status_ = (expression);                \
    ASSERT_TRUE(status_.ok()) << #expression << ": " << status_.message(); \
  } while (false)

inline void expect_synced() { EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError()); }

}  // namespace dsv3::cuda::testing
