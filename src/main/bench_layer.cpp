// Drives an Executor with plans of its own: prompts of random tokens, then decode steps with one plan always under way. What a
// layer takes is the difference between two depths of the same model.
#include "bench_layer.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <random>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "dsv3/base/clock.h"
#include "dsv3/base/json.h"
#include "dsv3/kernels/cuda/cuda_ops.h"
#include "dsv3/model/model_executor.h"
#include "dsv3/weights/weight_source.h"
#include "executor_options.h"
#include "layer_limits.h"
#include "plan_command.h"

namespace dsv3 {
namespace {

struct Decode {
  double step_us = 0, busy_us = 0, gap_us = 0;
};

constexpr int32_t kWarmSteps = 5;
/// A layer's time is the difference of two models: small batches, whose steps are short, need more of them.
int32_t decode_steps(int32_t batch) { return std::clamp(1600 / batch, 20, 200); }
/// Tokens that a sequence gets at most.
int32_t decode_tokens(const BenchLayerOptions& wanted) {
  int32_t tokens = 1;
  for (const int32_t batch : wanted.batches) tokens += kWarmSteps + decode_steps(batch);
  return tokens;
}

/// One executor, with plans numbered on.
class Bench {
 public:
  Bench(std::unique_ptr<Executor> executor, int64_t vocab) : executor_(std::move(executor)), vocab_(vocab), random_(1) {}

  /// `slots` prompts of `context` tokens each, in steps of at most `chunk` rows. The median time of a full step.
  Result<double> prefill(int32_t slots, int32_t context, int32_t chunk, int32_t extra) {
    std::vector<double> full;
    const int32_t blocks_each = (context + extra) / 64 + 2;
    for (int32_t slot = 0; slot < slots; ++slot) {
      for (int32_t start = 0; start < context;) {
        StepPlan plan{.step = step_++};
        if (start == 0) {
          SlotBegin begin{.slot = slot, .prompt_tokens = context};
          begin.sampling.temperature = 0;
          for (int32_t i = 0; i < context; ++i) begin.tokens.push_back(static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab_ - 1)) + 1);
          plan.begun.push_back(std::move(begin));
          BlockGrant grant{.slot = slot};
          for (int32_t b = 0; b < blocks_each; ++b) grant.blocks.push_back(slot * blocks_each + b);
          plan.grants.push_back(std::move(grant));
        }
        const int32_t count = std::min(chunk, context - start);
        plan.prefills.push_back({.slot = slot, .start = start, .count = count});
        start += count;
        DSV3_ASSIGN(const StepResult result, run(std::move(plan)));
        if (count == std::min(chunk, context)) full.push_back(static_cast<double>(result.elapsed_us));
      }
    }
    std::sort(full.begin(), full.end());
    return full.empty() ? 0.0 : full[full.size() / 2];
  }

  /// Steady decode of slots [0, slots), the next plan always launched while a step runs.
  Result<Decode> decode(int32_t slots, int32_t drafts, int32_t steps) {
    const auto next = [&] {
      StepPlan plan{.step = step_++};
      for (int32_t slot = 0; slot < slots; ++slot) plan.decodes.push_back({.slot = slot, .max_drafts = drafts});
      plan.hash = plan_hash(plan);
      return plan;
    };
    DSV3_TRY(executor_->submit(next()));
    int64_t start_us = 0;
    DeviceStats before;
    for (int32_t i = 0; i < kWarmSteps + steps; ++i) {
      if (i + 1 < kWarmSteps + steps) DSV3_TRY(executor_->submit(next()));
      DSV3_TRY(executor_->wait().status());
      if (i + 1 == kWarmSteps) {
        start_us = now_us();
        before = executor_->device_stats();
      }
    }
    const auto elapsed = static_cast<double>(now_us() - start_us);
    const DeviceStats after = executor_->device_stats();
    const auto gaps = static_cast<double>(std::max<int64_t>(after.gaps - before.gaps, 1));
    return Decode{elapsed / steps, (after.busy_us - before.busy_us) / steps, (after.gap_us - before.gap_us) / gaps};
  }

