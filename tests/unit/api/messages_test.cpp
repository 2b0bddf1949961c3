#include "messages.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace dsv3::api {
namespace {

Json normal(const char* text) {
  auto out = normalise_messages(Json::parse(text));
  EXPECT_TRUE(out.ok()) << text << ": " << out.status().message();
  return out.ok() ? *out : Json();
}

Status fault(const Json& messages) {
  auto out = normalise_messages(messages);
  EXPECT_FALSE(out.ok()) << messages;
  return out.status();
}

TEST(Messages, PartsAreJoinedByNewlines) {
  EXPECT_EQ(normal(R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}])")[0]["content"],
            "a\nb");
  EXPECT_EQ(normal(R"([{"role":"user","content":[{"type":"text","text":" a "}]}])")[0]["content"], " a ");
  EXPECT_EQ(normal(R"([{"role":"user","content":[]}])")[0]["content"], "");
}

TEST(Messages, RolesAreMapped) {
  const Json out = normal(R"([{"role":"Developer","content":"d"},{"role":"USER","content":"u","name":"bob"},
      {"role":"function","name":"f","content":"r"}])");
  EXPECT_EQ(out[0]["role"], "system");
  EXPECT_EQ(out[1]["role"], "user");
  EXPECT_EQ(out[1]["name"], "bob");
  EXPECT_EQ(out[2]["role"], "tool");
}

TEST(Messages, NullToolCallsVanishAndArgumentsBecomeText) {
  const Json plain = normal(R"([{"role":"assistant","content":"a","tool_calls":null}])");
  EXPECT_FALSE(plain[0].contains("tool_calls"));
  const Json empty = normal(R"([{"role":"assistant","content":"a","tool_calls":[]}])");
  EXPECT_FALSE(empty[0].contains("tool_calls"));
  const Json calls = normal(R"([{"role":"assistant","content":"","tool_calls":[
      {"id":"1","type":"function","function":{"name":"f","arguments":{"b":1,"a":[2]}}},
      {"id":"2","function":{"name":"g","arguments":"{ \"keep\" : 1 }"}}]}])");
  EXPECT_TRUE(calls[0]["content"].is_null());
  EXPECT_EQ(calls[0]["tool_calls"][0]["function"]["arguments"], R"({"b":1,"a":[2]})");
  EXPECT_EQ(calls[0]["tool_calls"][1]["function"]["arguments"], R"({ "keep" : 1 })");
  EXPECT_EQ(calls[0]["tool_calls"][1]["type"], "function");
}

TEST(Messages, DeprecatedFunctionCallBecomesAToolCall) {
  const Json out = normal(R"([{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}}])");
  EXPECT_EQ(out[0]["tool_calls"][0]["function"]["name"], "f");
  EXPECT_TRUE(out[0]["content"].is_null());
}

TEST(Messages, ToolResultsFollowTheOrderOfTheCalls) {
  const char* text = R"([{"role":"assistant","content":null,"tool_calls":[
      {"id":"a","function":{"name":"f"}},{"id":"b","function":{"name":"f"}},{"id":"c","function":{"name":"f"}}]},
      {"role":"tool","tool_call_id":"c","content":"3"},{"role":"tool","tool_call_id":"a","content":"1"},
      {"role":"tool","tool_call_id":"b","content":"2"},{"role":"user","content":"u"}])";
  const Json out = normal(text);
  for (int i = 1; i <= 3; ++i) EXPECT_EQ(out[static_cast<size_t>(i)]["content"], std::to_string(i));
  // One unknown id: nothing moves.
  Json unknown = Json::parse(text);
  unknown[1]["tool_call_id"] = "zzz";
  EXPECT_EQ((*normalise_messages(unknown))[1]["content"], "3");
}

TEST(Messages, ReasoningAndRefusalAreAccepted) {
  const Json out = normal(R"([{"role":"assistant","content":null,"reasoning":"r"},
                              {"role":"assistant","content":null,"refusal":"no"}])");
  EXPECT_EQ(out[0]["reasoning_content"], "r");
  EXPECT_EQ(out[0]["content"], "");
  EXPECT_EQ(out[1]["content"], "no");
}

