// What supervisors and load balancers ask: does it live, is it ready, does a token come out.
#include "dsv3/base/clock.h"
#include "generation.h"
#include "routes.h"

namespace dsv3::api {
namespace {

constexpr int64_t kProbeTimeoutUs = 20'000'000;
constexpr int32_t kProbePriority = 1'000'000;  // a full queue does not make a working server look dead

HttpResponse health(bool healthy, const char* message) {
  HttpResponse response;
  response.status = healthy ? 200 : 503;
  if (!healthy) response.headers.emplace_back("Retry-After", "1");
  response.body = dump_json({{"status", healthy ? "healthy" : "unhealthy"}, {"message", message}});
  return response;
}

class ProbeAnswer final : public Answer {
 public:
  explicit ProbeAnswer(std::shared_ptr<Exchange> exchange) : exchange_(std::move(exchange)) {}

  void complete(const GenerationState& state) override {
    const bool made = !state.choices[0].tokens.empty();
    exchange_->respond(health(made, made ? "Ok" : "no token came out"));
  }
  void failed(const Status&) override { exchange_->respond(health(false, "no token came out")); }

 private:
  const std::shared_ptr<Exchange> exchange_;
};

}  // namespace

Status handle_alive(Call& call) {
  call.exchange->respond(health(true, "Ok"));
  return {};
}

Status handle_health(Call& call) {
  const bool draining = call.context->draining.load();
  const bool healthy = !draining && call.context->engine.health().ok();
  call.exchange->respond(health(healthy, healthy ? "Ok" : draining ? "shutting down" : "Error"));
  return {};
}

Status handle_health_generate(Call& call) {
  if (call.context->draining.load() || !call.context->engine.health().ok()) return handle_health(call);
  PromptJob job;
  job.request.prompt_ids = {0};
  job.request.max_new_tokens = 1;
  job.request.sampling.temperature = 0;
  job.request.priority = kProbePriority;
  job.request.deadline_us = now_us() + kProbeTimeoutUs;
  GenerationJob generation;
  generation.id = "probe-" + call.context->ids.hex(32);
  generation.route = call.request.path;
  generation.request_id = call.request.request_id;
  generation.prompts.push_back(std::move(job));
  start_generation(call.context, std::move(generation), std::make_unique<ProbeAnswer>(call.exchange), call.exchange);
  return {};
}

}  // namespace dsv3::api
