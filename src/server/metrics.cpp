// Metrics: histograms filled by the scheduler thread, counters and gauges read from EngineStats at each scrape, and the
// text of it all, under our names and, where asked for, under those of the peers' dashboards.
#include <prometheus/histogram.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <sstream>

#include "dsv3/base/clock.h"
#include "dsv3/base/log.h"
#include "dsv3/server/server.h"

namespace dsv3 {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Buckets = std::vector<double>;
using Labels = std::vector<ClientMetric::Label>;

Buckets doubling(double first, double last) {
  Buckets out;
  for (double bound = first; bound <= last * 1.001; bound *= 2) out.push_back(bound);
  return out;
}

Buckets first_token_buckets() {
  return doubling(0.001, 131.072);
}
Buckets end_to_end_buckets() {
  return doubling(0.1, 1638.4);
}
Buckets inter_token_buckets() {
  return {0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04,
          0.05,  0.075, 0.1,   0.15,  0.2,   0.3,  0.5,   1,    2,    5};
}
Buckets step_buckets() {
  return doubling(0.0001, 13.1072);
}
Buckets step_token_buckets() {
  return doubling(1, 16384);
}
Buckets request_token_buckets() {
  Buckets out;
  for (double decade = 1; decade <= 100'000; decade *= 10) {
    for (const double step : {1, 2, 5}) out.push_back(decade * step);
  }
  return out;
}

/// One metric's name here and, if they have it, in the peers. Peers changed some names: both are given.
struct Names {
  const char* own;
  const char* help;
  std::vector<const char*> vllm = {};
  std::vector<const char*> sglang = {};
};

double ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

// Families under all wanted names, in the order of the calls.
class Exposition {
 public:
  Exposition(const std::string& model_name, bool vllm, bool sglang)
      : own_{{"model_name", model_name}},
        vllm_{{"model_name", model_name}, {"engine", "0"}},
        with_vllm_(vllm),
        with_sglang_(sglang) {}

  void gauge(const Names& names, double value) { single(names, MetricType::Gauge, value); }
  void counter(const Names& names, double value) { single(names, MetricType::Counter, value); }

  void histogram(const Names& names, const prometheus::Histogram& histogram) {
    add(names, MetricType::Histogram, {histogram.Collect()});
  }

  /// `samples` carry their own labels; the common ones are put before them.
  void add(const Names& names, MetricType type, const std::vector<ClientMetric>& samples) {
    if (names.own != nullptr) add_one(std::string("dsv3:") + names.own, names.help, type, samples, own_);
    if (with_vllm_) {
      for (const char* name : names.vllm) add_one(std::string("vllm:") + name, names.help, type, samples, vllm_);
    }
    if (with_sglang_) {
      for (const char* name : names.sglang) add_one(std::string("sglang:") + name, names.help, type, samples, own_);
    }
  }

  std::string text() const {
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, families_);
    return std::move(out).str();
  }

 private:
  void single(const Names& names, MetricType type, double value) {
    ClientMetric sample;
    (type == MetricType::Gauge ? sample.gauge.value : sample.counter.value) = value;
    add(names, type, {sample});
  }

  void add_one(std::string name, const char* help, MetricType type, const std::vector<ClientMetric>& samples,
               const Labels& labels) {
    MetricFamily family{std::move(name), help, type, samples};
    for (auto& sample : family.metric) sample.label.insert(sample.label.begin(), labels.begin(), labels.end());
    families_.push_back(std::move(family));
  }

  const Labels own_, vllm_;
  const bool with_vllm_, with_sglang_;
  std::vector<MetricFamily> families_;
};

ClientMetric labelled_counter(const char* label, std::string label_value, double value) {
  ClientMetric sample;
  sample.label.push_back({label, std::move(label_value)});
  sample.counter.value = value;
  return sample;
}

constexpr std::array<std::pair<FinishReason, const char*>, 4> kFinishReasons = {{{FinishReason::kStop, "stop"},
                                                                                 {FinishReason::kLength, "length"},
                                                                                 {FinishReason::kAbort, "abort"},
                                                                                 {FinishReason::kError, "error"}}};

