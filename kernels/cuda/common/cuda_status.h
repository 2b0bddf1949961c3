// CUDA errors as Status.
#pragma once

#include <cuda_runtime_api.h>

#include "dsv3/base/status.h"

namespace dsv3::cuda {

/// kDeviceLost (CUDA contexts do not heal) or, for cudaErrorMemoryAllocation, kOutOfMemory.
Status cuda_status(cudaError_t error, const char* what);

}  // namespace dsv3::cuda
