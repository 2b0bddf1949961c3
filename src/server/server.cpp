// Server: the policy around the loop. Who may ask (keys), on which threads requests are handled, /metrics and CORS.
#include "dsv3/server/server.h"

#include <malloc.h>

#include <exception>
#include <new>

#include "auth.h"
#include "dsv3/base/log.h"
#include "http_loop.h"

namespace dsv3 {
namespace {

// Parsing such a body takes up to some thirty times its size, which the allocator would keep for the thread that did it.
constexpr int64_t kLargeBodyBytes = 1 << 20;

HttpResponse method_not_allowed(const char* allowed) {
  HttpResponse response;
  response.status = 405;
  response.body = error_body(405, std::string("this route takes ") + allowed, nullptr);
  response.headers.emplace_back("Allow", allowed);
  return response;
}

class ServerImpl final : public Server, private HttpHandler {
 public:
  ServerImpl(const ServerConfig& config, ApiService& service, Engine& engine, Metrics& metrics)
      : config_(config), service_(service), engine_(engine), metrics_(metrics), keys_(config.api_keys) {}

  ~ServerImpl() override { stop(); }

  Status open() {
    // Probes have a thread of their own, so that they answer however many long prompts the others are busy with.
    probes_ = std::make_unique<TaskPool>(1, "http-probe");
    requests_ = std::make_unique<TaskPool>(config_.request_threads, "http-req");
    DSV3_ASSIGN(loop_, HttpLoop::create(config_, *this));
    loop_->start();
    log_event(LogLevel::kInfo, "listening",
              {{"host", config_.host},
               {"port", loop_->port()},
               {"auth", !config_.api_keys.empty()},
               {"max_connections", config_.max_connections},
               {"max_body_bytes", config_.max_body_bytes},
               {"max_header_bytes", config_.max_header_bytes},
               {"max_buffered_bytes", config_.max_buffered_bytes}});
    return {};
  }

  int port() const override { return loop_->port(); }
  void stop_accepting() override { loop_->stop_accepting(); }
  bool wait_idle(int64_t timeout_us) override { return loop_->wait_idle(timeout_us); }

  void stop() override {
    if (loop_ != nullptr) loop_->stop();
    // In this order: handlers that still run may find their client gone, and its callback runs on the probes' thread.
    requests_.reset();
    probes_.reset();
  }

 private:
  std::optional<HttpFault> check_head(const HttpMessage& head) override {
    if (is_open_path(head.path) || is_preflight(head.method)) return std::nullopt;
    if (keys_.admits(head.header("authorization"))) return std::nullopt;
    return HttpFault{401, "this server needs an API key: Authorization: Bearer KEY"};
  }

  void on_request(HttpRequest request, std::shared_ptr<AnswerExchange> exchange, int64_t charged_bytes) override {
    if (is_preflight(request.method)) {
      loop_release(charged_bytes);
      HttpResponse response;
      response.status = 204;
      response.headers = preflight_headers();
      exchange->respond(std::move(response));
      return;
    }
    TaskPool& pool = is_open_path(request.path) ? *probes_ : *requests_;
    // std::function wants copies; the request moves through a shared_ptr instead.
    auto moved = std::make_shared<HttpRequest>(std::move(request));
    pool.post([this, moved, exchange = std::move(exchange), charged_bytes]() mutable {
      handle(std::move(*moved), std::move(exchange));
      if (charged_bytes >= kLargeBodyBytes) malloc_trim(0);
      loop_release(charged_bytes);
    });
  }

  void on_client_left(std::function<void()> callback) override { probes_->post(std::move(callback)); }
  void on_response(int status) override { metrics_.on_http_response(status); }

  bool is_preflight(const std::string& method) const { return config_.cors && method == "OPTIONS"; }

  // The loop that charged these bytes may be stopping, but it is there until its threads' tasks are done.
  void loop_release(int64_t charged_bytes) {
    if (charged_bytes != 0) loop_->release(charged_bytes);
  }

  void handle(HttpRequest request, std::shared_ptr<AnswerExchange> exchange) {
    if (exchange->answer().client_gone()) return;  // left while it waited for this thread
    try {
      if (request.path == "/metrics") {
        serve_metrics(request, *exchange);
      } else {
        service_.handle(std::move(request), exchange);
      }
    } catch (const std::bad_alloc&) {
      log_event(LogLevel::kError, "request_out_of_memory");
      exchange->answer().abandon(503, "out of memory");
    } catch (const std::exception& error) {
      log_event(LogLevel::kError, "request_exception", {{"what", error.what()}});
      exchange->answer().abandon(500, "internal error");
    }
  }

  void serve_metrics(const HttpRequest& request, Exchange& exchange) {
    if (request.method != "GET") return exchange.respond(method_not_allowed("GET, HEAD"));
    HttpResponse response;
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    response.body = metrics_.render(engine_.stats());
    exchange.respond(std::move(response));
  }

  const ServerConfig config_;
  ApiService& service_;
  Engine& engine_;
  Metrics& metrics_;
  const KeyRing keys_;
  std::unique_ptr<TaskPool> probes_;
  std::unique_ptr<TaskPool> requests_;
  std::unique_ptr<HttpLoop> loop_;
};

Status check(const ServerConfig& config) {
  const auto positive = [](int64_t value, const char* name) {
    if (value > 0) return Status();
    return Status(Code::kInvalidArgument, std::string(name) + " is " + std::to_string(value) + ", must be positive",
                  name);
  };
  DSV3_TRY(positive(config.max_header_bytes, "max_header_bytes"));
  DSV3_TRY(positive(config.max_headers, "max_headers"));
  DSV3_TRY(positive(config.max_body_bytes, "max_body_bytes"));
  DSV3_TRY(positive(config.max_connections, "max_connections"));
  DSV3_TRY(positive(config.header_timeout_us, "header_timeout_us"));
  DSV3_TRY(positive(config.body_min_bytes_per_second, "body_min_bytes_per_second"));
  DSV3_TRY(positive(config.idle_timeout_us, "idle_timeout_us"));
  DSV3_TRY(positive(config.send_stall_timeout_us, "send_stall_timeout_us"));
  DSV3_TRY(positive(config.max_buffered_bytes, "max_buffered_bytes"));
  DSV3_TRY(positive(config.max_pending_body_bytes, "max_pending_body_bytes"));
  DSV3_TRY(positive(config.request_threads, "request_threads"));
  for (const auto& key : config.api_keys) {
    if (key.empty()) return Status(Code::kInvalidArgument, "an API key is empty", "api_keys");
  }
  return {};
}

}  // namespace

// Requests have threads of their own (config.request_threads), apart from the ones that answers are made on: tokenising
// a huge prompt there would hold up the streams.
Result<std::unique_ptr<Server>> Server::start(const ServerConfig& config, ApiService& service, Engine& engine,
                                              Metrics& metrics) {
  DSV3_TRY(check(config));
  auto server = std::make_unique<ServerImpl>(config, service, engine, metrics);
  DSV3_TRY(server->open());
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace dsv3
