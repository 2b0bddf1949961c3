// Builds the Executor that runs the real network: one thread per rank, weights sliced for each.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "dsv3/base/status.h"
#include "dsv3/kernels/cuda/cuda_ops.h"
#include "dsv3/model/step_plan.h"
#include "dsv3/weights/model_config.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3 {

/// Which hidden state the MTP module reads (model.md 7.2): after the final norm as most engines, or before it.
enum class MtpHidden { kPostNorm, kPreNorm };

struct ExecutorOptions {
  int tp = 1;                ///< ranks; must divide the heads and the vocabulary
  int num_threads = 1;       ///< of all ranks together
  bool w8a8 = false;         ///< inputs of fp8 linears rounded to e4m3; else exact (float32 on CPUs, BF16 weights on GPUs)
  std::optional<CudaOpsOptions> cuda;  ///< ranks run on GPUs, rank r on device cuda->device + r; else on the CPU
  MtpHidden mtp_hidden = MtpHidden::kPostNorm;
  int32_t max_slots = 256;
  int32_t num_blocks = 0;
  int32_t block_tokens = 64;
  int32_t max_context_tokens = 0;
  int32_t max_step_tokens = 2048;
  int32_t num_drafts = 0;    ///< 0: the MTP module is not loaded
  int32_t known_vocab = 0;   ///< ids >= this are never sampled; 0: the model's vocabulary
};

/// Which tensor-parallel degrees a model allows; an error names the ones that would work.
Status check_tp(const ModelConfig& config, int tp);

/// Loads the weights (every rank its slices, all at once) and starts the rank threads. References are not kept.
Result<std::unique_ptr<Executor>> make_model_executor(const ModelConfig& config,
                                                      std::shared_ptr<const WeightSource> weights,
                                                      const ExecutorOptions& options);

}  // namespace dsv3
