// Tool calls through the whole service: the stream and the whole answer tell the same.
#include "fakes.h"

namespace dsv3::test {
namespace {

constexpr char kChat[] = "/v1/chat/completions";
constexpr char kBegin[] = "<｜tool▁calls▁begin｜>", kEnd[] = "<｜tool▁calls▁end｜>";

std::string call(const std::string& name, const std::string& arguments) {
  std::string out = "<｜tool▁call▁begin｜>";
  return out.append(name).append("<｜tool▁sep｜>").append(arguments).append("<｜tool▁call▁end｜>");
}

Json with_tools() {
  Json body = user_chat();
  body["tools"] = Json::parse(R"([{"type":"function","function":{"name":"f","parameters":{}}},
                                  {"type":"function","function":{"name":"g","parameters":{}}}])");
  return body;
}

struct Outcome {
  std::string content;
  std::vector<std::pair<std::string, std::string>> calls;
  std::set<std::string> ids;
  std::string finish;
};

Outcome whole(const Json& choice) {
  Outcome out;
  const Json& message = choice["message"];
  if (message["content"].is_string()) out.content = message["content"];
  for (const auto& entry : message.value("tool_calls", Json::array())) {
    EXPECT_EQ(entry["type"], "function");
    EXPECT_TRUE(entry["id"].get<std::string>().starts_with("call_"));
    EXPECT_GE(entry["id"].get<std::string>().size(), 5u + 24u);
    out.calls.emplace_back(entry["function"]["name"], entry["function"]["arguments"]);
    out.ids.insert(entry["id"]);
  }
  out.finish = choice["finish_reason"];
  return out;
}

Outcome streamed(const std::vector<Json>& events) {
  Outcome out;
  for (const auto& event : events) {
    const Json& choice = event["choices"][0];
    const Json& delta = choice["delta"];
    out.content += delta.value("content", "");
    for (const auto& entry : delta.value("tool_calls", Json::array())) {
      const size_t index = entry["index"];
      if (entry.contains("id")) {
        EXPECT_EQ(index, out.calls.size());
        EXPECT_EQ(entry["function"]["arguments"], "");
        out.calls.emplace_back(entry["function"]["name"], "");
        out.ids.insert(entry["id"]);
      } else {
        EXPECT_FALSE(entry["function"].contains("name"));
        out.calls.at(index).second += entry["function"]["arguments"].get<std::string>();
      }
    }
    if (!choice["finish_reason"].is_null()) out.finish = choice["finish_reason"];
  }
  return out;
}

TEST(ToolCalls, StreamAndWholeAgree) {
  using Calls = std::vector<std::pair<std::string, std::string>>;
  const std::tuple<std::string, std::string, Calls, std::string> cases[] = {
      {kBegin + call("f", R"({"k": 1})") + kEnd, "", {{"f", R"({"k": 1})"}}, "tool_calls"},
      {"let me see" + std::string(kBegin) + call("f", "{}") + call("g", R"({"é":"🙂"})") + kEnd, "let me see",
       {{"f", "{}"}, {"g", R"({"é":"🙂"})"}}, "tool_calls"},
      {"no call at all", "no call at all", {}, "stop"}};
  for (const auto& [text, content, calls, finish] : cases) {
    for (const size_t grouped : {1u, 3u, 1000u}) {
      Harness h;
      h.engine.output = bytes_of(text);
      h.engine.tokens_per_update = grouped;
      Json body = with_tools();
      const Json choice = h.post(kChat, body)->json()["choices"][0];
      const Outcome one = whole(choice);
      EXPECT_EQ(one.content, content);
      EXPECT_EQ(choice["message"]["content"].is_null(), content.empty());
      EXPECT_EQ(one.calls, calls);
      EXPECT_EQ(one.finish, finish);
      EXPECT_EQ(one.ids.size(), calls.size());
      body["stream"] = true;
      const Outcome other = streamed(h.post(kChat, body)->events());
      EXPECT_EQ(other.content, one.content);
      EXPECT_EQ(other.calls, one.calls);
      EXPECT_EQ(other.finish, one.finish);
      EXPECT_EQ(other.ids.size(), calls.size());
    }
  }
}

TEST(ToolCalls, MalformedCallsAreContent) {
  Harness h;
  h.engine.output = bytes_of(kBegin + std::string("nonsense"));
  Json body = with_tools();
  const Json choice = h.post(kChat, body)->json()["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_FALSE(choice["message"].contains("tool_calls"));
  EXPECT_NE(choice["message"]["content"].get<std::string>().find("nonsense"), std::string::npos);
  body["stream"] = true;
  EXPECT_EQ(streamed(h.post(kChat, body)->events()).content, choice["message"]["content"].get<std::string>());
}

TEST(ToolCalls, OneCallEndsTheChoiceWithoutParallelCalls) {
  for (const bool legacy : {false, true}) {
    Harness h;
    h.engine.output = bytes_of(kBegin + call("f", "{}") + call("g", "{}") + kEnd);
    Json body = user_chat();
    if (legacy) {
      body["functions"] = Json::parse(R"([{"name":"f"},{"name":"g"}])");
    } else {
      body = with_tools();
      body["parallel_tool_calls"] = false;
    }
    const Json choice = h.post(kChat, body)->json()["choices"][0];
    ASSERT_TRUE(h.engine.wait_cancelled(1));
    EXPECT_EQ(choice["finish_reason"], legacy ? "function_call" : "tool_calls");
    if (legacy) {
      EXPECT_EQ(choice["message"]["function_call"], Json::parse(R"({"name":"f","arguments":"{}"})"));
    } else {
      EXPECT_EQ(choice["message"]["tool_calls"].size(), 1u);
    }
    body["stream"] = true;
    std::string name, arguments;
    for (const auto& event : h.post(kChat, body)->events()) {
      const Json delta = event["choices"][0]["delta"];
      if (legacy && delta.contains("function_call")) {
        name += delta["function_call"].value("name", "");
        arguments += delta["function_call"]["arguments"].get<std::string>();
      }
    }
    if (legacy) {
      EXPECT_EQ(name + arguments, "f{}");
    }
  }
}

TEST(ToolCalls, AreTextWhereNobodyAskedForTools) {
  for (const char* choice : {"absent", "none"}) {
    Harness h;
    h.engine.output = bytes_of(kBegin + call("f", "{}") + kEnd);
    Json body = std::string_view(choice) == "none" ? with_tools() : user_chat();
    if (std::string_view(choice) == "none") body["tool_choice"] = "none";
    const Json out = h.post(kChat, body)->json()["choices"][0];
    EXPECT_FALSE(out["message"].contains("tool_calls"));
    EXPECT_EQ(out["finish_reason"], "stop");
  }
}

}  // namespace
}  // namespace dsv3::test
