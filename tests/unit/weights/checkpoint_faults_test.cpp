// Checkpoints with one fault each: refused as kBadModelFile, in one line, with the tensor or file named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <random>
#include <thread>

#include "checkpoint_files.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3 {
namespace {

namespace fs = std::filesystem;
using test::dummy_tensors;
using test::FileTensor;
using test::parsed;
using test::small_config;
using test::TempFolder;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string refusal(const std::string& folder, const ModelConfig& config, Code code = Code::kBadModelFile) {
  const auto source = open_checkpoint(folder, config, nullptr);
  EXPECT_FALSE(source.ok());
  EXPECT_EQ(source.status().code(), code) << source.status().message();
  EXPECT_THAT(source.status().message(), Not(HasSubstr("\n")));
  return source.status().message();
}

class CheckpointFaults : public testing::Test {
 protected:
  std::string refused(const std::vector<FileTensor>& tensors) {
    TempFolder folder;
    folder.write("model.safetensors", test::safetensors_bytes(tensors));
    return refusal(folder.path(), config_);
  }
  std::vector<FileTensor> with(const std::string& name, const std::function<void(FileTensor*)>& change) {
    auto tensors = tensors_;
    for (auto& tensor : tensors) {
      if (tensor.name == name) change(&tensor);
    }
    return tensors;
  }
  std::vector<FileTensor> without(const std::string& name) {
    auto tensors = tensors_;
    std::erase_if(tensors, [&](const auto& t) { return t.name == name; });
    return tensors;
  }

