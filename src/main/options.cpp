// From flags to ServerOptions: the table of flags in order of the help text, then the rules across flags.
#include "options.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dsv3/base/json.h"
#include "dsv3/kernels/cuda/cuda_ops.h"
#include "flag_table.h"
#include "flags.h"

namespace dsv3 {
namespace {

/// `--api-key-file`: one key a line; blank lines and lines that begin with '#' are left out.
Status read_api_keys(const std::string& path, std::vector<std::string>* keys) {
  std::error_code error;
  const auto kind = std::filesystem::status(path, error).type();
  if (kind != std::filesystem::file_type::regular) return flag_error("--api-key-file", fmt::format("'{}' is not a file", printable(path)));
  if (std::filesystem::file_size(path, error) > (1 << 20)) return flag_error("--api-key-file", "is larger than 1 MiB");
  std::ifstream file(path);
  if (!file) return flag_error("--api-key-file", fmt::format("cannot read '{}'", printable(path)));
  size_t found = 0;
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '\t')) line.pop_back();
    if (line.empty() || line.front() == '#') continue;
    keys->push_back(line);
    ++found;
  }
  if (found == 0) return flag_error("--api-key-file", "holds no key");
  return {};
}

Status check_api_keys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) {
    const bool printable_key = std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
    if (key.empty() || key.size() > 1024 || !printable_key) {
      return flag_error("--api-key", "a key is 1 to 1024 printable ASCII characters without spaces");
    }
  }
  return {};
}

Status settle_model_path(const FlagTable::Parsed& parsed, ServerOptions* o) {
  std::vector<std::string> words = parsed.positional;
  if (words.size() > 1) {
    return flag_error("arguments", fmt::format("'{}' is one too many; the model's folder is the only one without a flag", printable(words[1])));
  }
  if (!words.empty()) {
    if (words[0] == "plan" || words[0] == "version" || words[0] == "serve" || words[0] == "bench-layer") {
      return flag_error("arguments", fmt::format("the command goes first: dsv3-serve {} ...", words[0]));
    }
    if (!o->model_path.empty() && o->model_path != words[0]) {
      return flag_error("--model-path", fmt::format("names '{}', but '{}' was given too", printable(o->model_path), printable(words[0])));
    }
    o->model_path = words[0];
  }
  if (o->model_path.empty()) return flag_error("--model-path", "is needed: the folder with config.json, the tokenizer and the weights");
  if (o->model_path.find('\0') != std::string::npos) return flag_error("--model-path", "holds a NUL byte");
  while (o->model_path.size() > 1 && o->model_path.back() == '/') o->model_path.pop_back();
  std::error_code error;
  const bool folder = std::filesystem::is_directory(o->model_path, error);
  const bool file = std::filesystem::is_regular_file(o->model_path, error);
  if (!folder && !(file && (o->command == Command::kPlan || o->command == Command::kBenchLayer))) {
    return flag_error("--model-path", fmt::format("'{}' is not a folder on this machine{}", printable(o->model_path),
                                                  o->command == Command::kPlan ? ", nor a config.json" : "; weights are not downloaded"));
  }
  o->api.model_path = o->model_path;
  if (o->tokenizer_path.empty()) o->tokenizer_path = o->model_path;
  return {};
}

Status settle_speculation(const FlagValues& values, ServerOptions* o) {
  const bool named = values.speculative != "unset";
  const bool off = values.speculative == "none";
  int64_t steps = 0;
  std::string by;
  for (const auto& [flag, number] : {std::pair<const char*, int64_t>{"--speculative-num-steps", values.num_steps},
                                     {"--mtp-step", values.mtp_step},
                                     {"--speculative-config", values.config_steps}}) {
    if (number < 0) continue;
    if (!by.empty() && number != steps) {
      return flag_error(flag, fmt::format("is {}, but {} is {}", number, by, steps));
    }
    steps = number;
    by = flag;
  }
  if (by == "--speculative-num-steps" && !named) return flag_error(by, "needs --speculative-algorithm NEXTN");
  if (off && steps > 0) return flag_error(by, "makes drafts, but --speculative-algorithm is none");
  if (named && !off && by.empty()) steps = 1;
  if (values.draft_tokens >= 0 && (steps == 0 || values.draft_tokens != steps + 1)) {
    return flag_error("--speculative-num-draft-tokens",
                      fmt::format("is {}; drafts are one chain, so it is the number of steps + 1 ({})", values.draft_tokens,
                                  steps == 0 ? "with --speculative-algorithm NEXTN" : std::to_string(steps + 1)));
  }
  o->engine.num_drafts = static_cast<int32_t>(steps);
  return {};
}