  Status end(int32_t slots) {
    StepPlan plan{.step = step_++};
    for (int32_t slot = 0; slot < slots; ++slot) plan.ended.push_back(slot);
    return run(std::move(plan)).status();
  }

 private:
  Result<StepResult> run(StepPlan plan) {
    plan.hash = plan_hash(plan);
    DSV3_TRY(executor_->submit(std::move(plan)));
    return executor_->wait();
  }

  std::unique_ptr<Executor> executor_;
  int64_t vocab_;
  uint64_t step_ = 1;
  std::mt19937_64 random_;
};

/// The model with that many layers, of which `dense` have no experts, without MTP; the rest as it is.
ModelConfig with_layers(const ModelConfig& config, int64_t dense, int64_t moe) {
  ModelConfig out = config;
  out.num_hidden_layers = dense + moe;
  out.first_k_dense_replace = dense;
  out.num_nextn_predict_layers = 0;
  return out;
}

/// What one of `ranks` tensor-parallel ranks computes, its sums with the others left out.
Result<ModelConfig> slice_of(const ModelConfig& config, int32_t ranks) {
  DSV3_TRY(check_tp(config, ranks));
  ModelConfig out = config;
  out.num_attention_heads /= ranks;
  out.intermediate_size /= ranks;
  out.moe_intermediate_size /= ranks;
  out.vocab_size /= ranks;
  return out;
}

Result<Bench> make_bench(ServerOptions options, const ModelConfig& config) {
  DSV3_ASSIGN(const MemoryPlan plan, make_plan(options, config));
  if (!plan.fits) return Status(Code::kOutOfMemory, "the memory plan does not fit:\n" + plan_as_text(options, plan));
  ExecutorOptions executor_options = make_executor_options(options, plan, static_cast<int32_t>(config.vocab_size));
  DSV3_ASSIGN(auto executor, make_model_executor(config, make_dummy_weights(config, options.random_seed.value_or(0)), executor_options));
  return Bench(std::move(executor), config.vocab_size);
}

struct Measured {
  std::vector<Decode> decodes;     // by batch size
  std::vector<double> prefills;    // by length
};

Result<Measured> measure(const ServerOptions& options, const ModelConfig& config, const BenchLayerOptions& wanted) {
  DSV3_ASSIGN(Bench bench, make_bench(options, config));
  Measured out;
  for (const int32_t length : wanted.prefills) {
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      DSV3_ASSIGN(const double us, bench.prefill(1, length, length, 0));
      times.push_back(us);
      DSV3_TRY(bench.end(1));
    }
    std::sort(times.begin(), times.end());
    out.prefills.push_back(times[times.size() / 2]);
  }
  const int32_t most = wanted.batches.empty() ? 0 : *std::max_element(wanted.batches.begin(), wanted.batches.end());
  if (most > 0) {
    DSV3_TRY(bench.prefill(most, wanted.context, options.engine.chunked_prefill_tokens, decode_tokens(wanted)).status());
    for (const int32_t batch : wanted.batches) {
      DSV3_ASSIGN(const Decode decode, bench.decode(batch, 0, decode_steps(batch)));
      out.decodes.push_back(decode);
    }
    DSV3_TRY(bench.end(most));
  }
  return out;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday);
}

}  // namespace

