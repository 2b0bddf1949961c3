// /v1/completions.
#include "fakes.h"

namespace dsv3::test {
namespace {

constexpr char kPath[] = "/v1/completions";

TEST(Completion, WholeAnswer) {
  Harness h;
  const auto exchange = h.post(kPath, {{"prompt", "ab"}});
  ASSERT_EQ(exchange->response.status, 200);
  const Json body = exchange->json();
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("cmpl-"));
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["choices"][0]["text"], "hello");
  EXPECT_TRUE(body["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["usage"]["prompt_tokens"], 3);
  const auto request = h.engine.request(0);
  EXPECT_EQ(request.prompt_ids, (std::vector<int32_t>{FakeTokenizer::kBos, 'a', 'b'}));
  EXPECT_EQ(request.max_new_tokens, 16);
}

TEST(Completion, PromptForms) {
  Harness h;
  h.post(kPath, {{"prompt", {1, 2}}});
  EXPECT_EQ(h.engine.request(0).prompt_ids, (std::vector<int32_t>{1, 2})) << "no BOS for ids";
  h.engine.forget();
  h.post(kPath, {{"prompt", "<think>"}, {"add_special_tokens", false}});
  EXPECT_EQ(h.engine.request(0).prompt_ids, (std::vector<int32_t>{FakeTokenizer::kThink})) << "raw prompts are raw";
  h.engine.forget();
  h.engine.script = [](const GenerationRequest& r, int32_t choice) {
    return std::vector<int32_t>{r.prompt_ids.back(), '0' + choice};
  };
  for (const Json& prompt : {Json::parse(R"(["x","y","z"])"), Json::parse("[[120],[121],[122]]")}) {
    const Json body = h.post(kPath, {{"prompt", prompt}, {"n", 2}})->json();
    ASSERT_EQ(body["choices"].size(), 6u);
    const char* want[] = {"x0", "x1", "y0", "y1", "z0", "z1"};
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(body["choices"][i]["index"], i);
      EXPECT_EQ(body["choices"][i]["text"], want[i]);
    }
    EXPECT_EQ(body["usage"]["completion_tokens"], 18);
    EXPECT_EQ(body["usage"]["prompt_tokens"], prompt[0].is_string() ? 6 : 3);
  }
  for (const Json& bad : {Json(5), Json({{"a", 1}}), Json::parse("[null]"), Json::parse("[[\"x\"]]"),
                          Json::parse("[1,\"x\"]"), Json::parse("[\"x\",1]")}) {
    const auto exchange = h.post(kPath, {{"prompt", bad}});
    EXPECT_EQ(exchange->response.status, 400) << bad;
    EXPECT_TRUE(openai_error(*exchange)["param"].get<std::string>().starts_with("prompt")) << bad;
  }
  EXPECT_EQ(h.post(kPath, {{"prompt", std::vector<std::string>(1025, "x")}})->response.status, 400);
}

TEST(Completion, EveryChunkHasText) {
  Harness h;
  const auto exchange = h.post(kPath, {{"prompt", {"x", "y"}}, {"stream", true}});
  std::map<int, std::string> texts;
  std::map<int, int> finishes;
  for (const auto& event : exchange->events()) {
    EXPECT_EQ(event["object"], "text_completion");
    ASSERT_EQ(event["choices"].size(), 1u);
    ASSERT_TRUE(event["choices"][0]["text"].is_string());
    EXPECT_TRUE(event["choices"][0].contains("logprobs"));
    const int index = event["choices"][0]["index"];
    texts[index] += event["choices"][0]["text"].get<std::string>();
    finishes[index] += !event["choices"][0]["finish_reason"].is_null();
  }
  EXPECT_EQ(texts, (std::map<int, std::string>{{0, "hello"}, {1, "hello"}}));
  EXPECT_EQ(finishes, (std::map<int, int>{{0, 1}, {1, 1}}));
}

/// The byte-exact needs of log-likelihood evaluation: prompt tokens included, first entry null, one generated entry
/// last, the same float in both places.
TEST(Completion, EchoWithLogprobs) {
  Harness h;
  const Json body = h.post(kPath, {{"prompt", Json::parse("[[104,105,106]]")}, {"temperature", 0}, {"max_tokens", 1},
                                   {"logprobs", 1}, {"seed", 1234}, {"echo", true}})->json();
  EXPECT_EQ(h.engine.request(0).prompt_logprobs_from, 0);
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["text"], "hijh");
  const Json& lp = choice["logprobs"];
  EXPECT_EQ(lp["tokens"], Json::parse(R"(["h","i","j","h"])"));
  ASSERT_EQ(lp["token_logprobs"].size(), 4u);
  EXPECT_TRUE(lp["token_logprobs"][0].is_null());
  EXPECT_TRUE(lp["top_logprobs"][0].is_null());
  EXPECT_EQ(lp["text_offset"], Json::parse("[0,1,2,3]"));
  for (size_t i = 1; i < 4; ++i) {
    double best = -1e9;
    for (const auto& [token, value] : lp["top_logprobs"][i].items()) best = std::max(best, value.get<double>());
    EXPECT_EQ(lp["token_logprobs"][i].get<double>(), best);
  }
}

