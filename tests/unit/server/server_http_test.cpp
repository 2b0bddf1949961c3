// What one connection may say and what it is told.
#include <random>

#include "server_fixture.h"

namespace dsv3 {
namespace {

class ServerHttp : public ServerTest {};

TEST_F(ServerHttp, AnswersAndKeepsAlive) {
  start();
  RawClient one = client();
  for (int i = 0; i < 20; ++i) {
    const std::string body = "body " + std::to_string(i);
    const RawResponse response = one.ask(post("/echo", body));
    ASSERT_EQ(response.status, 200);
    EXPECT_EQ(response.body, body);
    EXPECT_EQ(response.header("Content-Type"), "text/plain");
    EXPECT_FALSE(response.header("Date").empty());
    EXPECT_EQ(response.header("Connection"), "");
  }
}

TEST_F(ServerHttp, AcceptsChunkedBodiesByteByByte) {
  start();
  RawClient one = client();
  for (const char c : std::string("POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n"
                                  "3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n")) {
    ASSERT_TRUE(one.send(std::string(1, c)));
  }
  EXPECT_EQ(one.response().body, "abcd");
}

TEST_F(ServerHttp, ShowsTheHandlerTheRequest) {
  start();
  const RawResponse response = client().ask(get("/%68ead?q=%20", "X-Thing:  a b \r\nX-Request-Id: mine-1\r\n"));
  EXPECT_EQ(response.body, "GET /head q=%20 mine-1\nhost=test\nx-thing=a b\nx-request-id=mine-1");
  EXPECT_EQ(response.header("x-request-id"), "mine-1");
}

TEST_F(ServerHttp, GivesEveryAnswerARequestId) {
  start();
  RawClient one = client();
  const std::string first = one.ask(get("/head")).header("x-request-id");
  const std::string second = one.ask(get("/missing")).header("x-request-id");
  EXPECT_EQ(first.size(), 36u);
  EXPECT_EQ(second.size(), 36u);
  EXPECT_NE(first, second);
  for (const std::string& id : {std::string(129, 'a'), std::string("a b"), std::string("caf\xc3\xa9"), std::string()}) {
    EXPECT_EQ(one.ask(get("/head", "x-request-id: " + id + "\r\n")).header("x-request-id").substr(0, 4), "req-");
  }
  EXPECT_EQ(one.ask(get("/head", "x-request-id: " + std::string(128, 'a') + "\r\n")).header("x-request-id").size(),
            128u);
  EXPECT_EQ(one.ask("nonsense\r\n").header("x-request-id").size(), 36u);
}

TEST_F(ServerHttp, ClosesWhenAsked) {
  start();
  RawClient one = client();
  const RawResponse response = one.ask(get("/health", "Connection: close\r\n"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.header("Connection"), "close");
  EXPECT_TRUE(one.closed_by_server());
}

TEST_F(ServerHttp, SpeaksHttp10) {
  start();
  RawClient one = client();
  const RawResponse kept = one.ask("GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(kept.header("Connection"), "keep-alive");
  const RawResponse closed = one.ask("GET /health HTTP/1.0\r\n\r\n");
  EXPECT_EQ(closed.header("Connection"), "close");
  EXPECT_TRUE(one.closed_by_server());
  // A stream has no chunks there: its end is the end of the connection.
  RawClient other = client();
  other.send("GET /count?2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const std::string all = other.receive_all().value_or("");
  EXPECT_EQ(all.find("chunked"), std::string::npos);
  EXPECT_EQ(all.substr(all.find("\r\n\r\n") + 4), "data: 0\n\ndata: 1\n\ndata: [DONE]\n\n");
}

TEST_F(ServerHttp, HeadIsGetWithoutTheBody) {
  start();
  RawClient one = client();
  ASSERT_TRUE(one.send("HEAD /big?1000 HTTP/1.1\r\nHost: a\r\n\r\n" + get("/health")));
  const RawResponse response = one.response(/*head_only=*/true);
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.header("Content-Length"), "1000");
  EXPECT_EQ(one.response().body, "ok");
  ASSERT_TRUE(one.send("HEAD /count?3 HTTP/1.1\r\nHost: a\r\n\r\n" + get("/health")));
  EXPECT_TRUE(one.response(/*head_only=*/true).has("Transfer-Encoding: chunked"));
  EXPECT_EQ(one.response().body, "ok");
}

TEST_F(ServerHttp, AnswersWithoutABodyHaveNoLength) {
  start();
  RawClient one = client();
  const RawResponse response = one.ask(get("/nobody"));
  EXPECT_EQ(response.status, 204);
  EXPECT_EQ(response.head.find("Content-"), std::string::npos);
  EXPECT_EQ(one.ask(get("/health")).status, 200);
}

TEST_F(ServerHttp, AnswersPipelinedRequestsInOrder) {
  start();
  RawClient one = client();
  std::string all;
  for (int i = 0; i < 200; ++i) all += i % 3 == 0 ? get("/count?2") : post("/echo", std::to_string(i));
  ASSERT_TRUE(one.send(all));
  for (int i = 0; i < 200; ++i) {
    const std::string want = i % 3 == 0 ? "data: 0\n\ndata: 1\n\ndata: [DONE]\n\n" : std::to_string(i);
    ASSERT_EQ(one.response().body, want) << i;
  }
}

TEST_F(ServerHttp, PipelinedRequestsWaitForTheAnswerBeforeThem) {
  start();
  RawClient one = client();
  ASSERT_TRUE(one.send(get("/hold")));
  auto held = service.next_held();
  ASSERT_NE(held.exchange, nullptr);
  ASSERT_TRUE(one.send(get("/health")));
  EXPECT_FALSE(one.receive(50).has_value());
  held.exchange->respond({200, "text/plain", "first", {}});
  EXPECT_EQ(one.response().body, "first");
  EXPECT_EQ(one.response().body, "ok");
}

TEST_F(ServerHttp, ExpectContinueIsMetBeforeTheBody) {
  start();
  RawClient one = client();
  ASSERT_TRUE(one.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"));
  EXPECT_EQ(one.receive().value_or(""), "HTTP/1.1 100 Continue\r\n\r\n");
  EXPECT_EQ(one.ask("abc").body, "abc");
  // Refused before the body: no 100.
  config.max_body_bytes = 10;
  RawClient other = client();
  ASSERT_TRUE(other.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"));
  EXPECT_EQ(other.response().status, 413);
}

TEST_F(ServerHttp, RefusesBadFramingAndCloses) {
  start();
  const std::string chunked = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::pair<int, std::string> cases[] = {
      {400, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
      {400, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"},
      {400, get("/echo", "X: a\r\n b\r\n")},
      {400, get("/echo", "X: a\nY: b\r\n")},
      {400, get("/echo", "X: a" + std::string(1, '\0') + "\r\n")},
      {400, get("/echo", "X: a%0d%0aY: b\r\n")},
      {400, get("/echo%0d%0a")},
      {400, chunked + "-1\r\n"},
      {400, chunked + "0x5\r\nhello\r\n0\r\n\r\n"},
      {400, "\x16\x03\x01\x02\x01"},
      {505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
      {411, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\r\n"},
      {415, post("/echo", "abc", "Content-Encoding: gzip\r\n")},
      {431, "GET / HTTP/1.1\r\nX: " + std::string(33 << 10, 'a')},
      {431, std::string(1 << 20, 'a')},
      {431,
       [] {
         std::string head = "GET / HTTP/1.1\r\n";
         for (int i = 0; i < 1001; ++i) head += "A: b\r\n";
         return head + "\r\n";
       }()},
      {413, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 33554433\r\n\r\n"},
  };
  for (const auto& [status, bytes] : cases) {
    RawClient one = client();
    // What follows a refused request must never be taken for one.
    one.send(bytes + get("/smuggled"));
    const int64_t begin_us = now_us();
    const RawResponse response = one.response();
    EXPECT_EQ(response.status, status) << bytes.substr(0, 100);
    EXPECT_EQ(response.header("Connection"), "close");
    EXPECT_EQ(response.body.find("{\"error\":{\"message\":\""), 0u) << response.body;
    EXPECT_TRUE(one.closed_by_server());
    EXPECT_LT(now_us() - begin_us, 1'000'000);
  }
  EXPECT_EQ(service.handled, 0);
}

TEST_F(ServerHttp, LargeRefusedBodyStillSeesItsAnswer) {
  config.max_body_bytes = 1 << 20;
  start();
  RawClient one = client();
  // The client sends all before it reads, as most do.
  ASSERT_TRUE(one.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n"));
  EXPECT_TRUE(one.send(std::string(8 << 20, 'a')));
  EXPECT_EQ(one.response().status, 413);
  RawClient other = client();
  other.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 64; ++i) other.send("8000\r\n" + std::string(32768, 'a') + "\r\n");
  EXPECT_EQ(other.response().status, 413);
}

TEST_F(ServerHttp, BodiesThatWaitAreBoundedTogether) {
  config.max_pending_body_bytes = 1 << 20;
  start();
  std::vector<RawClient> clients;
  int refused = 0;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(client());
    clients.back().send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n" + std::string(400'000, 'a'));
    if (clients.back().receive(100)) ++refused;
  }
  EXPECT_EQ(refused, 2);
  clients.clear();
  EXPECT_TRUE(eventually([&] { return client().ask(post("/echo", std::string(600'000, 'a'))).status == 200; }));
}

TEST_F(ServerHttp, MillionsOfTinyChunksAreFine) {
  start();
  RawClient one = client();
  one.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  std::string chunks;
  for (int i = 0; i < 10'000; ++i) chunks += "1\r\na\r\n";
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(one.send(chunks));
  EXPECT_EQ(one.ask("0\r\n\r\n").body.size(), 1'000'000u);
}

TEST_F(ServerHttp, FaultsOfTheServiceAreAnswered) {
  start();
  RawClient one = client();
  const RawResponse thrown = one.ask(get("/throw"));
  EXPECT_EQ(thrown.status, 500);
  EXPECT_EQ(thrown.body.find("on purpose"), std::string::npos) << "internals must not be shown";
  EXPECT_EQ(one.ask(get("/drop")).status, 500);
  const RawResponse split = one.ask(get("/split"));
  EXPECT_EQ(split.body, "whole");
  EXPECT_EQ(split.header("X-Good"), "yes");
  EXPECT_EQ(split.head.find("Injected"), std::string::npos);
}

TEST_F(ServerHttp, CorsIsAnOption) {
  start();
  EXPECT_EQ(client().ask("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n").status, 404);
  EXPECT_EQ(client().ask(get("/health")).header("Access-Control-Allow-Origin"), "");
  server->stop();
  config.cors = true;
  config.api_keys = {"secret"};
  start();
  RawClient one = client();
  const RawResponse preflight = one.ask("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\n\r\n");
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.header("Access-Control-Allow-Origin"), "*");
  EXPECT_NE(preflight.header("Access-Control-Allow-Headers").find("authorization"), std::string::npos);
  EXPECT_EQ(one.ask(get("/health")).header("Access-Control-Allow-Origin"), "*");
  EXPECT_EQ(client().ask(get("/head")).header("Access-Control-Allow-Origin"), "*") << "a browser must see the 401";
}

TEST_F(ServerHttp, KeysAreAskedForEverywhereButOnProbes) {
  config.api_keys = {"first", "second key"};
  start();
  const auto status = [&](const std::string& target, const std::string& header) {
    const RawResponse response = client().ask(get(target, header));
    if (response.status == 401) {
      EXPECT_EQ(response.header("WWW-Authenticate"), "Bearer");
      EXPECT_NE(response.body.find("\"code\":\"invalid_api_key\""), std::string::npos);
      EXPECT_NE(response.body.find("\"type\":\"invalid_request_error\""), std::string::npos);
    }
    return response.status;
  };
  EXPECT_EQ(status("/head", "Authorization: Bearer first\r\n"), 200);
  EXPECT_EQ(status("/head", "authorization: bearer  second key\r\n"), 200);
  for (const char* header :
       {"", "Authorization: \r\n", "Authorization: Bearer\r\n", "Authorization: Bearer firs\r\n",
        "Authorization: Bearer first1\r\n", "Authorization: Bearer None\r\n", "Authorization: first\r\n",
        "Authorization: Basic first\r\n", "Authorization: Bearer First\r\n"}) {
    EXPECT_EQ(status("/head", header), 401) << header;
  }
  for (const char* path : {"/head", "/v1/models", "/generate", "/", "/health/", "/health_generate", "/HEALTH",
                           "//health", "/health/../head", "/metrics%2f", "/missing"}) {
    EXPECT_EQ(status(path, ""), 401) << path;
  }
  EXPECT_EQ(status("/health", ""), 200);
  EXPECT_EQ(status("/metrics", ""), 200);
  EXPECT_EQ(status("/livez", ""), 404);  // open, but no such route in the fake
}

TEST_F(ServerHttp, RefusesAStrangerBeforeTheBody) {
  config.api_keys = {"key"};
  start();
  RawClient one = client();
  ASSERT_TRUE(one.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000\r\n\r\n"));
  EXPECT_EQ(one.response().status, 401);
}

TEST_F(ServerHttp, WithoutKeysAuthorizationIsIgnored) {
  start();
  EXPECT_EQ(client().ask(get("/head", "Authorization: Bearer None\r\n")).status, 200);
}

TEST_F(ServerHttp, AnyBytesAreSurvived) {
  start();
  std::mt19937 random(3);
  const std::string seeds[] = {
      get("/head"),    post("/echo", "{\"a\":1}"),
      get("/count?5"), get("/metrics"),
      get("/drop"),    "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"};
  for (int round = 0; round < 1500; ++round) {
    std::string bytes;
    if (round % 3 == 0) {
      bytes.resize(random() % 300);
      for (auto& c : bytes) c = static_cast<char>(random());
    } else {
      for (unsigned i = 0; i <= random() % 3; ++i) bytes += seeds[random() % std::size(seeds)];
      for (unsigned edits = random() % 4; edits > 0; --edits)
        bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    RawClient one = client();
    one.send(bytes);
    if (random() % 2 == 0) one.finish_sending();
    if (random() % 3 == 0) one.receive(1);
    if (random() % 3 == 0) one.reset();
  }
  EXPECT_EQ(client().ask(get("/health")).status, 200);
}

}  // namespace
}  // namespace dsv3
