// Makes the CPU backend: the reference implementation of Ops.
#pragma once

#include <memory>

#include "dsv3/kernels/ops.h"

namespace dsv3 {

struct CpuOpsOptions {
  int num_threads = 1;     ///< of this rank
  bool w8a8 = false;       ///< round the inputs of fp8 linears to e4m3 per token and 128 channels, as a GPU will
  bool ue8m0 = false;      ///< with powers of two as scales (config.scale_fmt)
};

/// Float32 arithmetic; every output depends on its own row alone, bit for bit, whatever the batch. Host memory only.
std::unique_ptr<Ops> make_cpu_ops(const OpsLimits& limits, const CpuOpsOptions& options);

}  // namespace dsv3
