// Event streams, clients that leave, and clients that do not read.
#include <sys/epoll.h>

#include <random>

#include "server_fixture.h"

namespace dsv3 {
namespace {

class ServerStream : public ServerTest {
 protected:
  FakeService::Held hold(RawClient& one, const std::string& request = get("/hold")) {
    EXPECT_TRUE(one.send(request));
    return service.next_held();
  }
};

TEST_F(ServerStream, HeadComesBeforeTheFirstEvent) {
  start();
  RawClient one = client();
  auto held = hold(one);
  held.exchange->begin_stream("text/event-stream; charset=utf-8");
  const std::string head = one.receive().value_or("");
  EXPECT_EQ(head.find("HTTP/1.1 200 OK\r\n"), 0u);
  for (const char* line : {"Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked",
                           "Cache-Control: no-cache", "X-Accel-Buffering: no", "x-request-id: req-"}) {
    EXPECT_NE(head.find(line), std::string::npos) << line;
  }
  EXPECT_EQ(head.find("Content-Length"), std::string::npos);
  EXPECT_EQ(head.substr(head.size() - 4), "\r\n\r\n") << "no body bytes before the first event";
  held.exchange->end();
}

TEST_F(ServerStream, OneEventIsOneChunkIsOneWrite) {
  start();
  RawClient one = client();
  auto held = hold(one);
  held.exchange->begin_stream("text/event-stream");
  ASSERT_TRUE(one.receive().has_value());
  for (const size_t size : {1u, 15u, 16u, 255u, 4096u, 20000u}) {
    const std::string event(size, 'e');
    held.exchange->send(event);
    char hex[20];
    std::snprintf(hex, sizeof hex, "%zx", size);
    EXPECT_EQ(one.receive().value_or(""), std::string(hex) + "\r\n" + event + "\r\n");
  }
  held.exchange->send("");  // would end the body
  EXPECT_FALSE(one.receive(30).has_value());
  held.exchange->end();
  EXPECT_EQ(one.receive().value_or(""), "0\r\n\r\n");
  EXPECT_EQ(one.ask(get("/health")).status, 200) << "the connection serves on";
}

TEST_F(ServerStream, EventsSentAtOnceStaySeparateChunks) {
  start();
  RawClient one = client();
  const RawResponse response = one.ask(get("/count?1000"));
  ASSERT_EQ(response.chunks.size(), 1001u);
  for (int i = 0; i < 1000; ++i)
    ASSERT_EQ(response.chunks[static_cast<size_t>(i)], "data: " + std::to_string(i) + "\n\n");
}

TEST_F(ServerStream, CallsOutOfOrderDoNothing) {
  start();
  RawClient one = client();
  auto held = hold(one);
  held.exchange->send("too early");
  held.exchange->end();
  held.exchange->begin_stream("text/plain");
  held.exchange->respond({500, "text/plain", "too late", {}});
  held.exchange->begin_stream("text/plain");
  held.exchange->send("a");
  held.exchange->end();
  held.exchange->end();
  held.exchange->send("b");
  EXPECT_EQ(one.response().body, "a");
  EXPECT_EQ(one.ask(get("/health")).body, "ok");
}

TEST_F(ServerStream, DroppedStreamIsCutOffWithoutItsEnd) {
  start();
  RawClient one = client();
  auto held = hold(one);
  held.exchange->begin_stream("text/event-stream");
  held.exchange->send("data: 1\n\n");
  held.exchange.reset();
  const std::string all = one.receive_all().value_or("");
  EXPECT_EQ(all.substr(all.find("\r\n\r\n") + 4), "9\r\ndata: 1\n\n\r\n") << "the client must see that it is not whole";
}

TEST_F(ServerStream, ADisconnectIsNoticedAtOnceInEveryPhase) {
  start();
  enum Way { kClose, kReset, kHalfClose };
  for (const Way way : {kClose, kReset, kHalfClose}) {
    for (const bool streaming : {false, true}) {
      RawClient one = client();
      auto held = hold(one);
      std::atomic<int> calls{0};
      if (streaming) {
        held.exchange->begin_stream("text/event-stream");
        held.exchange->send("data: 1\n\n");
        ASSERT_TRUE(one.receive().has_value());
      }
      held.exchange->on_disconnect([&] { ++calls; });
      const int64_t left_us = now_us();
      if (way == kClose) one.close();
      if (way == kReset) one.reset();
      if (way == kHalfClose) one.finish_sending();
      ASSERT_TRUE(eventually([&] { return calls == 1; }));
      EXPECT_LT(now_us() - left_us, 500'000);
      held.exchange->send("data: 2\n\n");
      held.exchange->end();
      held.exchange->respond({});
      bool late = false;
      held.exchange->on_disconnect([&] { late = true; });
      EXPECT_TRUE(late) << "who asks after the client left is told at once";
      EXPECT_EQ(calls, 1);
    }
  }
  EXPECT_TRUE(server->wait_idle(1'000'000));
  EXPECT_TRUE(contains_metric("dsv3:http_requests_total{model_name=\"tiny\",status=\"499\"} 6"));
}

TEST_F(ServerStream, HalfClosedClientsGetAnswersThatCostNoGeneration) {
  start();
  RawClient one = client();
  ASSERT_TRUE(one.send(get("/health") + get("/slow") + post("/echo", "abc")));
  one.finish_sending();
  const std::string all = one.receive_all().value_or("");
  EXPECT_NE(all.find("ok"), std::string::npos);
  EXPECT_NE(all.find("no such route"), std::string::npos);
  EXPECT_NE(all.find("abc"), std::string::npos);
  // Interest in a disconnect that comes after it: told at once, and the connection ends.
  RawClient other = client();
  auto held = hold(other);
  other.finish_sending();
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  bool told = false;
  held.exchange->on_disconnect([&] { told = true; });
  EXPECT_TRUE(told);
  EXPECT_TRUE(other.closed_by_server());
  // An answer that was complete before the client half-closed is written to the end.
  RawClient third = client(4096);
  auto big = hold(third);
  bool cancelled = false;
  big.exchange->on_disconnect([&] { cancelled = true; });
  big.exchange->respond({200, "text/plain", std::string(4 << 20, 'x'), {}});
  third.finish_sending();
  const std::string body = third.receive_all().value_or("");
  EXPECT_GT(body.size(), size_t{4} << 20);
  EXPECT_FALSE(cancelled);
}

TEST_F(ServerStream, NoCallbackAfterACompleteAnswer) {
  start();
  std::atomic<int> calls{0};
  auto token = std::make_shared<int>(0);
  RawClient one = client();
  auto held = hold(one);
  held.exchange->on_disconnect([&, token] { ++calls; });
  held.exchange->respond({});
  EXPECT_EQ(token.use_count(), 1) << "a callback that will not be called is let go";
  EXPECT_EQ(one.response().status, 200);
  one.close();
  EXPECT_EQ(client().ask(get("/health")).status, 200);
  EXPECT_EQ(calls, 0);
}

TEST_F(ServerStream, TooManyUnsentBytesCancelTheClient) {
  config.max_buffered_bytes = 256 << 10;
  start();
  RawClient one = client(4096);
  auto held = hold(one);
  std::atomic<bool> cancelled{false};
  held.exchange->on_disconnect([&] { cancelled = true; });
  held.exchange->begin_stream("text/event-stream");
  const std::string event(1000, 'e');
  int sent = 0;
  for (; sent < 100'000 && !cancelled; ++sent) {
    held.exchange->send(event);
    if (sent % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  EXPECT_TRUE(cancelled);
  EXPECT_LT(sent, 20'000);
  EXPECT_TRUE(server->wait_idle(1'000'000));
}

TEST_F(ServerStream, OneEventMayBeLargerThanTheLimit) {
  config.max_buffered_bytes = 64 << 10;
  start();
  RawClient one = client(4096);
  auto held = hold(one);
  std::atomic<bool> cancelled{false};
  held.exchange->on_disconnect([&] { cancelled = true; });
  held.exchange->begin_stream("text/event-stream");
  const std::string event(4 << 20, 'e');
  held.exchange->send(event);
  held.exchange->send("last");
  held.exchange->end();
  const RawResponse answer = one.response();
  EXPECT_EQ(answer.body, event + "last");
  EXPECT_FALSE(cancelled);
}

TEST_F(ServerStream, AReaderThatStallsIsCancelled) {
  config.send_stall_timeout_us = 200'000;
  config.max_buffered_bytes = 64 << 20;
  start();
  // One stream, and one large plain answer.
  for (const bool streaming : {true, false}) {
    RawClient one = client(4096);
    auto held = hold(one);
    std::atomic<int> cancelled{0};
    const int64_t begin_us = now_us();
    if (streaming) {
      held.exchange->on_disconnect([&] { ++cancelled; });
      held.exchange->begin_stream("text/event-stream");
      for (int i = 0; i < 8000; ++i) held.exchange->send(std::string(1000, 'e'));
    } else {
      held.exchange->respond({200, "text/plain", std::string(16 << 20, 'x'), {}});
    }
    EXPECT_TRUE(server->wait_idle(5'000'000));
    EXPECT_GE(now_us() - begin_us, 150'000);
    EXPECT_TRUE(eventually([&] { return cancelled == (streaming ? 1 : 0); }));
  }
}

TEST_F(ServerStream, ASlowReaderThatReadsIsServed) {
  config.send_stall_timeout_us = 300'000;
  start();
  RawClient one = client(8192);
  ASSERT_TRUE(one.send(get("/big?3000000", "Connection: close\r\n")));
  size_t total = 0;
  for (int i = 0;; ++i) {
    if (i < 20) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    const auto bytes = one.receive();
    ASSERT_TRUE(bytes.has_value());
    if (bytes->empty()) break;
    total += bytes->size();
  }
  EXPECT_GT(total, 3'000'000u);
}

TEST_F(ServerStream, ClientsThatLeaveAtAnyMomentAreCountedExactly) {
  start();
  std::mt19937 random(11);
  std::atomic<int> cancelled{0};
  int completed = 0, rounds = 0;
  for (; rounds < 300; ++rounds) {
    RawClient one = client();
    auto held = hold(one);
    auto exchange = held.exchange;
    held.exchange.reset();
    exchange->on_disconnect([&] { ++cancelled; });
    const unsigned events = random() % 30;
    const unsigned when = random() % 400;
    const int before = cancelled;
    std::thread leaver([&one, when, way = random() % 2] {
      std::this_thread::sleep_for(std::chrono::microseconds(when));
      way == 0 ? one.close() : one.reset();
    });
    if (random() % 2 == 0) {
      exchange->begin_stream("text/event-stream");
      for (unsigned i = 0; i < events; ++i) exchange->send("data: " + std::to_string(i) + "\n\n");
      exchange->end();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
      exchange->respond({});
    }
    leaver.join();
    // The callback runs for an answer that was not complete, and only then: one or the other, never both or neither.
    bool left = false;
    exchange->on_disconnect([&] { left = true; });
    if (left) {
      ASSERT_TRUE(eventually([&] { return cancelled == before + 1; })) << rounds;
    } else {
      ++completed;
    }
  }
  EXPECT_TRUE(server->wait_idle(2'000'000));
  EXPECT_EQ(cancelled + completed, rounds);
}

TEST_F(ServerStream, TwoThousandStreamsAtOnce) {
  constexpr int kStreams = 2000, kEvents = 5;
  start();
  std::vector<RawClient> clients;
  clients.reserve(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(client());
    ASSERT_TRUE(clients.back().connected()) << i;
    ASSERT_TRUE(clients.back().send(get("/hold")));
  }
  std::vector<std::shared_ptr<Exchange>> exchanges;
  for (int i = 0; i < kStreams; ++i) {
    exchanges.push_back(service.next_held().exchange);
    ASSERT_NE(exchanges.back(), nullptr) << i;
    exchanges.back()->begin_stream("text/event-stream");
  }
  std::thread producer([&] {
    for (int event = 0; event < kEvents; ++event) {
      for (auto& exchange : exchanges) exchange->send("data: " + std::to_string(event) + "\n\n");
    }
    for (auto& exchange : exchanges) exchange->end();
  });
  for (auto& one : clients) {
    const RawResponse response = one.response();
    ASSERT_EQ(response.status, 200);
    ASSERT_EQ(response.chunks.size(), static_cast<size_t>(kEvents));
    ASSERT_EQ(response.chunks.back(), "data: 4\n\n");
  }
  producer.join();
  EXPECT_TRUE(server->wait_idle(1'000'000));
  EXPECT_EQ(client().ask(get("/health")).status, 200);
}

}  // namespace
}  // namespace dsv3
