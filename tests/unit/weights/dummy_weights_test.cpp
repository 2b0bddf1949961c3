#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint_files.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3 {
namespace {

using test::parsed;
using test::small_config;

std::vector<float> read(const WeightSource& source, const std::string& name, const Slice& slice) {
  std::vector<float> out(static_cast<size_t>(slice.rows() * slice.cols()));
  const Status status = source.read_f32(name, slice, out.data());
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

TEST(DummyWeights, HasEverythingThatTheConfigCallsFor) {
  const ModelConfig config = parsed(small_config());
  const auto source = make_dummy_weights(config, 7);
  int64_t bytes = 0;
  for (const auto& expected : expected_tensors(config)) {
    const TensorInfo* info = source->find(expected.name);
    ASSERT_NE(info, nullptr) << expected.name;
    EXPECT_EQ(info->shape, expected.shape) << expected.name;
    EXPECT_EQ(info->dtype == DType::kF8E4M3, expected.quantizable) << expected.name;
    for (const float value : read(*source, expected.name, test::whole(*info))) ASSERT_TRUE(std::isfinite(value));
    if (!expected.optional()) bytes += static_cast<int64_t>(test::copy_tensor(*source, expected.name).bytes.size());
    if (expected.quantizable) {
      bytes += static_cast<int64_t>(test::copy_tensor(*source, expected.name + "_scale_inv").bytes.size());
    }
  }
  EXPECT_EQ(source->total_bytes(), bytes);
  EXPECT_EQ(source->find("nothing"), nullptr);
}

TEST(DummyWeights, ElementsDoNotDependOnTheSlice) {
  const ModelConfig config = parsed(small_config());
  const auto source = make_dummy_weights(config, 7), again = make_dummy_weights(config, 7),
             other = make_dummy_weights(config, 8);
  for (const std::string name :
       {"model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.gate.weight", "model.norm.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.0.mlp.down_proj.weight_scale_inv"}) {
    const Slice all = test::whole(*source->find(name));
    const auto values = read(*source, name, all);
    EXPECT_EQ(read(*again, name, all), values);
    EXPECT_EQ(read(*other, name, all) == values, name.ends_with("norm.weight")) << name;
    for (const Slice& part : {Slice{0, 1, 1, 2}, Slice{all.row_end / 3, all.row_end, all.col_end / 5, all.col_end - 1},
                              Slice{0, all.row_end, all.col_end / 2, all.col_end / 2 + 1}, Slice{0, 0, 0, 0}}) {
      const auto got = read(*source, name, part);
      for (int64_t r = 0; r < part.rows(); ++r) {
        for (int64_t c = 0; c < part.cols(); ++c) {
          ASSERT_EQ(got[static_cast<size_t>(r * part.cols() + c)],
                    values[static_cast<size_t>((part.row_begin + r) * all.cols() + part.col_begin + c)])
              << name;
        }
      }
    }
  }
}

TEST(DummyWeights, IsTheDequantisedRaw) {
  const auto source = make_dummy_weights(parsed(small_config()), 3);
  const std::string name = "model.layers.0.self_attn.o_proj.weight";  // 200 x 96
  const Slice all = test::whole(*source->find(name));
  const auto raw = test::copy_tensor(*source, name);
  const auto scales = read(*source, name + "_scale_inv", {0, 2, 0, 1});
  const auto values = read(*source, name, all);
  for (int64_t r = 0; r < all.rows(); ++r) {
    for (int64_t c = 0; c < all.cols(); ++c) {
      const auto i = static_cast<size_t>(r * all.cols() + c);
      ASSERT_EQ(values[i], e4m3_to_f32(static_cast<uint8_t>(raw.bytes[i])) * scales[static_cast<size_t>(r / 128)]);
    }
  }
}

TEST(DummyWeights, KeepsActivationsInSize) {
  const auto source = make_dummy_weights(parsed(small_config()), 3);
  const std::string name = "model.layers.0.mlp.gate_proj.weight";
  const Slice all = test::whole(*source->find(name));
  double squares = 0, sum = 0;
  for (const float value : read(*source, name, all)) {
    squares += double{value} * value;
    sum += value;
  }
  const auto n = static_cast<double>(all.rows() * all.cols());
  EXPECT_NEAR(std::sqrt(squares / n), 1.0 / std::sqrt(200.0), 0.15 / std::sqrt(200.0));
  EXPECT_NEAR(sum / n, 0.0, 0.01 / std::sqrt(200.0));
  for (const float value : read(*source, "model.norm.weight", {0, 1, 0, 200})) EXPECT_EQ(value, 1.0f);
}

TEST(DummyWeights, FollowsTheConfigsFormat) {
  Json plain = Json::parse(small_config());
  plain.erase("quantization_config");
  const auto bf16 = make_dummy_weights(parsed(plain.dump()), 3);
  EXPECT_EQ(bf16->find("model.layers.0.mlp.gate_proj.weight")->dtype, DType::kBF16);
  EXPECT_EQ(bf16->find("model.layers.0.mlp.gate_proj.weight_scale_inv"), nullptr);
  Json ue8m0 = Json::parse(small_config());
  ue8m0["quantization_config"]["scale_fmt"] = "ue8m0";
  const auto scaled = make_dummy_weights(parsed(ue8m0.dump()), 3);
  for (const float scale : read(*scaled, "model.layers.0.mlp.gate_proj.weight_scale_inv", {0, 3, 0, 2})) {
    int exponent;
    EXPECT_EQ(std::frexp(scale, &exponent), 0.5f);
  }
}

TEST(DummyWeights, SharedTensorsAreTheMainModels) {
  const auto source = make_dummy_weights(parsed(small_config(R"({"tie_word_embeddings": true})")), 3);
  const Slice all{0, 256, 0, 200};
  const auto embedding = read(*source, "model.embed_tokens.weight", all);
  EXPECT_EQ(read(*source, "lm_head.weight", all), embedding);
  EXPECT_EQ(read(*source, "model.layers.2.embed_tokens.weight", all), embedding);
  EXPECT_EQ(read(*source, "model.layers.2.shared_head.head.weight", all), embedding);
}

TEST(DummyWeights, RefusesBadSlicesAndNames) {
  const auto source = make_dummy_weights(parsed(small_config()), 3);
  float out[4];
  EXPECT_EQ(source->read_f32("nothing", {0, 1, 0, 1}, out).code(), Code::kNotFound);
  for (const Slice& slice :
       {Slice{0, 1, 0, 201}, Slice{-1, 1, 0, 1}, Slice{1, 0, 0, 1}, Slice{0, 257, 0, 1}, Slice{0, 1, 2, 1}}) {
    EXPECT_EQ(source->read_f32("model.embed_tokens.weight", slice, out).code(), Code::kInvalidArgument);
  }
}

}  // namespace
}  // namespace dsv3
