#include "arena.h"

#include <cuda_runtime_api.h>

#include <string>

#include "common/cuda_status.h"

namespace dsv3::cuda {
namespace {

constexpr int64_t kAlign = 256;
int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

Result<std::unique_ptr<Arena>> Arena::create(const CudaMemory& planned) {
  size_t free_bytes = 0, total_bytes = 0;
  DSV3_TRY(cuda_status(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  const CudaMemory rounded{aligned(planned.weight_bytes), aligned(planned.cache_bytes), aligned(planned.step_bytes)};
  void* base = nullptr;
  if (cudaMalloc(&base, static_cast<size_t>(rounded.total())) != cudaSuccess) {
    cudaGetLastError();
    const int64_t missing = rounded.total() - static_cast<int64_t>(free_bytes);
    return Status(Code::kOutOfMemory, "the GPU has " + std::to_string(free_bytes >> 20) + " MiB free of " + std::to_string(total_bytes >> 20) +
                                          ", the plan takes " + std::to_string(rounded.total() >> 20) + " MiB" +
                                          (missing > 0 ? ": " + std::to_string((missing >> 20) + 1) + " MiB are missing" : "") +
                                          "; lower --mem-fraction-static or --max-total-tokens, or end what else uses this GPU");
  }
  return std::unique_ptr<Arena>(new Arena(rounded, static_cast<char*>(base)));
}

Arena::~Arena() { cudaFree(base_); }

Result<void*> Arena::take(Part part, std::string_view name, int64_t bytes) {
  const int64_t begins[3] = {0, planned_.weight_bytes, planned_.weight_bytes + planned_.cache_bytes};
  const int64_t sizes[3] = {planned_.weight_bytes, planned_.cache_bytes, planned_.step_bytes};
  const auto index = static_cast<int>(part);
  const int64_t at = used_[index], size = aligned(bytes);
  if (at + size > sizes[index]) {
    static constexpr const char* kNames[] = {"weights", "KV cache", "step"};
    return Status(Code::kInternal, std::string("memory plan: ") + kNames[index] + " was planned with " + std::to_string(sizes[index]) +
                                       " bytes, of which " + std::to_string(at) + " are used; " + std::string(name) + " needs " +
                                       std::to_string(size) + " more");
  }
  used_[index] += size;
  return static_cast<void*>(base_ + begins[index] + at);
}

}  // namespace dsv3::cuda
