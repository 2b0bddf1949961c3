#include "executor_options.h"

#include <algorithm>
#include <thread>

namespace dsv3 {
namespace {

/// Decode batch sizes worth a graph: small ones one by one, large ones in steps that waste little.
std::vector<int32_t> graph_batches(const ServerOptions& options) {
  const int32_t most = options.cuda_graph_max_batch > 0 ? std::min(options.cuda_graph_max_batch, options.max_running_requests)
                                                        : options.max_running_requests;
  std::vector<int32_t> sizes = options.cuda_graph_batches;
  if (sizes.empty()) {
    for (int32_t size = 1; size < most; size += size < 4 ? 1 : size < 16 ? 4 : size < 64 ? 8 : size < 128 ? 16 : 32) sizes.push_back(size);
    sizes.push_back(most);
  }
  std::erase_if(sizes, [&](int32_t size) { return size > most; });
  if (sizes.empty()) sizes.push_back(most);
  return sizes;
}

}  // namespace

ExecutorOptions make_executor_options(const ServerOptions& options, const MemoryPlan& plan, int32_t known_vocab) {
  ExecutorOptions out;
  out.tp = options.layout.tp;
  out.num_threads = options.cpu_threads > 0 ? options.cpu_threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  out.w8a8 = *options.fp8_w8a8;
  if (options.backend == Backend::kCudaSm90) {
    CudaOpsOptions& cuda = out.cuda.emplace();
    cuda.memory = {.weight_bytes = plan.weight_bytes, .cache_bytes = plan.cache_bytes, .step_bytes = plan.step_bytes};
    cuda.fp8_cache = options.kv_dtype == KvDType::kFp8;
    cuda.deterministic = options.deterministic;
    cuda.loader_threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u));
    if (options.cuda_graphs) cuda.graph_batches = graph_batches(options);
  }
  out.max_slots = options.max_running_requests;
  out.num_blocks = static_cast<int32_t>(plan.num_blocks);
  out.block_tokens = static_cast<int32_t>(kBlockTokens);
  out.max_context_tokens = static_cast<int32_t>(options.context_tokens);
  out.max_step_tokens = static_cast<int32_t>(plan.step_tokens);
  out.num_drafts = options.engine.num_drafts;
  out.known_vocab = known_vocab;
  return out;
}

}  // namespace dsv3
