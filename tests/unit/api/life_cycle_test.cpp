// Cancelling, faults in mid-flight, batches, ids: nothing is left running and everybody gets an answer.
#include "fakes.h"

namespace dsv3::test {
namespace {

constexpr char kChat[] = "/v1/chat/completions";

TokenUpdate letter(char c, FinishReason finish = FinishReason::kNone, int32_t choice = 0) {
  TokenUpdate update;
  update.choice = choice;
  update.tokens = {FakeEngine::sampled(c, -1)};
  update.finish = finish;
  return update;
}

TEST(LifeCycle, ClientLeavingCancels) {
  for (const bool stream : {false, true}) {
    for (const int tokens_before : {0, 2}) {
      Harness h;
      h.engine.manual = true;
      Json body = user_chat();
      body["stream"] = stream;
      body["n"] = 2;
      const auto exchange = h.start("POST", kChat, body.dump());
      ASSERT_TRUE(h.engine.wait_submitted(1));
      for (int i = 0; i < tokens_before; ++i) h.engine.emit(100, letter('a'));
      exchange->leave();
      ASSERT_TRUE(h.engine.wait_cancelled(1));
      EXPECT_EQ(h.engine.cancelled[0], (std::pair<uint64_t, int32_t>(100, -1)));
      for (int i = 0; i < 1000 && h.engine.num_running() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      EXPECT_EQ(h.engine.num_running(), 0u);
      EXPECT_FALSE(exchange->done()) << "nobody is there to be answered";
    }
  }
}

TEST(LifeCycle, ClientGoneBeforeSubmitNeverReachesTheEngine) {
  class Gone final : public Exchange {
   public:
    void respond(HttpResponse) override { ADD_FAILURE(); }
    void begin_stream(std::string) override { ADD_FAILURE(); }
    void send(std::string) override {}
    void end() override {}
    void on_disconnect(std::function<void()> callback) override { callback(); }
  };
  Harness h;
  HttpRequest request;
  request.method = "POST";
  request.path = kChat;
  request.body = user_chat().dump();
  h.service->handle(std::move(request), std::make_shared<Gone>());
  h.post("/v1/completions", {{"prompt", "x"}});  // the pool has passed it
  EXPECT_EQ(h.engine.submitted.size(), 1u);
}

TEST(LifeCycle, ErrorAfterStartOfStream) {
  for (const bool stream : {false, true}) {
    Harness h;
    h.engine.manual = true;
    Json body = user_chat();
    body["stream"] = stream;
    body["n"] = 2;
    const auto exchange = h.start("POST", kChat, body.dump());
    ASSERT_TRUE(h.engine.wait_submitted(1));
    h.engine.emit(100, letter('a'));
    TokenUpdate broken;
    broken.finish = FinishReason::kError;
    broken.error = Status(Code::kInternal, "bad logits in kernel 0xdead");
    h.engine.emit(100, broken);
    ASSERT_TRUE(exchange->wait());
    ASSERT_TRUE(h.engine.wait_cancelled(1)) << "the other choice ends as well";
    if (stream) {
      const auto events = exchange->events();
      EXPECT_EQ(events.back()["error"]["type"], "server_error");
      EXPECT_EQ(events.back()["error"].size(), 4u);
      EXPECT_EQ(events.back()["error"]["message"].get<std::string>().find("0xdead"), std::string::npos);
    } else {
      EXPECT_EQ(exchange->response.status, 500);
      openai_error(*exchange);
    }
  }
}

TEST(LifeCycle, DeadlineIsAnswered) {
  Harness h(config_with([](ApiConfig& c) { c.request_timeout_us = 5'000'000; }));
  h.engine.manual = true;
  const auto exchange = h.start("POST", kChat, user_chat().dump());
  ASSERT_TRUE(h.engine.wait_submitted(1));
  EXPECT_GT(h.engine.request(0).deadline_us, 0);
  TokenUpdate late;
  late.finish = FinishReason::kAbort;
  late.error = Status(Code::kUnavailable, "the request's deadline passed", {}, "deadline_exceeded");
  h.engine.emit(100, late);
  ASSERT_TRUE(exchange->wait());
  EXPECT_EQ(exchange->response.status, 503);
  EXPECT_EQ(openai_error(*exchange)["code"], "deadline_exceeded");
}

TEST(LifeCycle, BatchIsAllOrNothing) {
  for (const bool stream : {false, true}) {
    Harness h;
    h.engine.manual = true;
    h.engine.refuse_from = 2;
    const auto exchange = h.start("POST", "/v1/completions", Json({{"prompt", {"a", "b", "c"}}, {"stream", stream}}).dump());
    ASSERT_TRUE(exchange->wait());
    EXPECT_EQ(exchange->response.status, 429);
    EXPECT_FALSE(exchange->streaming);
    ASSERT_TRUE(h.engine.wait_cancelled(2));
    EXPECT_EQ(h.engine.num_running(), 0u);
  }
}

TEST(LifeCycle, AbortByOwnAndByClientId) {
  Harness h;
  h.engine.manual = true;
  Json body = user_chat();
  body["rid"] = "job-7";
  const auto exchange = h.start("POST", kChat, body.dump());
  ASSERT_TRUE(h.engine.wait_submitted(1));
  h.engine.emit(100, letter('a'));
  EXPECT_EQ(h.post("/abort_request", {{"rid", "unknown"}})->response.status, 200);
  EXPECT_EQ(h.post("/abort_request", {{"rid", "job-7"}})->response.status, 200);
  ASSERT_TRUE(exchange->wait());
  EXPECT_EQ(exchange->response.status, 200);
  EXPECT_EQ(exchange->json()["choices"][0]["finish_reason"], "abort");
  EXPECT_EQ(exchange->json()["choices"][0]["message"]["content"], "a");

  const auto stream = h.start("POST", kChat, R"({"messages":[{"role":"user","content":"x"}],"stream":true})");
  ASSERT_TRUE(h.engine.wait_submitted(2));
  h.engine.emit(101, letter('a'));
  ASSERT_TRUE(stream->wait_chunks(2));
  const Json first = Json::parse(stream->chunks[0].substr(6));
  h.post("/abort_request", {{"rid", first["id"]}});
  ASSERT_TRUE(stream->wait());
  EXPECT_EQ(stream->events().back()["choices"][0]["finish_reason"], "abort");

  const auto sglang = h.start("POST", "/generate", R"({"text":["x","y"],"rid":["p","q"]})");
  ASSERT_TRUE(h.engine.wait_submitted(4));
  h.post("/abort_request", {{"rid", "q"}});
  ASSERT_TRUE(h.engine.wait_cancelled(3));
  h.engine.emit(102, letter('b', FinishReason::kLength));
  ASSERT_TRUE(sglang->wait());
  EXPECT_EQ(sglang->json()[0]["text"], "b");
  EXPECT_EQ(sglang->json()[1]["meta_info"]["finish_reason"]["type"], "abort");

  const auto all = h.start("POST", kChat, user_chat().dump());
  ASSERT_TRUE(h.engine.wait_submitted(5));
  h.post("/abort_request", {{"abort_all", true}});
  ASSERT_TRUE(all->wait());
  EXPECT_EQ(h.post("/abort_request", Json::object())->response.status, 400);
}

TEST(LifeCycle, LiveIdsAreUniqueAndFreeWhenAnswered) {
  Harness h;
  h.engine.manual = true;
  Json body = user_chat();
  body["request_id"] = "same";
  const auto first = h.start("POST", kChat, body.dump());
  ASSERT_TRUE(h.engine.wait_submitted(1));
  const auto second = h.start("POST", kChat, body.dump());
  ASSERT_TRUE(second->wait());
  EXPECT_EQ(second->response.status, 400);
  EXPECT_EQ(openai_error(*second)["param"], "rid");
  h.engine.emit(100, letter('a', FinishReason::kLength));
  ASSERT_TRUE(first->wait());
  EXPECT_EQ(first->response.status, 200) << "the duplicate did not disturb it";
  h.engine.manual = false;
  for (int round = 0; round < 200; ++round) {
    ASSERT_EQ(h.post(kChat, body)->response.status, 200) << "the id is free once the answer is there";
  }
}

/// V6: many at once from several threads; every answer is its own.
TEST(LifeCycle, OutputsNeverCross) {
  Harness h;
  h.engine.script = [](const GenerationRequest& r, int32_t choice) {
    std::vector<int32_t> echo(r.prompt_ids.begin() + 1, r.prompt_ids.end());
    echo.push_back('0' + choice);
    return echo;
  };
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 250; ++i) {
        const std::string prompt = std::to_string(t) + "i" + std::to_string(i);
        const bool stream = i % 2 == 0;
        const auto exchange =
            h.post("/v1/completions", {{"prompt", prompt}, {"n", 2}, {"max_tokens", 64}, {"stream", stream}});
        std::string texts[2];
        if (stream) {
          for (const auto& event : exchange->events()) {
            texts[event["choices"][0]["index"].get<size_t>()] += event["choices"][0]["text"].get<std::string>();
          }
        } else {
          for (size_t c = 0; c < 2; ++c) texts[c] = exchange->json()["choices"][c]["text"];
        }
        if (texts[0] != prompt + "0" || texts[1] != prompt + "1") ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

/// Leaving at any moment, with the engine playing from another thread.
TEST(LifeCycle, LeavingAtRandomLeavesNothingBehind) {
  Harness h;
  h.engine.manual = true;
  uint64_t state = 99;
  const auto next = [&](uint64_t bound) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % bound;
  };
  for (int round = 0; round < 300; ++round) {
    Json body = user_chat();
    body["stream"] = next(2) == 0;
    body["stop"] = "zz";
    const auto exchange = h.start("POST", kChat, body.dump());
    const uint64_t leave_at = next(8);
    ASSERT_TRUE(h.engine.wait_submitted(1));
    std::thread player([&] {
      for (int i = 0; i < 6; ++i) h.engine.emit(100, letter(i == 5 ? 'z' : 'a', i == 5 ? FinishReason::kLength : FinishReason::kNone));
    });
    for (uint64_t i = 0; i < leave_at; ++i) std::this_thread::yield();
    exchange->leave();
    player.join();
    for (int i = 0; i < 2000 && h.engine.num_running() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_EQ(h.engine.num_running(), 0u);
    h.engine.forget();
  }
}

}  // namespace
}  // namespace dsv3::test