Status run_bench_layer(ServerOptions& options) {
  const BenchLayerOptions wanted = options.bench;
  DSV3_ASSIGN(const ModelConfig full, load_config(options));
  DSV3_ASSIGN(const ModelConfig config, slice_of(full, wanted.slice_of_tp));
  const int64_t dense = std::min(config.first_k_dense_replace, config.num_hidden_layers), moe = wanted.moe_layers;
  options.dummy_weights = true;
  options.engine.num_drafts = 0;
  if (wanted.batches.empty() && wanted.prefills.empty()) return {Code::kInvalidArgument, "--batches and --prefills are both empty", "--batches"};
  const int32_t most = wanted.batches.empty() ? 1 : *std::max_element(wanted.batches.begin(), wanted.batches.end());
  const int32_t longest = wanted.prefills.empty() ? 1 : *std::max_element(wanted.prefills.begin(), wanted.prefills.end());
  options.max_running_requests = most;
  options.cuda_graph_batches = wanted.batches;
  const int32_t sequence = wanted.context + decode_tokens(wanted);
  options.context_tokens = std::max(sequence + 8192, longest + 64);
  options.max_total_tokens = std::max<int64_t>(int64_t{most} * (sequence / 64 + 2) * 64, options.context_tokens + 64);
  options.engine.chunked_prefill_tokens = std::max(longest, std::min(wanted.context, 8192));
  options.chunk_given = true;

  // Three depths: what one more layer of a kind takes is the difference.
  DSV3_ASSIGN(const Measured base, measure(options, with_layers(config, dense, 1), wanted));
  DSV3_ASSIGN(const Measured fewer, measure(options, with_layers(config, std::max<int64_t>(dense - 2, 0), 1), wanted));
  DSV3_ASSIGN(const Measured whole, measure(options, with_layers(config, dense, moe), wanted));

  const auto devices = cuda_devices();
  const std::string gpu = devices.empty() ? "none" : devices[0].name;
  std::ofstream file;
  if (!wanted.out.empty()) file.open(wanted.out, std::ios::app);
  const auto row = [&](const char* what, int64_t rows, double us, double limit, double busy, double gap) {
    std::printf("%-28s %6lld %10.1f %10.1f %6.2f %10.1f %8.1f\n", what, static_cast<long long>(rows), us, limit, us / limit, busy, gap);
    if (!file) return;
    const Json line = {{"gpu", gpu}, {"date", today()}, {"commit", wanted.commit}, {"kernel", "layer"},
                       {"shape", fmt::format("{}, {} rows, context {}, slice of TP {}", what, rows, wanted.context, wanted.slice_of_tp)},
                       {"us", us}, {"limit_us", limit}, {"of_limit", limit / us}, {"busy_us", busy}, {"gap_us", gap}};
    file << dump_json(line) << "\n";
  };
  std::printf("%-28s %6s %10s %10s %6s %10s %8s\n", "", "rows", "us", "limit us", "ratio", "busy us", "gap us");
  const double moe_more = static_cast<double>(moe - 1), dense_more = static_cast<double>(std::min<int64_t>(dense, 2));
  const auto limits = [&](int64_t rows, bool prefill) {
    return std::pair{layer_limit(config, false, rows, wanted.context, prefill).total(), layer_limit(config, true, rows, wanted.context, prefill).total()};
  };
  double worst = 0;
  for (size_t i = 0; i < wanted.batches.size(); ++i) {
    const int32_t rows = wanted.batches[i];
    const auto [dense_limit, moe_limit] = limits(rows, false);
    const double moe_us = (whole.decodes[i].busy_us - base.decodes[i].busy_us) / moe_more;
    row("decode, MoE layer", rows, moe_us, moe_limit, 0, 0);
    worst = std::max(worst, moe_us / moe_limit);
    if (dense > 0) row("decode, dense layer", rows, (base.decodes[i].busy_us - fewer.decodes[i].busy_us) / dense_more, dense_limit, 0, 0);
    row("decode, truncated model", rows, whole.decodes[i].step_us,
        static_cast<double>(dense) * dense_limit + static_cast<double>(moe) * moe_limit + head_limit_us(config, rows), whole.decodes[i].busy_us,
        whole.decodes[i].gap_us);
  }
  for (size_t i = 0; i < wanted.prefills.size(); ++i) {
    const int32_t rows = wanted.prefills[i];
    const auto [dense_limit, moe_limit] = limits(rows, true);
    row("prefill, MoE layer", rows, (whole.prefills[i] - base.prefills[i]) / moe_more, moe_limit, 0, 0);
    row("prefill, truncated model", rows, whole.prefills[i],
        static_cast<double>(dense) * dense_limit + static_cast<double>(moe) * moe_limit + head_limit_us(config, 1), 0, 0);
  }
  const Json summary = {{"slice_of_tp", wanted.slice_of_tp}, {"dense_layers", dense}, {"moe_layers", moe}, {"worst_moe_decode_ratio", worst}};
  std::printf("%s\n", dump_json(summary).c_str());
  return {};
}

}  // namespace dsv3
