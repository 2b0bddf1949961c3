// Ids that an independent implementation gave for the published DeepSeek-V3 file.
#include <gtest/gtest.h>

#include "tokenizer_files.h"

namespace dsv3 {
namespace {

using test::Ids;
using test::real_tokenizer;
using test::tiny_tokenizer;

struct Vector {
  const char* text;
  Ids ids;
};

const Vector kVectors[] = {
    {"", {}},
    {"Hello!", {19923, 3}},
    {"Hello, world", {19923, 14, 2058}},
    {"DeepSeek-V3 has 671B parameters.", {53091, 4374, 1465, 13582, 21, 769, 223, 26612, 36, 8252, 16}},
    {"1234567", {6895, 18009, 25}},
    {" 12 34", {223, 736, 223, 2012}},
    {"你好，世界。", {30594, 303, 3427, 320}},
    {"こんにちはカタカナ", {4549, 7245, 2298, 12457, 2841, 15961, 11767, 15961, 27071}},
    {"한국어", {5634, 17564, 9227}},
    {"a\n\n\nb  c\t d   ", {67, 6328, 68, 223, 274, 200, 283, 361}},
    {"don't I'm we'll", {20385, 1664, 342, 4571, 579, 5922}},
    {"x = y[0] ** 2;\r\n", {90, 438, 383, 61, 18, 63, 2619, 223, 20, 29, 204, 201}},
    {"naïve café – 🙂", {2720, 91223, 57664, 1256, 68139}},
    {"The quick brown fox", {671, 4787, 13769, 46012}},
    {" leading", {6646}},
    {" \n", {539}},
    {"for(int i=0;i<10;++i){}", {2251, 5047, 1008, 31, 18, 11844, 30, 553, 102529, 75, 11, 25902}},
    {"<think>\n", {30, 37947, 1018}},
    {"e\u0301", {71, 17793}},
};

TEST(TokenizerVectors, TheRealFileGivesTheKnownIds) {
  for (const Vector& vector : kVectors) {
    EXPECT_EQ(real_tokenizer().encode(vector.text, false), vector.ids) << vector.text;
    EXPECT_EQ(real_tokenizer().decode(vector.ids, false), vector.text);
  }
}

TEST(TokenizerVectors, AWholeConversation) {
  const std::string bar = "\uFF5C";
  const std::string low = "\u2581";
  const std::string user = "<" + bar + "User" + bar + ">";
  const std::string assistant = "<" + bar + "Assistant" + bar + ">";
  const std::string end = "<" + bar + "end" + low + "of" + low + "sentence" + bar + ">";
  const std::string text =
      "You are a helpful assistant" + user + "Hello" + assistant + "Hi there" + end + user + "How are you?" + assistant;
  const Ids ids = {0,     3476, 477, 260,    11502, 22896, 128803, 19923, 128804,
                   23166, 1031, 1,   128803, 4117,  477,   440,    33,    128804};
  EXPECT_EQ(real_tokenizer().encode(text, true), ids);
  EXPECT_EQ(real_tokenizer().decode(ids, false),
            "<" + bar + "begin" + low + "of" + low + "sentence" + bar + ">" + text);
  EXPECT_EQ(real_tokenizer().decode(ids, true), "You are a helpful assistant" + user + "Hello" + assistant +
                                                    "Hi there" + user + "How are you?" + assistant);
}

TEST(TokenizerVectors, SingleBytes) {
  const auto id = [](std::string_view text) { return real_tokenizer().encode(text, false); };
  EXPECT_EQ(id("\n"), Ids{201});
  EXPECT_EQ(id(" "), Ids{223});
  EXPECT_EQ(id("a"), Ids{67});
  EXPECT_EQ(id(std::string_view("\0", 1)), Ids{191});
  EXPECT_EQ(real_tokenizer().token_bytes(190), "\xFF");
}

TEST(TokenizerVectors, RealFileAtAGlance) {
  const Tokenizer& tokenizer = real_tokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 128815);
  EXPECT_EQ(tokenizer.added_tokens().size(), 818u);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_TRUE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.find_added("<\uFF5CUser\uFF5C>"), 128803);
  EXPECT_EQ(tokenizer.find_added("<think>"), -1);
  EXPECT_EQ(tokenizer.find_added(""), -1);
  EXPECT_TRUE(tokenizer.is_added(128803));
  EXPECT_FALSE(tokenizer.is_special(128803));
  EXPECT_TRUE(tokenizer.is_special(128805));
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_added(3));
  EXPECT_TRUE(tokenizer.is_known(128814));
  for (const int32_t id : {128815, 129279, -1, INT32_MAX, INT32_MIN}) {
    EXPECT_FALSE(tokenizer.is_known(id));
    EXPECT_FALSE(tokenizer.is_added(id));
    EXPECT_FALSE(tokenizer.is_special(id));
    EXPECT_EQ(tokenizer.token_bytes(id), "");
  }
  EXPECT_EQ(tokenizer.decode(Ids{129000, 19923, -5, 3}, false), "Hello!");
}

TEST(TokenizerVectors, TinyFileAtAGlance) {
  const Tokenizer& tokenizer = tiny_tokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 4096);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_TRUE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.find_added("<think>"), 4094);
  EXPECT_FALSE(tokenizer.is_special(4094));
  EXPECT_EQ(tokenizer.encode("<think></think>", true), (Ids{0, 4094, 4095}));
}

// Prompts and answers that were recorded with the model's own tokenizer.
TEST(TokenizerVectors, TinyGoldenPromptsAndAnswers) {
  const auto golden = parse_json(test::read_text(DSV3_TEST_DATA "/dsv3-tiny-golden/golden.json"));
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  ASSERT_GT(golden->size(), 10u);
  const std::string bos(tiny_tokenizer().token_bytes(tiny_tokenizer().bos_id()));
  for (const Json& item : *golden) {
    const auto text = item["text"].get<std::string>();
    EXPECT_EQ(tiny_tokenizer().encode(text, !text.starts_with(bos)), item["token_ids"].get<Ids>()) << text;
    EXPECT_EQ(tiny_tokenizer().decode(item["greedy_ids"].get<Ids>(), false), item["greedy_text"].get<std::string>());
  }
}

TEST(TokenizerVectors, EveryTokenOfBothFilesDecodesToItsBytes) {
  for (const Tokenizer* tokenizer : {&real_tokenizer(), &tiny_tokenizer()}) {
    for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) ASSERT_FALSE(tokenizer->token_bytes(id).empty()) << id;
    for (const AddedToken& token : tokenizer->added_tokens()) {
      ASSERT_EQ(tokenizer->token_bytes(token.id), token.text);
      ASSERT_EQ(tokenizer->find_added(token.text), token.id);
      ASSERT_EQ(tokenizer->encode(token.text, false), Ids{token.id});
    }
  }
}

}  // namespace
}  // namespace dsv3
