// What a build without CUDA answers (dsv3/kernels/cuda/cuda_ops.h).
#include "dsv3/kernels/cuda/cuda_ops.h"

namespace dsv3 {
namespace {

Status no_cuda() { return {Code::kUnsupported, "this build has no CUDA backend: nvcc 12.4 or newer was not found when it was made"}; }

}  // namespace

bool built_with_cuda() { return false; }
std::vector<CudaDevice> cuda_devices() { return {}; }
Result<CudaDevice> open_cuda_device(int) { return no_cuda(); }
Result<std::unique_ptr<Ops>> make_cuda_ops(const OpsLimits&, const CudaOpsOptions&) { return no_cuda(); }

}  // namespace dsv3
