// The native forms: SGLang, LightLLM, LMDeploy.
#include "fakes.h"

namespace dsv3::test {
namespace {

TEST(Sglang, WholeAnswer) {
  Harness h;
  h.engine.cached_tokens = 1;
  const Json out = h.post("/generate", {{"text", "ab"}, {"rid", "mine"}, {"sampling_params", {{"temperature", 0}}}})->json();
  EXPECT_EQ(out["text"], "hello");
  EXPECT_EQ(out["output_ids"].size(), 6u);
  const Json& meta = out["meta_info"];
  EXPECT_EQ(meta["id"], "mine");
  EXPECT_EQ(meta["finish_reason"], Json::parse(R"({"type":"stop","matched":257})"));
  EXPECT_EQ(meta["prompt_tokens"], 3);
  EXPECT_EQ(meta["completion_tokens"], 6);
  EXPECT_EQ(meta["cached_tokens"], 1);
  EXPECT_TRUE(meta["e2e_latency"].is_number());
  const auto request = h.engine.request(0);
  EXPECT_EQ(request.prompt_ids.front(), FakeTokenizer::kBos);
  EXPECT_EQ(request.max_new_tokens, 128);
}

TEST(Sglang, StreamIsCumulative) {
  Harness h;
  const auto events = h.post("/generate", {{"text", "x"}, {"sampling_params", {{"max_new_tokens", 3}}}, {"stream", true},
                                           {"lora_path", nullptr}, {"return_logprob", false}, {"logprob_start_len", -1},
                                           {"return_routed_experts", false}})->events();
  ASSERT_EQ(events.size(), 3u);
  const char* want[] = {"h", "he", "hel"};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(events[i]["text"], want[i]);
    EXPECT_EQ(events[i]["meta_info"]["completion_tokens"], i + 1);
    EXPECT_EQ(events[i]["meta_info"]["finish_reason"].is_null(), i < 2);
    EXPECT_FALSE(events[i].contains("index"));
  }
  EXPECT_EQ(events[2]["meta_info"]["finish_reason"], Json::parse(R"({"type":"length","length":3})"));
}

TEST(Sglang, BatchesAndChoices) {
  Harness h;
  h.engine.script = [](const GenerationRequest& r, int32_t choice) {
    return std::vector<int32_t>{r.prompt_ids.back(), '0' + choice};
  };
  const Json batch = h.post("/generate", {{"text", {"x", "y"}}, {"rid", {"r0", "r1"}},
                                          {"sampling_params", Json::parse(R"([{"max_new_tokens":1},{"max_new_tokens":2}])")}})->json();
  ASSERT_EQ(batch.size(), 2u);
  EXPECT_EQ(batch[0]["text"], "x");
  EXPECT_EQ(batch[1]["text"], "y0");
  EXPECT_EQ(batch[1]["meta_info"]["id"], "r1");
  const Json n = h.post("/generate", {{"text", "x"}, {"sampling_params", {{"n", 2}}}})->json();
  ASSERT_EQ(n.size(), 2u);
  EXPECT_EQ(n[1]["text"], "x1");
  const Json one = h.post("/generate", {{"input_ids", Json::parse("[[65]]")}})->json();
  EXPECT_TRUE(one.is_array()) << "a batch of one is a list";
  EXPECT_TRUE(h.post("/generate", {{"input_ids", {65}}, {"sampling_params", Json::object()}})->json().is_object());
  std::map<int, std::string> last;
  for (const auto& event : h.post("/generate", {{"text", {"x", "y"}}, {"stream", true}})->events()) {
    last[event["index"]] = event["text"];
  }
  EXPECT_EQ(last, (std::map<int, std::string>{{0, "x0"}, {1, "y0"}}));
}

TEST(Sglang, MaxNewTokensZeroFillsTheCache) {
  Harness h;
  const Json out = h.post("/generate", {{"text", "x"}, {"sampling_params", {{"max_new_tokens", 0}}}})->json();
  EXPECT_EQ(out["text"], "");
  EXPECT_EQ(out["meta_info"]["completion_tokens"], 0);
  EXPECT_EQ(out["meta_info"]["finish_reason"]["type"], "length");
}

TEST(Sglang, StopIsCutAndNamed) {
  Harness h;
  h.engine.output = bytes_of("42 apples\nQuestion: 7");
  Json params = Json::parse(R"({"skip_special_tokens":true,"spaces_between_special_tokens":true,"max_new_tokens":512,
      "stop":["Question","Assistant:"],"stop_token_ids":[],"temperature":0,"top_p":1,"top_k":-1,"min_p":0,
      "frequency_penalty":0,"presence_penalty":0,"ignore_eos":false,"regex":null,"json_schema":null})");
  const Json out = h.post("/generate", {{"text", "x"}, {"sampling_params", params}})->json();
  EXPECT_EQ(out["text"], "42 apples\n");
  EXPECT_EQ(out["meta_info"]["finish_reason"], Json::parse(R"({"type":"stop","matched":"Question"})"));
}

