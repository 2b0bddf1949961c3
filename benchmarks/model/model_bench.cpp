// Prefill and decode tokens/s of the shipped model on this machine's CPU, beside what memory bandwidth and sgemm rate
// allow. Drives the Executor directly: no scheduler, no HTTP.
//
//   model_bench [threads] [tp] [results.jsonl commit]
//
// With a results file each row is appended to it as one JSON line.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "dsv3/base/json.h"
#include "dsv3/model/model_executor.h"
#include "machine.h"

namespace dsv3::bench {
namespace {

constexpr int32_t kContext = 256, kBlockTokens = 64;
constexpr int32_t kDecodePrompt = 64, kDecodeSteps = 100;

/// Multiply-adds per token, and weights read per step (float32 in memory).
struct Work {
  double macs_per_token = 0;     ///< of everything but attention over the context
  double expanded_per_pair = 0;  ///< attention of one token to one other, all layers: prefill
  double absorbed_per_pair = 0;  ///< the same: decode
  double step_weights = 0;  ///< numbers read once per step whatever the batch, routed experts excluded
  double expert_weights = 0;
};

Work work_of(const ModelConfig& c) {
  const double h = static_cast<double>(c.hidden_size), heads = static_cast<double>(c.num_attention_heads);
  const double attention =
      h * static_cast<double>(c.q_lora_rank + c.cache_row()) +
      heads * static_cast<double>(c.qk_head_dim() * c.q_lora_rank) +
      heads * static_cast<double>((c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank) +
      heads * static_cast<double>(c.v_head_dim) * h;
  const double expert = 3 * h * static_cast<double>(c.moe_intermediate_size);
  Work work;
  work.expert_weights = expert;
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    work.step_weights += attention;
    if (c.is_moe_layer(i)) {
      work.step_weights += h * static_cast<double>(c.n_routed_experts) + expert * static_cast<double>(c.n_shared_experts);
      work.macs_per_token += expert * static_cast<double>(c.num_experts_per_tok);
    } else {
      work.step_weights += 3 * h * static_cast<double>(c.intermediate_size);
    }
  }
  const double layers = static_cast<double>(c.num_hidden_layers);
  work.expanded_per_pair = layers * heads * static_cast<double>(c.qk_head_dim() + c.v_head_dim);
  work.absorbed_per_pair = layers * heads * static_cast<double>(c.cache_row() + c.kv_lora_rank);
  work.step_weights += h * static_cast<double>(c.vocab_size);
  work.macs_per_token += work.step_weights;
  return work;
}

class Driver {
 public:
  explicit Driver(Executor& executor) : executor_(executor) {}

  int64_t run(StepPlan plan) {
    plan.step = ++step_;
    plan.hash = plan_hash(plan);
    if (!executor_.submit(std::move(plan)).ok()) std::abort();
    auto result = executor_.wait();
    if (!result.ok()) std::abort();
    return result->elapsed_us;
  }

  /// Starts `batch` sequences of `tokens` prompt tokens; returns the microseconds of their prefill in one step.
  int64_t prefill(int32_t batch, int32_t tokens) {
    StepPlan plan;
    for (int32_t slot = 0; slot < batch; ++slot) {
      SlotBegin begin{.slot = slot, .sampling = {.temperature = 0}, .prompt_tokens = tokens};
      for (int32_t i = 0; i < tokens; ++i) begin.tokens.push_back(100 + (i * 37 + slot * 11) % 3000);
      BlockGrant grant{.slot = slot};
      const int32_t per_slot = executor_.limits().num_blocks / batch;
      for (int32_t b = 0; b < std::min(per_slot, (tokens + kContext) / kBlockTokens + 1); ++b) {
        grant.blocks.push_back(slot * per_slot + b);
      }
      plan.begun.push_back(std::move(begin));
      plan.grants.push_back(std::move(grant));
      plan.prefills.push_back({.slot = slot, .start = 0, .count = tokens});
    }
    return run(std::move(plan));
  }

  int64_t decode(int32_t batch) {
    StepPlan plan;
    for (int32_t slot = 0; slot < batch; ++slot) plan.decodes.push_back({.slot = slot});
    return run(std::move(plan));
  }

  void end(int32_t batch) {
    StepPlan plan;
    for (int32_t slot = 0; slot < batch; ++slot) plan.ended.push_back(slot);
    run(std::move(plan));
  }

