// Models, health, server information, cache, tokenize and detokenize.
#include "fakes.h"

namespace dsv3::test {
namespace {

TEST(Info, Models) {
  Harness h;
  for (const char* path : {"/v1/models", "/models"}) {
    const Json list = h.get(path)->json();
    EXPECT_EQ(list["object"], "list");
    EXPECT_EQ(list["data"][0]["id"], "/models/tiny-v3") << "load generators take it for the tokenizer path";
    EXPECT_EQ(list["data"][0]["max_model_len"], 2048);
    for (const char* key : {"object", "created", "owned_by", "root", "parent"}) {
      EXPECT_TRUE(list["data"][0].contains(key));
    }
  }
  for (const char* path : {"/v1/models/tiny-v3", "/v1/models//models/tiny-v3", "/v1/models/models/tiny-v3"}) {
    EXPECT_EQ(h.get(path)->json()["id"], "/models/tiny-v3") << path;
  }
  const auto unknown = h.get("/v1/models/a/b");
  EXPECT_EQ(unknown->response.status, 404);
  EXPECT_EQ(openai_error(*unknown)["code"], "model_not_found");
  EXPECT_EQ(h.get("/v1/models/")->response.status, 404);
}

TEST(Info, HealthMeansARequestWouldBeServed) {
  Harness h;
  EXPECT_EQ(h.get("/health")->json(), Json::parse(R"({"status":"healthy","message":"Ok"})"));
  h.engine.health_status = Status(Code::kDeviceLost, "gone");
  EXPECT_EQ(h.get("/health")->response.status, 503);
  h.engine.health_status = Status();
  h.service->set_draining();
  const auto draining = h.get("/health");
  EXPECT_EQ(draining->response.status, 503);
  EXPECT_EQ(draining->response.headers[0].first, "Retry-After");
  EXPECT_EQ(h.post("/v1/chat/completions", user_chat())->response.status, 503);
  EXPECT_EQ(h.post("/v1/completions", {{"prompt", "x"}})->response.status, 503);
  EXPECT_EQ(h.post("/generate", {{"text", "x"}})->response.status, 503);
  EXPECT_EQ(h.post("/generate_stream", {{"inputs", "x"}})->response.status, 503);
  EXPECT_EQ(h.get("/v1/models")->response.status, 200);
}

TEST(Info, ProbesOfThePeers) {
  Harness h;
  for (const char* path : {"/healthz", "/readyz", "/readiness", "/ping", "/livez", "/liveness"}) {
    EXPECT_EQ(h.get(path)->response.status, 200) << path;
  }
  h.service->set_draining();
  for (const char* path : {"/healthz", "/readyz", "/readiness", "/ping", "/health_generate"}) {
    EXPECT_EQ(h.get(path)->response.status, 503) << path;
  }
  for (const char* path : {"/livez", "/liveness"}) EXPECT_EQ(h.get(path)->response.status, 200) << path;
}

TEST(Info, ServerInfo) {
  Harness h;
  h.engine.stats_.drafts = 10;
  h.engine.stats_.drafts_accepted = 7;
  for (const char* path : {"/get_server_info", "/server_info"}) {
    const Json info = h.get(path)->json();
    ASSERT_TRUE(info["internal_states"].is_array());
    EXPECT_DOUBLE_EQ(info["internal_states"][0]["avg_spec_accept_length"].get<double>(), 1.7);
    EXPECT_TRUE(info["version"].is_string());
  }
  for (const char* path : {"/get_model_info", "/model_info"}) {
    const Json info = h.get(path)->json();
    EXPECT_EQ(info["model_path"], "/models/tiny-v3");
    EXPECT_EQ(info["is_generation"], true);
  }
  EXPECT_TRUE(h.get("/version")->json()["version"].is_string());
}

TEST(Info, FlushCache) {
  Harness h;
  EXPECT_EQ(h.get("/flush_cache")->response.status, 200);
  EXPECT_EQ(h.start("POST", "/flush_cache", "", "")->response.status, 200);
  h.engine.flush_status = Status(Code::kUnavailable, "busy");
  const auto busy = h.get("/flush_cache?timeout=0");
  EXPECT_EQ(busy->response.status, 400);
}

TEST(Info, TokenizeAndBack) {
  Harness h;
  const Json text = h.post("/tokenize", {{"prompt", "aé"}, {"return_token_strs", true}})->json();
  EXPECT_EQ(text["tokens"], Json::parse("[256,97,195,169]"));
  EXPECT_EQ(text["count"], 4);
  EXPECT_EQ(text["max_model_len"], 2048);
  EXPECT_EQ(text["token_strs"][1], "a");
  const Json plain = h.post("/tokenize", {{"prompt", "a"}, {"add_special_tokens", false}})->json();
  EXPECT_EQ(plain["tokens"], Json::parse("[97]"));
  EXPECT_TRUE(plain["token_strs"].is_null());
  EXPECT_EQ(h.post("/tokenize", {{"prompt", {"a", "bc"}}})->json()["count"], Json::parse("[2,3]"));
  const Json chat = h.post("/tokenize", user_chat())->json();
  h.post("/v1/chat/completions", user_chat());
  EXPECT_EQ(chat["tokens"].get<std::vector<int32_t>>(), h.engine.request(0).prompt_ids);
  const Json back = h.post("/detokenize", {{"tokens", text["tokens"]}})->json();
  EXPECT_EQ(back["text"], "aé");
  EXPECT_EQ(back["prompt"], "aé");
  EXPECT_EQ(h.post("/detokenize", {{"tokens", Json::parse("[[97],[98]]")}})->json()["text"],
            Json::parse(R"(["a","b"])"));
  EXPECT_EQ(h.post("/detokenize", {{"tokens", Json::array()}})->json()["text"], "");
  for (const char* bad :
       {R"({})", R"({"tokens":"x"})", R"({"tokens":[-1]})", R"({"tokens":[99999]})", R"({"tokens":[[1],2]})"}) {
    EXPECT_EQ(h.post("/detokenize", Json::parse(bad))->response.status, 400) << bad;
  }
  for (const char* bad : {R"({})", R"({"prompt":5})", R"({"prompt":[5]})", R"({"prompt":"x","messages":[]})"}) {
    EXPECT_EQ(h.post("/tokenize", Json::parse(bad))->response.status, 400) << bad;
  }
}

}  // namespace
}  // namespace dsv3::test
