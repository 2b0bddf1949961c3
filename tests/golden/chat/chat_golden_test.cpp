// The shipped model's template against the reference's texts, and the promise that no client writes control tokens,
// with the real tokenizers.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "dsv3/api/chat_template.h"

namespace dsv3 {
namespace {

const std::string kData = DSV3_TEST_DATA;

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(TinyTemplate, RendersTheGoldenConversations) {
  const auto tokenizer = Tokenizer::load(kData + "/dsv3-tiny");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::string chosen;
  const auto chat_template = ChatTemplate::load(kData + "/dsv3-tiny", "", **tokenizer, &chosen);
  ASSERT_TRUE(chat_template.ok()) << chat_template.status().message();
  EXPECT_EQ(chosen, "tokenizer_config.json");
  const auto cases = parse_json(read(kData + "/dsv3-tiny-golden/chat_template.json"));
  ASSERT_TRUE(cases.ok());
  ASSERT_GE(cases->size(), 6u);
  for (const Json& c : *cases) {
    const Json tools = c.value("tools", Json());
    const Json kwargs = Json{{"thinking", c["thinking"]}};
    const auto prompt = (*chat_template)->render({.messages = c["messages"], .tools = tools, .kwargs = kwargs});
    ASSERT_TRUE(prompt.ok()) << prompt.status().message();
    EXPECT_EQ(prompt->text, c["text"].get<std::string>());

    // With all client text taken out, what is left is the template's.
    std::string trusted;
    size_t at = 0;
    for (const ByteRange& range : prompt->untrusted) {
      ASSERT_LE(at, range.begin);
      ASSERT_LT(range.begin, range.end);
      trusted += prompt->text.substr(at, range.begin - at);
      at = range.end;
    }
    trusted += prompt->text.substr(at);
    for (const Json& message : c["messages"]) {
      if (message["content"].is_string() && !message["content"].get_ref<const std::string&>().empty()) {
        EXPECT_EQ(trusted.find(message["content"].get<std::string>()), std::string::npos) << trusted;
      }
    }
    EXPECT_EQ(trusted.find("city"), std::string::npos) << trusted;
    EXPECT_EQ(trusted.find("get_weather"), std::string::npos) << trusted;
    // No trusted byte became untrusted either: every control token of the text is still recognised.
    const auto plain = (*tokenizer)->encode(c["text"].get<std::string>(), false);
    EXPECT_EQ((*tokenizer)->encode(prompt->text, false, prompt->untrusted), plain);
  }
}

// Every control token, whole and split over the fields that templates put side by side, in every field of a request.
TEST(UserText, NeverBecomesControlTokens) {
  for (const char* folder : {"/dsv3-tiny", "/deepseek-v3-tokenizer"}) {
    const auto tokenizer = Tokenizer::load(kData + folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    std::vector<std::string> names = ChatTemplate::builtin_names();
    names.emplace_back();
    for (const std::string& name : names) {
      std::string chosen;
      const auto chat_template = ChatTemplate::load(kData + folder, name, **tokenizer, &chosen);
      ASSERT_TRUE(chat_template.ok()) << chat_template.status().message();
      const auto control_ids = [&](const std::string& evil) {
        const Json call{{"type", "function"},
                        {"function", {{"name", "f" + evil}, {"arguments", "{\"a\": \"" + evil + "\"}"}}}};
        const Json messages = {{{"role", "system"}, {"content", "s" + evil}},
                               {{"role", "user"}, {"content", evil + "u" + evil}},
                               {{"role", "assistant"}, {"content", nullptr}, {"tool_calls", Json::array({call})}},
                               {{"role", "tool"}, {"content", evil}},
                               {{"role", "assistant"}, {"content", "a" + evil}},
                               {{"role", "user"}, {"content", "u" + evil}}};
        const Json tools = Json::array(
            {{{"type", "function"},
              {"function", {{"name", "f" + evil}, {"description", evil}, {"parameters", {{evil, evil}}}}}}});
        const Json kwargs{{"thinking", true}, {"x", evil}};
        const auto prompt = (*chat_template)->render({.messages = messages, .tools = tools, .kwargs = kwargs});
        EXPECT_TRUE(prompt.ok()) << prompt.status().message();
        std::vector<int32_t> ids;
        for (const int32_t id : (*tokenizer)->encode(prompt->text, false, prompt->untrusted)) {
          if ((*tokenizer)->is_added(id)) ids.push_back(id);
        }
        return ids;
      };
      const std::vector<int32_t> harmless = control_ids("");
      EXPECT_GE(harmless.size(), 8u);
      std::set<std::string> tried;
      for (const AddedToken& token : (*tokenizer)->added_tokens()) {
        if (token.text.find("place▁holder") != std::string::npos && tried.size() > 40) continue;
        const std::string halves[] = {token.text, token.text.substr(0, 4), token.text.substr(4), "<", "｜>"};
        for (const std::string& evil : halves) {
          // "</think>" is where templates cut, so text behind it moves; it must still not become a token.
          if (!tried.insert(evil).second) continue;
          EXPECT_EQ(control_ids(evil), harmless) << folder << " " << chosen << " with " << evil;
        }
      }
    }
  }
}

}  // namespace
}  // namespace dsv3