 private:
  Executor& executor_;
  uint64_t step_ = 0;
};

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", std::gmtime(&now));
  return text;
}

int64_t median(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int bench_main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  const int tp = argc > 2 ? std::atoi(argv[2]) : 1;
  const std::string folder = std::string(DSV3_TEST_DATA) + "/dsv3-tiny";
  auto config = load_model_config(folder);
  bool has_mtp = false;
  if (!config.ok()) return 2;
  auto weights = open_checkpoint(folder, *config, &has_mtp);
  if (!weights.ok()) return 2;
  auto executor = make_model_executor(*config, *weights,
                                      {.tp = tp, .num_threads = threads, .max_slots = 32, .num_blocks = 32 * 12,
                                       .max_context_tokens = 4096, .max_step_tokens = 4096});
  if (!executor.ok()) return 2;
  Driver driver(**executor);
  const Work work = work_of(*config);
  const double bandwidth = read_bytes_per_second(threads, 96), flops = sgemm_flops_per_second(threads);
  std::printf("%d threads, tp %d; reads %.1f GB/s (96 MB), sgemm %.0f GFLOP/s; %.1f M multiply-adds a token\n\n", threads,
              tp, bandwidth * 1e-9, flops * 1e-9, work.macs_per_token * 1e-6);
  std::printf("%-8s %6s %8s %10s %12s %12s %9s\n", "phase", "batch", "tokens", "step us", "tokens/s", "limit", "of limit");
  const auto report = [&](const char* phase, int32_t batch, int32_t tokens, int64_t us) {
    const double rows = static_cast<double>(batch) * tokens;
    const bool decode = tokens == 1;
    const double macs_per_token = work.macs_per_token + (decode ? (kDecodePrompt + kDecodeSteps / 2) * work.absorbed_per_pair
                                                                : 0.5 * tokens * work.expanded_per_pair);
    const double experts = static_cast<double>(config->n_routed_experts);
    const double chosen = static_cast<double>(config->num_experts_per_tok) / experts;
    double hit = 1;
    for (int i = 0; i < static_cast<int>(rows) && hit > 1e-6; ++i) hit *= 1 - chosen;
    const double moe_layers = static_cast<double>(config->num_hidden_layers - config->first_k_dense_replace);
    const double bytes = 4 * (work.step_weights + moe_layers * experts * (1 - hit) * work.expert_weights);
    const double limit_us = std::max(bytes / bandwidth, 2 * macs_per_token * rows / flops) * 1e6;
    std::printf("%-8s %6d %8d %10lld %12.0f %12.0f %8.0f%%\n", phase, batch, tokens, static_cast<long long>(us),
                rows * 1e6 / static_cast<double>(us), rows * 1e6 / limit_us, 100 * limit_us / static_cast<double>(us));
    if (argc <= 4) return;
    Json line{{"cpu", processor_name()}, {"date", today()}, {"commit", argv[4]}, {"bench", "model"}};
    line.update({{"threads", threads}, {"tp", tp}, {"phase", phase}, {"batch", batch}, {"tokens", tokens},
                 {"step_us", us}, {"tokens_per_s", rows * 1e6 / static_cast<double>(us)},
                 {"limit_tokens_per_s", rows * 1e6 / limit_us}, {"read_gbps", bandwidth * 1e-9},
                 {"sgemm_gflops", flops * 1e-9}});
    std::ofstream(argv[3], std::ios::app) << dump_json(line) << "\n";
  };
  for (int32_t batch : {1, 8, 32}) {
    for (int32_t tokens : {128, 512}) {
      if (batch * tokens > 4096) continue;
      std::vector<int64_t> times;
      for (int i = 0; i < 5; ++i) {
        times.push_back(driver.prefill(batch, tokens));
        driver.end(batch);
      }
      report("prefill", batch, tokens, median(times));
    }
  }
  for (int32_t batch : {1, 8, 32}) {
    driver.prefill(batch, kDecodePrompt);
    std::vector<int64_t> times;
    for (int i = 0; i < kDecodeSteps; ++i) times.push_back(driver.decode(batch));
    driver.end(batch);
    report("decode", batch, 1, median(times));
  }
  return 0;
}

}  // namespace
}  // namespace dsv3::bench

int main(int argc, char** argv) { return dsv3::bench::bench_main(argc, argv); }