class MetricsImpl final : public Metrics {
 public:
  MetricsImpl(std::string model_name, bool vllm, bool sglang)
      : model_name_(std::move(model_name)), vllm_(vllm), sglang_(sglang) {}

  void on_queue_time(double seconds) override { queue_time_.Observe(seconds); }
  void on_first_token(double seconds) override { first_token_.Observe(seconds); }
  void on_inter_token(double seconds) override { inter_token_.Observe(seconds); }

  void on_request_done(double seconds, FinishReason reason, int64_t prompt_tokens, int64_t generated_tokens) override {
    end_to_end_.Observe(seconds);
    prompt_tokens_.Observe(static_cast<double>(prompt_tokens));
    generated_tokens_.Observe(static_cast<double>(generated_tokens));
    for (size_t i = 0; i < kFinishReasons.size(); ++i) {
      if (kFinishReasons[i].first == reason) finished_[i].fetch_add(1, std::memory_order_relaxed);
    }
  }

  void on_step(double seconds, int32_t prefill_rows, int32_t decode_rows) override {
    step_time_[decode_rows == 0 ? 0 : prefill_rows == 0 ? 1 : 2].Observe(seconds);
    step_tokens_.Observe(static_cast<double>(prefill_rows) + static_cast<double>(decode_rows));
  }

  void on_http_response(int status) override {
    std::lock_guard lock(mutex_);
    ++responses_[status];
  }

  std::string render(const EngineStats& stats) override {
    Exposition out(model_name_, vllm_, sglang_);
    add_load(stats, out);
    add_counters(stats, out);
    if (!stats.drafts_accepted_at.empty() || stats.drafts > 0) add_speculation(stats, out);
    add_histograms(out);
    return out.text();
  }

 private:
  void add_load(const EngineStats& stats, Exposition& out) {
    out.gauge({"num_requests_running", "Sequences that hold a slot.", {"num_requests_running"}, {"num_running_reqs"}},
              stats.running);
    out.gauge({"num_requests_waiting", "Requests in the queue.", {"num_requests_waiting"}, {"num_queue_reqs"}},
              stats.queued);
    out.gauge({"num_tokens_waiting", "Prompt tokens in the queue."}, static_cast<double>(stats.queued_tokens));
    out.gauge({"kv_cache_usage_perc",
               "Share of KV blocks held by sequences, 0 to 1.",
               {"kv_cache_usage_perc", "gpu_cache_usage_perc"},
               {"token_usage"}},
              ratio(stats.blocks_used, stats.blocks_total));
    std::vector<ClientMetric> blocks;
    for (const auto& [state, count] : {std::pair{"used", stats.blocks_used}, std::pair{"cached", stats.blocks_cached},
                                       std::pair{"free", stats.blocks_free}}) {
      ClientMetric sample;
      sample.label.push_back({"state", state});
      sample.gauge.value = count;
      blocks.push_back(std::move(sample));
    }
    out.add({"kv_blocks", "KV blocks by state."}, MetricType::Gauge, blocks);
    ClientMetric info;
    info.label.push_back({"num_gpu_blocks", std::to_string(stats.blocks_total)});
    info.gauge.value = 1;
    out.add({"cache_config_info", "Size of the KV cache.", {"cache_config_info"}}, MetricType::Gauge, {info});
    out.gauge({nullptr, "Share of prompt tokens found in the prefix cache.", {}, {"cache_hit_rate"}},
              ratio(static_cast<double>(stats.cached_tokens), static_cast<double>(stats.prompt_tokens)));
    out.gauge({"generation_throughput",
               "Generated tokens per second, over at least the last second between scrapes.",
               {},
               {"gen_throughput"}},
              throughput(stats.generated_tokens));
  }

