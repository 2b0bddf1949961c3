// Chat completions: what goes into the engine, and both forms of the answer.
#include "fakes.h"

namespace dsv3::test {
namespace {

constexpr char kChat[] = "/v1/chat/completions";

/// A stream put together again the way clients do.
struct Assembled {
  std::map<int, std::string> content, reasoning, finish;
  std::map<int, int> roles, finishes;
  std::map<int, std::map<int, std::pair<std::string, std::string>>> calls;  // index -> call -> name, arguments
  std::map<int, Json> logprobs;
  std::vector<Json> usage_chunks;
};

Assembled assemble(const std::vector<Json>& events) {
  Assembled out;
  for (const auto& event : events) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_EQ(event["id"], events[0]["id"]);
    EXPECT_EQ(event["created"], events[0]["created"]);
    if (event["choices"].empty()) {
      out.usage_chunks.push_back(event);
      continue;
    }
    const Json& choice = event["choices"][0];
    const int index = choice["index"];
    const Json& delta = choice["delta"];
    EXPECT_EQ(out.finishes[index], 0) << "a chunk after the closing one";
    if (delta.contains("role")) {
      EXPECT_EQ(out.roles[index]++, 0);
      EXPECT_EQ(delta["content"], "");
    } else {
      EXPECT_EQ(out.roles[index], 1) << "role comes first";
    }
    out.content[index] += delta.value("content", "");
    out.reasoning[index] += delta.value("reasoning_content", "");
    if (delta.contains("tool_calls")) {
      for (const auto& call : delta["tool_calls"]) {
        auto& slot = out.calls[index][call["index"].get<int>()];
        if (call.contains("id")) slot.first = call["function"]["name"];
        slot.second += call["function"]["arguments"].get<std::string>();
      }
    }
    if (!choice["logprobs"].is_null()) {
      for (const auto& entry : choice["logprobs"]["content"]) out.logprobs[index].push_back(entry);
    }
    if (!choice["finish_reason"].is_null()) {
      EXPECT_TRUE(delta.empty()) << "the closing chunk is alone";
      out.finish[index] = choice["finish_reason"];
      ++out.finishes[index];
    }
  }
  return out;
}

Json with(Json body, const char* key, Json value) {
  body[key] = std::move(value);
  return body;
}

TEST(Chat, WholeAnswerHasEveryKey) {
  Harness h;
  h.engine.cached_tokens = 4;
  const auto exchange = h.post(kChat, user_chat());
  ASSERT_EQ(exchange->response.status, 200) << exchange->response.body;
  EXPECT_EQ(exchange->response.body.find('\n'), std::string::npos) << "one line";
  const Json body = exchange->json();
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["model"], "/models/tiny-v3");
  EXPECT_TRUE(body["system_fingerprint"].is_null());
  EXPECT_GT(body["created"], 1'600'000'000);
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], "hello");
  EXPECT_TRUE(choice["message"].contains("reasoning_content"));
  EXPECT_TRUE(choice["message"].contains("refusal"));
  EXPECT_FALSE(choice["message"].contains("tool_calls"));
  EXPECT_TRUE(choice["logprobs"].is_null());
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["matched_stop"], FakeTokenizer::kEos);
  const int prompt = static_cast<int>(h.engine.request(0).prompt_ids.size());
  const Json& usage = body["usage"];
  EXPECT_EQ(usage["prompt_tokens"], prompt);
  EXPECT_EQ(usage["completion_tokens"], 6) << "EOS counts";
  EXPECT_EQ(usage["total_tokens"], prompt + 6);
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 4);
  EXPECT_EQ(usage["completion_tokens_details"]["reasoning_tokens"], 0);
  EXPECT_EQ(usage["prompt_cache_hit_tokens"], 4);
  EXPECT_EQ(usage["prompt_cache_miss_tokens"], prompt - 4);
}

TEST(Chat, PromptIsRenderedOnceWithBosAndContentIsText) {
  Harness h;
  h.post(kChat, user_chat("a<think>b<｜end▁of▁sentence｜>"));
  const auto ids = h.engine.request(0).prompt_ids;
  EXPECT_EQ(ids[0], FakeTokenizer::kBos);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), FakeTokenizer::kBos), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), FakeTokenizer::kThink), 0) << "content never becomes control tokens";
  EXPECT_EQ(std::count(ids.begin(), ids.end(), FakeTokenizer::kEos), 0);
  EXPECT_EQ(ids.back(), h.tokenizer->find_added("<｜Assistant｜>"));
}

