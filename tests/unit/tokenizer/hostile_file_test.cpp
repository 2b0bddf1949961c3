// Every file that is not a sound DeepSeek-style tokenizer is refused with the member at fault.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tokenizer_file.h"
#include "tokenizer_files.h"

namespace dsv3 {
namespace {

using test::added_token;
using test::small_file;
using testing::HasSubstr;

const std::vector<std::string> kMerges = {"a b", "ab c"};  // ids 256, 257
const std::vector<std::string> kAdded = {"<x>", "<y>"};    // ids 258, 259

void expect_refused(const std::string& json, const std::string& reason) {
  const auto parsed = Tokenizer::parse(json, {});
  ASSERT_FALSE(parsed.ok()) << "accepted, expected: " << reason;
  EXPECT_EQ(parsed.status().code(), Code::kBadModelFile);
  EXPECT_THAT(parsed.status().message(), HasSubstr("tokenizer.json: "));
  EXPECT_THAT(parsed.status().message(), HasSubstr(reason));
  EXPECT_LT(parsed.status().message().size(), 600u);
}

void expect_refused(const std::function<void(Json&)>& change, const std::string& reason) {
  Json file = small_file(kMerges, kAdded);
  change(file);
  expect_refused(dump_json(file), reason);
}

TEST(HostileFile, TheUnchangedOneIsAccepted) {
  const auto parsed = Tokenizer::parse(dump_json(small_file(kMerges, kAdded)), {});
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_EQ((*parsed)->encode("abcab<x>", false), (test::Ids{257, 256, 258}));
}

TEST(HostileFile, NotJson) {
  expect_refused("", "invalid JSON");
  expect_refused("{", "invalid JSON");
  expect_refused("[]", "not a JSON object");
  expect_refused("null", "not a JSON object");
  expect_refused(std::string(5'000'000, '['), "nested deeper than 32");
  expect_refused(std::string("\xFF\xFE{}"), "invalid JSON");
  expect_refused(std::string(kMaxTokenizerFileBytes + 1, ' '), "allowed 67108864");
  std::string many = "[";
  for (int i = 0; i < 8'000'001; ++i) many += "0,";
  expect_refused(many + "0]", "more values than allowed");
  std::string twice = dump_json(small_file());
  twice.insert(1, "\"model\":{},");
  expect_refused(twice, "duplicate key \"model\"");
}

TEST(HostileFile, Ids) {
  for (const Json& bad : {Json(-1), Json(1.5), Json("7"), Json(nullptr), Json(true), Json(kMaxTokens), Json(1e18),
                          Json(4294967296 + 65), Json(18446744073709551615u), Json::array(), Json::object()}) {
    expect_refused([&](Json& file) { file["model"]["vocab"]["ab"] = bad; }, "model.vocab[\"ab\"] is ");
    expect_refused([&](Json& file) { file["added_tokens"][0]["id"] = bad; }, "added_tokens[0].id is ");
  }
  expect_refused([](Json& file) { file["model"]["vocab"]["ab"] = 65; }, "id 65 is both \"A\" and \"ab\"");
  expect_refused([](Json& file) { file["model"]["vocab"]["ab"] = 260; }, "no token has id 256, but ids go up to 260");
  expect_refused([](Json& file) { file["model"]["vocab"]["ab"] = kMaxTokens - 1; }, "no token has id 256");
  expect_refused([](Json& file) { file["added_tokens"][0]["id"] = 300; }, "no token has id 258");
  expect_refused([](Json& file) { file["added_tokens"][1]["id"] = 258; }, "id 258 is both \"<x>\" and \"<y>\"");
  expect_refused([](Json& file) { file["added_tokens"][1]["id"] = 65; }, "id 65 is both \"A\" and \"<y>\"");
  expect_refused([](Json& file) { file["model"]["vocab"]["<x>"] = 260; },
                 "added_tokens[0]: \"<x>\" has id 258, but model.vocab says 260");
}

TEST(HostileFile, Vocabulary) {
  expect_refused([](Json& file) { file["model"].erase("vocab"); }, "model.vocab must be an object");
  expect_refused([](Json& file) { file["model"]["vocab"] = Json::array(); }, "model.vocab must be an object");
  expect_refused([](Json& file) { file["model"]["vocab"] = Json::object(); }, "no entry for byte 0");
  expect_refused([](Json& file) { file["model"]["vocab"].erase("Ġ"); }, "no entry for byte 32");
  expect_refused([](Json& file) { file["model"]["vocab"][""] = 260; }, "a key of model.vocab is empty");
  expect_refused([](Json& file) { file["model"]["vocab"][std::string(1025, 'q')] = 260; }, "1025 bytes, allowed 1024");
  expect_refused([](Json& file) { file["model"]["vocab"][std::string(20'000'000, 'q')] = 260; },
                 "20000000 bytes, allowed 1024");
}

TEST(HostileFile, MergeRules) {
  expect_refused([](Json& file) { file["model"].erase("merges"); }, "model.merges must be an array");
  expect_refused([](Json& file) { file["model"]["merges"] = Json::object(); }, "model.merges must be an array");
  for (const Json& bad : {Json("ab"), Json("a b c"), Json(""), Json(" "), Json(" b"), Json("a "), Json(7),
                          Json(nullptr), Json::array(), Json::array({"a"}), Json::array({"a", "b", "c"}),
                          Json::array({"a", 1}), Json::array({"", "a"}), Json::object()}) {
    expect_refused([&](Json& file) { file["model"]["merges"][1] = bad; }, "model.merges[1] is ");
  }
  expect_refused([](Json& file) { file["model"]["merges"][1] = "q ab"; },
                 "model.merges[1]: \"qab\" is not in model.vocab");
  expect_refused([](Json& file) { file["model"]["merges"][1] = "zz a"; },
                 "model.merges[1]: \"zz\" is not in model.vocab");
  expect_refused([](Json& file) { file["model"]["merges"].push_back("a b"); },
                 "model.merges[2] merges a pair a second time");
  expect_refused([](Json& file) { file["model"]["merges"].push_back(Json::array({"a", "b"})); }, "a second time");
}

TEST(HostileFile, AddedTokens) {
  expect_refused([](Json& file) { file["added_tokens"] = 5; }, "added_tokens must be an array");
  expect_refused([](Json& file) { file["added_tokens"][0] = "<x>"; }, "added_tokens[0] must be an object");
  expect_refused([](Json& file) { file["added_tokens"][0].erase("id"); }, "added_tokens[0].id is missing");
  expect_refused([](Json& file) { file["added_tokens"][0].erase("content"); }, "added_tokens[0].content is empty");
  expect_refused([](Json& file) { file["added_tokens"][0]["content"] = ""; }, "added_tokens[0].content is empty");
  expect_refused([](Json& file) { file["added_tokens"][0]["content"] = std::string(2000, '<'); }, "2000 bytes");
  expect_refused([](Json& file) { file["added_tokens"][1]["content"] = "<x>"; }, "\"<x>\" stands there twice");
  for (const char* name : {"single_word", "lstrip", "rstrip"}) {
    expect_refused([&](Json& file) { file["added_tokens"][0][name] = true; }, std::string(name) + " is true");
    expect_refused([&](Json& file) { file["added_tokens"][0][name] = "no"; }, "must be true or false");
  }
  expect_refused([](Json& file) { file["added_tokens"][0]["special"] = 1; }, "added_tokens[0].special is 1");
}

// Otherwise a user could spell a control token by way of the merges.
TEST(HostileFile, AnAddedTokenWithinReachOfOrdinaryText) {
  expect_refused([](Json& file) { file["added_tokens"].push_back(added_token(256, "ab")); },
                 "\"ab\" is also the result of a merge");
  expect_refused([](Json& file) { file["added_tokens"].push_back(added_token('q', "q")); },
                 "\"q\" is also a byte of the vocabulary");
}

TEST(HostileFile, Pipeline) {
  const auto stage = [](Json& file, int i) -> Json& {
    return file["pre_tokenizer"]["pretokenizers"][static_cast<size_t>(i)];
  };
  expect_refused([](Json& file) { file["version"] = "2.0"; }, "version is \"2.0\"");
  expect_refused([](Json& file) { file["normalizer"] = {{"type", "NFC"}}; }, "normalizer is \"NFC\"");
  expect_refused(
      [](Json& file) {
        file["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
      },
      "normalizer.normalizers must be an empty array");
  expect_refused([](Json& file) { file["pre_tokenizer"] = nullptr; }, "pre_tokenizer is missing");
  expect_refused([](Json& file) { file["pre_tokenizer"] = {{"type", "ByteLevel"}}; }, "pre_tokenizer is \"ByteLevel\"");
  expect_refused([](Json& file) { file["pre_tokenizer"]["pretokenizers"].erase(1); }, "three \"Split\" and one");
  for (int i = 0; i < 3; ++i) {
    const std::string where = "pretokenizers[" + std::to_string(i) + "]";
    expect_refused([&](Json& file) { stage(file, i)["pattern"]["Regex"] = "\\p{N}"; },
                   where + ".pattern.Regex is \"\\\\p{N}\", which is not built in");
    expect_refused(
        [&](Json& file) {
          stage(file, i)["pattern"] = {{"String", " "}};
        },
        where + ".pattern.Regex is \"\"");
    expect_refused([&](Json& file) { stage(file, i)["behavior"] = "Removed"; }, where + ".behavior");
    expect_refused([&](Json& file) { stage(file, i)["invert"] = true; }, where + ".invert");
    expect_refused([&](Json& file) { stage(file, i)["type"] = "Digits"; }, where + " is \"Digits\"");
    expect_refused([&](Json& file) { stage(file, i) = 3; }, where + " is 3");
  }
  expect_refused([&](Json& file) { stage(file, 3)["use_regex"] = true; }, "pretokenizers[3].use_regex must be false");
  expect_refused([&](Json& file) { stage(file, 3).erase("use_regex"); }, "pretokenizers[3].use_regex must be false");
  expect_refused([&](Json& file) { stage(file, 3)["add_prefix_space"] = true; }, "add_prefix_space must be false");
  expect_refused([&](Json& file) { stage(file, 3) = {{"type", "Metaspace"}}; }, "pretokenizers[3] is \"Metaspace\"");
  expect_refused([](Json& file) { file["post_processor"] = {{"type", "BertProcessing"}}; }, "post_processor is");
  expect_refused([](Json& file) { file["decoder"] = {{"type", "Metaspace"}}; }, "decoder is \"Metaspace\"");
  expect_refused([](Json& file) { file.erase("decoder"); }, "decoder is missing");
}

TEST(HostileFile, Model) {
  expect_refused([](Json& file) { file.erase("model"); }, "model is missing");
  expect_refused([](Json& file) { file["model"] = "BPE"; }, "model.type is \"BPE\", must be");
  expect_refused([](Json& file) { file["model"]["type"] = "Unigram"; }, "model.type is \"Unigram\"");
  expect_refused([](Json& file) { file["model"].erase("type"); }, "model.type is without a type");
  expect_refused([](Json& file) { file["model"]["dropout"] = 0.1; }, "model.dropout is set");
  for (const char* name : {"byte_fallback", "fuse_unk", "ignore_merges"}) {
    expect_refused([&](Json& file) { file["model"][name] = true; }, std::string("model.") + name + " is set");
  }
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    expect_refused([&](Json& file) { file["model"][name] = "##"; }, std::string("model.") + name + " is set");
  }
}

TEST(HostileFile, MessagesShowLittleOfTheFile) {
  const std::string loud(100'000, 'A');
  expect_refused([&](Json& file) { file["model"]["type"] = loud; }, "... (100000 bytes)");
  expect_refused([&](Json& file) { file["model"]["type"] = "\x1b[31m\n\"quoted\""; }, "\\u001b[31m\\n\\\"quoted\\\"");
  expect_refused([&](Json& file) { file["model"]["merges"][0] = loud; }, "... (100000 bytes)");
}

// The real file, cut short anywhere or with any one byte changed, is refused or still a sound tokenizer.
TEST(HostileFile, DamagedBytes) {
  const std::string whole = dump_json(small_file(kMerges, kAdded));
  int accepted = 0;
  for (size_t at = 0; at < whole.size(); at += 3) {
    EXPECT_FALSE(Tokenizer::parse(whole.substr(0, at), {}).ok());
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ (1 << at % 8));
    const auto parsed = Tokenizer::parse(changed, {});
    if (!parsed.ok()) continue;
    ++accepted;
    EXPECT_FALSE((*parsed)->encode("abcab<x> 123 中文\n", true).empty());
  }
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace dsv3