/// Takes the GPU where --device says so, or says auto and there is one that our kernels run on.
Status find_gpu(const FlagValues& values, ServerOptions* o) {
  const std::vector<CudaDevice> devices = cuda_devices();
  const bool usable = !devices.empty() && devices[0].supported();
  if (usable) {
    o->backend = Backend::kCudaSm90;
    for (const auto& [flag, value] : {std::pair<const char*, int32_t>{"--tp", o->layout.tp}, {"--ep", o->layout.ep}, {"--dp", o->layout.dp}, {"--nnodes", o->layout.nnodes}}) {
      if (value == 1) continue;
      return {Code::kUnsupported, fmt::format("{} {}: the CUDA backend of this version serves on one GPU; leave it out, or use --device cpu", flag, value), flag};
    }
    return {};
  }
  if (values.device != "cuda") return {};
  const std::string why = !built_with_cuda() ? "this build has no CUDA backend"
                          : devices.empty()  ? "this machine has no NVIDIA GPU, or no driver for one"
                                             : fmt::format("GPU 0 is a {} (sm_{}{}), and the kernels of this version are for sm_90 (H100, H200)",
                                                           devices[0].name, devices[0].major, devices[0].minor);
  return {Code::kUnsupported, fmt::format("--device cuda: {}; use --device cpu", why), "--device"};
}

Status settle_layout(const FlagValues& values, ServerOptions* o) {
  const bool plan = o->command == Command::kPlan;
  if (values.device != "cpu" && !plan) DSV3_TRY(find_gpu(values, o));
  if (values.device == "cuda" && plan) o->backend = Backend::kCudaSm90;
  o->layout.backend = o->backend;
  o->deterministic = values.deterministic;
  if (o->backend == Backend::kCpu) {
    for (const std::string& flag : values.graph_flags) o->notes.push_back(flag + ": there are no CUDA graphs on CPUs");
    if (values.deterministic) o->notes.push_back("--deterministic: the CPU backend always sums in the same order");
  }
  if (values.expert_parallel) {
    if (o->layout.ep > 1 && o->layout.ep != o->layout.tp) {
      return flag_error("--enable-expert-parallel", fmt::format("means --ep {}, but --ep is {}", o->layout.tp, o->layout.ep));
    }
    o->layout.ep = o->layout.tp;
  }
  if (values.dp_attention && o->layout.dp == 1) {
    return flag_error("--enable-dp-attention", "needs --dp above 1; --tp counts all ranks, e.g. --tp 16 --dp 16");
  }
  if (values.node_rank >= o->layout.nnodes) {
    return flag_error("--node-rank", fmt::format("is {}, allowed 0 to {} (--nnodes {})", values.node_rank, o->layout.nnodes - 1, o->layout.nnodes));
  }
  if (o->backend == Backend::kCudaSm90) {
    if (values.gpu_memory_given && !plan) return flag_error("--gpu-memory-gib", "goes with dsv3-serve plan; a server looks at its GPU");
    return {};
  }
  for (const auto& [flag, value] : {std::pair<const char*, int32_t>{"--ep", o->layout.ep}, {"--dp", o->layout.dp}, {"--nnodes", o->layout.nnodes}}) {
    if (value == 1) continue;
    return {Code::kUnsupported, fmt::format("{} {}: the CPU backend has one node, one attention group and experts sliced by --tp; "
                                            "leave it out{}", flag, value, plan ? ", or plan with --device cuda" : ""), flag};
  }
  if (values.gpu_memory_given) {
    return flag_error("--gpu-memory-gib", "is about GPUs; it goes with dsv3-serve plan --device cuda");
  }
  return {};
}

