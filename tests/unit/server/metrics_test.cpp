#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <map>
#include <sstream>
#include <thread>

#include "dsv3/base/clock.h"
#include "dsv3/base/log.h"
#include "dsv3/server/server.h"

namespace dsv3 {
namespace {

bool is_name_char(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == ':';
}

struct Sample {
  std::string name, labels, value;
};

// `name{label="value",...} number`; values may hold escaped quotes. An empty name: not a sample line.
Sample parse_line(const std::string& line) {
  size_t at = 0;
  while (at < line.size() && is_name_char(line[at])) ++at;
  Sample sample{line.substr(0, at), "", ""};
  const size_t labels = at;
  if (at < line.size() && line[at] == '{') {
    do {
      ++at;
      const size_t key = at;
      while (at < line.size() && is_name_char(line[at])) ++at;
      if (at == key || line.compare(at, 2, "=\"") != 0) return {};
      for (at += 2; at < line.size() && line[at] != '"'; ++at) at += line[at] == '\\' ? 1 : 0;
      ++at;
    } while (at < line.size() && line[at] == ',');
    if (at >= line.size() || line[at] != '}') return {};
    ++at;
  }
  sample.labels = line.substr(labels, at - labels);
  if (at >= line.size() || line[at] != ' ') return {};
  sample.value = line.substr(at + 1);
  return sample;
}

// Text format 0.0.4, strictly: sample lines belong to the family announced above them.
std::map<std::string, double> parse(const std::string& text) {
  std::map<std::string, double> samples;
  std::map<std::string, std::string> types;
  std::string family;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("# HELP ", 0) == 0) continue;
    if (line.rfind("# TYPE ", 0) == 0) {
      std::istringstream words(line.substr(7));
      std::string type;
      words >> family >> type;
      EXPECT_TRUE(types.emplace(family, type).second) << "announced twice: " << family;
      continue;
    }
    const Sample sample = parse_line(line);
    EXPECT_FALSE(sample.name.empty()) << line;
    EXPECT_EQ(sample.name.rfind(family, 0), 0u) << line;
    EXPECT_TRUE(types[family] != "counter" || family.ends_with("_total")) << family;
    char* end = nullptr;
    const double value = std::strtod(sample.value.c_str(), &end);
    EXPECT_TRUE(*end == '\0' && !sample.value.empty()) << line;
    EXPECT_TRUE(samples.emplace(sample.name + sample.labels, value).second) << line;
  }
  return samples;
}

EngineStats some_stats() {
  EngineStats stats;
  stats.running = 3;
  stats.queued = 2;
  stats.queued_tokens = 77;
  stats.blocks_total = 200;
  stats.blocks_used = 50;
  stats.blocks_cached = 30;
  stats.blocks_free = 120;
  stats.prompt_tokens = 1000;
  stats.cached_tokens = 250;
  stats.generated_tokens = 4000;
  stats.requests_finished = 10;
  stats.requests_aborted = 4;
  stats.preemptions = 1;
  stats.drafts = 100;
  stats.drafts_proposed = 200;
  stats.drafts_accepted = 150;
  stats.drafts_accepted_at = {90, 60};
  return stats;
}

TEST(Metrics, OwnNames) {
  const auto metrics = Metrics::create("a \"model\"\\x", {});
  metrics->on_http_response(200);
  metrics->on_http_response(200);
  metrics->on_http_response(404);
  metrics->on_request_done(1.5, FinishReason::kStop, 100, 200);
  metrics->on_request_done(1.5, FinishReason::kAbort, 100, 200);
  metrics->on_step(0.02, 100, 28);
  const auto samples = parse(metrics->render(some_stats()));
  const std::string model = "model_name=\"a \\\"model\\\"\\\\x\"";
  const auto at = [&](const std::string& name, const std::string& labels = "") {
    const auto found = samples.find(name + "{" + model + labels + "}");
    EXPECT_NE(found, samples.end()) << name << labels;
    return found == samples.end() ? NAN : found->second;
  };
  EXPECT_EQ(at("dsv3:num_requests_running"), 3);
  EXPECT_EQ(at("dsv3:num_requests_waiting"), 2);
  EXPECT_EQ(at("dsv3:kv_cache_usage_perc"), 0.25);
  EXPECT_EQ(at("dsv3:kv_blocks", ",state=\"cached\""), 30);
  EXPECT_EQ(at("dsv3:prompt_tokens_total"), 1000);
  EXPECT_EQ(at("dsv3:generation_tokens_total"), 4000);
  EXPECT_EQ(at("dsv3:prefix_cache_hits_total"), 250);
  EXPECT_EQ(at("dsv3:requests_aborted_total"), 4);
  EXPECT_EQ(at("dsv3:request_success_total", ",finished_reason=\"stop\""), 1);
  EXPECT_EQ(at("dsv3:request_success_total", ",finished_reason=\"length\""), 0);
  EXPECT_EQ(at("dsv3:request_success_total", ",finished_reason=\"abort\""), 1);
  EXPECT_EQ(at("dsv3:http_requests_total", ",status=\"200\""), 2);
  EXPECT_EQ(at("dsv3:http_requests_total", ",status=\"404\""), 1);
  EXPECT_EQ(at("dsv3:iteration_tokens_total_bucket", ",le=\"128\""), 1);
  EXPECT_EQ(at("dsv3:iteration_tokens_total_bucket", ",le=\"64\""), 0);
  EXPECT_EQ(at("dsv3:spec_decode_num_accepted_tokens_per_pos_total", ",position=\"1\""), 60);
  for (const auto& [name, value] : samples) EXPECT_EQ(name.rfind("dsv3:", 0), 0u) << name;
}

