// The plan of the shipped example configs, from config.json alone.
#include "plan_command.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "dsv3/base/json.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3 {
namespace {

const std::string kModels = DSV3_TEST_DATA "/../../configs/models/";

struct Planned {
  ServerOptions options;
  MemoryPlan plan;
  ParameterCounts counts;
};

Planned plan(const std::string& config, const std::string& flags) {
  std::istringstream in(flags);
  std::vector<std::string> args = {"plan", config};
  for (std::string word; in >> word;) args.push_back(word);
  Planned out;
  auto options = parse_options(args);
  EXPECT_TRUE(options.ok()) << options.status().message();
  if (!options.ok()) return out;
  out.options = *options;
  const auto model = load_config(out.options);
  EXPECT_TRUE(model.ok()) << model.status().message();
  if (!model.ok()) return out;
  out.counts = count_parameters(*model);
  const auto made = make_plan(out.options, *model);
  EXPECT_TRUE(made.ok()) << made.status().message();
  if (made.ok()) out.plan = *made;
  return out;
}

TEST(PlanCommand, EveryExampleConfigCanBePlanned) {
  const std::vector<std::pair<std::string, int64_t>> rows = {{"deepseek_v3.json", 671026419200},   {"deepseek_r1.json", 671026419200},
                                                             {"deepseek_v3.1.json", 671026419200}, {"kimi_k2.json", 1026408232448},
                                                             {"deepseek_v2_lite.json", 15706484224}, {"moonlight_16b.json", 15960110208}};
  for (const auto& [file, total] : rows) {
    const Planned p = plan(kModels + file, "--device cuda --tp 16 --gpu-memory-gib 139");
    EXPECT_TRUE(p.plan.fits) << file;
    EXPECT_EQ(p.counts.main_total() + p.counts.router_bias, total) << file;  // as the makers publish it
  }
}

TEST(PlanCommand, CountsEqualTheTensorsThatTheLoaderCallsFor) {
  for (const std::string& path : {kModels + "deepseek_v3.json", kModels + "kimi_k2.json", kModels + "deepseek_v2_lite.json",
                                 kModels + "moonlight_16b.json", std::string(DSV3_TEST_DATA "/dsv3-tiny")}) {
    ServerOptions options;
    options.model_path = path;
    const auto config = load_config(options);
    ASSERT_TRUE(config.ok()) << path << config.status().message();
    int64_t main = 0, mtp = 0;
    for (const ExpectedTensor& tensor : expected_tensors(*config)) {
      if (tensor.optional()) continue;  // copies of embedding and head
      int64_t elements = 1;
      for (const int64_t size : tensor.shape) elements *= size;
      (tensor.mtp ? mtp : main) += elements;
    }
    const ParameterCounts n = count_parameters(*config);
    EXPECT_EQ(n.main_total() + n.router_bias, main) << path;
    EXPECT_EQ(n.mtp + n.mtp_bias, mtp) << path;
  }
}

TEST(PlanCommand, R1OnEightH200) {
  const Planned p = plan(kModels + "deepseek_r1.json", "--device cuda --tp 8 --gpu-memory-gib 139 --mtp-step 3");
  EXPECT_TRUE(p.plan.fits);
  EXPECT_EQ(p.plan.cache_bytes_per_token, 71424);
  EXPECT_GT(p.plan.concurrency.back().sequences, 1);
  const std::string text = plan_as_text(p.options, p.plan);
  for (const char* part : {"routed experts", "KV cache", "MTP module", "NCCL", "163840 tokens", "3 drafts"}) EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
}

TEST(PlanCommand, JsonSaysTheSame) {
  const Planned p = plan(kModels + "deepseek_v3.json", "--device cuda --tp 8 --json");
  const auto json = parse_json(plan_as_json(p.options, p.plan));
  ASSERT_TRUE(json.ok()) << json.status().message();
  int64_t sum = 0;
  for (const auto& [key, bytes] : (*json)["bytes_per_rank"].items()) sum += bytes.get<int64_t>();
  EXPECT_EQ(sum, (*json)["total_bytes"].get<int64_t>());
  EXPECT_FALSE((*json)["fits"].get<bool>());
  EXPECT_GT((*json)["short_bytes"].get<int64_t>(), 0);
  EXPECT_EQ((*json)["would_fit"].back(), "--tp 16");
  EXPECT_EQ((*json)["layout"]["tp"], 8);
}

TEST(PlanCommand, TinyFitsThisMachine) {
  const Planned p = plan(DSV3_TEST_DATA "/dsv3-tiny", "--mtp-step 1");
  EXPECT_TRUE(p.plan.fits) << format_plan(p.plan);
  const std::string limits = limits_as_text(p.options);
  EXPECT_NE(limits.find("8192 tokens"), std::string::npos) << limits;
}

TEST(PlanCommand, LimitsNeverShowAKey) {
  const Planned p = plan(DSV3_TEST_DATA "/dsv3-tiny", "--api-key hunter2");
  const std::string limits = limits_as_text(p.options);
  EXPECT_EQ(limits.find("hunter2"), std::string::npos);
  EXPECT_NE(limits.find("API keys"), std::string::npos);
}

}  // namespace
}  // namespace dsv3