TEST(Completion, EchoOfStringsIsTheString) {
  Harness h;
  Json request = {{"prompt", "pré"}, {"echo", true}, {"logprobs", 0}, {"max_tokens", 2}};
  const Json whole = h.post(kPath, request)->json()["choices"][0];
  EXPECT_EQ(whole["text"], "préhe");
  EXPECT_EQ(whole["logprobs"]["text_offset"], Json::parse("[0,0,1,2,3,3,4]")) << "BOS has no text; characters count";
  EXPECT_TRUE(whole["logprobs"]["top_logprobs"].is_null());
  request["stream"] = true;
  std::string text;
  Json offsets = Json::array(), tokens = Json::array();
  for (const auto& event : h.post(kPath, request)->events()) {
    text += event["choices"][0]["text"].get<std::string>();
    if (event["choices"][0]["logprobs"].is_null()) continue;
    for (const auto& v : event["choices"][0]["logprobs"]["text_offset"]) offsets.push_back(v);
    for (const auto& v : event["choices"][0]["logprobs"]["tokens"]) tokens.push_back(v);
  }
  EXPECT_EQ(text, whole["text"]);
  EXPECT_EQ(offsets, whole["logprobs"]["text_offset"]);
  EXPECT_EQ(tokens, whole["logprobs"]["tokens"]);
}

TEST(Completion, MaxTokensZeroWithEcho) {
  Harness h;
  const Json body = h.post(kPath, {{"prompt", "ab"}, {"echo", true}, {"max_tokens", 0}, {"logprobs", 1}})->json();
  EXPECT_EQ(body["choices"][0]["text"], "ab");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["choices"][0]["logprobs"]["tokens"].size(), 3u);
  EXPECT_EQ(body["usage"]["completion_tokens"], 0);
  const auto stream = h.post(kPath, {{"prompt", "ab"}, {"echo", true}, {"max_tokens", 0}, {"stream", true}});
  EXPECT_EQ(stream->events()[0]["choices"][0]["text"], "ab");
}

TEST(Completion, LogprobsMapHoldsTheChosenToken) {
  Harness h;
  h.engine.manual = true;
  const auto exchange = h.start("POST", kPath, Json({{"prompt", "x"}, {"logprobs", 2}}).dump());
  ASSERT_TRUE(h.engine.wait_submitted(1));
  TokenUpdate update;
  SampledToken token = FakeEngine::sampled('c', 0);
  token.top = {{'a', -0.5f}, {'b', -1.5f}};
  update.tokens = {token};
  update.finish = FinishReason::kLength;
  h.engine.emit(100, update);
  ASSERT_TRUE(exchange->wait());
  const Json top = exchange->json()["choices"][0]["logprobs"]["top_logprobs"][0];
  EXPECT_EQ(top.size(), 3u);
  EXPECT_EQ(top["c"].get<double>(), static_cast<double>(token.logprob));
}

/// Payloads of the load generators, as they send them (api.md 20.3, 21, 22, 23).
TEST(Completion, LoadGeneratorPayloads) {
  Harness h;
  for (const char* text : {
           R"({"model":"tiny-v3","prompt":"x","temperature":0.0,"best_of":1,"max_tokens":8,"stream":true,"ignore_eos":true})",
           R"({"model":"tiny-v3","prompt":"x","repetition_penalty":1.0,"max_tokens":8,"logprobs":null,"stream":true,
               "stream_options":{"include_usage":true},"ignore_eos":true})",
           R"({"model":"/models/tiny-v3","prompt":"x","n":1,"ignore_eos":true,"max_tokens":8,"stream":true})"}) {
    const auto exchange = h.start("POST", kPath, text);
    ASSERT_TRUE(exchange->wait());
    ASSERT_TRUE(exchange->streaming) << exchange->response.body;
    int with_text = 0;
    for (const auto& event : exchange->events()) {
      if (!event["choices"].empty() && event["choices"][0]["text"] != "") ++with_text;
    }
    EXPECT_EQ(with_text, 7) << "five letters, a skipped EOS, two dots";
  }
}

}  // namespace
}  // namespace dsv3::test
