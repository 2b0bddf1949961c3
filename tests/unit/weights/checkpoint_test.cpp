// Checkpoints that are as they should be: the tiny model, and small ones of every layout and dtype.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <thread>

#include "checkpoint_files.h"
#include "dsv3/weights/load_meter.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3 {
namespace {

using test::dummy_tensors;
using test::FileTensor;
using test::parsed;
using test::small_config;
using test::TempFolder;
using test::whole;
using testing::HasSubstr;

std::shared_ptr<const WeightSource> open(const std::string& folder, const ModelConfig& config,
                                         bool* has_mtp = nullptr) {
  auto source = open_checkpoint(folder, config, has_mtp);
  EXPECT_TRUE(source.ok()) << source.status().message();
  return source.ok() ? *source : nullptr;
}

std::vector<float> read(const WeightSource& source, const std::string& name, const Slice& slice) {
  std::vector<float> out(static_cast<size_t>(slice.rows() * slice.cols()), NAN);
  const Status status = source.read_f32(name, slice, out.data());
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

/// Float32 values of a file's tensor, by the plainest code there is.
std::vector<float> plain_values(const FileTensor& tensor, const std::map<std::string, FileTensor>& all) {
  const int64_t cols = tensor.shape.back();
  std::vector<float> values;
  DType dtype = DType::kF32;
  EXPECT_TRUE(parse_dtype(tensor.dtype, &dtype));
  const size_t n = tensor.bytes.size() / dtype_bytes(dtype);
  for (size_t i = 0; i < n; ++i) {
    const char* at = tensor.bytes.data() + i * dtype_bytes(dtype);
    uint16_t half;
    std::memcpy(&half, at, std::min<size_t>(2, tensor.bytes.size() - i * dtype_bytes(dtype)));
    float value;
    switch (dtype) {
      case DType::kBF16:
        value = bf16_to_f32(half);
        break;
      case DType::kF16:
        value = f16_to_f32(half);
        break;
      case DType::kF8E4M3: {
        const FileTensor& scale = all.at(tensor.name + "_scale_inv");
        const int64_t row = static_cast<int64_t>(i) / cols, col = static_cast<int64_t>(i) % cols;
        value = e4m3_to_f32(static_cast<uint8_t>(*at)) *
                plain_values(scale, all)[static_cast<size_t>(row / 128 * scale.shape[1] + col / 128)];
        break;
      }
      default:
        std::memcpy(&value, at, 4);
    }
    values.push_back(value);
  }
  return values;
}

TEST(ExpectedTensors, OfDeepSeekV3AreWhatIsPublished) {
  const std::string v3 = R"({"model_type": "deepseek_v3", "vocab_size": 129280,
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1, "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "max_position_embeddings": 163840,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})";
  int64_t tensors = 0, f8 = 0, bf16 = 0, f32 = 0;
  const auto size = [](const std::vector<int64_t>& shape) {
    int64_t n = 1;
    for (const int64_t dim : shape) n *= dim;
    return n;
  };
  for (const auto& tensor : expected_tensors(parsed(v3))) {
    ++tensors;
    EXPECT_EQ(tensor.mtp, tensor.name.starts_with("model.layers.61."));
    if (tensor.quantizable) {
      ++tensors;
      f8 += size(tensor.shape);
      f32 += ((tensor.shape[0] + 127) / 128) * ((tensor.shape[1] + 127) / 128);
    } else {
      (tensor.name.ends_with("bias") ? f32 : bf16) += size(tensor.shape);
    }
  }
  EXPECT_EQ(tensors, 91'991);
  EXPECT_EQ(f8, 680'571'043'840);
  EXPECT_EQ(bf16, 3'918'786'560);
  EXPECT_EQ(f32, 41'555'600);
}

TEST(ExpectedTensors, WithoutQueryCompressionOrBias) {
  const auto tensors = expected_tensors(parsed(small_config(
      R"({"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "q_lora_rank": null,
          "topk_method": "greedy", "scoring_func": "softmax", "num_nextn_predict_layers": 0})")));
  const auto has = [&](const std::string& part) {
    return std::any_of(tensors.begin(), tensors.end(),
                       [&](const auto& t) { return t.name.find(part) != std::string::npos; });
  };
  EXPECT_TRUE(has("self_attn.q_proj.weight"));
  EXPECT_FALSE(has("q_a_"));
  EXPECT_FALSE(has("e_score_correction_bias"));
  EXPECT_FALSE(has("layers.2."));
}

TEST(ExpectedTensors, AnMtpModuleHasExpertsWhateverTheFrequency) {
  const auto tensors = expected_tensors(
      parsed(small_config(R"({"num_hidden_layers": 3, "moe_layer_freq": 2, "first_k_dense_replace": 0})")));
  const auto has = [&](const std::string& name) {
    return std::any_of(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
  };
  EXPECT_TRUE(has("model.layers.0.mlp.gate.weight"));
  EXPECT_TRUE(has("model.layers.1.mlp.gate_proj.weight"));
  EXPECT_TRUE(has("model.layers.2.mlp.gate.weight"));
  EXPECT_TRUE(has("model.layers.3.mlp.gate.weight"));
}

TEST(Checkpoint, OpensTheTinyModel) {
  const std::string folder = DSV3_TEST_DATA "/dsv3-tiny";
  const auto config = load_model_config(folder);
  ASSERT_TRUE(config.ok());
  bool has_mtp = false;
  const auto source = open(folder, *config, &has_mtp);
  ASSERT_NE(source, nullptr);
  EXPECT_TRUE(has_mtp);
  EXPECT_EQ(source->total_bytes(), 33'994'728);  // total_size of the index
  for (const auto& expected : expected_tensors(*config)) {
    const TensorInfo* info = source->find(expected.name);
    ASSERT_NE(info, nullptr) << expected.name;
    EXPECT_EQ(info->dtype == DType::kF8E4M3, expected.quantizable);
    double squares = 0;
    const Slice all = whole(*info);
    for (const float value : read(*source, expected.name, all)) {
      ASSERT_TRUE(std::isfinite(value)) << expected.name;
      squares += double{value} * value;
    }
    const double rms = std::sqrt(squares / static_cast<double>(all.rows() * all.cols()));
    EXPECT_GT(rms, 1e-4) << expected.name;
    EXPECT_LT(rms, 20.0) << expected.name;
  }
  // Ragged blocks: 576 rows in 5 blocks.
  EXPECT_EQ(source->find("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv")->shape,
            (std::vector<int64_t>{5, 3}));
}

TEST(Checkpoint, ReadsWhatWasWrittenInEveryDtypeAndSlice) {
  const ModelConfig config = parsed(small_config());
  auto tensors = dummy_tensors(config);
  // Mixed dtypes, whatever the config says: each tensor's own decides.
  const auto turn = [&](const std::string& name, const std::string& dtype) {
    std::map<std::string, FileTensor> all;
    for (const auto& t : tensors) all[t.name] = t;
    FileTensor& tensor = *std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
    const auto values = plain_values(tensor, all);
    tensor.dtype = dtype;
    tensor.bytes.clear();
    for (const float value : values) {
      const uint16_t bf16 = f32_to_bf16(value);
      const uint16_t f16 = static_cast<uint16_t>(bf16 & 0x83ffu);  // any bits do, as long as they are no NaN
      if (dtype == "F32") tensor.bytes.append(reinterpret_cast<const char*>(&value), 4);
      if (dtype == "BF16") tensor.bytes.append(reinterpret_cast<const char*>(&bf16), 2);
      if (dtype == "F16") tensor.bytes.append(reinterpret_cast<const char*>(&f16), 2);
    }
  };
  turn("model.layers.0.self_attn.q_a_proj.weight", "BF16");
  turn("model.layers.0.self_attn.q_b_proj.weight", "F32");
  turn("model.layers.0.mlp.gate_proj.weight", "F16");
  turn("model.norm.weight", "F32");
  turn("model.layers.1.mlp.gate.e_score_correction_bias", "BF16");
  turn("model.layers.0.mlp.down_proj.weight_scale_inv", "BF16");
  TempFolder folder;
  test::write_checkpoint(folder, tensors);
  bool has_mtp = false;
  testing::internal::CaptureStderr();
  const auto source = open(folder.path(), config, &has_mtp);
  // The scales of weights that are not FP8 any more belong to no one.
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("\"tensors\":3"));
  ASSERT_NE(source, nullptr);
  EXPECT_TRUE(has_mtp);

  std::map<std::string, FileTensor> all;
  for (const auto& tensor : tensors) all[tensor.name] = tensor;
  std::mt19937 random(5);
  for (const auto& expected : expected_tensors(config)) {
    const FileTensor& tensor = all.at(expected.name);
    const auto values = plain_values(tensor, all);
    const Slice full = whole(*source->find(expected.name));
    ASSERT_EQ(read(*source, expected.name, full), values) << expected.name;
    EXPECT_EQ(test::copy_tensor(*source, expected.name).bytes, tensor.bytes) << expected.name;
    for (int i = 0; i < 8; ++i) {
      const auto cut = [&](int64_t size) {
        const int64_t a = std::uniform_int_distribution<int64_t>(0, size)(random),
                      b = std::uniform_int_distribution<int64_t>(0, size)(random);
        return std::pair(std::min(a, b), std::max(a, b));
      };
      const auto [row_begin, row_end] = cut(full.rows());
      const auto [col_begin, col_end] = cut(full.cols());
      const Slice part{row_begin, row_end, col_begin, col_end};
      const auto got = read(*source, expected.name, part);
      const size_t element = tensor.bytes.size() / values.size();
      std::string raw(got.size() * element, '\0');
      ASSERT_TRUE(source->read_raw(expected.name, part, raw.data()).ok());
      for (int64_t r = 0; r < part.rows(); ++r) {
        const auto from = static_cast<size_t>((part.row_begin + r) * full.cols() + part.col_begin);
        const auto to = static_cast<size_t>(r * part.cols()), n = static_cast<size_t>(part.cols());
        for (size_t c = 0; c < n; ++c) ASSERT_EQ(got[to + c], values[from + c]) << expected.name;
        ASSERT_EQ(raw.substr(to * element, n * element), tensor.bytes.substr(from * element, n * element))
            << expected.name;
      }
    }
  }
}

TEST(Checkpoint, OpensOneFileOrNumberedShardsWithoutIndex) {
  const ModelConfig config = parsed(small_config());
  const auto tensors = dummy_tensors(config);
  TempFolder single, several;
  single.write("model.safetensors", test::safetensors_bytes(tensors));
  test::write_checkpoint(several, tensors, 2);
  std::filesystem::remove(several.file("model.safetensors.index.json"));
  several.write("consolidated.safetensors", "not ours to read");
  for (const auto& folder : {single.path(), several.path()}) {
    const auto source = open(folder, config);
    ASSERT_NE(source, nullptr);
    EXPECT_EQ(test::copy_tensor(*source, tensors[3].name).bytes, tensors[3].bytes);
  }
}

TEST(Checkpoint, MtpMayBeAbsentAndItsCopiesToo) {
  const ModelConfig config = parsed(small_config());
  auto tensors = dummy_tensors(config);
  std::erase_if(tensors, [](const auto& t) {
    return t.name == "model.layers.2.embed_tokens.weight" || t.name == "model.layers.2.shared_head.head.weight";
  });
  TempFolder shared, without, unused;
  test::write_checkpoint(shared, tensors);
  bool has_mtp = false;
  auto source = open(shared.path(), config, &has_mtp);
  ASSERT_NE(source, nullptr);
  EXPECT_TRUE(has_mtp);
  EXPECT_EQ(source->find("model.layers.2.shared_head.head.weight"), source->find("lm_head.weight"));
  const Slice row{3, 4, 0, 200};
  EXPECT_EQ(read(*source, "model.layers.2.embed_tokens.weight", row), read(*source, "model.embed_tokens.weight", row));

  std::erase_if(tensors, [](const auto& t) { return t.name.starts_with("model.layers.2."); });
  test::write_checkpoint(without, tensors);
  source = open(without.path(), config, &has_mtp);
  ASSERT_NE(source, nullptr);
  EXPECT_FALSE(has_mtp);
  EXPECT_EQ(source->find("model.layers.2.enorm.weight"), nullptr);
  EXPECT_EQ(source->find("model.layers.2.embed_tokens.weight"), nullptr);

  // A config without MTP over a file that has it: one warning, no fault.
  test::write_checkpoint(unused, dummy_tensors(config));
  testing::internal::CaptureStderr();
  source = open(unused.path(), parsed(small_config(R"({"num_nextn_predict_layers": 0})")), &has_mtp);
  const std::string log = testing::internal::GetCapturedStderr();
  ASSERT_NE(source, nullptr);
  EXPECT_FALSE(has_mtp);
  EXPECT_THAT(log, HasSubstr("weights_ignored"));
  EXPECT_THAT(log, HasSubstr("\"first\":\"model.layers.2."));
}

TEST(Checkpoint, IgnoresTensorsThatNobodyAskedForWithOneWarning) {
  const ModelConfig config = parsed(small_config());
  auto tensors = dummy_tensors(config);
  tensors.push_back({"model.layers.9.extra", "F64", {1}, std::string(8, '\0')});
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F5_NEW", {4}, std::string(3, '\0')});
  TempFolder folder;
  test::write_checkpoint(folder, tensors);
  testing::internal::CaptureStderr();
  const auto source = open(folder.path(), config);
  const std::string log = testing::internal::GetCapturedStderr();
  ASSERT_NE(source, nullptr);
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1);
  EXPECT_THAT(log, HasSubstr("\"tensors\":2"));
  EXPECT_EQ(source->find("model.layers.9.extra"), nullptr);
}

TEST(Checkpoint, ATiedHeadIsTheEmbedding) {
  const ModelConfig config = parsed(small_config(R"({"tie_word_embeddings": true})"));
  auto tensors = dummy_tensors(config);
  for (const bool stored : {true, false}) {
    if (!stored) std::erase_if(tensors, [](const auto& t) { return t.name == "lm_head.weight"; });
    TempFolder folder;
    test::write_checkpoint(folder, tensors);
    const auto source = open(folder.path(), config);
    ASSERT_NE(source, nullptr);
    EXPECT_EQ(source->find("lm_head.weight"), source->find("model.embed_tokens.weight"));
  }
}

TEST(Checkpoint, HubCacheLayout) {
  const ModelConfig config = parsed(small_config());
  TempFolder hub;
  namespace fs = std::filesystem;
  fs::create_directories(hub.file("snapshots/main"));
  fs::create_directories(hub.file("blobs"));
  hub.write("blobs/00ff", test::safetensors_bytes(dummy_tensors(config)));
  fs::create_symlink("../../blobs/00ff", hub.file("snapshots/main/model.safetensors"));
  EXPECT_NE(open(hub.file("snapshots/main"), config), nullptr);
}

TEST(Checkpoint, ManyThreadsReadAtOnceAndTheMeterCountsThem) {
  const ModelConfig config = parsed(small_config());
  TempFolder folder;
  test::write_checkpoint(folder, dummy_tensors(config));
  const auto meter = std::make_shared<LoadMeter>(0, 1000, nullptr);
  const auto source = open_checkpoint(folder.path(), config, nullptr, meter);
  ASSERT_TRUE(source.ok());
  const auto dummy = make_dummy_weights(config, 1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (const auto& expected : expected_tensors(config)) {
        const Slice all = whole(*dummy->find(expected.name));
        EXPECT_EQ(read(**source, expected.name, all), read(*dummy, expected.name, all));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(meter->progress().bytes_done, 4 * (*source)->total_bytes());
  EXPECT_EQ(meter->progress().bytes_total, (*source)->total_bytes());
}

}  // namespace
}  // namespace dsv3
