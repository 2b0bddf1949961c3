// 20,000 random bodies (reliability.md V2): only 2xx and 4xx, each 4xx names a field where one is at fault, nothing is
// left running, and no answer shows internals (V5).
#include <random>

#include "fakes.h"

namespace dsv3::test {
namespace {

class Bodies {
 public:
  explicit Bodies(uint64_t seed) : random_(seed) {}

  Json chat() {
    Json body = mutate({{"messages", Json::array({{{"role", "user"}, {"content", "hi"}}})}});
    return add_fields(std::move(body), kCommon, std::size(kCommon));
  }
  Json completion() {
    return add_fields({{"prompt", pick({"x", Json::array({1, 2}), Json::array({"a", "b"})})}}, kCommon, std::size(kCommon));
  }
  Json sglang() {
    Json body = {{"text", "x"}};
    body["sampling_params"] = add_fields(Json::object(), kSglang, std::size(kSglang));
    return add_fields(std::move(body), kCommon, std::size(kCommon));
  }
  Json lightllm() {
    Json body = {{"inputs", "x"}};
    body["parameters"] = add_fields(Json::object(), kSglang, std::size(kSglang));
    return body;
  }
  Json lmdeploy() { return add_fields({{"prompt", "x"}}, kCommon, std::size(kCommon)); }
  size_t below(size_t n) { return random_() % n; }

  static bool is_field(std::string_view name) {
    const auto listed = [&](const char* known) { return name == known; };
    return std::any_of(std::begin(kCommon), std::end(kCommon), listed) || name == "inputs" || name == "parameters";
  }

 private:
  static constexpr const char* kCommon[] = {
      "messages", "model", "n", "seed", "stop", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
      "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "stream", "stream_options",
      "max_tokens", "max_completion_tokens", "min_tokens", "stop_token_ids", "ignore_eos", "tools", "tool_choice",
      "functions", "function_call", "parallel_tool_calls", "response_format", "reasoning_effort", "thinking", "reasoning",
      "chat_template_kwargs", "continue_final_message", "add_generation_prompt", "rid", "request_id", "priority",
      "cache_salt", "input_ids", "prompt_token_ids", "echo", "best_of", "suffix", "prompt", "modalities", "audio",
      "separate_reasoning", "stream_reasoning", "return_token_ids", "lora_path", "bootstrap_port", "session_id",
      "regex", "text", "return_logprob", "logprob_start_len", "top_logprobs_num", "sampling_params", "zzz"};
  static constexpr const char* kSglang[] = {
      "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
      "repetition_penalty", "min_new_tokens", "n", "stop", "stop_token_ids", "ignore_eos", "no_stop_trim", "logit_bias",
      "sampling_seed", "do_sample", "stop_sequences", "best_of", "return_details", "regex", "json_schema",
      "exponential_decay_length_penalty", "guided_json"};

  Json pick(std::initializer_list<Json> values) { return *(values.begin() + static_cast<ptrdiff_t>(below(values.size()))); }

  Json value(int depth = 0) {
    switch (below(depth < 3 ? 12 : 9)) {
      case 0: return nullptr;
      case 1: return below(2) == 0;
      case 2: return static_cast<int64_t>(below(5)) - 2;
      case 3: return pick({127, 128, 129, 2047, 2048, 300, 299, -1, 2147483647, 2147483648ll, 1e6});
      case 4: return pick({INT64_MIN, INT64_MAX, UINT64_MAX, 1e300, -1e300, 5e-324, 1e18, -0.0});
      case 5: return static_cast<double>(below(4000)) / 1000.0 - 1.0;
      case 6: return pick({"", "x", "auto", "none", "required", "text", "enabled", "high", "system", "default", "\xC3\xA9",
                           std::string(300, 'y'), std::string("a\0b", 3), "<think>", "raise"});
      case 7: return pick({Json::array(), Json::array({1, 2, 3}), Json::array({"a", ""}), Json::array({-5}), Json::array({"x"})});
      case 8: return pick({Json::object(), Json({{"type", "text"}}), Json({{"type", "json_object"}}), Json({{"5", 1}}),
                           Json({{"include_usage", true}}), Json({{"thinking", true}}), Json({{"enabled", 3}})});
      case 9: {
        Json list = Json::array();
        for (size_t i = 0, n = below(4); i < n; ++i) list.push_back(value(depth + 1));
        return list;
      }
      case 10: {
        Json object = Json::object();
        for (const char* key : {"role", "content", "type", "name", "function", "tool_calls", "text", "arguments"}) {
          if (below(3) == 0) object[key] = value(depth + 1);
        }
        return object;
      }
      default:
        return pick({Json::array({{{"type", "function"}, {"function", {{"name", "f"}}}}}),
                     Json({{"type", "function"}, {"function", {{"name", "f"}}}}),
                     Json::array({{{"role", "user"}, {"content", "q"}}, {{"role", "assistant"}, {"content", "a"}}})});
    }
  }

  Json add_fields(Json body, const char* const* names, size_t count) {
    for (size_t i = 0, n = below(5); i < n; ++i) body[names[below(count)]] = value();
    return body;
  }

  Json mutate(Json body) {
    if (below(3) != 0) return body;
    Json& message = body["messages"][0];
    message[pick({"role", "content", "name", "tool_calls", "tool_call_id", "prefix"}).get<std::string>()] = value();
    if (below(2) == 0) body["messages"].push_back(value());
    return body;
  }

  std::mt19937_64 random_;
};

TEST(RandomBodies, OnlyAnswersOf200And400) {
  Harness h;
  h.engine.output = {'h', 0xC3, 0xA9, 'E', 'N', FakeTokenizer::kThink, 'x'};
  h.engine.tokens_per_update = 2;
  Bodies bodies(20'250'101);
  int good = 0, bad = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string path;
    Json body;
    switch (bodies.below(5)) {
      case 0: path = "/v1/completions", body = bodies.completion(); break;
      case 1: path = "/generate", body = bodies.sglang(); break;
      case 2: path = bodies.below(2) ? "/generate_stream" : "/generate", body = bodies.lightllm(); break;
      case 3: path = "/generate", body = bodies.lmdeploy(); break;
      default: path = "/v1/chat/completions", body = bodies.chat(); break;
    }
    const auto exchange = h.post(path, body);
    const int status = exchange->response.status;
    ASSERT_TRUE(status == 200 || (status >= 400 && status < 500)) << status << " " << path << " " << body;
    status == 200 ? ++good : ++bad;
    if (status != 200) {
      const Json answer = exchange->json();
      std::string message;
      if (answer.contains("error")) {
        message = answer["error"]["message"];
        if (answer["error"].contains("param")) {
          ASSERT_TRUE(answer["error"]["param"].is_string()) << path << " " << body << answer;
        }
      } else {
        message = answer["message"];
      }
      // Every message begins with the field, or names the fields that would have been right.
      const std::string field = message.substr(0, message.find_first_of(" .[:"));
      ASSERT_TRUE(Bodies::is_field(field) || message.starts_with("one of these fields is needed: text"))
          << message << " " << path << " " << body;
      for (const char* internal : {".cpp", ".h:", "0x", "/models", "std::", "nlohmann", "json.exception"}) {
        ASSERT_EQ(message.find(internal), std::string::npos) << message;
      }
    }
    ASSERT_EQ(h.engine.num_running(), 0u);
    h.engine.forget();
  }
  EXPECT_GT(good, 4000) << "too few reach the engine to mean anything";
  EXPECT_GT(bad, 4000);
}

}  // namespace
}  // namespace dsv3::test