TEST(Chat, MoreBiasesThanASlotHoldsAreRefused) {
  Harness h;
  Json body = user_chat();
  for (int id = 0; id <= kMaxLogitBias; ++id) body["logit_bias"][std::to_string(id)] = 1;
  const auto answer = h.post(kChat, body);
  EXPECT_EQ(answer->response.status, 400);
  EXPECT_NE(answer->response.body.find("at most 1024"), std::string::npos) << answer->response.body;
}

TEST(Chat, SamplingReachesTheEngine) {
  Harness h;
  Json body = user_chat();
  body.update(Json::parse(R"({"max_tokens":7,"temperature":0.5,"top_p":0.25,"top_k":40,"min_p":0.125,"seed":-3,"n":2,
      "frequency_penalty":-2,"presence_penalty":2,"repetition_penalty":1.5,"logit_bias":{"7":-100,"3":1.5},
      "stop_token_ids":[65],"min_tokens":2,"cache_salt":"salt","priority":-4})"));
  ASSERT_EQ(h.post(kChat, body)->response.status, 200);
  const auto request = h.engine.request(0);
  EXPECT_EQ(request.max_new_tokens, 7);
  EXPECT_EQ(request.n, 2);
  EXPECT_EQ(request.seed, static_cast<uint64_t>(int64_t{-3}));
  EXPECT_EQ(request.cache_salt, "salt");
  EXPECT_EQ(request.priority, -4);
  EXPECT_EQ(request.stop_ids, (std::vector<int32_t>{65, FakeTokenizer::kEos}));
  const SamplingParams& p = request.sampling;
  EXPECT_EQ(p.temperature, 0.5f);
  EXPECT_EQ(p.top_p, 0.25f);
  EXPECT_EQ(p.top_k, 40);
  EXPECT_EQ(p.min_p, 0.125f);
  EXPECT_EQ(p.frequency_penalty, -2);
  EXPECT_EQ(p.presence_penalty, 2);
  EXPECT_EQ(p.repetition_penalty, 1.5f);
  EXPECT_EQ(p.logit_bias, (std::vector<std::pair<int32_t, float>>{{3, 1.5f}, {7, -100.f}}));
  EXPECT_EQ(p.min_tokens, 2);
  EXPECT_EQ(p.suppressed_ids, request.stop_ids);
  EXPECT_EQ(p.num_logprobs, -1);
}

TEST(Chat, MaxTokensDefaultsToTheRestOfTheContext) {
  Harness h;
  h.post(kChat, user_chat());
  const auto request = h.engine.request(0);
  EXPECT_EQ(request.max_new_tokens, 2048 - static_cast<int64_t>(request.prompt_ids.size()));
  EXPECT_TRUE(request.sampling.suppressed_ids.empty());
  EXPECT_FALSE(request.seed);
  Json body = user_chat();
  body["max_tokens"] = 3;
  body["max_completion_tokens"] = 5;
  h.post(kChat, body);
  EXPECT_EQ(h.engine.request(1).max_new_tokens, 5);
}

