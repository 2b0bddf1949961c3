// Puts the parts together in the order of their dependencies, and takes them apart in reverse.
#include "serve.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <thread>

#include "dsv3/base/clock.h"
#include "dsv3/model/model_executor.h"
#include "dsv3/weights/load_meter.h"
#include "dsv3/weights/weight_source.h"
#include "executor_options.h"
#include "plan_command.h"
#include "signals.h"

namespace dsv3 {
namespace {

/// Prints the plan and the limits; a start that cannot fit ends here, before a byte of weights is read.
Result<MemoryPlan> plan_start(ServerOptions& options, const ModelConfig& config) {
  DSV3_ASSIGN(MemoryPlan plan, make_plan(options, config));
  std::printf("%s%s", plan_as_text(options, plan).c_str(), limits_as_text(options).c_str());
  std::fflush(stdout);
  if (!plan.fits) {
    std::string would;
    for (const std::string& suggestion : plan.suggestions) would += (would.empty() ? "; would fit: " : ", or ") + suggestion;
    return Status(Code::kOutOfMemory, "the memory plan does not fit" + would);
  }
  if (plan.num_blocks > std::numeric_limits<int32_t>::max()) {
    return Status(Code::kInvalidArgument, "--max-total-tokens: more than 2^31 blocks", "--max-total-tokens");
  }
  return plan;
}

/// `meter` reports while weights are read; null for dummy ones.
Result<std::shared_ptr<const WeightSource>> open_weights(const ServerOptions& options, const ModelConfig& config,
                                                         std::shared_ptr<LoadMeter>* meter_out) {
  if (options.dummy_weights) return make_dummy_weights(config, options.random_seed.value_or(0));
  constexpr int64_t kReportMs = 5000;
  const auto meter = *meter_out = std::make_shared<LoadMeter>(0, kReportMs, [](const LoadProgress& progress) {
    log_event(LogLevel::kInfo, "load", {{"bytes", progress.bytes_done}, {"of_bytes", progress.bytes_total},
                                        {"bytes_per_second", progress.bytes_per_second}, {"eta_seconds", progress.eta_seconds}});
  });
  bool has_mtp = false;
  DSV3_ASSIGN(auto weights, open_checkpoint(options.model_path, config, &has_mtp, meter));
  if (options.engine.num_drafts > 0 && !has_mtp) {
    return Status(Code::kInvalidArgument, "--speculative-algorithm: this checkpoint holds no MTP module; use none", "--speculative-algorithm");
  }
  return weights;
}

/// Sleeps until a signal comes or the engine has failed for good.
Status wait_for_end(const Signals& signals, const Engine& engine) {
  constexpr int64_t kHealthPeriodUs = 1'000'000;
  while (signals.wait(kHealthPeriodUs) == 0) {
    if (const Status health = engine.health(); !health.ok() && health.code() != Code::kUnavailable) return health;
  }
  return {};
}

/// New requests get a 503 while those that run end; what still runs at the deadline is aborted.
void drain(ServerOptions& options, ApiService& service, Engine& engine, Server& server) {
  constexpr int64_t kFlushUs = 2'000'000;
  log_event(LogLevel::kInfo, "drain", {{"timeout_s", static_cast<double>(options.drain_timeout_us) / 1e6}});
  service.set_draining();
  const bool clean = engine.drain(options.drain_timeout_us);
  if (!clean) {
    engine.cancel_all();
    engine.drain(kFlushUs);
  }
  server.stop_accepting();
  server.wait_idle(kFlushUs);
  server.stop();
  log_event(LogLevel::kInfo, "stop", {{"clean", clean}});
}

}  // namespace

Status serve(ServerOptions options) {
  const int64_t start_us = now_us();
  const Signals signals;
  set_log_level(options.log_level);
  log_event(LogLevel::kInfo, "start", {{"version", version_text()}, {"model", options.model_path}});
  for (const std::string& note : options.notes) log_event(LogLevel::kWarn, "flag_without_effect", {{"flag", note}});

  DSV3_ASSIGN(const ModelConfig config, load_config(options));
  DSV3_ASSIGN(const MemoryPlan plan, plan_start(options, config));
  DSV3_ASSIGN(const auto tokenizer, Tokenizer::load(options.tokenizer_path));
  if (tokenizer->vocab_size() > config.vocab_size) {
    return Status(Code::kBadModelFile, "--tokenizer-path: the tokenizer has ids up to " + std::to_string(tokenizer->vocab_size() - 1) +
                                           ", the model's vocabulary ends at " + std::to_string(config.vocab_size - 1));
  }
  std::string template_name;
  DSV3_ASSIGN(const auto chat_template, ChatTemplate::load(options.tokenizer_path, options.chat_template, *tokenizer, &template_name));
  DSV3_ASSIGN(options.api.generation_defaults, load_generation_defaults(options.model_path));
  std::shared_ptr<LoadMeter> meter;
  DSV3_ASSIGN(auto weights, open_weights(options, config, &meter));
  DSV3_ASSIGN(auto executor, make_model_executor(config, weights, make_executor_options(options, plan, tokenizer->vocab_size())));
  if (meter) meter->finish();
  weights.reset();  // every rank has its slices; the files need not stay mapped

  const std::string& name = options.api.served_model_name.empty() ? options.model_path : options.api.served_model_name;
  const auto metrics = Metrics::create(name, options.server.metrics_compat);
  DSV3_ASSIGN(const auto engine, Engine::create(options.engine, std::move(executor), metrics.get()));
  TaskPool pool(options.server.request_threads, "dsv3-api");
  const auto service = ApiService::create(options.api, {*engine, tokenizer, chat_template, config, pool});
  DSV3_ASSIGN(const auto server, Server::start(options.server, *service, *engine, *metrics));

  log_event(LogLevel::kInfo, "ready", {{"seconds", static_cast<double>(now_us() - start_us) / 1e6},
                                       {"host", options.server.host},
                                       {"port", server->port()},
                                       {"chat_template", template_name}});
  const Status end = wait_for_end(signals, *engine);
  signals.abort_on_next();
  if (!end.ok()) {
    log_event(LogLevel::kError, end.code() == Code::kDeviceLost ? "device_lost" : "engine_lost", {{"why", end.message()}});
    options.drain_timeout_us = 0;
  }
  drain(options, *service, *engine, *server);
  return end;
}

}  // namespace dsv3
