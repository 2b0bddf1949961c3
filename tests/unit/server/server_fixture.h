// A real server on a free loopback port, in front of fakes.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "dsv3/base/log.h"
#include "dsv3/server/server.h"
#include "fake_service.h"
#include "raw_client.h"

namespace dsv3 {

/// CPU time that this process has used.
inline int64_t cpu_us() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * int64_t{1'000'000} + usage.ru_utime.tv_usec +
         usage.ru_stime.tv_usec;
}

/// Polls `condition` for up to `timeout_us`.
template <class F>
bool eventually(F condition, int64_t timeout_us = 10'000'000) {
  for (const int64_t end_us = now_us() + timeout_us; now_us() < end_us;) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return condition();
}

class ServerTest : public testing::Test {
 protected:
  ServerTest() {
    set_log_level(LogLevel::kOff);
    config.port = 0;
  }
  ~ServerTest() override {
    if (server != nullptr) server->stop();
  }

  void start() {
    auto started = Server::start(config, service, engine, *metrics);
    ASSERT_TRUE(started.ok()) << started.status().message();
    server = std::move(started).value();
  }
  RawClient client(int receive_buffer_bytes = 0) { return RawClient(server->port(), receive_buffer_bytes); }
  bool contains_metric(const std::string& line) {
    return metrics->render(engine.stats()).find(line + "\n") != std::string::npos;
  }

  ServerConfig config;
  FakeEngine engine;
  std::unique_ptr<Metrics> metrics = Metrics::create("tiny", {});
  FakeService service;
  std::unique_ptr<Server> server;
};

}  // namespace dsv3