TEST(Metrics, BucketsAreThoseOfTheReference) {
  const auto metrics = Metrics::create("m", {});
  for (const double seconds : {0.0005, 0.003, 0.05, 4.0, 1000.0}) {
    metrics->on_first_token(seconds);
    metrics->on_inter_token(seconds);
    metrics->on_queue_time(seconds);
  }
  metrics->on_request_done(1.0, FinishReason::kLength, 3, 4);
  const auto samples = parse(metrics->render({}));
  const auto bounds = [&](const std::string& family) {
    std::vector<double> out;
    for (const auto& [name, value] : samples) {
      const std::string prefix = family + "_bucket{model_name=\"m\",le=\"";
      if (name.rfind(prefix, 0) == 0 && name.find("+Inf") == std::string::npos)
        out.push_back(std::stod(name.substr(prefix.size())));
    }
    std::sort(out.begin(), out.end());
    return out;
  };
  const auto first = bounds("dsv3:time_to_first_token_seconds");
  ASSERT_EQ(first.size(), 18u);
  EXPECT_DOUBLE_EQ(first.front(), 0.001);
  EXPECT_DOUBLE_EQ(first.back(), 131.072);
  EXPECT_EQ(bounds("dsv3:inter_token_latency_seconds"),
            (std::vector<double>{0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04,
                                 0.05,  0.075, 0.1,   0.15,  0.2,   0.3,  0.5,   1,    2,    5}));
  const auto whole = bounds("dsv3:e2e_request_latency_seconds");
  ASSERT_EQ(whole.size(), 15u);
  EXPECT_DOUBLE_EQ(whole.front(), 0.1);
  EXPECT_DOUBLE_EQ(whole.back(), 1638.4);
  EXPECT_EQ(samples.at("dsv3:time_to_first_token_seconds_count{model_name=\"m\"}"), 5);
  EXPECT_EQ(samples.at("dsv3:time_to_first_token_seconds_bucket{model_name=\"m\",le=\"+Inf\"}"), 5);
  EXPECT_EQ(samples.at("dsv3:time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.004\"}"), 2);
  EXPECT_NEAR(samples.at("dsv3:time_to_first_token_seconds_sum{model_name=\"m\"}"), 1004.0535, 1e-9);
}

TEST(Metrics, CompatNames) {
  set_log_level(LogLevel::kOff);
  const auto metrics = Metrics::create("m", {"vllm", "sglang", "unknown"});
  metrics->on_inter_token(0.01);
  const auto samples = parse(metrics->render(some_stats()));
  const std::string vllm = "{model_name=\"m\",engine=\"0\"}", sglang = "{model_name=\"m\"}";
  const std::map<std::string, double> want = {
      {"vllm:num_requests_running" + vllm, 3},
      {"vllm:num_requests_waiting" + vllm, 2},
      {"vllm:kv_cache_usage_perc" + vllm, 0.25},
      {"vllm:gpu_cache_usage_perc" + vllm, 0.25},
      {"vllm:prefix_cache_queries_total" + vllm, 1000},
      {"vllm:prefix_cache_hits_total" + vllm, 250},
      {"vllm:num_preemptions_total" + vllm, 1},
      {"vllm:spec_decode_num_drafts_total" + vllm, 100},
      {"vllm:spec_decode_num_draft_tokens_total" + vllm, 200},
      {"vllm:spec_decode_num_accepted_tokens_total" + vllm, 150},
      {"vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name=\"m\",engine=\"0\",position=\"0\"}", 90},
      {"vllm:inter_token_latency_seconds_count" + vllm, 1},
      {"vllm:time_per_output_token_seconds_count" + vllm, 1},
      {"sglang:num_running_reqs" + sglang, 3},
      {"sglang:num_queue_reqs" + sglang, 2},
      {"sglang:token_usage" + sglang, 0.25},
      {"sglang:cache_hit_rate" + sglang, 0.25},
      {"sglang:cached_tokens_total" + sglang, 250},
      {"sglang:num_requests_total" + sglang, 14},
      {"sglang:num_aborted_requests_total" + sglang, 4},
      {"sglang:spec_accept_length" + sglang, 2.5},
      {"sglang:spec_accept_rate" + sglang, 0.75},
      {"sglang:queue_time_seconds_count" + sglang, 0},
  };
  for (const auto& [name, value] : want) {
    const auto found = samples.find(name);
    ASSERT_NE(found, samples.end()) << name;
    EXPECT_EQ(found->second, value) << name;
  }
}

TEST(Metrics, WithoutSpeculationItsCountersAreAbsent) {
  const auto metrics = Metrics::create("m", {"vllm"});
  EXPECT_EQ(metrics->render({}).find("spec_decode"), std::string::npos);
}

TEST(Metrics, ScrapesAreFastWhileTokensStream) {
  const auto metrics = Metrics::create("m", {"vllm", "sglang"});
  std::atomic<bool> stop{false};
  std::thread scheduler([&] {
    while (!stop) metrics->on_inter_token(0.01);
  });
  std::vector<int64_t> times_us;
  for (int i = 0; i < 100; ++i) {
    const int64_t begin_us = now_us();
    const std::string text = metrics->render(some_stats());
    times_us.push_back(now_us() - begin_us);
    EXPECT_GT(text.size(), 10'000u);
  }
  stop = true;
  scheduler.join();
  std::sort(times_us.begin(), times_us.end());
  EXPECT_LE(times_us[98], 50'000) << "p99 of a scrape";
  RecordProperty("scrape_median_us", std::to_string(times_us[50]));
}

}  // namespace
}  // namespace dsv3