Status settle_cache(const FlagValues& values, ServerOptions* o) {
  std::string by;
  for (const auto& [flag, rule, fraction] : values.fractions) {
    if (!by.empty()) return flag_error(flag, fmt::format("cannot be given together with {}: each means a fraction of something else", by));
    by = flag;
    o->cache_rule = rule;
    o->cache_fraction = fraction;
  }
  if (values.num_blocks > 0) {
    if (o->max_total_tokens > 0) return flag_error("--num-gpu-blocks-override", "cannot be given together with --max-total-tokens");
    o->max_total_tokens = values.num_blocks * kBlockTokens;
  }
  if (values.enable_prefix && values.disable_prefix) {
    return flag_error("--enable-prefix-caching", "cannot be given together with --disable-radix-cache");
  }
  o->engine.prefix_cache = !values.disable_prefix;
  if (o->kv_dtype && o->backend == Backend::kCpu && *o->kv_dtype != KvDType::kF32) {
    return {Code::kUnsupported, "--kv-cache-dtype: the CPU backend keeps the cache in float32; use auto or float32", "--kv-cache-dtype"};
  }
  if (o->kv_dtype && o->backend == Backend::kCudaSm90 && *o->kv_dtype == KvDType::kF32) {
    return flag_error("--kv-cache-dtype", "float32 is for the CPU backend; allowed: auto, bfloat16, fp8");
  }
  return {};
}

Status settle_words(ServerOptions* o, const FlagValues& values) {
  DSV3_TRY(settle_layout(values, o));
  DSV3_TRY(settle_cache(values, o));
  DSV3_TRY(settle_speculation(values, o));
  if (!values.key_file.empty()) DSV3_TRY(read_api_keys(values.key_file, &o->server.api_keys));
  DSV3_TRY(check_api_keys(o->server.api_keys));
  if (!o->model_override_json.empty()) {
    const auto json = parse_json(o->model_override_json);
    if (!json.ok()) return flag_error("--json-model-override-args", "is not JSON: " + printable(json.status().message()));
    if (!json->is_object()) return flag_error("--json-model-override-args", "must be a JSON object");
  }
  if (values.chunked_prefill == -1) {
    o->engine.chunked_prefill_tokens = 0;  // one chunk: settle() makes it the context
  } else if (values.chunked_prefill > 0) {
    o->engine.chunked_prefill_tokens = static_cast<int32_t>(values.chunked_prefill);
  }
  o->chunk_given = values.chunked_prefill != 0;
  o->engine.lookahead = values.lookahead >= 0 ? values.lookahead : o->backend == Backend::kCudaSm90 ? 1 : 0;
  if (o->command != Command::kPlan && o->plan_as_json) return flag_error("--json", "goes with dsv3-serve plan");
  return {};
}

}  // namespace

Result<ServerOptions> parse_options(const std::vector<std::string>& args) {
  ServerOptions options;
  std::vector<std::string> rest = args;
  for (const std::string& arg : args) {
    if (arg == "--") break;
    if (arg == "--help" || arg == "-h") options.command = Command::kHelp;
    if (arg == "--version") options.command = Command::kVersion;
    if (options.command != Command::kServe) return options;
  }
  if (!rest.empty()) {
    if (rest[0] == "plan") options.command = Command::kPlan;
    if (rest[0] == "bench-layer") options.command = Command::kBenchLayer;
    if (rest[0] == "version") options.command = Command::kVersion;
    if (rest[0] == "help") options.command = Command::kHelp;
    if (options.command != Command::kServe || rest[0] == "serve") rest.erase(rest.begin());
  }
  FlagValues values;
  FlagTable table;
  add_flags(table, options, values);
  DSV3_ASSIGN(const FlagTable::Parsed parsed, table.parse(rest));
  if (options.command == Command::kVersion || options.command == Command::kHelp) {
    if (!parsed.positional.empty() || !parsed.given.empty()) return flag_error("arguments", "version and help take none");
    return options;
  }
  DSV3_TRY(table.apply(parsed));
  values.gpu_memory_given = parsed.has(table, "gpu-memory-gib");
  DSV3_TRY(settle_words(&options, values));
  DSV3_TRY(settle_model_path(parsed, &options));
  return options;
}

