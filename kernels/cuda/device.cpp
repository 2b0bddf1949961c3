// Which GPUs there are, and which of them our kernels run on: the one place that knows architectures.
#include <cuda_runtime_api.h>

#include "common/cuda_status.h"
#include "dsv3/kernels/cuda/cuda_ops.h"

namespace dsv3 {

bool built_with_cuda() { return true; }

std::vector<CudaDevice> cuda_devices() {
  int count = 0;
  std::vector<CudaDevice> devices;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return devices;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    devices.push_back({.name = properties.name,
                       .major = properties.major,
                       .minor = properties.minor,
                       .total_bytes = static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return devices;
}

Result<CudaDevice> open_cuda_device(int index) {
  const auto devices = cuda_devices();
  if (devices.empty()) return Status(Code::kUnsupported, "--device cuda: this machine has no NVIDIA GPU, or no driver for one", "--device");
  if (index < 0 || index >= static_cast<int>(devices.size())) {
    return Status(Code::kInvalidArgument, "--tp: rank " + std::to_string(index) + " needs a GPU of its own; this machine has " +
                                              std::to_string(devices.size()), "--tp");
  }
  CudaDevice device = devices[static_cast<size_t>(index)];
  if (!device.supported()) {
    return Status(Code::kUnsupported, "--device cuda: GPU " + std::to_string(index) + " is a " + device.name + " (sm_" +
                                          std::to_string(device.major) + std::to_string(device.minor) +
                                          "); this version's kernels are for sm_90 (H100, H200, H800, GH200)", "--device");
  }
  DSV3_TRY(cuda::cuda_status(cudaSetDevice(index), "cudaSetDevice"));
  size_t free_bytes = 0, total_bytes = 0;
  DSV3_TRY(cuda::cuda_status(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  device.free_bytes = static_cast<int64_t>(free_bytes);
  return device;
}

}  // namespace dsv3