TEST(Messages, FaultsNameThePath) {
  const std::tuple<const char*, const char*, const char*> cases[] = {
      {R"({})", "messages", "invalid_type"},
      {R"([])", "messages", "invalid_value"},
      {R"([1])", "messages[0]", "invalid_type"},
      {R"([{}])", "messages[0].role", "missing_required_parameter"},
      {R"([{"role":1}])", "messages[0].role", "invalid_type"},
      {R"([{"role":"king","content":"x"}])", "messages[0].role", "invalid_value"},
      {R"([{"role":"user"}])", "messages[0].content", "missing_required_parameter"},
      {R"([{"role":"user","content":null}])", "messages[0].content", "missing_required_parameter"},
      {R"([{"role":"user","content":7}])", "messages[0].content", "invalid_type"},
      {R"([{"role":"user","content":{}}])", "messages[0].content", "invalid_type"},
      {R"([{"role":"user","content":["a"]}])", "messages[0].content[0]", "invalid_type"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "messages[0].content[0].text", "missing_required_parameter"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"u"}}]}])", "messages[0].content[0].type",
       "unsupported_parameter"},
      {R"([{"role":"user","content":[{"type":"odd"}]}])", "messages[0].content[0].type", "invalid_value"},
      {R"([{"role":"user","content":"x"},{"role":"assistant"}])", "messages[1].content", "missing_required_parameter"},
      {R"([{"role":"assistant","tool_calls":3}])", "messages[0].tool_calls", "invalid_type"},
      {R"([{"role":"assistant","tool_calls":[3]}])", "messages[0].tool_calls[0]", "invalid_type"},
      {R"([{"role":"assistant","tool_calls":[{"id":"x"}]}])", "messages[0].tool_calls[0].function",
       "missing_required_parameter"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"arguments":"{}"}}]}])",
       "messages[0].tool_calls[0].function.name", "missing_required_parameter"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":[1]}}]}])",
       "messages[0].tool_calls[0].function.arguments", "invalid_type"},
      {R"([{"role":"assistant","tool_calls":[{"type":"custom","function":{"name":"f"}}]}])",
       "messages[0].tool_calls[0].type", "unsupported_parameter"},
      {R"([{"role":"tool","content":"x","tool_call_id":5}])", "messages[0].tool_call_id", "invalid_type"},
  };
  for (const auto& [text, param, reason] : cases) {
    const Status status = fault(Json::parse(text));
    EXPECT_EQ(status.param(), param) << text;
    EXPECT_EQ(status.reason(), reason) << text;
  }
}

TEST(Tools, NamesAndShapesAreChecked) {
  const std::tuple<const char*, const char*> cases[] = {
      {R"([5])", "tools[0]"},
      {R"([{}])", "tools[0].type"},
      {R"([{"type":"custom"}])", "tools[0].type"},
      {R"([{"type":"function"}])", "tools[0].function"},
      {R"([{"type":"function","function":{}}])", "tools[0].function.name"},
      {R"([{"type":"function","function":{"name":"a b"}}])", "tools[0].function.name"},
      {R"([{"type":"function","function":{"name":""}}])", "tools[0].function.name"},
      {R"([{"type":"function","function":{"name":"f","parameters":[]}}])", "tools[0].function.parameters"},
      {R"([{"type":"function","function":{"name":"f","description":[]}}])", "tools[0].function.description"},
  };
  for (const auto& [text, param] : cases) {
    const Json tools = Json::parse(text);
    const auto out = normalise_tools(&tools, nullptr);
    ASSERT_FALSE(out.ok()) << text;
    EXPECT_EQ(out.status().param(), param) << text;
  }
  const Json functions = Json::parse(R"([{"name":"f"}])");
  const auto mapped = normalise_tools(nullptr, &functions);
  ASSERT_TRUE(mapped.ok());
  EXPECT_EQ((*mapped)[0]["type"], "function");
}

}  // namespace
}  // namespace dsv3::api
