// One request for each row of the error table (api.md 3.2), and the error shapes of native routes.
#include "errors.h"

#include "fakes.h"

namespace dsv3::test {
namespace {

struct Row {
  const char* path;
  const char* body;
  int status;
  const char* code;   ///< "": null
  const char* param;  ///< "": null
};

TEST(Errors, TableOfOpenAiRoutes) {
  Harness h;
  const Row rows[] = {
      {"/v1/chat/completions", "", 400, "", ""},
      {"/v1/chat/completions", "{", 400, "", ""},
      {"/v1/chat/completions", "[]", 400, "", ""},
      {"/v1/chat/completions", "\"x\"", 400, "", ""},
      {"/v1/chat/completions", "{\"a\":1,\"a\":2}", 400, "", ""},
      {"/v1/chat/completions", "{}", 400, "missing_required_parameter", "messages"},
      {"/v1/completions", "{}", 400, "missing_required_parameter", "prompt"},
      {"/v1/chat/completions", R"({"messages":"x"})", 400, "invalid_type", "messages"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":5}]})", 400, "invalid_type", "messages[0].content"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"temperature":3})", 400, "invalid_value",
       "temperature"},
      {"/v1/chat/completions", R"({"messages":[{"role":"zzz","content":"x"}]})", 400, "invalid_value", "messages[0].role"},
      {"/v1/chat/completions", R"({"messages":[]})", 400, "invalid_value", "messages"},
      {"/v1/completions", R"({"prompt":[]})", 400, "invalid_value", "prompt"},
      {"/v1/completions", R"({"prompt":[[]]})", 400, "invalid_value", "prompt[0]"},
      {"/v1/completions", R"({"prompt":[5,300]})", 400, "invalid_value", "prompt"},
      {"/v1/completions", R"({"prompt":[5,-1]})", 400, "invalid_value", "prompt"},
      {"/v1/completions", R"({"prompt":"x","max_tokens":2047})", 400, "context_length_exceeded", "prompt"},
      {"/v1/completions", R"({"prompt":"x","best_of":2})", 400, "unsupported_parameter", "best_of"},
      {"/v1/completions", R"({"prompt":"x","suffix":"y"})", 400, "unsupported_parameter", "suffix"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"modalities":["audio"]})", 400,
       "unsupported_parameter", "modalities"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"audio":{"voice":"v"}})", 400,
       "unsupported_parameter", "audio"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_object"}})",
       400, "unsupported_parameter", "response_format"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"response_format":{"type":"odd"}})", 400,
       "invalid_value", "response_format.type"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"response_format":{}})", 400,
       "missing_required_parameter", "response_format.type"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"regex":"a+"})", 400,
       "unsupported_parameter", "regex"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"top_logprobs":2})", 400, "invalid_value",
       "top_logprobs"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"raise"}]})", 400, "invalid_value", "messages"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"model":"other"})", 404, "model_not_found",
       "model"},
      {"/nothing", "{}", 404, "", ""},
      {"/v1", "{}", 404, "", ""},
  };
  for (const Row& row : rows) {
    const auto exchange = h.start("POST", row.path, row.body);
    ASSERT_TRUE(exchange->wait());
    EXPECT_EQ(exchange->response.status, row.status) << row.body;
    const Json error = openai_error(*exchange);
    EXPECT_EQ(error["code"], *row.code ? Json(row.code) : Json(nullptr)) << row.body;
    EXPECT_EQ(error["param"], *row.param ? Json(row.param) : Json(nullptr)) << row.body;
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_FALSE(error["message"].get<std::string>().empty());
  }
  EXPECT_TRUE(h.engine.submitted.empty()) << "a faulty request reached the engine";
}

TEST(Errors, WrongMethodNamesTheRightOnes) {
  Harness h;
  const std::tuple<const char*, const char*, const char*> cases[] = {
      {"GET", "/v1/chat/completions", "POST"}, {"POST", "/v1/models", "GET, HEAD"}, {"DELETE", "/generate", "POST, PUT"},
      {"PUT", "/flush_cache", "GET, HEAD, POST"}, {"BREW", "/health", "GET, HEAD"}};
  for (const auto& [method, path, allow] : cases) {
    const auto exchange = h.start(method, path, "{}");
    ASSERT_TRUE(exchange->wait());
    EXPECT_EQ(exchange->response.status, 405);
    ASSERT_EQ(exchange->response.headers.size(), 1u);
    EXPECT_EQ(exchange->response.headers[0], std::pair(std::string("Allow"), std::string(allow)));
  }
}

TEST(Errors, ContentTypeMustBeJsonOrAbsent) {
  Harness h;
  const std::string body = user_chat().dump();
  for (const char* type : {"application/json", "application/json; charset=utf-8", "Application/JSON ;x=y", ""}) {
    const auto exchange = h.start("POST", "/v1/chat/completions", body, type);
    ASSERT_TRUE(exchange->wait());
    EXPECT_EQ(exchange->response.status, 200) << type;
  }
  for (const char* type : {"text/plain", "application/jsonx", "multipart/form-data", "application/x-www-form-urlencoded"}) {
    const auto exchange = h.start("POST", "/v1/chat/completions", body, type);
    ASSERT_TRUE(exchange->wait());
    EXPECT_EQ(exchange->response.status, 400) << type;
  }
}

