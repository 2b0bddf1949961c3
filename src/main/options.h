// Everything that the command line and the config file decide, parsed once into one struct.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dsv3/api/service.h"
#include "dsv3/base/log.h"
#include "dsv3/base/status.h"
#include "dsv3/engine/engine.h"
#include "dsv3/model/memory_plan.h"
#include "dsv3/server/server.h"

namespace dsv3 {

enum class Command { kServe, kPlan, kBenchLayer, kVersion, kHelp };

/// What `bench-layer` measures.
struct BenchLayerOptions {
  std::vector<int32_t> batches = {1, 32, 128};       ///< decode
  std::vector<int32_t> prefills = {128, 1024, 4096};
  int32_t context = 2048;      ///< cached tokens of each sequence while decoding
  int32_t slice_of_tp = 1;     ///< > 1: what one rank of so many computes
  int32_t moe_layers = 5;      ///< of the truncated model
  std::string out, commit;     ///< JSON lines, and the commit that they name
};

struct ServerOptions {
  Command command = Command::kServe;

  // Model
  std::string model_path;           ///< folder; for `plan` also a config.json by itself
  std::string tokenizer_path;       ///< empty: model_path
  std::string chat_template;        ///< file or built-in name; empty: the model's own
  bool dummy_weights = false;
  std::string model_override_json;  ///< an object, or empty
  std::string quantization = "auto";  ///< auto or fp8

  // Device and layout
  Backend backend = Backend::kCpu;  ///< after `auto`
  std::optional<bool> fp8_w8a8;     ///< FP8 products read FP8 activations; settled: CPUs no, GPUs yes
  bool deterministic = false;       ///< GPUs: the same bits for a request alone or among others
  bool cuda_graphs = true;
  std::vector<int32_t> cuda_graph_batches;  ///< decode batch sizes; empty: chosen from max_running_requests
  int32_t cuda_graph_max_batch = 0;         ///< 0: max_running_requests
  int32_t cpu_threads = 0;          ///< 0: one per core
  Layout layout;                    ///< backend included
  double gpu_memory_gib = 78;       ///< `plan` only

  // Memory and limits; 0: chosen from the model and the device (settle)
  int64_t context_tokens = 0;
  int64_t max_total_tokens = 0;
  std::optional<KvDType> kv_dtype;
  CacheRule cache_rule = CacheRule::kDefault;
  double cache_fraction = 0;
  int32_t max_running_requests = 0;
  bool chunk_given = false;         ///< --chunked-prefill-size was; else the device decides
  bool plan_as_json = false;
  BenchLayerOptions bench;

  // The parts' own settings, with their own defaults
  EngineConfig engine;
  ApiConfig api;
  ServerConfig server;
  int64_t drain_timeout_us = 120'000'000;
  std::optional<uint64_t> random_seed;

  std::string config_path;
  LogLevel log_level = LogLevel::kInfo;
  std::vector<std::string> notes;  ///< flags that were accepted without effect; said once at start
};

/// `args` without the program's name: `[serve|plan|version] [MODEL] [flags]`. Every fault is one line that names the
/// flag, what was seen and what is allowed (kInvalidArgument), or what this version does instead (kUnsupported).
Result<ServerOptions> parse_options(const std::vector<std::string>& args);

std::string help_text();
std::string version_text();

/// The checks that need the model: layout, context, drafts. Fills what was left to choose, and makes the request for
/// the memory plan. `available_bytes`: of one rank.
Result<MemoryRequest> settle(ServerOptions& options, const ModelConfig& config, int64_t available_bytes);

}  // namespace dsv3
