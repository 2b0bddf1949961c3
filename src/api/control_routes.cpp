// Server information, cache and abort: the routes of operators and load generators.
#include <chrono>
#include <charconv>
#include <thread>

#include "body.h"
#include "dsv3/base/clock.h"
#include "field_reader.h"
#include "routes.h"

namespace dsv3::api {
namespace {

/// The `timeout` of a query, in seconds; `fallback` when absent or not a number.
double query_timeout(std::string_view query, double fallback) {
  for (size_t begin = 0; begin < query.size();) {
    const size_t end = std::min(query.find('&', begin), query.size());
    const std::string_view pair = query.substr(begin, end - begin);
    constexpr std::string_view kKey = "timeout=";
    double value = 0;
    if (pair.starts_with(kKey)) {
      const auto parsed = std::from_chars(pair.data() + kKey.size(), pair.data() + pair.size(), value);
      if (parsed.ec == std::errc() && parsed.ptr == pair.data() + pair.size()) return value;
    }
    begin = end + 1;
  }
  return fallback;
}

}  // namespace

Status handle_server_info(Call& call) {
  const ApiContext& context = *call.context;
  const EngineStats stats = context.engine.stats();
  const ExecutorLimits& limits = context.engine.limits();
  Json state;
  state["num_running_reqs"] = stats.running;
  state["num_queue_reqs"] = stats.queued;
  state["num_queue_tokens"] = stats.queued_tokens;
  state["kv_blocks_total"] = stats.blocks_total;
  state["kv_blocks_used"] = stats.blocks_used;
  state["kv_blocks_cached"] = stats.blocks_cached;
  state["kv_blocks_free"] = stats.blocks_free;
  state["prompt_tokens"] = stats.prompt_tokens;
  state["cached_tokens"] = stats.cached_tokens;
  state["generated_tokens"] = stats.generated_tokens;
  state["steps"] = stats.steps;
  if (stats.drafts > 0) {  // tokens per verify round: the accepted drafts and the one that every round yields
    state["avg_spec_accept_length"] =
        1.0 + static_cast<double>(stats.drafts_accepted) / static_cast<double>(stats.drafts);
  }
  Json out;
  out["model_path"] = context.config.model_path;
  out["tokenizer_path"] = context.config.model_path;
  out["served_model_name"] = context.model_name;
  out["context_length"] = context.context_tokens;
  out["max_running_requests"] = limits.max_slots;
  out["max_total_num_tokens"] = int64_t{limits.num_blocks} * limits.block_tokens;
  out["page_size"] = limits.block_tokens;
  out["speculative_num_draft_tokens"] = limits.num_drafts;
  out["reasoning_parser"] =
      context.config.reasoning_parser.empty() ? Json(nullptr) : Json(context.config.reasoning_parser);
  out["status"] = context.draining.load() ? "draining" : context.engine.health().ok() ? "ready" : "unhealthy";
  out["internal_states"] = Json::array({std::move(state)});
  out["version"] = DSV3_VERSION;
  respond_json(*call.exchange, out);
  return {};
}

Status handle_version(Call& call) {
  respond_json(*call.exchange, {{"version", DSV3_VERSION}});
  return {};
}

Status handle_flush_cache(Call& call) {
  ApiContext& context = *call.context;
  // A client that has just read the end of its answer flushes next, while the engine lets go of the sequence a step
  // later: wait a little. One waiter at most, so that no number of calls can hold the request threads.
  constexpr double kDefaultWait = 0.25, kMaxWait = 1.0;
  const double wait = std::clamp(query_timeout(call.request.query, kDefaultWait), 0.0, kMaxWait);
  const int64_t until_us = now_us() + static_cast<int64_t>(wait * 1e6);
  Status status = context.engine.flush_cache();
  if (status.code() == Code::kUnavailable && !context.flushing.exchange(true)) {
    while (status.code() == Code::kUnavailable && now_us() < until_us) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      status = context.engine.flush_cache();
    }
    context.flushing.store(false);
  }
  if (status.ok()) {
    respond_text(*call.exchange, "Cache flushed.\n");
    return {};
  }
  if (status.code() == Code::kUnavailable) {  // SGLang answers 400 here
    return {Code::kInvalidArgument, "the cache was not flushed: requests are running"};
  }
  return status;
}

Status handle_abort_request(Call& call) {
  DSV3_ASSIGN(const Json body, parse_body(call.request));
  FieldReader reader(body);
  const bool all = reader.boolean("abort_all").value_or(false);
  const auto rid = reader.string("rid");
  const auto session = reader.integer("session_id", -1);
  DSV3_TRY(reader.finish());
  if (!all && !rid && !session) {
    return {Code::kInvalidArgument, "one of rid, session_id and abort_all is required", "rid",
            "missing_required_parameter"};
  }
  if (all) {
    call.context->engine.cancel_all();
  } else if (rid) {
    call.context->live.abort(*rid);
  } else if (*session >= 0) {
    call.context->live.abort("session-" + std::to_string(*session));
  }
  respond_text(*call.exchange, "");
  return {};
}

}  // namespace dsv3::api
