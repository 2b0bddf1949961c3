// Kernel launches with programmatic dependent launch: the one place where a launch is made.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "cuda_status.h"
#include "types.h"

namespace dsv3::cuda {

/// What a launcher refuses: our fault, not the world's.
inline Status wrong(const char* kernel, const std::string& what) {
  return {Code::kInternal, std::string(kernel) + ": " + what};
}

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;  ///< dynamic; above 48 KiB the launcher called allow_shared_bytes() before
  unsigned cluster = 1;     ///< blocks of a cluster, along x
};

/// Launches with the programmatic attribute: the kernel may start before its predecessor has ended, so it must call
/// wait_for_previous() (ptx.cuh) before it touches anything that another kernel writes or reads (but see there).
template <class... Params, class... Args>
Status launch(const char* name, void (*kernel)(Params...), const LaunchShape& shape, Stream stream, Args&&... args) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  return cuda_status(cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...), name);
}

/// Raises a kernel's limit of dynamic shared memory. Cheap after the first call; needs no stream.
template <class Kernel>
Status allow_shared_bytes(const char* name, Kernel* kernel, size_t bytes) {
  return cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
}

/// Streaming multiprocessors of the current device.
int sm_count();

}  // namespace dsv3::cuda