TEST(Chat, ContextLimitIsExact) {
  Harness h;
  const int64_t fixed = 2 + static_cast<int64_t>(std::string("<user>").size());  // BOS, role, Assistant
  const auto send = [&](int64_t prompt_tokens, Json max_tokens) {
    h.engine.output = {};
    Json body = user_chat(std::string(static_cast<size_t>(prompt_tokens - fixed), 'x'));
    body["max_tokens"] = std::move(max_tokens);
    return h.post(kChat, body);
  };
  EXPECT_EQ(send(2047, 1)->response.status, 200);
  EXPECT_EQ(h.engine.request(0).prompt_ids.size(), 2047u);
  EXPECT_EQ(send(2047, nullptr)->response.status, 200);
  for (const auto& exchange :
       {send(2048, 1), send(2048, nullptr), send(2049, 1), send(2047, 2), send(10, 4'000'000'000)}) {
    EXPECT_EQ(exchange->response.status, 400);
    const Json error = openai_error(*exchange);
    EXPECT_EQ(error["code"], "context_length_exceeded");
    EXPECT_EQ(error["param"], "messages");
    EXPECT_NE(error["message"].get<std::string>().find("2048"), std::string::npos);
  }
}

TEST(Chat, GreedySwitches) {
  Harness h;
  h.post(kChat, with(user_chat(), "temperature", 0));
  h.post(kChat, with(user_chat(), "top_p", 0));
  EXPECT_TRUE(h.engine.request(0).sampling.greedy());
  EXPECT_TRUE(h.engine.request(1).sampling.greedy());
  EXPECT_GT(h.engine.request(1).sampling.top_p, 0);
}

TEST(Chat, StreamHasRoleTextsFinishAndDone) {
  Harness h;
  const auto exchange = h.post(kChat, with(user_chat(), "stream", true));
  EXPECT_EQ(exchange->response.content_type, "text/event-stream; charset=utf-8");
  const auto events = exchange->events();
  const auto got = assemble(events);
  EXPECT_EQ(got.content.at(0), "hello");
  EXPECT_EQ(got.finish.at(0), "stop");
  EXPECT_TRUE(got.usage_chunks.empty());
  EXPECT_EQ(events.size(), 1u + 5u + 1u) << "role, five letters, finish";
  for (const auto& event : events) EXPECT_FALSE(event.contains("usage"));
}

TEST(Chat, NothingIsSentBeforeTheFirstToken) {
  Harness h;
  h.engine.manual = true;
  const auto exchange = h.start("POST", kChat, with(user_chat(), "stream", true).dump());
  ASSERT_TRUE(h.engine.wait_submitted(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_TRUE(exchange->chunks.empty());
  TokenUpdate update;
  update.tokens = {FakeEngine::sampled(0xC3, -1)};  // half a character: no text yet
  h.engine.emit(100, update);
  ASSERT_TRUE(exchange->wait_chunks(1));
  EXPECT_NE(exchange->chunks[0].find("\"role\""), std::string::npos);
  update.tokens = {FakeEngine::sampled(0xA9, -1)};
  update.finish = FinishReason::kLength;
  h.engine.emit(100, update);
  ASSERT_TRUE(exchange->wait());
  EXPECT_EQ(assemble(exchange->events()).content.at(0), "é");
}

TEST(Chat, UsageChunkOnlyWhenAsked) {
  Harness h;
  Json body = with(user_chat(), "stream", true);
  body["stream_options"]["include_usage"] = true;
  const auto events = h.post(kChat, body)->events();
  const auto got = assemble(events);
  ASSERT_EQ(got.usage_chunks.size(), 1u);
  EXPECT_EQ(events.back(), got.usage_chunks[0]) << "last before [DONE]";
  EXPECT_EQ(got.usage_chunks[0]["usage"]["completion_tokens"], 6);
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    ASSERT_TRUE(events[i].contains("usage"));
    EXPECT_TRUE(events[i]["usage"].is_null());
  }
  body["stream_options"]["continuous_usage_stats"] = true;
  const auto running = h.post(kChat, body)->events();
  int before = 0;
  for (size_t i = 0; i + 1 < running.size(); ++i) {
    const int now = running[i]["usage"]["completion_tokens"];
    EXPECT_GE(now, before);
    before = now;
  }
  EXPECT_EQ(before, 6);
}

TEST(Chat, SeveralTokensOfOneUpdateAreOneChunk) {
  Harness h;
  h.engine.tokens_per_update = 3;
  const auto events = h.post(kChat, with(user_chat(), "stream", true))->events();
  EXPECT_EQ(assemble(events).content.at(0), "hello");
  EXPECT_EQ(events.size(), 4u) << "role, hel, lo, finish";
}

TEST(Chat, ThreeChoicesInterleave) {
  for (const size_t grouped : {1u, 4u}) {
    Harness h;
    h.engine.tokens_per_update = grouped;
    h.engine.script = [](const GenerationRequest&, int32_t choice) {
      return std::vector<int32_t>(static_cast<size_t>(choice) + 2, 'a' + choice);
    };
    Json body = with(user_chat(), "n", 3);
    const Json whole = h.post(kChat, body)->json();
    ASSERT_EQ(whole["choices"].size(), 3u);
    body["stream"] = true;
    body["stream_options"]["include_usage"] = true;
    const auto got = assemble(h.post(kChat, body)->events());
    for (int i = 0; i < 3; ++i) {
      const Json& choice = whole["choices"][static_cast<size_t>(i)];
      EXPECT_EQ(choice["index"], i);
      EXPECT_EQ(choice["message"]["content"], std::string(static_cast<size_t>(i) + 2, static_cast<char>('a' + i)));
      EXPECT_EQ(got.content.at(i), choice["message"]["content"]);
      EXPECT_EQ(got.roles.at(i), 1);
      EXPECT_EQ(got.finishes.at(i), 1);
    }
    EXPECT_EQ(got.usage_chunks.size(), 1u);
    EXPECT_EQ(whole["usage"]["completion_tokens"], 3 + 4 + 5);
    EXPECT_EQ(whole["usage"]["prompt_tokens"], h.engine.request(0).prompt_ids.size()) << "counted once";
    EXPECT_EQ(got.usage_chunks[0]["usage"], whole["usage"]);
  }
}

TEST(Chat, StopStringIsCutAndCancelsTheChoice) {
  for (const bool stream : {false, true}) {
    Harness h;
    h.engine.manual = true;
    Json body = with(user_chat(), "stop", Json::array({"END", "lo w"}));
    body["stream"] = stream;
    const auto exchange = h.start("POST", kChat, body.dump());
    ASSERT_TRUE(h.engine.wait_submitted(1));
    for (const int32_t id : bytes_of("hello world")) {
      TokenUpdate update;
      update.tokens = {FakeEngine::sampled(id, -1)};
      h.engine.emit(100, update);
    }
    ASSERT_TRUE(exchange->wait());
    ASSERT_TRUE(h.engine.wait_cancelled(1));
    EXPECT_EQ(h.engine.cancelled[0], (std::pair<uint64_t, int32_t>(100, 0)));
    if (stream) {
      const auto got = assemble(exchange->events());
      EXPECT_EQ(got.content.at(0), "hel");
      EXPECT_EQ(got.finish.at(0), "stop");
    } else {
      const Json body_out = exchange->json();
      EXPECT_EQ(body_out["choices"][0]["message"]["content"], "hel");
      EXPECT_EQ(body_out["choices"][0]["finish_reason"], "stop");
      EXPECT_EQ(body_out["choices"][0]["matched_stop"], "lo w");
      EXPECT_EQ(body_out["usage"]["completion_tokens"], 7) << "what came after the match does not count";
    }
  }
}

TEST(Chat, HeldBackTextIsReleasedWhenTheMatchFails) {
  Harness h;
  h.engine.output = bytes_of("abcEN");
  Json body = with(user_chat(), "stop", "END");
  EXPECT_EQ(h.post(kChat, body)->json()["choices"][0]["message"]["content"], "abcEN");
  body["stream"] = true;
  const auto events = h.post(kChat, body)->events();
  EXPECT_EQ(assemble(events).content.at(0), "abcEN");
}

TEST(Chat, StopWinsOverLengthOnTheSameToken) {
  Harness h;
  h.engine.output = bytes_of("abEND");
  Json body = with(user_chat(), "stop", "END");
  body["max_tokens"] = 5;
  const Json out = h.post(kChat, body)->json();
  EXPECT_EQ(out["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(out["choices"][0]["message"]["content"], "ab");
  EXPECT_TRUE(h.engine.cancelled.empty()) << "the engine had finished it already";
}

TEST(Chat, FinishReasons) {
  Harness h;
  EXPECT_EQ(h.post(kChat, with(user_chat(), "max_tokens", 1))->json()["choices"][0]["finish_reason"], "length");
  Json body = with(user_chat(), "ignore_eos", true);
  body["max_tokens"] = 9;
  const Json ignored = h.post(kChat, body)->json();
  EXPECT_EQ(ignored["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(ignored["usage"]["completion_tokens"], 9);
  EXPECT_TRUE(h.engine.request(1).stop_ids.empty());
  const Json stopped = h.post(kChat, with(user_chat(), "stop_token_ids", Json::array({'l'})))->json();
  EXPECT_EQ(stopped["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(stopped["choices"][0]["matched_stop"], 'l');
  EXPECT_EQ(stopped["choices"][0]["message"]["content"], "he");
  Json kept = with(user_chat(), "stop_token_ids", Json::array({'l'}));
  kept["no_stop_trim"] = true;
  EXPECT_EQ(h.post(kChat, kept)->json()["choices"][0]["message"]["content"], "hel");
}

TEST(Chat, MinTokensHoldsTheStopIdsBack) {
  Harness h;
  h.engine.output = {};
  const Json out = h.post(kChat, with(user_chat(), "min_tokens", 3))->json();
  EXPECT_GE(out["usage"]["completion_tokens"], 3);
}

TEST(Chat, Logprobs) {
  Harness h;
  h.engine.output = {'a', 0xC3, 0xA9};
  Json body = user_chat();
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const Json whole = h.post(kChat, body)->json();
  EXPECT_EQ(h.engine.request(0).sampling.num_logprobs, 2);
  const Json& content = whole["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 4u) << "one per generated token, EOS too";
  EXPECT_EQ(content[0]["token"], "a");
  EXPECT_EQ(content[0]["bytes"], Json::array({97}));
  EXPECT_EQ(content[1]["token"], "\xEF\xBF\xBD");
  EXPECT_EQ(content[1]["bytes"], Json::array({0xC3}));
  ASSERT_EQ(content[0]["top_logprobs"].size(), 2u);
  EXPECT_EQ(content[0]["top_logprobs"][0]["logprob"], content[0]["logprob"]);
  EXPECT_TRUE(whole["choices"][0]["logprobs"]["refusal"].is_null());
  body["stream"] = true;
  EXPECT_EQ(assemble(h.post(kChat, body)->events()).logprobs.at(0), content) << "the stream tells the same";
  body.erase("top_logprobs");
  body["stream"] = false;
  const Json none = h.post(kChat, body)->json();
  EXPECT_EQ(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], Json::array());
}

TEST(Chat, InfiniteLogprobsStayJson) {
  Harness h;
  h.engine.manual = true;
  Json body = with(user_chat(), "logprobs", true);
  const auto exchange = h.start("POST", kChat, body.dump());
  ASSERT_TRUE(h.engine.wait_submitted(1));
  TokenUpdate update;
  update.tokens = {FakeEngine::sampled('a', 0)};
  update.tokens[0].logprob = -std::numeric_limits<float>::infinity();
  update.finish = FinishReason::kLength;
  h.engine.emit(100, update);
  ASSERT_TRUE(exchange->wait());
  EXPECT_EQ(exchange->json()["choices"][0]["logprobs"]["content"][0]["logprob"], -9999.0);
}

TEST(Chat, ThinkingSwitchOrder) {
  const std::pair<const char*, Json> cases[] = {
      {R"({})", nullptr},
      {R"({"reasoning_effort":"none"})", false},
      {R"({"reasoning_effort":"high"})", true},
      {R"({"reasoning":{"effort":"none"},"reasoning_effort":"high"})", false},
      {R"({"reasoning":{"enabled":true,"effort":"none"}})", true},
      {R"({"thinking":{"type":"disabled"},"reasoning":{"enabled":true}})", false},
      {R"({"chat_template_kwargs":{"enable_thinking":true},"thinking":{"type":"disabled"}})", true},
      {R"({"chat_template_kwargs":{"thinking":false,"enable_thinking":true}})", false}};
  for (const auto& [text, want] : cases) {
    Harness h;
    Json body = user_chat();
    body.update(Json::parse(text));
    ASSERT_EQ(h.post(kChat, body)->response.status, 200) << text;
    EXPECT_EQ(h.chat_template->kwargs.contains("thinking") ? h.chat_template->kwargs["thinking"] : Json(), want)
        << text;
  }
  Harness on(config_with([](ApiConfig& c) { c.default_thinking = true; }));
  on.post(kChat, user_chat());
  EXPECT_EQ(on.chat_template->kwargs["thinking"], true);
  on.post(kChat, with(user_chat(), "reasoning_effort", "none"));
  EXPECT_EQ(on.chat_template->kwargs["thinking"], false);
}

TEST(Chat, ReasoningIsSplit) {
  Harness h(config_with([](ApiConfig& c) { c.reasoning_field_both = true; }));
  h.engine.output = bytes_of("why");
  h.engine.output.push_back(FakeTokenizer::kEndThink);
  for (const int32_t id : bytes_of("so")) h.engine.output.push_back(id);
  Json body = user_chat();
  body["thinking"]["type"] = "enabled";
  const Json whole = h.post(kChat, body)->json();
  EXPECT_EQ(whole["choices"][0]["message"]["reasoning_content"], "why");
  EXPECT_EQ(whole["choices"][0]["message"]["reasoning"], "why");
  EXPECT_EQ(whole["choices"][0]["message"]["content"], "so");
  EXPECT_EQ(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], 4);
  body["stream"] = true;
  const auto got = assemble(h.post(kChat, body)->events());
  EXPECT_EQ(got.reasoning.at(0), "why");
  EXPECT_EQ(got.content.at(0), "so");
  body["stream"] = false;
  body["max_tokens"] = 2;
  const Json cut = h.post(kChat, body)->json();
  EXPECT_TRUE(cut["choices"][0]["message"]["content"].is_null());
  EXPECT_EQ(cut["choices"][0]["finish_reason"], "length");
}

TEST(Chat, ContinuesTheFinalMessage) {
  Harness h;
  const auto prompt_of = [&](const char* text) {
    h.engine.forget();
    const auto exchange = h.post(kChat, Json::parse(text));
    EXPECT_EQ(exchange->response.status, 200) << exchange->response.body;
    return h.tokenizer->decode(h.engine.request(0).prompt_ids, false);
  };
  const std::string want = "<｜begin▁of▁sentence｜><user>q<assistant>Once upon";
  EXPECT_EQ(prompt_of(R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"Once upon"}],
                          "continue_final_message":true})"),
            want);
  EXPECT_EQ(prompt_of(R"({"messages":[{"role":"user","content":"q"},
                          {"role":"assistant","content":"Once upon","prefix":true}]})"),
            want);
  for (const char* bad : {R"({"messages":[{"role":"user","content":"q"}],"continue_final_message":true})",
                          R"({"messages":[{"role":"assistant","content":"a"}],"continue_final_message":true,
                              "add_generation_prompt":true})"}) {
    EXPECT_EQ(h.post(kChat, Json::parse(bad))->response.status, 400);
  }
}

TEST(Chat, InputIdsSkipTheTemplate) {
  Harness h;
  EXPECT_EQ(h.post(kChat, {{"input_ids", {5, 6, 7}}})->response.status, 200);
  EXPECT_EQ(h.engine.request(0).prompt_ids, (std::vector<int32_t>{5, 6, 7}));
  const auto empty = h.post(kChat, {{"input_ids", Json::array()}});
  EXPECT_EQ(empty->response.status, 400);
  EXPECT_EQ(openai_error(*empty)["param"], "input_ids");
}

TEST(Chat, ToolChoice) {
  Harness h;
  Json body = user_chat();
  body["tools"] = Json::parse(R"([{"type":"function","function":{"name":"f","parameters":{}}}])");
  h.post(kChat, body);
  EXPECT_EQ(h.chat_template->tools.size(), 1u);
  h.post(kChat, with(body, "tool_choice", "none"));
  EXPECT_TRUE(h.chat_template->tools.is_null()) << "none leaves the tools out of the prompt";
  h.post(kChat, with(body, "tools", Json::array()));
  EXPECT_TRUE(h.chat_template->tools.is_null());
  const std::tuple<Json, const char*, const char*> cases[] = {
      {"required", "tool_choice", "unsupported_parameter"},
      {"odd", "tool_choice", "invalid_value"},
      {5, "tool_choice", "invalid_type"},
      {Json::parse(R"({"type":"function","function":{"name":"f"}})"), "tool_choice", "unsupported_parameter"},
      {Json::parse(R"({"type":"function","function":{"name":"g"}})"), "tool_choice.function.name", "invalid_value"},
      {Json::parse(R"({"type":"function"})"), "tool_choice.function", "missing_required_parameter"},
      {Json::parse(R"({"type":"allowed_tools"})"), "tool_choice", "unsupported_parameter"}};
  for (const auto& [choice, param, code] : cases) {
    const auto exchange = h.post(kChat, with(body, "tool_choice", choice));
    EXPECT_EQ(exchange->response.status, 400);
    EXPECT_EQ(openai_error(*exchange)["param"], param) << choice;
    EXPECT_EQ(openai_error(*exchange)["code"], code) << choice;
  }
}

TEST(Chat, ForeignFieldsAndNullsAreAccepted) {
  Harness h;
  Json body = user_chat();
  body.update(Json::parse(R"({"best_of":1,"lora_path":null,"foo":{"bar":1},"temperature":null,"stop":null,"user":"u",
      "tools":null,"response_format":null,"stream_options":null,"logit_bias":null,"metadata":{"a":"b"},"store":true,
      "service_tier":"auto","prediction":{"x":1},"modalities":["text"],"regex":null,"n":null})"));
  EXPECT_EQ(h.post(kChat, body)->response.status, 200);
  Harness strict(config_with([](ApiConfig& c) { c.strict_fields = true; }));
  const auto refused = strict.post(kChat, body);
  EXPECT_EQ(refused->response.status, 400);
  EXPECT_EQ(openai_error(*refused)["param"], "foo");
  body.erase("foo");
  EXPECT_EQ(strict.post(kChat, body)->response.status, 200);
}

TEST(Chat, ModelNames) {
  Harness h;
  for (const char* name : {"/models/tiny-v3", "tiny-v3", "default"}) {
    EXPECT_EQ(h.post(kChat, with(user_chat(), "model", name))->response.status, 200) << name;
  }
  EXPECT_EQ(h.post(kChat, with(user_chat(), "model", "gpt"))->response.status, 404);
  Harness served(config_with([](ApiConfig& c) {
    c.served_model_name = "mine";
    c.accept_any_model = true;
  }));
  const auto exchange = served.post(kChat, with(user_chat(), "model", "gpt"));
  EXPECT_EQ(exchange->json()["model"], "mine");
}

TEST(Chat, ModelDefaultsOnlyWhenAsked) {
  ApiConfig config;
  config.generation_defaults.temperature = 0.6;
  config.generation_defaults.top_p = 0.95;
  Harness openai(config);
  openai.post(kChat, user_chat());
  EXPECT_EQ(openai.engine.request(0).sampling.temperature, 1.0f);
  config.sampling_defaults_from_model = true;
  Harness model(config);
  model.post(kChat, user_chat());
  EXPECT_EQ(model.engine.request(0).sampling.temperature, 0.6f);
  EXPECT_EQ(model.engine.request(0).sampling.top_p, 0.95f);
  model.post(kChat, with(user_chat(), "temperature", 1));
  EXPECT_EQ(model.engine.request(1).sampling.temperature, 1.0f);
}

TEST(Chat, TokenIdsWhenAsked) {
  Harness h;
  Json body = with(user_chat(), "return_token_ids", true);
  const Json whole = h.post(kChat, body)->json();
  EXPECT_EQ(whole["choices"][0]["token_ids"].size(), 6u);
  EXPECT_EQ(whole["prompt_token_ids"].size(), h.engine.request(0).prompt_ids.size());
  body["stream"] = true;
  Json ids = Json::array();
  for (const auto& event : h.post(kChat, body)->events()) {
    for (const auto& id : event["choices"][0].value("token_ids", Json::array())) ids.push_back(id);
  }
  EXPECT_EQ(ids, whole["choices"][0]["token_ids"]);
}

/// Reliability V7: whatever the text and wherever stop strings and tokens fall, both forms tell the same.
TEST(Chat, StreamEqualsWhole) {
  const std::string alphabet[] = {"a", "b", "é", "你", "🙂", " ", "\n", "END", "EN", "\xff"};
  uint64_t state = 12345;
  const auto next = [&](uint64_t bound) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % bound;
  };
  Harness h;
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (uint64_t i = 0, n = next(30); i < n; ++i) text += alphabet[next(std::size(alphabet))];
    h.engine.output = bytes_of(text);
    h.engine.tokens_per_update = 1 + next(5);
    Json body = user_chat();
    if (next(2)) body["stop"] = Json::array({"END", "🙂b", "aa"});
    if (next(4) == 0) body["max_tokens"] = 1 + next(20);
    const Json whole = h.post(kChat, body)->json()["choices"][0];
    body["stream"] = true;
    const auto exchange = h.post(kChat, body);
    const auto got = assemble(exchange->events());
    ASSERT_EQ(got.content.at(0), whole["message"]["content"].get<std::string>()) << body << text;
    ASSERT_EQ(got.finish.at(0), whole["finish_reason"]) << body << text;
    h.engine.forget();
  }
}

}  // namespace
}  // namespace dsv3::test
