// An ApiService and an Engine without a model: routes that the server's tests need, and exchanges that a test drives.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dsv3/api/service.h"
#include "dsv3/engine/engine.h"

namespace dsv3 {

class FakeService : public ApiService {
 public:
  struct Held {
    HttpRequest request;
    std::shared_ptr<Exchange> exchange;
  };

  void handle(HttpRequest request, std::shared_ptr<Exchange> exchange) override {
    ++handled;
    if (request.path == "/hold") {  // answered by the test, through next_held()
      std::lock_guard lock(mutex_);
      held_.push_back({std::move(request), std::move(exchange)});
      changed_.notify_all();
      return;
    }
    if (request.path == "/drop") return;
    if (request.path == "/throw") throw std::runtime_error("on purpose");
    if (request.path == "/slow") std::this_thread::sleep_for(std::chrono::milliseconds(300));
    if (request.path == "/count") {  // n events, sent at once
      exchange->begin_stream("text/event-stream; charset=utf-8");
      for (int i = 0; i < std::stoi(request.query); ++i) exchange->send("data: " + std::to_string(i) + "\n\n");
      exchange->send("data: [DONE]\n\n");
      exchange->end();
      return;
    }
    HttpResponse response;
    response.content_type = "text/plain";
    if (request.path == "/health") {
      response.status = draining ? 503 : 200;
      if (draining) response.headers.emplace_back("Retry-After", "5");
      response.body = "ok";
    } else if (request.path == "/echo") {
      response.body = request.body;
    } else if (request.path == "/head") {
      response.body = request.method + " " + request.path + " " + request.query + " " + request.request_id;
      for (const auto& [name, value] : request.headers) response.body += "\n" + name + "=" + value;
    } else if (request.path == "/split") {
      response.headers.emplace_back("X-Good", "yes");
      response.headers.emplace_back("X-Bad", "a\r\nInjected: 1");
      response.headers.emplace_back("Content-Length", "1");
      response.body = "whole";
    } else if (request.path == "/big") {
      response.body.assign(static_cast<size_t>(std::stoi(request.query)), 'x');
    } else if (request.path == "/nobody") {
      response.status = 204;
    } else {
      response.status = 404;
      response.body = "no such route: " + request.method + " " + request.path;
    }
    exchange->respond(std::move(response));
  }

  void set_draining() override { draining = true; }

  /// The oldest exchange of /hold, waiting for it up to 10 s; null if none came.
  Held next_held() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(10), [this] { return !held_.empty(); })) return {};
    Held held = std::move(held_.front());
    held_.pop_front();
    return held;
  }

  std::atomic<bool> draining{false};
  std::atomic<int> handled{0};

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Held> held_;  // guarded by mutex_
};

class FakeEngine : public Engine {
 public:
  Result<uint64_t> submit(GenerationRequest, std::shared_ptr<GenerationSink>) override {
    return Status(Code::kUnsupported, "a fake");
  }
  void cancel(uint64_t, int32_t) override {}
  void cancel_all() override {}
  bool drain(int64_t) override { return true; }
  Status flush_cache() override { return {}; }
  EngineStats stats() const override { return stats_; }
  Status health() const override { return {}; }
  const ExecutorLimits& limits() const override { return limits_; }

  EngineStats stats_;

 private:
  ExecutorLimits limits_;
};

}  // namespace dsv3
