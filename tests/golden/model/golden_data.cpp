#include "golden_data.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dsv3/base/json.h"

namespace dsv3::testing {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  DSV3_CHECK(file.good(), "cannot read golden data");
  return text.str();
}

std::map<std::string, std::vector<float>> read_tensors(const std::string& path) {
  const std::string bytes = read_file(path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  const auto header = Json::parse(bytes.substr(8, length));
  std::map<std::string, std::vector<float>> tensors;
  for (const auto& [name, info] : header.items()) {
    if (name == "__metadata__") continue;
    DSV3_CHECK(info["dtype"] == "F32", "golden tensors are float32");
    const auto begin = info["data_offsets"][0].get<size_t>(), end = info["data_offsets"][1].get<size_t>();
    auto& values = tensors[name];
    values.resize((end - begin) / sizeof(float));
    std::memcpy(values.data(), bytes.data() + 8 + length + begin, end - begin);
  }
  return tensors;
}

GoldenModel load() {
  const char* moved = std::getenv("DSV3_TEST_DATA");  // where the binary runs away from the checkout it was built in
  const std::string data = moved != nullptr ? moved : DSV3_TEST_DATA;
  GoldenModel model;
  auto config = load_model_config(data + "/dsv3-tiny");
  DSV3_CHECK(config.ok(), "the shipped config must load");
  model.config = *config;
  bool has_mtp = false;
  auto weights = open_checkpoint(data + "/dsv3-tiny", model.config, &has_mtp);
  DSV3_CHECK(weights.ok() && has_mtp, "the shipped checkpoint must load");
  model.weights = *weights;
  auto tensors = read_tensors(data + "/dsv3-tiny-golden/golden.safetensors");
  const auto list = Json::parse(read_file(data + "/dsv3-tiny-golden/golden.json"));
  for (size_t i = 0; i < list.size(); ++i) {
    GoldenPrompt& prompt = model.prompts.emplace_back();
    prompt.kind = list[i]["kind"];
    prompt.ids = list[i]["token_ids"].get<std::vector<int32_t>>();
    prompt.greedy = list[i]["greedy_ids"].get<std::vector<int32_t>>();
    for (const auto& best : list[i]["top5_logprobs"]) {
      prompt.greedy_gaps.push_back(best[0][1].get<double>() - best[1][1].get<double>());
    }
    prompt.first_row = list[i]["first_row"];
    const std::string number = std::to_string(i);
    prompt.logits = tensors.at("logits." + number);
    prompt.logits_w8a8 = tensors.at("logits_w8a8." + number);
    prompt.mtp = tensors.at("mtp." + number);
    const auto mtp_rows = prompt.mtp.size() / static_cast<size_t>(model.config.vocab_size);
    prompt.first_mtp_row = static_cast<int32_t>(prompt.ids.size() - 1 - mtp_rows);
  }
  return model;
}

}  // namespace

const GoldenModel& golden() {
  static const GoldenModel model = load();
  return model;
}

}  // namespace dsv3::testing