TEST(Sglang, Logprobs) {
  Harness h;
  const Json out = h.post("/generate", {{"input_ids", {65, 66, 67}}, {"return_logprob", true}, {"logprob_start_len", 0},
                                        {"top_logprobs_num", 1}, {"return_text_in_logprobs", true},
                                        {"sampling_params", {{"max_new_tokens", 1}}}})->json();
  const Json& meta = out["meta_info"];
  ASSERT_EQ(meta["input_token_logprobs"].size(), 3u);
  EXPECT_EQ(meta["input_token_logprobs"][0], Json::parse(R"([null,65,"A"])"));
  EXPECT_EQ(meta["input_token_logprobs"][1][1], 66);
  EXPECT_EQ(meta["input_token_logprobs"][1][2], "B");
  ASSERT_EQ(meta["input_top_logprobs"].size(), 3u);
  ASSERT_EQ(meta["output_token_logprobs"].size(), 1u);
  EXPECT_EQ(meta["output_token_logprobs"][0][1], 'h');
  EXPECT_EQ(meta["output_top_logprobs"][0][0], meta["output_token_logprobs"][0]);
  const Json outputs = h.post("/generate", {{"text", "x"}, {"return_logprob", true}})->json();
  EXPECT_TRUE(outputs["meta_info"]["input_token_logprobs"].empty());
  EXPECT_FALSE(outputs["meta_info"].contains("output_top_logprobs"));
  EXPECT_TRUE(outputs["meta_info"]["output_token_logprobs"][0][2].is_null());
}

TEST(Sglang, FaultsNameTheField) {
  Harness h;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"text":"x","input_ids":[1],"sampling_params":{}})", "input_ids"},
      {R"({"sampling_params":{}})", "text"},
      {R"({"text":5})", "text"},
      {R"({"text":["x",5]})", "text[1]"},
      {R"({"text":[[1]]})", "text"},
      {R"({"text":""})", ""},
      {R"({"text":"x","input_embeds":[[1.0]]})", "input_embeds"},
      {R"({"input_ids":[-1],"sampling_params":{}})", "input_ids"},
      {R"({"input_ids":[300],"sampling_params":{}})", "input_ids"},
      {R"({"input_ids":[],"sampling_params":{}})", "input_ids"},
      {R"({"text":"x","sampling_params":5})", "sampling_params"},
      {R"({"text":["x"],"sampling_params":[{},{}]})", "sampling_params"},
      {R"({"text":"x","sampling_params":{"temperature":-1}})", "sampling_params.temperature"},
      {R"({"text":"x","sampling_params":{"temperature":1e300}})", "sampling_params.temperature"},
      {R"({"text":"x","sampling_params":{"max_new_tokens":-1}})", "sampling_params.max_new_tokens"},
      {R"({"text":"x","sampling_params":{"max_new_tokens":5,"min_new_tokens":6}})", "sampling_params.min_new_tokens"},
      {R"({"text":"x","sampling_params":{"stop":[""]}})", "sampling_params.stop[0]"},
      {R"({"text":"x","sampling_params":{"regex":"a"}})", "sampling_params.regex"},
      {R"({"text":"x","sampling_params":{"repetition_penalty":0}})", "sampling_params.repetition_penalty"},
      {R"({"text":"x","image_data":"u"})", "image_data"},
      {R"({"text":"x","rid":5})", "rid"},
      {R"({"text":["x","y"],"rid":["a"]})", "rid"},
      {R"({"text":"x","return_logprob":true,"top_logprobs_num":21})", "top_logprobs_num"},
      {R"({"text":"x","return_hidden_states":true})", "return_hidden_states"}};
  for (const auto& [text, field] : cases) {
    const auto exchange = h.start("POST", "/generate", text);
    ASSERT_TRUE(exchange->wait());
    if (!*field) {  // an empty text is BOS alone
      EXPECT_EQ(exchange->response.status, 200) << text;
      continue;
    }
    EXPECT_EQ(exchange->response.status, 400) << text;
    EXPECT_TRUE(exchange->json()["error"]["message"].get<std::string>().starts_with(field)) << exchange->response.body;
  }
}