  void add_counters(const EngineStats& stats, Exposition& out) {
    const auto count = [&out](const Names& names, int64_t value) { out.counter(names, static_cast<double>(value)); };
    count({"prompt_tokens_total",
           "Prompt tokens of admitted requests.",
           {"prompt_tokens_total"},
           {"prompt_tokens_total"}},
          stats.prompt_tokens);
    count({"generation_tokens_total", "Generated tokens.", {"generation_tokens_total"}, {"generation_tokens_total"}},
          stats.generated_tokens);
    count(
        {"prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", {"prefix_cache_queries_total"}},
        stats.prompt_tokens);
    count({"prefix_cache_hits_total",
           "Prompt tokens found in the prefix cache.",
           {"prefix_cache_hits_total"},
           {"cached_tokens_total"}},
          stats.cached_tokens);
    count({"num_preemptions_total", "Sequences put back into the queue for lack of blocks.", {"num_preemptions_total"}},
          stats.preemptions);
    count({"steps_total", "Forward passes."}, stats.steps);
    count({"cuda_graph_steps_total", "Decode steps replayed from a CUDA graph."}, stats.device.graph_steps);
    count({"cuda_eager_steps_total", "Steps launched kernel by kernel."}, stats.device.eager_steps);
    count({"device_allocations_after_ready_total", "Device memory taken after the start: always 0."},
          stats.device.allocations_after_ready);
    out.counter({"device_busy_seconds_total", "Time that steps took on the device."}, stats.device.busy_us * 1e-6);
    out.counter({"device_gap_seconds_total", "Time between steps that followed each other without a pause."}, stats.device.gap_us * 1e-6);
    count({"device_gaps_total", "How many such times."}, stats.device.gaps);
    out.gauge({"device_memory_bytes", "Device memory of a rank, all of it taken at the start."}, static_cast<double>(stats.device.bytes_in_use));
    count({"requests_total", "Requests that ended in any way.", {}, {"num_requests_total"}},
          stats.requests_finished + stats.requests_aborted + stats.requests_failed);
    count({"requests_aborted_total", "Requests whose client left or cancelled.", {}, {"num_aborted_requests_total"}},
          stats.requests_aborted);
    count({"requests_rejected_total", "Requests refused because the queue was full."}, stats.requests_rejected);
    count({"requests_failed_total", "Requests that ended with a fault of the engine."}, stats.requests_failed);

    std::vector<ClientMetric> finished;
    for (size_t i = 0; i < kFinishReasons.size(); ++i) {
      finished.push_back(labelled_counter("finished_reason", kFinishReasons[i].second,
                                          static_cast<double>(finished_[i].load(std::memory_order_relaxed))));
    }
    out.add({"request_success_total", "Requests by how they ended.", {"request_success_total"}}, MetricType::Counter,
            finished);

    std::vector<ClientMetric> responses;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [status, times] : responses_) {
        responses.push_back(labelled_counter("status", std::to_string(status), static_cast<double>(times)));
      }
    }
    out.add({"http_requests_total", "HTTP answers by status; 499: the client left first.", {}, {"http_requests_total"}},
            MetricType::Counter, responses);
  }

  static void add_speculation(const EngineStats& stats, Exposition& out) {
    const auto drafts = static_cast<double>(stats.drafts), proposed = static_cast<double>(stats.drafts_proposed),
               accepted = static_cast<double>(stats.drafts_accepted);
    out.counter({"spec_decode_num_drafts_total", "Verification rounds.", {"spec_decode_num_drafts_total"}}, drafts);
    out.counter({"spec_decode_num_draft_tokens_total", "Drafted tokens.", {"spec_decode_num_draft_tokens_total"}},
                proposed);
    out.counter({"spec_decode_num_accepted_tokens_total",
                 "Drafted tokens accepted.",
                 {"spec_decode_num_accepted_tokens_total"}},
                accepted);
    std::vector<ClientMetric> positions;
    for (size_t i = 0; i < stats.drafts_accepted_at.size(); ++i) {
      positions.push_back(
          labelled_counter("position", std::to_string(i), static_cast<double>(stats.drafts_accepted_at[i])));
    }
    out.add({"spec_decode_num_accepted_tokens_per_pos_total",
             "Drafted tokens accepted, by position.",
             {"spec_decode_num_accepted_tokens_per_pos_total"}},
            MetricType::Counter, positions);
    out.gauge({nullptr, "Tokens a verification round yields.", {}, {"spec_accept_length"}},
              ratio(accepted + drafts, drafts));
    out.gauge({nullptr, "Share of drafted tokens accepted.", {}, {"spec_accept_rate"}}, ratio(accepted, proposed));
  }

  void add_histograms(Exposition& out) {
    out.histogram({"time_to_first_token_seconds",
                   "From submission to the first token.",
                   {"time_to_first_token_seconds"},
                   {"time_to_first_token_seconds"}},
                  first_token_);
    out.histogram({"inter_token_latency_seconds",
                   "Between two tokens of a choice.",
                   {"inter_token_latency_seconds", "time_per_output_token_seconds"},
                   {"inter_token_latency_seconds", "time_per_output_token_seconds"}},
                  inter_token_);
    out.histogram({"e2e_request_latency_seconds",
                   "From submission to the end of a request.",
                   {"e2e_request_latency_seconds"},
                   {"e2e_request_latency_seconds"}},
                  end_to_end_);
    out.histogram({"request_queue_time_seconds",
                   "From submission to the first step.",
                   {"request_queue_time_seconds"},
                   {"queue_time_seconds"}},
                  queue_time_);
    out.histogram({"request_prompt_tokens",
                   "Prompt tokens of a request.",
                   {"request_prompt_tokens"},
                   {"prompt_tokens_histogram"}},
                  prompt_tokens_);
    out.histogram({"request_generation_tokens",
                   "Generated tokens of a request.",
                   {"request_generation_tokens"},
                   {"generation_tokens_histogram"}},
                  generated_tokens_);
    out.histogram({"iteration_tokens_total", "Rows of a step.", {"iteration_tokens_total"}}, step_tokens_);
    std::vector<ClientMetric> phases;
    for (size_t i = 0; i < kPhases.size(); ++i) {
      phases.push_back(step_time_[i].Collect());
      phases.back().label.push_back({"phase", kPhases[i]});
    }
    out.add({"step_duration_seconds", "A step, by what it computes."}, MetricType::Histogram, phases);
  }

  // Scrapes closer than a second share one figure, so that two scrapers do not disturb each other.
  double throughput(int64_t generated_tokens) {
    std::lock_guard lock(mutex_);
    const int64_t now = now_us();
    const int64_t elapsed_us = now - sample_us_;
    if (elapsed_us >= 1'000'000) {
      throughput_ = static_cast<double>(generated_tokens - sample_tokens_) * 1e6 / static_cast<double>(elapsed_us);
      sample_us_ = now;
      sample_tokens_ = generated_tokens;
    }
    return throughput_;
  }

  const std::string model_name_;
  const bool vllm_, sglang_;
  prometheus::Histogram queue_time_{first_token_buckets()};
  prometheus::Histogram first_token_{first_token_buckets()};
  prometheus::Histogram inter_token_{inter_token_buckets()};
  prometheus::Histogram end_to_end_{end_to_end_buckets()};
  prometheus::Histogram prompt_tokens_{request_token_buckets()};
  prometheus::Histogram generated_tokens_{request_token_buckets()};
  prometheus::Histogram step_tokens_{step_token_buckets()};
  // Of a step with prompt rows only, with decode rows only, with both.
  static constexpr std::array<const char*, 3> kPhases = {"prefill", "decode", "mixed"};
  std::array<prometheus::Histogram, 3> step_time_ = {prometheus::Histogram(step_buckets()), prometheus::Histogram(step_buckets()),
                                                     prometheus::Histogram(step_buckets())};
  std::array<std::atomic<int64_t>, kFinishReasons.size()> finished_{};
  std::mutex mutex_;
  std::map<int, int64_t> responses_;  // guarded by mutex_, like all below
  int64_t sample_us_ = now_us();
  int64_t sample_tokens_ = 0;
  double throughput_ = 0;
};

}  // namespace

std::unique_ptr<Metrics> Metrics::create(const std::string& model_name, const std::vector<std::string>& compat) {
  bool vllm = false, sglang = false;
  for (const auto& name : compat) {
    vllm = vllm || name == "vllm";
    sglang = sglang || name == "sglang";
    if (name != "vllm" && name != "sglang") {
      log_event(LogLevel::kWarn, "metrics_compat_unknown", {{"name", name}, {"known", "vllm, sglang"}});
    }
  }
  return std::make_unique<MetricsImpl>(model_name, vllm, sglang);
}

}  // namespace dsv3
