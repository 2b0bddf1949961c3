// Text and JSON of the memory plan.
#include "plan_command.h"

#include <cstdio>
#include <filesystem>
#include <algorithm>
#include <fmt/format.h>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dsv3/kernels/cuda/cuda_ops.h"
#include "dsv3/base/json.h"
#include "host_memory.h"

namespace dsv3 {
namespace {

std::string_view kv_name(KvDType dtype) {
  switch (dtype) {
    case KvDType::kF32: return "float32";
    case KvDType::kBF16: return "bfloat16";
    case KvDType::kFp8: return "fp8";
  }
  return "";
}

std::string layout_as_text(const ServerOptions& o) {
  const Layout& l = o.layout;
  std::string out = fmt::format("{}: tp {}", l.backend == Backend::kCpu ? "CPU" : "CUDA sm_90", l.tp);
  if (l.dp > 1) out += fmt::format(", dp {}", l.dp);
  if (l.ep > 1) out += fmt::format(", ep {}", l.ep);
  if (l.nnodes > 1) out += fmt::format(", {} nodes", l.nnodes);
  return out + fmt::format(", context {}, {} running, chunks of {}, KV {}, {}", o.context_tokens, o.max_running_requests,
                           o.engine.chunked_prefill_tokens, kv_name(*o.kv_dtype),
                           o.engine.num_drafts > 0 ? fmt::format("{} drafts", o.engine.num_drafts) : "no drafts");
}

std::string seconds(int64_t us) { return fmt::format("{:g} s", static_cast<double>(us) / 1e6); }

}  // namespace

Result<ModelConfig> load_config(const ServerOptions& options) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(options.model_path, error)) {
    return load_model_config(options.model_path, options.model_override_json);
  }
  constexpr uintmax_t kMaxBytes = 1 << 20;
  if (std::filesystem::file_size(options.model_path, error) > kMaxBytes) {
    return Status(Code::kBadModelFile, "--model-path: a config.json is not larger than 1 MiB", "--model-path");
  }
  std::ifstream file(options.model_path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return Status(Code::kBadModelFile, "--model-path: cannot read the file", "--model-path");
  return parse_model_config(text.str(), options.model_override_json);
}

Result<int64_t> rank_memory_bytes(const ServerOptions& options) {
  if (options.backend == Backend::kCudaSm90) {
    if (options.command == Command::kPlan) return static_cast<int64_t>(options.gpu_memory_gib * (1 << 30));
    DSV3_ASSIGN(const CudaDevice device, open_cuda_device(0));
    // The context is there already, and a line of the plan.
    return std::min(device.free_bytes + kCudaContextBytes, device.total_bytes);
  }
  const int64_t bytes = available_memory_bytes();
  if (bytes <= 0) return Status(Code::kInternal, "cannot read how much memory is available from /proc/meminfo");
  return bytes / options.layout.tp;  // all ranks of a node share the machine's memory
}

Result<MemoryPlan> make_plan(ServerOptions& options, const ModelConfig& config) {
  DSV3_ASSIGN(const int64_t available_bytes, rank_memory_bytes(options));
  DSV3_ASSIGN(const MemoryRequest request, settle(options, config, available_bytes));
  return plan_memory(config, request);
}

std::string plan_as_text(const ServerOptions& options, const MemoryPlan& plan) {
  return layout_as_text(options) + "\n" + format_plan(plan);
}

std::string plan_as_json(const ServerOptions& o, const MemoryPlan& plan) {
  Json bytes = Json::object();
  for (const MemoryLine& line : plan.lines) bytes[line.key] = line.bytes;
  Json concurrency = Json::array();
  for (const Concurrency& row : plan.concurrency) {
    concurrency.push_back({{"context_tokens", row.context_tokens}, {"sequences", row.sequences}});
  }
  const Json out = {
      {"model_path", o.model_path},
      {"device", o.backend == Backend::kCpu ? "cpu" : "cuda"},
      {"layout", {{"tp", o.layout.tp}, {"dp", o.layout.dp}, {"ep", o.layout.ep}, {"nnodes", o.layout.nnodes}}},
      {"context_tokens", o.context_tokens},
      {"max_running_requests", o.max_running_requests},
      {"chunked_prefill_tokens", o.engine.chunked_prefill_tokens},
      {"num_drafts", o.engine.num_drafts},
      {"kv_cache_dtype", kv_name(*o.kv_dtype)},
      {"bytes_per_rank", bytes},
      {"total_bytes", plan.total_bytes},
      {"available_bytes", plan.available_bytes},
      {"kv_cache", {{"bytes_per_token", plan.cache_bytes_per_token}, {"block_tokens", kBlockTokens}, {"blocks", plan.num_blocks}, {"tokens", plan.cache_tokens()}}},
      {"concurrency", concurrency},
      {"fits", plan.fits},
      {"short_bytes", plan.short_bytes},
      {"would_fit", plan.suggestions},
  };
  return dump_json(out) + "\n";
}

std::string limits_as_text(const ServerOptions& o) {
  std::string out = "Limits\n";
  const auto line = [&](const char* name, const std::string& value) { out += fmt::format("  {:<20}{:>14}\n", name, value); };
  line("context", fmt::format("{} tokens", o.context_tokens));
  line("running", std::to_string(o.engine.max_running_requests));
  line("queue", fmt::format("{} requests", o.engine.max_queued_requests));
  line("", fmt::format("{} tokens", o.engine.max_queued_tokens));
  line("prefill of a step", fmt::format("{} tokens", o.engine.chunked_prefill_tokens));
  line("drafts", std::to_string(o.engine.num_drafts));
  line("prefix cache", o.engine.prefix_cache ? "on" : "off");
  line("connections", std::to_string(o.server.max_connections));
  line("headers", fmt::format("{} of {} bytes", o.server.max_headers, o.server.max_header_bytes));
  line("body", fmt::format("{} bytes", o.server.max_body_bytes));
  line("header time", seconds(o.server.header_timeout_us));
  line("send stall", seconds(o.server.send_stall_timeout_us));
  line("idle connection", seconds(o.server.idle_timeout_us));
  line("request deadline", o.api.request_timeout_us == 0 ? "none" : seconds(o.api.request_timeout_us));
  line("step watchdog", seconds(o.engine.step_timeout_us));
  line("drain", seconds(o.drain_timeout_us));
  line("stop strings", fmt::format("{} of {} bytes", o.api.max_stop_strings, o.api.max_stop_bytes));
  line("n, logprobs", fmt::format("{}, {}", o.api.max_n, o.api.max_logprobs));
  line("API keys", o.server.api_keys.empty() ? "none: open" : std::to_string(o.server.api_keys.size()));
  return out;
}

Status run_plan(ServerOptions& options) {
  DSV3_ASSIGN(const ModelConfig config, load_config(options));
  DSV3_ASSIGN(const MemoryPlan plan, make_plan(options, config));
  const std::string text = options.plan_as_json ? plan_as_json(options, plan) : plan_as_text(options, plan);
  std::fputs(text.c_str(), stdout);
  if (!plan.fits) return {Code::kOutOfMemory, "the plan does not fit"};
  return {};
}

}  // namespace dsv3
