// Makes the CUDA backend. In a build without CUDA the same functions say so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/kernels/ops.h"

namespace dsv3 {

struct CudaDevice {
  std::string name;
  int major = 0, minor = 0;   ///< compute capability
  int64_t total_bytes = 0, free_bytes = 0;
  bool supported() const { return major == 9 && minor == 0; }  ///< kernels are compiled for sm_90a
};

inline constexpr int32_t kMaxCudaSlots = 1024;  ///< sequences at once: decode attention schedules so many in one block
inline constexpr int32_t kMaxCudaDrafts = 3;    ///< rows of a sequence in decode attention, less one

/// False in a build without CUDA.
bool built_with_cuda();
/// The machine's GPUs; empty without a driver, a GPU, or CUDA in the build. Creates no context on any of them.
std::vector<CudaDevice> cuda_devices();
/// Memory that is free on a device now, its context included. kUnsupported with the device's name if our kernels do not run on it.
Result<CudaDevice> open_cuda_device(int index);

/// Parts of a rank's device memory, as planned (model/memory_plan.h).
struct CudaMemory {
  int64_t weight_bytes = 0;
  int64_t cache_bytes = 0;
  int64_t step_bytes = 0;   ///< activations, logits, slots, workspace
  int64_t total() const { return weight_bytes + cache_bytes + step_bytes; }
};

struct CudaOpsOptions {
  int device = 0;
  CudaMemory memory;          ///< allocated at once; a part that does not fit its share is our bug and refused at start
  bool w8a8 = true;           ///< FP8 weights times FP8 activations; else weights become BF16
  bool ue8m0 = false;         ///< activation scales are powers of two (config.scale_fmt)
  bool fp8_cache = false;     ///< KV rows of 656 bytes: e4m3 latent with scales, BF16 key
  bool deterministic = false; ///< the same bits for a request alone or among others
  std::vector<int32_t> graph_batches;  ///< decode batch sizes captured as CUDA graphs; empty: no graphs
  int loader_threads = 8;
};

/// BF16 activations on one GPU. Every call enqueues; faults are sticky and come out of collect(). kOutOfMemory says how much was
/// missing.
Result<std::unique_ptr<Ops>> make_cuda_ops(const OpsLimits& limits, const CudaOpsOptions& options);

}  // namespace dsv3
