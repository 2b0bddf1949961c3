// Where every byte of a rank goes, worked out from config.json alone: weights by part, KV cache, activations, workspace.
// Pure functions: `dsv3-serve plan` prints the result on any machine, the server keeps to it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/weights/model_config.h"

namespace dsv3 {

/// Numbers of a checkpoint by part, for the main model, and for the MTP module without its copies of embedding and
/// head. Norm weights and router biases are counted apart from the matrices they stand beside.
struct ParameterCounts {
  int64_t embedding = 0;
  int64_t head = 0;  ///< 0 when tied to the embedding
  int64_t attention = 0, dense_mlp = 0, routed_experts = 0, shared_experts = 0, router = 0, norms = 0;
  int64_t router_bias = 0;
  int64_t mtp = 0;        ///< everything of the module, norms included, without its router bias
  int64_t mtp_bias = 0;

  int64_t main_total() const {
    return embedding + head + attention + dense_mlp + routed_experts + shared_experts + router + norms;
  }
};
ParameterCounts count_parameters(const ModelConfig& config);

enum class Backend { kCpu, kCudaSm90 };
enum class KvDType {
  kF32,   ///< the CPU backend
  kBF16,
  kFp8,   ///< e4m3 latent with one float32 scale per 128, key in BF16
};

/// `tp` counts all ranks of the server. `dp` attention groups of tp/dp ranks each hold their own sequences; `ep` groups
/// of experts hold n_routed_experts/ep whole experts, each expert in tp/ep slices.
struct Layout {
  Backend backend = Backend::kCpu;
  int32_t tp = 1, dp = 1, ep = 1, nnodes = 1;
};

/// kInvalidArgument naming the flag at fault and the values that would work.
Status check_layout(const ModelConfig& config, const Layout& layout);

/// How the size of the KV cache is chosen. The fractions are those of the systems that users come from.
enum class CacheRule {
  kDefault,           ///< CPU: what the limits can use, at most 2 GiB a rank; CUDA: 0.95 of the device in all
  kStaticFraction,    ///< weights + cache are this part of the memory (SGLang, LightLLM)
  kEngineFraction,    ///< everything is this part of the memory (vLLM)
  kFreeAfterWeights,  ///< the cache is this part of what the weights leave (LMDeploy)
  kFreeAfterLoad,     ///< the cache is this part of what everything else leaves (TensorRT-LLM)
};

struct MemoryRequest {
  Layout layout;
  KvDType kv_dtype = KvDType::kF32;
  bool w8a8 = true;               ///< GPUs: FP8 weights stay FP8, activations have an FP8 form; else both are BF16
  bool mtp = false;               ///< load an MTP module
  int64_t num_drafts = 0;
  int64_t context_tokens = 0;     ///< longest sequence
  int64_t max_slots = 0;          ///< sequences at once, in one attention group
  int64_t prefill_tokens = 0;     ///< prefill rows of one step
  int64_t available_bytes = 0;    ///< memory of one rank
  CacheRule rule = CacheRule::kDefault;
  double fraction = 0;            ///< of the rule, (0, 1]
  int64_t max_total_tokens = 0;   ///< cached tokens of one attention group: exact, or with a fraction a limit; 0: none
};

struct MemoryLine {
  std::string name;   ///< for people, e.g. "routed experts"
  std::string key;    ///< for JSON, e.g. "routed_experts"
  int64_t bytes = 0;  ///< of the fullest rank
};

struct Concurrency {
  int64_t context_tokens = 0;
  int64_t sequences = 0;  ///< that fit at once, over all attention groups
};

struct MemoryPlan {
  std::vector<MemoryLine> lines;
  int64_t weight_bytes = 0, cache_bytes = 0, total_bytes = 0, available_bytes = 0;
  int64_t step_bytes = 0;     ///< activations, logits, slots and workspace: what the backend allocates besides weights and cache
  int64_t cache_bytes_per_token = 0;
  int64_t num_blocks = 0;     ///< of kBlockTokens, per attention group
  int64_t step_tokens = 0;    ///< rows of the largest step
  std::vector<Concurrency> concurrency;
  bool fits = false;
  int64_t short_bytes = 0;    ///< how much more one rank would need for one sequence of full context, when not `fits`
  std::vector<std::string> suggestions;  ///< flags that would make it fit, nearest first

  int64_t cache_tokens() const;  ///< per attention group
};

inline constexpr int64_t kBlockTokens = 64;
/// What the driver takes for a context with our kernels and a BLAS library's, on a device where nothing else runs.
inline constexpr int64_t kCudaContextBytes = int64_t{640} << 20;

/// Plans one rank. A plan that does not fit is a value with `fits` false and suggestions; only a request without sense
/// is an error (check_layout, limits below 1, fraction out of range).
Result<MemoryPlan> plan_memory(const ModelConfig& config, const MemoryRequest& request);

/// The plan as a table of lines for a terminal.
std::string format_plan(const MemoryPlan& plan);

}  // namespace dsv3
