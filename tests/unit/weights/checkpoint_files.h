// Small checkpoints in temporary folders, and ways to damage them.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dsv3/base/json.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3::test {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = ::testing::TempDir() + "dsv3-weights-XXXXXX";
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
  }

 private:
  std::string path_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline std::string little_endian_length(uint64_t length) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  return bytes;
}

struct FileTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

/// A safetensors file. The header's length is left odd on purpose, so that data lies unaligned.
inline std::string safetensors_bytes(const std::vector<FileTensor>& tensors) {
  Json header = Json::object();
  header["__metadata__"] = {{"format", "pt"}};
  std::string data;
  for (const auto& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string text = header.dump();
  if (text.size() % 2 == 0) text += ' ';
  return little_endian_length(text.size()) + text + data;
}

/// A config with every odd size: nothing but the vocabulary is a multiple of 128. Overrides are merged over it.
inline std::string small_config(const std::string& overrides = "{}") {
  Json config = Json::parse(R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "vocab_size": 256, "hidden_size": 200, "intermediate_size": 300, "moe_intermediate_size": 72,
    "num_hidden_layers": 2, "num_nextn_predict_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "n_shared_experts": 1, "n_routed_experts": 4, "routed_scaling_factor": 2.5, "kv_lora_rank": 96,
    "q_lora_rank": 130, "qk_rope_head_dim": 32, "v_head_dim": 48, "qk_nope_head_dim": 40, "topk_method": "noaux_tc",
    "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_layer_freq": 1, "first_k_dense_replace": 1,
    "norm_topk_prob": true, "scoring_func": "sigmoid", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "eos_token_id": 1, "bos_token_id": 0,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                            "activation_scheme": "dynamic"}})");
  config.update(Json::parse(overrides));
  return config.dump();
}

inline ModelConfig parsed(const std::string& json) {
  auto config = parse_model_config(json);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return std::move(config).value();
}

inline Slice whole(const TensorInfo& info) {
  return info.shape.size() == 1 ? Slice{0, 1, 0, info.shape[0]} : Slice{0, info.shape[0], 0, info.shape[1]};
}

inline FileTensor copy_tensor(const WeightSource& source, const std::string& name) {
  const TensorInfo& info = *source.find(name);
  const Slice all = whole(info);
  FileTensor tensor{name, std::string(dtype_name(info.dtype)), info.shape, {}};
  tensor.bytes.resize(static_cast<size_t>(all.rows() * all.cols()) * dtype_bytes(info.dtype));
  EXPECT_TRUE(source.read_raw(name, all, tensor.bytes.data()).ok());
  return tensor;
}

/// Everything that the config calls for, scales included, from the dummy weights of `seed`.
inline std::vector<FileTensor> dummy_tensors(const ModelConfig& config, uint64_t seed = 1) {
  const auto source = make_dummy_weights(config, seed);
  std::vector<FileTensor> tensors;
  for (const auto& expected : expected_tensors(config)) {
    tensors.push_back(copy_tensor(*source, expected.name));
    if (tensors.back().dtype == "F8_E4M3") tensors.push_back(copy_tensor(*source, expected.name + "_scale_inv"));
  }
  return tensors;
}

/// Deals the tensors out to `shards` files in turn, so that scales lie apart from their weights, and writes the index.
inline void write_checkpoint(const TempFolder& folder, const std::vector<FileTensor>& tensors, size_t shards = 3) {
  std::vector<std::vector<FileTensor>> dealt(shards);
  Json index;
  for (size_t i = 0; i < tensors.size(); ++i) {
    dealt[i % shards].push_back(tensors[i]);
    index["weight_map"][tensors[i].name] =
        "model-0000" + std::to_string(i % shards + 1) + "-of-0000" + std::to_string(shards) + ".safetensors";
  }
  for (size_t i = 0; i < shards; ++i) {
    folder.write("model-0000" + std::to_string(i + 1) + "-of-0000" + std::to_string(shards) + ".safetensors",
                 safetensors_bytes(dealt[i]));
  }
  folder.write("model.safetensors.index.json", index.dump());
}

}  // namespace dsv3::test