TEST(Lightllm, WholeAnswer) {
  Harness h;
  const Json out = h.post("/generate", {{"inputs", "ab"}, {"parameters", {{"max_new_tokens", 17}, {"frequency_penalty", 1}}}})->json();
  EXPECT_EQ(out["generated_text"], Json::array({"hello"}));
  EXPECT_EQ(out["count_output_tokens"], 6);
  EXPECT_EQ(out["finish_reason"], "stop");
  EXPECT_EQ(out["prompt_tokens"], 3);
  EXPECT_FALSE(out.contains("tokens"));
  EXPECT_TRUE(h.engine.request(0).sampling.greedy()) << "do_sample is false by default";
  const Json two = h.post("/generate", {{"inputs", "ab"}, {"parameters", {{"n", 2}, {"do_sample", true}, {"return_details", true}}}})->json();
  EXPECT_EQ(two["generated_text"].size(), 2u);
  EXPECT_EQ(two["count_output_tokens"], Json::parse("[6,6]"));
  EXPECT_EQ(two["finish_reason"], Json::parse(R"(["stop","stop"])"));
  EXPECT_EQ(two["tokens"].size(), 2u);
  EXPECT_EQ(h.engine.request(1).sampling.temperature, 1.0f);
  EXPECT_EQ(h.engine.request(0).max_new_tokens, 17);
  EXPECT_EQ(h.engine.request(1).max_new_tokens, 16);
}

TEST(Lightllm, StreamIsOneLinePerToken) {
  for (const size_t grouped : {1u, 3u}) {  // speculation: several tokens at once
    Harness h;
    h.engine.tokens_per_update = grouped;
    h.engine.output = bytes_of("aé🙂");
    const auto exchange = h.post("/generate_stream", {{"inputs", "x"}, {"parameters", {{"do_sample", false}, {"max_new_tokens", 7}, {"ignore_eos", true}}}});
    EXPECT_EQ(exchange->chunks.size(), 7u) << "one event per token and no [DONE]";
    std::string text;
    for (size_t i = 0; i < exchange->chunks.size(); ++i) {
      EXPECT_NE(exchange->chunks[i][5], ' ') << "no blank";
      const Json event = Json::parse(exchange->chunks[i].substr(5));
      EXPECT_EQ(event["token"]["count_output_tokens"], i + 1);
      EXPECT_EQ(event["finished"], i == 6);
      EXPECT_EQ(event["finish_reason"].is_null(), i < 6);
      EXPECT_TRUE(event["generated_text"].is_null());
      EXPECT_TRUE(event["token"]["logprob"].is_number());
      text += event["token"]["text"].get<std::string>();
    }
    EXPECT_EQ(text, "aé🙂");
  }
}

TEST(Lightllm, StopSequencesInThreeForms) {
  Harness h;
  const auto text = [&](Json stop) {
    return h.post("/generate", {{"inputs", "x"}, {"parameters", {{"stop_sequences", std::move(stop)}}}})->json()["generated_text"][0];
  };
  EXPECT_EQ(text("ll"), "he");
  EXPECT_EQ(text({"zz", "lo"}), "hel");
  EXPECT_EQ(text(Json::parse("[[101]]")), "h");
  EXPECT_EQ(text(Json::parse("[[108,111]]")), "hel");
}

TEST(Lmdeploy, StreamIsIncremental) {
  Harness h;
  const Json whole = h.post("/generate", {{"prompt", "x"}, {"max_tokens", 3}, {"return_logprob", true}})->json();
  EXPECT_EQ(whole["text"], "hel");
  EXPECT_EQ(whole["meta_info"]["finish_reason"]["type"], "length");
  EXPECT_EQ(whole["meta_info"]["output_token_logprobs"].size(), 3u);
  const auto events = h.post("/generate", {{"prompt", "x"}, {"max_tokens", 3}, {"stream", true}})->events();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0]["text"], "h");
  EXPECT_EQ(events[1]["text"], "e");
  EXPECT_EQ(events[2]["text"], "l");
  EXPECT_EQ(events[2]["output_ids"].size(), 1u);
  EXPECT_TRUE(events[1]["meta_info"]["finish_reason"].is_null());
  EXPECT_EQ(h.post("/generate", {{"input_ids", {65}}, {"session_id", 7}})->json()["meta_info"]["prompt_tokens"], 1);
}

TEST(Generate, FormsAreToldApart) {
  Harness h;
  const auto status = [&](const char* text) {
    const auto exchange = h.start("PUT", "/generate", text);
    EXPECT_TRUE(exchange->wait());
    return std::pair(exchange->response.status, exchange->json());
  };
  EXPECT_TRUE(status(R"({"inputs":"x"})").second.contains("generated_text"));
  EXPECT_TRUE(status(R"({"text":"x"})").second.contains("meta_info"));
  EXPECT_TRUE(status(R"({"input_ids":[65]})").second["meta_info"].contains("cached_tokens")) << "SGLang";
  EXPECT_FALSE(status(R"({"input_ids":[65],"max_tokens":2})").second["meta_info"].contains("cached_tokens")) << "LMDeploy";
  EXPECT_EQ(status(R"({"prompt":"x","sampling_params":{}})").first, 400);
}

}  // namespace
}  // namespace dsv3::test