  const ModelConfig config_ = parsed(small_config());
  const std::vector<FileTensor> tensors_ = dummy_tensors(config_);
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t dim : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "]";
}

// One fault of each kind a tensor, over the whole table.
TEST_F(CheckpointFaults, AnyTensorMissing) {
  for (const auto& tensor : tensors_) {
    if (tensor.name == "model.layers.2.embed_tokens.weight" || tensor.name == "model.layers.2.shared_head.head.weight")
      continue;
    EXPECT_THAT(refused(without(tensor.name)),
                AllOf(HasSubstr("\"" + tensor.name + "\""), HasSubstr(shape_text(tensor.shape)), HasSubstr("missing")));
  }
}

TEST_F(CheckpointFaults, AnyTensorOfAnotherShape) {
  for (const auto& tensor : tensors_) {
    const auto changed = with(tensor.name, [](FileTensor* t) {
      const int64_t row_bytes = static_cast<int64_t>(t->bytes.size()) / t->shape[0];
      ++t->shape[0];
      t->bytes.append(static_cast<size_t>(row_bytes), '\0');
    });
    auto shape = tensor.shape;
    ++shape[0];
    EXPECT_THAT(refused(changed),
                AllOf(HasSubstr("\"" + tensor.name + "\" in model.safetensors"),
                      HasSubstr("shape " + shape_text(shape)), HasSubstr("calls for " + shape_text(tensor.shape))));
  }
  // Same size, other form.
  EXPECT_THAT(refused(with("model.norm.weight", [](FileTensor* t) { t->shape = {1, 200}; })), HasSubstr("[1, 200]"));
  EXPECT_THAT(refused(with("lm_head.weight", [](FileTensor* t) { std::swap(t->shape[0], t->shape[1]); })),
              HasSubstr("[200, 256]"));
}

TEST_F(CheckpointFaults, AnyTensorOfAnUnusableDtype) {
  for (const auto& tensor : tensors_) {
    const char* const dtype = tensor.dtype == "F8_E4M3" ? "I8" : tensor.dtype == "BF16" ? "I16" : "I32";
    EXPECT_THAT(
        refused(with(tensor.name, [&](FileTensor* t) { t->dtype = dtype; })),
        AllOf(HasSubstr("\"" + tensor.name + "\""), HasSubstr(std::string("dtype ") + dtype), HasSubstr("usable are")));
  }
  EXPECT_THAT(refused(with("model.norm.weight",
                           [](FileTensor* t) {
                             t->dtype = "F8_E4M3";
                             t->bytes.resize(200);
                           })),
              HasSubstr("dtype F8_E4M3, usable are BF16, F16 or F32"));
  EXPECT_THAT(refused(with("model.layers.0.mlp.up_proj.weight", [](FileTensor* t) { t->dtype = "F3_WHATEVER"; })),
              HasSubstr("dtype F3_WHATEVER"));
}

TEST_F(CheckpointFaults, ScalesOfAnotherBlockSize) {
  EXPECT_THAT(refused(with("model.layers.0.mlp.gate_proj.weight_scale_inv",
                           [](FileTensor* t) {  // as if blocks were 64 x 64
                             t->shape = {5, 4};
                             t->bytes.assign(5 * 4 * 4, '\0');
                           })),
              AllOf(HasSubstr("gate_proj.weight_scale_inv"), HasSubstr("[5, 4]"), HasSubstr("[3, 2]")));
}

TEST_F(CheckpointFaults, ScalesThatAreNoNumbersAreRefusedWhenRead) {
  const uint32_t nan = 0x7fc00000;
  const std::string name = "model.layers.0.mlp.gate_proj.weight";
  TempFolder folder;
  folder.write("model.safetensors", test::safetensors_bytes(with(name + "_scale_inv", [&](FileTensor* t) {
                 std::memcpy(t->bytes.data() + 12, &nan, 4);
               })));
  const auto source = open_checkpoint(folder.path(), config_, nullptr);
  ASSERT_TRUE(source.ok());
  std::vector<float> out(300 * 200);
  EXPECT_TRUE((*source)->read_f32(name, {0, 128, 0, 200}, out.data()).ok());
  const Status status = (*source)->read_f32(name, {100, 300, 10, 200}, out.data());
  EXPECT_EQ(status.code(), Code::kBadModelFile);
  EXPECT_THAT(status.message(), HasSubstr("scale [1, 1] is not a finite number"));
}

TEST_F(CheckpointFaults, HalfAnMtpModule) {
  EXPECT_THAT(refused(without("model.layers.2.enorm.weight")),
              AllOf(HasSubstr("\"model.layers.2.enorm.weight\""), HasSubstr("all or none")));
}

TEST_F(CheckpointFaults, AConfigWithMoreLayersThanTheFiles) {
  TempFolder folder;
  folder.write("model.safetensors", test::safetensors_bytes(tensors_));
  const std::string message =
      refusal(folder.path(), parsed(small_config(R"({"num_hidden_layers": 4, "num_nextn_predict_layers": 0})")));
  EXPECT_THAT(message, AllOf(HasSubstr("\"model.layers.3."), HasSubstr("missing"), HasSubstr("and 25 more")));
}

TEST_F(CheckpointFaults, IndexAndShardsThatDisagree) {
  const auto index_of = [](const TempFolder& folder) {
    return Json::parse(test::read_file(folder.file("model.safetensors.index.json")));
  };
  TempFolder folder;
  test::write_checkpoint(folder, tensors_);
  const Json good = index_of(folder);
  const auto refused_index = [&](const std::string& text) {
    folder.write("model.safetensors.index.json", text);
    return refusal(folder.path(), config_);
  };
  Json index = good;
  index["weight_map"]["model.norm.weight"] = good["weight_map"]["lm_head.weight"] == "model-00001-of-00003.safetensors"
                                                 ? "model-00002-of-00003.safetensors"
                                                 : "model-00001-of-00003.safetensors";
  if (index["weight_map"]["model.norm.weight"] == good["weight_map"]["model.norm.weight"]) {
    index["weight_map"]["model.norm.weight"] = "model-00003-of-00003.safetensors";
  }
  EXPECT_THAT(refused_index(index.dump()), HasSubstr("\"model.norm.weight\" is not in model-0000"));
  index = good;
  index["weight_map"]["model.norm.weight"] = "model-00009-of-00009.safetensors";
  EXPECT_THAT(refused_index(index.dump()), HasSubstr("model-00009-of-00009.safetensors"));
  for (const char* name : {"../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "\\u0000"}) {
    std::string text = good.dump();
    const std::string old = "\"model.norm.weight\":";
    const size_t at = text.find(old) + old.size();
    text.replace(at, text.find_first_of(",}", at) - at, "\"" + std::string(name) + "\"");
    EXPECT_THAT(refused_index(text), HasSubstr("not a plain file name")) << name;
  }
  EXPECT_THAT(refused_index("{}"), HasSubstr("no object \"weight_map\""));
  EXPECT_THAT(refused_index("[]"), HasSubstr("weight_map"));
  EXPECT_THAT(refused_index(R"({"weight_map": {}})"), HasSubstr("empty"));
  EXPECT_THAT(refused_index(R"({"weight_map": {"a": 1}})"), HasSubstr("\"a\" is no string"));
  EXPECT_THAT(refused_index(R"({"weight_map": {"a": "x", "a": "y"}})"), HasSubstr("duplicate key"));
  EXPECT_THAT(refused_index("{\"weight_map\""), HasSubstr("not valid JSON"));
}

TEST_F(CheckpointFaults, AShardThatLinksOutOfTheFolder) {
  TempFolder folder, outside;
  outside.write("secret", test::safetensors_bytes(tensors_));
  fs::create_symlink(outside.file("secret"), folder.file("model.safetensors"));
  EXPECT_THAT(refusal(folder.path(), config_), HasSubstr("outside the model folder"));
}

TEST_F(CheckpointFaults, FoldersWithoutAWholeCheckpoint) {
  TempFolder empty, part, mixed, twice;
  EXPECT_THAT(refusal(empty.path(), config_, Code::kNotFound), HasSubstr("no weights in"));
  EXPECT_THAT(refusal(empty.file("absent"), config_, Code::kNotFound), HasSubstr("absent"));
  test::write_checkpoint(part, tensors_, 3);
  fs::remove(part.file("model.safetensors.index.json"));
  fs::remove(part.file("model-00002-of-00003.safetensors"));
  EXPECT_THAT(refusal(part.path(), config_), HasSubstr("2 of 3 shards"));
  test::write_checkpoint(mixed, tensors_, 1);
  test::write_checkpoint(mixed, tensors_, 2);
  fs::remove(mixed.file("model.safetensors.index.json"));
  EXPECT_THAT(refusal(mixed.path(), config_), HasSubstr("two checkpoints"));
  twice.write("model-00001-of-00002.safetensors", test::safetensors_bytes(tensors_));
  twice.write("model-00002-of-00002.safetensors", test::safetensors_bytes({tensors_[5]}));
  EXPECT_THAT(refusal(twice.path(), config_), AllOf(HasSubstr(tensors_[5].name), HasSubstr("two shards")));
}

TEST_F(CheckpointFaults, AShardCutAnywhere) {
  TempFolder folder;
  test::write_checkpoint(folder, tensors_);
  std::mt19937 random(11);
  for (int shard = 1; shard <= 3; ++shard) {
    const std::string name = "model-0000" + std::to_string(shard) + "-of-00003.safetensors";
    const std::string whole = test::read_file(folder.file(name));
    for (int i = 0; i < 100; ++i) {
      // A third of the cuts inside the header, the others anywhere.
      const size_t limit = i % 3 == 0 ? std::min<size_t>(whole.size(), 4000) : whole.size();
      const size_t at = i == 0 ? whole.size() - 1 : std::uniform_int_distribution<size_t>(0, limit - 1)(random);
      folder.write(name, whole.substr(0, at));
      ASSERT_THAT(refusal(folder.path(), config_), HasSubstr(name)) << at;
    }
    folder.write(name, whole);
  }
  EXPECT_TRUE(open_checkpoint(folder.path(), config_, nullptr).ok());
}

TEST_F(CheckpointFaults, AShardWithRandomBytesInItsHeader) {
  TempFolder folder;
  const std::string good = test::safetensors_bytes(tensors_);
  std::mt19937 random(12);
  int refusals = 0;
  for (int i = 0; i < 300; ++i) {
    std::string bad = good;
    for (int flips = 0; flips < 3; ++flips) bad[random() % 8000] = static_cast<char>(random());
    folder.write("model.safetensors", bad);
    const auto source = open_checkpoint(folder.path(), config_, nullptr);
    if (source.ok()) continue;  // a flip may hit a space
    ++refusals;
    ASSERT_EQ(source.status().code(), Code::kBadModelFile);
    ASSERT_THAT(source.status().message(), Not(HasSubstr("\n")));
  }
  EXPECT_GT(refusals, 250);
}

TEST_F(CheckpointFaults, AShardThatShrinksWhileItIsRead) {
  const std::string name = "model.embed_tokens.weight";
  const Slice all{0, 256, 0, 200};
  for (int repeat = 0; repeat < 20; ++repeat) {
    TempFolder folder;
    folder.write("model.safetensors", test::safetensors_bytes(tensors_));
    const auto source = open_checkpoint(folder.path(), config_, nullptr);
    ASSERT_TRUE(source.ok());
    std::atomic<int> failed{0};
    std::vector<std::thread> readers;
    for (int t = 0; t < 3; ++t) {
      readers.emplace_back([&] {
        std::vector<float> out(256 * 200);
        Status status;
        while (status.ok()) status = (*source)->read_f32(name, all, out.data());
        EXPECT_EQ(status.code(), Code::kBadModelFile);
        EXPECT_THAT(status.message(), HasSubstr("model.safetensors"));
        ++failed;
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    fs::resize_file(folder.file("model.safetensors"), static_cast<uintmax_t>(repeat) * 4096);
    for (auto& reader : readers) reader.join();
    EXPECT_EQ(failed, 3);
  }
}

}  // namespace
}  // namespace dsv3