std::string help_text() {
  ServerOptions options;
  FlagValues values;
  FlagTable table;
  add_flags(table, options, values);
  return "dsv3-serve: an OpenAI-compatible server for DeepSeek-V3 and its relatives\n\n"
         "  dsv3-serve [serve] MODEL [flags]   serve a model folder\n"
         "  dsv3-serve plan MODEL [flags]      memory per rank, from config.json alone\n"
         "  dsv3-serve bench-layer MODEL [flags]  time a truncated model with random weights\n"
         "  dsv3-serve version\n\n"
         "'-' and '_' are the same in a flag. Every flag can stand in a config file: tp = 8\n" +
         table.help();
}

Result<MemoryRequest> settle(ServerOptions& o, const ModelConfig& config, int64_t available_bytes) {
  DSV3_TRY(check_layout(config, o.layout));
  if (o.quantization == "fp8" && !config.fp8) {
    return flag_error("--quantization", "is fp8, but the checkpoint is not; use auto (weights are served as they are stored)");
  }
  if (o.context_tokens == 0) o.context_tokens = config.max_position_embeddings;
  if (o.context_tokens > config.max_position_embeddings) {
    return flag_error("--context-length", fmt::format("is {}, but the model's positions end at {}", o.context_tokens, config.max_position_embeddings));
  }
  if (o.engine.num_drafts > 0 && config.num_nextn_predict_layers == 0) {
    return flag_error("--speculative-algorithm", "needs an MTP module, and this model has none; use none");
  }
  const bool cpu = o.backend == Backend::kCpu;
  if (!cpu && o.max_running_requests > kMaxCudaSlots) {
    return flag_error("--max-running-requests", fmt::format("is {}, allowed 1 to {} on a GPU", o.max_running_requests, kMaxCudaSlots));
  }
  if (!cpu && o.engine.num_drafts > kMaxCudaDrafts) {
    return flag_error("--speculative-num-steps", fmt::format("is {}, allowed 0 to {} on GPUs", o.engine.num_drafts, kMaxCudaDrafts));
  }
  if (o.max_running_requests == 0) o.max_running_requests = cpu ? 64 : 256;
  if (!o.fp8_w8a8) o.fp8_w8a8 = !cpu;
  if (!cpu && !o.chunk_given) o.engine.chunked_prefill_tokens = 8192;
  if (o.engine.chunked_prefill_tokens == 0) o.engine.chunked_prefill_tokens = static_cast<int32_t>(std::min<int64_t>(o.context_tokens, 1 << 20));
  o.engine.chunked_prefill_tokens = static_cast<int32_t>(std::min<int64_t>(o.engine.chunked_prefill_tokens, o.context_tokens));
  o.engine.max_running_requests = o.max_running_requests;
  if (!o.kv_dtype) o.kv_dtype = cpu ? KvDType::kF32 : KvDType::kBF16;

  MemoryRequest request;
  request.layout = o.layout;
  request.kv_dtype = *o.kv_dtype;
  request.w8a8 = *o.fp8_w8a8;
  request.num_drafts = o.engine.num_drafts;
  request.mtp = o.engine.num_drafts > 0;
  request.context_tokens = o.context_tokens;
  request.max_slots = o.max_running_requests;
  request.prefill_tokens = o.engine.chunked_prefill_tokens;
  request.available_bytes = available_bytes;
  request.rule = o.cache_rule;
  request.fraction = o.cache_fraction;
  request.max_total_tokens = o.max_total_tokens;
  return request;
}

}  // namespace dsv3
