// What is accepted besides the plain form, tokenizer_config.json, and reading from a folder.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tokenizer_files.h"

namespace dsv3 {
namespace {

using test::Ids;
using test::small_file;
using testing::HasSubstr;

std::shared_ptr<const Tokenizer> with_config(const std::string& config) {
  return test::parse_or_die(small_file({}, {"<bos>", "<eos>"}), config);
}

std::string config_fault(const std::string& config) {
  const auto parsed = Tokenizer::parse(dump_json(small_file({}, {"<bos>", "<eos>"})), config);
  if (parsed.ok()) return "accepted";
  EXPECT_EQ(parsed.status().code(), Code::kBadModelFile);
  return parsed.status().message();
}

TEST(TokenizerFile, MergesAsTextsOrPairs) {
  const std::vector<std::string> merges = {"a b", "ab c", "Ġ abc"};
  Json pairs = small_file(merges);
  pairs["model"]["merges"] = Json::array({Json::array({"a", "b"}), "ab c", Json::array({"Ġ", "abc"})});
  pairs["model"]["vocab"]["Ġabc"] = 258;
  EXPECT_EQ(test::parse_or_die(pairs)->encode("abc abc ab", false), (Ids{257, 258, ' ', 256}));
  EXPECT_EQ(test::parse_or_die(small_file(merges))->encode("abc abc ab", false), (Ids{257, 258, ' ', 256}));
}

TEST(TokenizerFile, HarmlessVariants) {
  for (const auto& change : std::vector<std::function<void(Json&)>>{
           [](Json& f) {
             f["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
           },
           [](Json& f) {
             f["post_processor"] = {{"type", "ByteLevel"}, {"use_regex", true}};
           },
           [](Json& f) {
             f["post_processor"] = {{"type", "TemplateProcessing"}, {"single", Json::array()}};
           },
           [](Json& f) { f["model"]["ignore_merges"] = false; },
           [](Json& f) { f["model"]["continuing_subword_prefix"] = ""; },
           [](Json& f) { f["model"]["unk_token"] = nullptr; }, [](Json& f) { f.erase("added_tokens"); },
           [](Json& f) {
             f["something_new"] = {{"a", 1}};
           }}) {
    Json file = small_file();
    change(file);
    const auto parsed = Tokenizer::parse(dump_json(file), {});
    EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  }
}

TEST(TokenizerFile, IdsInAnyOrder) {
  Json file = small_file({"a b"});
  for (auto& [text, id] : file["model"]["vocab"].items()) id = 256 - id.get<int>();
  const auto tokenizer = test::parse_or_die(file);
  EXPECT_EQ(tokenizer->encode("abz", false), (Ids{0, 256 - 'z'}));
  EXPECT_EQ(tokenizer->token_bytes(0), "ab");
  EXPECT_EQ(tokenizer->token_bytes(256), std::string_view("\0", 1));
}

TEST(TokenizerFile, AddedTokensAreSortedAndFlagged) {
  Json file = small_file();
  file["added_tokens"] = Json::array({test::added_token(257, "<b>", true), test::added_token(256, "<a>", false)});
  const auto tokenizer = test::parse_or_die(file);
  ASSERT_EQ(tokenizer->added_tokens().size(), 2u);
  EXPECT_EQ(tokenizer->added_tokens()[0].text, "<a>");
  EXPECT_EQ(tokenizer->added_tokens()[1].id, 257);
  EXPECT_FALSE(tokenizer->is_special(256));
  EXPECT_TRUE(tokenizer->is_added(256));
  EXPECT_TRUE(tokenizer->is_special(257));
}

TEST(TokenizerConfig, TokensAsTextOrObject) {
  const auto text = with_config(R"({"bos_token":"<bos>","eos_token":"<eos>","add_bos_token":true})");
  EXPECT_EQ(text->bos_id(), 256);
  EXPECT_EQ(text->eos_id(), 257);
  EXPECT_TRUE(text->adds_bos());
  const auto object = with_config(R"({"bos_token":{"__type":"AddedToken","content":"<bos>"},"eos_token":null})");
  EXPECT_EQ(object->bos_id(), 256);
  EXPECT_EQ(object->eos_id(), -1);
  EXPECT_FALSE(object->adds_bos());
}

TEST(TokenizerConfig, AbsentMeansNone) {
  const auto tokenizer = with_config("");
  EXPECT_EQ(tokenizer->bos_id(), -1);
  EXPECT_EQ(tokenizer->eos_id(), -1);
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->encode("a", true), Ids{'a'});  // there is nothing to put in front
}

TEST(TokenizerConfig, Faults) {
  EXPECT_THAT(config_fault("{"), HasSubstr("tokenizer_config.json: invalid JSON"));
  EXPECT_THAT(config_fault("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(config_fault(R"({"bos_token":5})"), HasSubstr("bos_token must be"));
  EXPECT_THAT(config_fault(R"({"eos_token":{"text":"<eos>"}})"), HasSubstr("eos_token must be"));
  EXPECT_THAT(config_fault(R"({"eos_token":""})"), HasSubstr("eos_token must be"));
  EXPECT_THAT(config_fault(R"({"bos_token":"<nope>"})"), HasSubstr("bos_token \"<nope>\" is not an added token"));
  EXPECT_THAT(config_fault(R"({"bos_token":"a"})"), HasSubstr("is not an added token"));
  EXPECT_THAT(config_fault(R"({"add_bos_token":"yes"})"), HasSubstr("add_bos_token is \"yes\", must be true or false"));
  EXPECT_THAT(config_fault(R"({"add_bos_token":true})"), HasSubstr("add_bos_token is true without a bos_token"));
  EXPECT_THAT(config_fault(R"({"add_eos_token":true})"), HasSubstr("add_eos_token is true"));
}

class TokenizerFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/dsv3-tokenizer-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  std::string fault() {
    const auto loaded = Tokenizer::load(folder_.string());
    if (loaded.ok()) return "accepted";
    EXPECT_EQ(loaded.status().code(), Code::kBadModelFile);
    return loaded.status().message();
  }

  std::filesystem::path folder_;
};

TEST_F(TokenizerFolder, ConfigIsOptional) {
  write("tokenizer.json", dump_json(small_file({}, {"<bos>"})));
  EXPECT_EQ(fault(), "accepted");
  write("tokenizer_config.json", R"({"bos_token":"<bos>"})");
  const auto loaded = Tokenizer::load(folder_.string());
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ((*loaded)->bos_id(), 256);
}

TEST_F(TokenizerFolder, Faults) {
  EXPECT_EQ(fault(), "tokenizer.json: missing or not a file");
  std::filesystem::create_directory(folder_ / "tokenizer.json");
  EXPECT_EQ(fault(), "tokenizer.json: missing or not a file");
  std::filesystem::remove(folder_ / "tokenizer.json");
  write("tokenizer.json", "");
  EXPECT_THAT(fault(), HasSubstr("tokenizer.json: invalid JSON"));
  std::filesystem::resize_file(folder_ / "tokenizer.json", 100u << 20);  // sparse: refused before it is read
  EXPECT_EQ(fault(), "tokenizer.json: 104857600 bytes, allowed 67108864");
  write("tokenizer.json", dump_json(small_file()));
  write("tokenizer_config.json", "");
  EXPECT_EQ(fault(), "tokenizer_config.json: is empty");
}

}  // namespace
}  // namespace dsv3