TEST(Errors, EngineRefusalsKeepTheirMeaning) {
  const std::tuple<Status, int, const char*, const char*, bool> cases[] = {
      {{Code::kOverloaded, "the queue is full"}, 429, "rate_limit_error", "queue_full", true},
      {{Code::kUnavailable, "draining"}, 503, "server_error", "not_ready", true},
      {{Code::kDeviceLost, "rank 3 at 0x7f"}, 503, "server_error", "not_ready", true},
      {{Code::kOutOfMemory, "oom"}, 503, "server_error", "not_ready", true},
      {{Code::kInternal, "secret at /src/x.cpp:12"}, 500, "server_error", "", false},
      {{Code::kContextLength, "too long"}, 400, "invalid_request_error", "context_length_exceeded", false},
      {{Code::kTooLarge, "too large"}, 413, "invalid_request_error", "", false}};
  for (const auto& [refusal, status, type, code, retry] : cases) {
    for (const bool stream : {false, true}) {
      Harness h;
      h.engine.refuse_from = 0;
      h.engine.refusal = refusal;
      Json body = user_chat();
      body["stream"] = stream;
      const auto exchange = h.post("/v1/chat/completions", body);
      EXPECT_EQ(exchange->response.status, status);
      EXPECT_FALSE(exchange->streaming) << "validation errors keep their status";
      const Json error = openai_error(*exchange);
      EXPECT_EQ(error["type"], type);
      EXPECT_EQ(error["code"], *code ? Json(code) : Json(nullptr));
      EXPECT_EQ(exchange->response.body.find("secret"), std::string::npos);
      EXPECT_EQ(exchange->response.body.find("0x7f"), std::string::npos);
      EXPECT_EQ(!exchange->response.headers.empty(), retry);
      if (retry) {
        EXPECT_EQ(exchange->response.headers[0].first, "Retry-After");
      }
    }
  }
}

TEST(Errors, NativeRoutesAnswerInTheirShape) {
  Harness h;
  const auto sglang = h.post("/generate", {{"text", "x"}, {"sampling_params", {{"top_p", 0}}}});
  EXPECT_EQ(sglang->response.status, 400);
  EXPECT_EQ(sglang->json()["error"]["message"], "sampling_params.top_p is 0, allowed above 0 to 1");
  EXPECT_EQ(sglang->json()["error"].size(), 1u);
  const auto lightllm = h.post("/generate", {{"inputs", "x"}, {"parameters", {{"n", 0}}}});
  EXPECT_EQ(lightllm->response.status, 400);
  EXPECT_EQ(lightllm->json(), Json({{"message", "parameters.n is 0, allowed 1 to 128"}}));
  const auto lmdeploy = h.post("/generate", {{"prompt", "x"}, {"top_k", -1}});
  EXPECT_EQ(lmdeploy->response.status, 400);
  EXPECT_EQ(lmdeploy->json()["object"], "error");
  EXPECT_EQ(lmdeploy->json()["code"], 400);
  EXPECT_EQ(lmdeploy->json()["param"], "top_k");
  const auto nothing = h.post("/generate", {{"foo", 1}});
  EXPECT_EQ(nothing->response.status, 400);
  for (const char* key : {"text", "inputs", "prompt", "input_ids"}) {
    EXPECT_NE(nothing->response.body.find(key), std::string::npos);
  }
}

TEST(Errors, HostileJsonIsRefusedQuickly) {
  Harness h;
  std::string many = "{\"a0\":1";
  for (int i = 1; i < 200'000; ++i) many.append(",\"a").append(std::to_string(i)).append("\":1");
  many += "}";
  const std::string bodies[] = {std::string(10 << 20, '['), many, std::string("{\"messages\":").append(1 << 20, '9').append("}"),
                                "{\"n\":NaN}", "{\"n\":1e999}", R"({"messages":"\ud800"})", "{\"m\":\"\xff\"}"};
  for (const auto& body : bodies) {
    const auto exchange = h.start("POST", "/v1/chat/completions", body);
    ASSERT_TRUE(exchange->wait());
    EXPECT_EQ(exchange->response.status, 400) << body.substr(0, 40);
  }
}

TEST(Errors, EveryCodeHasAStatusAndABody) {
  for (int code = 0; code <= static_cast<int>(Code::kInternal); ++code) {
    const Status status(static_cast<Code>(code), "message");
    if (status.ok()) continue;
    EXPECT_GE(api::http_status(status.code()), 400);
    for (const auto shape : {api::ErrorShape::kOpenAi, api::ErrorShape::kSglang, api::ErrorShape::kLightllm,
                             api::ErrorShape::kLmdeploy}) {
      const auto response = api::error_response(status, shape);
      EXPECT_TRUE(Json::parse(response.body).is_object());
    }
  }
}

}  // namespace
}  // namespace dsv3::test
