// The shipped model on a GPU, with memory as the plan works it out: an allocation beyond the plan is a fault at start.
#pragma once

#include <gtest/gtest.h>

#include "dsv3/kernels/cuda/cuda_ops.h"
#include "dsv3/model/memory_plan.h"
#include "golden_data.h"

namespace dsv3::testing {

inline bool have_gpu() {
  const auto devices = cuda_devices();
  return !devices.empty() && devices[0].supported();
}
#define DSV3_NEEDS_GPU() \
  if (!::dsv3::testing::have_gpu()) GTEST_SKIP() << "no Hopper GPU on this machine"

struct GpuSetup {
  bool w8a8 = false;
  bool fp8_cache = false;
  bool deterministic = false;
  int32_t drafts = 0;
  int32_t max_slots = 32;
  int64_t cache_tokens = 400 * 64;
  int64_t prefill_tokens = 2048;
  std::vector<int32_t> graphs = {};
};

struct GpuPlan {
  MemoryPlan plan;
  CudaOpsOptions options;
};

inline GpuPlan plan_gpu(const GpuSetup& s) {
  MemoryRequest request;
  request.layout.backend = Backend::kCudaSm90;
  request.kv_dtype = s.fp8_cache ? KvDType::kFp8 : KvDType::kBF16;
  request.w8a8 = s.w8a8;
  request.mtp = s.drafts > 0;
  request.num_drafts = s.drafts;
  request.context_tokens = golden().config.max_position_embeddings;
  request.max_slots = s.max_slots;
  request.prefill_tokens = s.prefill_tokens;
  request.available_bytes = int64_t{20} << 30;
  request.max_total_tokens = s.cache_tokens;
  auto plan = plan_memory(golden().config, request);
  DSV3_CHECK(plan.ok(), "the shipped model can be planned");
  GpuPlan out{*plan, {}};
  out.options.memory = {plan->weight_bytes, s.cache_tokens / kBlockTokens * kBlockTokens * plan->cache_bytes_per_token, plan->step_bytes};
  out.options.w8a8 = s.w8a8;
  out.options.fp8_cache = s.fp8_cache;
  out.options.deterministic = s.deterministic;
  out.options.graph_batches = s.graphs;
  return out;
}

inline std::string describe(const GpuSetup& s) {
  return std::string(s.w8a8 ? "w8a8" : "bf16") + (s.fp8_cache ? ", FP8 cache" : "") + (s.deterministic ? ", deterministic" : "") +
         ", drafts " + std::to_string(s.drafts) + ", slots " + std::to_string(s.max_slots) + ", chunk " + std::to_string(s.prefill_tokens) +
         ", cache " + std::to_string(s.cache_tokens) + (s.graphs.empty() ? ", no graphs" : ", graphs");
}

}  // namespace dsv3::testing
