#include "cuda_status.h"

#include <string>

namespace dsv3::cuda {

Status cuda_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  const Code code = error == cudaErrorMemoryAllocation ? Code::kOutOfMemory : Code::kDeviceLost;
  return {code, std::string(what) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")"};
}

}  // namespace dsv3::cuda
