// A predecessor that writes late, for the tests of the dependency wait: what reads too early sees the bytes from before.
#pragma once

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/ptx.cuh"

namespace dsv3::cuda::testing {

/// Lets its successor start at once, then takes its time and only at the end copies `bytes` bytes and writes *count (null: none).
static __global__ void late_writer_kernel(uint8_t* to, const uint8_t* from, int64_t bytes, int32_t* count, int32_t value) {
  launch_dependents();
  wait_for_previous();
  const long long start = clock64();
  while (clock64() - start < 200000) {
  }
  for (int64_t i = threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
  if (count != nullptr && threadIdx.x == 0) *count = value;
}

/// One block of it on the default stream.
inline Status write_late(uint8_t* to, const uint8_t* from, int64_t bytes, int32_t* count = nullptr, int32_t value = 0) {
  return launch("late_writer", late_writer_kernel, {dim3(1), dim3(256)}, nullptr, to, from, bytes, count, value);
}

}  // namespace dsv3::cuda::testing
