// Time limits, connection limits, running out of descriptors, draining, and doing nothing when idle.
#include <fcntl.h>

#include "server_fixture.h"

namespace dsv3 {
namespace {

class ServerLimits : public ServerTest {};

TEST_F(ServerLimits, SlowHeadsAreClosed) {
  config.header_timeout_us = 200'000;
  start();
  std::vector<RawClient> slow;
  for (int i = 0; i < 50; ++i) slow.push_back(client());
  const int64_t begin_us = now_us();
  for (int step = 0; step < 8; ++step) {
    for (auto& one : slow) one.send("G");
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    EXPECT_EQ(client().ask(get("/health")).status, 200) << "normal traffic goes on";
  }
  for (auto& one : slow) {
    EXPECT_EQ(one.response().status, 408);
    EXPECT_TRUE(one.closed_by_server());
  }
  EXPECT_LT(now_us() - begin_us, 3'000'000);
}

TEST_F(ServerLimits, SlowBodiesAreClosedAndFastEnoughOnesAreNot) {
  config.header_timeout_us = 200'000;  // also the time before a body's rate is judged
  config.body_min_bytes_per_second = 1000;
  start();
  RawClient slow = client(), fine = client();
  const std::string head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 700\r\n\r\n";
  slow.send(head);
  fine.send(head);
  bool refused = false;
  for (int i = 0; i < 7; ++i) {
    slow.send("a");
    fine.send(std::string(100, 'a'));
    std::this_thread::sleep_for(std::chrono::milliseconds(70));
    refused = refused || slow.receive(0).has_value();
  }
  EXPECT_TRUE(refused);
  EXPECT_EQ(fine.response().body.size(), 700u);
}

TEST_F(ServerLimits, IdleConnectionsAreClosed) {
  config.idle_timeout_us = 150'000;
  start();
  RawClient fresh = client(), used = client();
  EXPECT_EQ(used.ask(get("/health")).status, 200);
  RawClient busy = client();
  ASSERT_TRUE(busy.send(get("/hold")));
  auto held = service.next_held();
  EXPECT_TRUE(fresh.closed_by_server(2000));
  EXPECT_TRUE(used.closed_by_server(2000));
  held.exchange->respond({});
  EXPECT_EQ(busy.response().status, 200) << "waiting for an answer is not idle";
}

TEST_F(ServerLimits, BusyConnectionsAreBounded) {
  config.max_connections = 4;
  start();
  std::vector<RawClient> busy;
  std::vector<FakeService::Held> held;
  for (int i = 0; i < 4; ++i) {
    busy.push_back(client());
    busy.back().send(get("/hold"));
    held.push_back(service.next_held());
  }
  RawClient extra = client();
  const RawResponse refused = extra.ask(get("/health"));
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.header("Retry-After"), "1");
  EXPECT_EQ(refused.header("Connection"), "close");
  EXPECT_TRUE(extra.closed_by_server());
  extra.close();
  held[0].exchange->respond({});
  EXPECT_EQ(busy[0].response().status, 200);
  busy[0].close();
  EXPECT_TRUE(eventually([&] { return client().ask(get("/health")).status == 200; }));
  for (auto& one : held) one.exchange->respond({});
}

TEST_F(ServerLimits, IdleConnectionsMakeRoomForNewOnes) {
  config.max_connections = 8;
  start();
  std::vector<RawClient> idle;
  for (int i = 0; i < 8; ++i) {
    idle.push_back(client());
    EXPECT_EQ(idle.back().ask(get("/health")).status, 200);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  RawClient fresh = client();
  EXPECT_EQ(fresh.ask(get("/health")).status, 200);
  EXPECT_TRUE(idle[0].closed_by_server(1000)) << "the one that was idle longest";
  EXPECT_EQ(idle[1].ask(get("/health")).status, 200);
}

TEST_F(ServerLimits, ServesOnWithoutFreeDescriptors) {
  start();
  RawClient busy = client();
  busy.send(get("/hold"));
  auto held = service.next_held();
  std::vector<RawClient> waiting;
  for (int i = 0; i < 20; ++i) waiting.emplace_back(0);  // sockets now, connections later

  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int probe = open("/dev/null", O_RDONLY | O_CLOEXEC);
  close(probe);
  rlimit tight = before;
  tight.rlim_cur = static_cast<rlim_t>(probe);  // not one more
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  for (auto& one : waiting) EXPECT_TRUE(one.connect(server->port()));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const int64_t cpu_before_us = cpu_us();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(cpu_us() - cpu_before_us, 100'000) << "accept spins";
  int refused = 0;
  for (auto& one : waiting) {
    const RawResponse response = one.response();
    if (response.status == 503) ++refused;
    EXPECT_TRUE(one.closed_by_server()) << "refused ones are closed";
  }
  EXPECT_EQ(refused, 20);
  held.exchange->respond({200, "text/plain", "served", {}});
  EXPECT_EQ(busy.response().body, "served") << "open connections go on";

  // The busy connection is idle now: it makes room.
  RawClient& next = waiting[0];
  next.close();
  tight.rlim_cur = static_cast<rlim_t>(probe);
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  RawClient fresh = client();
  EXPECT_EQ(fresh.ask(get("/health")).status, 200);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(client().ask(get("/health")).status, 200);
}

TEST_F(ServerLimits, DrainingFinishesWhatRunsAndTakesNothingNew) {
  start();
  RawClient idle = client();
  EXPECT_EQ(idle.ask(get("/health")).status, 200);
  RawClient running = client(), streaming = client();
  running.send(get("/hold"));
  auto run = service.next_held();
  streaming.send(get("/hold"));
  auto stream = service.next_held();
  stream.exchange->begin_stream("text/event-stream");
  stream.exchange->send("data: 1\n\n");

  service.set_draining();
  server->stop_accepting();
  EXPECT_TRUE(idle.closed_by_server(1000));
  RawClient late(0);
  EXPECT_FALSE(late.connect(server->port())) << "the listener is closed";
  EXPECT_FALSE(server->wait_idle(50'000));

  run.exchange->respond({200, "text/plain", "done", {}});
  const RawResponse response = running.response();
  EXPECT_EQ(response.body, "done");
  EXPECT_EQ(response.header("Connection"), "close");
  EXPECT_TRUE(running.closed_by_server(1000));
  EXPECT_FALSE(server->wait_idle(20'000));
  stream.exchange->send("data: [DONE]\n\n");
  stream.exchange->end();
  EXPECT_TRUE(server->wait_idle(1'000'000));
  const RawResponse streamed = streaming.response();
  EXPECT_EQ(streamed.body, "data: 1\n\ndata: [DONE]\n\n");
  EXPECT_TRUE(streaming.closed_by_server(1000));
  server->stop_accepting();  // twice is harmless
  server->stop();
  server->stop();
  server->stop_accepting();
}

TEST_F(ServerLimits, WhatWasWrittenArrivesThoughTheServerStopsAtOnce) {
  start();
  RawClient one = client(4096);
  one.send(get("/hold"));
  auto held = service.next_held();
  server->stop_accepting();
  held.exchange->respond({200, "text/plain", std::string(50'000, 'x'), {}});
  ASSERT_TRUE(server->wait_idle(2'000'000));
  one.send(get("/health"));  // unread when the server closes, unless it looks
  server->stop();
  EXPECT_EQ(one.response().body.size(), 50'000u);
}

TEST_F(ServerLimits, ARequestThatIsHereWhenDrainingBeginsIsAnswered) {
  for (int round = 0; round < 20; ++round) {
    service.draining = false;
    start();
    RawClient one = client();
    EXPECT_EQ(one.ask(get("/health")).status, 200);
    service.set_draining();
    one.send(get("/health"));
    server->stop_accepting();
    const RawResponse response = one.response();
    EXPECT_EQ(response.status, 503) << round;
    EXPECT_EQ(response.header("Retry-After"), "5");
    EXPECT_TRUE(one.closed_by_server(1000));
    server->stop();
  }
}

TEST_F(ServerLimits, StoppingTellsTheServiceOfEveryOpenAnswer) {
  start();
  std::atomic<int> cancelled{0};
  std::vector<RawClient> clients;
  std::vector<FakeService::Held> held;
  for (int i = 0; i < 10; ++i) {
    clients.push_back(client());
    clients.back().send(get("/hold"));
    held.push_back(service.next_held());
    held.back().exchange->on_disconnect([&] { ++cancelled; });
    if (i % 2 == 0) held.back().exchange->begin_stream("text/plain");
  }
  server->stop();
  EXPECT_EQ(cancelled, 10);
  server.reset();
  for (auto& one : held) {  // exchanges may outlive their server
    one.exchange->send("late");
    one.exchange->end();
    one.exchange->respond({});
  }
}

TEST_F(ServerLimits, AnIdleServerUsesNoCpu) {
  start();
  std::vector<RawClient> idle;
  for (int i = 0; i < 100; ++i) {
    idle.push_back(client());
    idle.back().ask(get("/health"));
  }
  RawClient busy = client();
  busy.send(get("/hold"));
  auto held = service.next_held();
  held.exchange->begin_stream("text/event-stream");
  ASSERT_TRUE(busy.receive().has_value());
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 20) << "something wakes up again and again";
  held.exchange->end();
}

TEST_F(ServerLimits, ProbesAnswerWhileAllRequestThreadsAreBusy) {
  config.request_threads = 1;
  start();
  std::vector<RawClient> slow;
  for (int i = 0; i < 4; ++i) {
    slow.push_back(client());
    slow.back().send(get("/slow"));
  }
  const int64_t begin_us = now_us();
  EXPECT_EQ(client().ask(get("/health")).status, 200);
  EXPECT_EQ(client().ask(get("/metrics")).status, 200);
  EXPECT_LT(now_us() - begin_us, 250'000);
  for (auto& one : slow) EXPECT_EQ(one.response().status, 404);
}

TEST_F(ServerLimits, StartSaysWhyItCannot) {
  start();
  const auto fails = [&](auto change) {
    ServerConfig wrong = config;
    change(wrong);
    auto result = Server::start(wrong, service, engine, *metrics);
    return result.ok() ? Status() : result.status();
  };
  const Status taken = fails([&](ServerConfig& c) { c.port = server->port(); });
  EXPECT_EQ(taken.code(), Code::kUnavailable);
  EXPECT_NE(taken.message().find("127.0.0.1 port " + std::to_string(server->port())), std::string::npos);
  EXPECT_NE(taken.message().find("in use"), std::string::npos) << taken.message();
  EXPECT_EQ(fails([](ServerConfig& c) { c.host = "203.0.113.1"; }).code(), Code::kUnavailable);
  EXPECT_EQ(fails([](ServerConfig& c) { c.host = "no such host"; }).param(), "host");
  EXPECT_EQ(fails([](ServerConfig& c) { c.port = 70000; }).param(), "port");
  EXPECT_EQ(fails([](ServerConfig& c) { c.request_threads = 0; }).param(), "request_threads");
  EXPECT_EQ(fails([](ServerConfig& c) { c.api_keys = {""}; }).param(), "api_keys");
}

}  // namespace
}  // namespace dsv3
