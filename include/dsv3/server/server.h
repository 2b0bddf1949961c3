// The HTTP server: sockets, limits, event streams, metrics, and the life cycle of the process's listener.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dsv3/api/service.h"
#include "dsv3/base/status.h"
#include "dsv3/engine/engine.h"

namespace dsv3 {

/// Defaults are those of reliability.md ("Proposed defaults"); printed at start.
struct ServerConfig {
  std::string host = "127.0.0.1";
  int port = 30000;                       ///< 0: any free port (see Server::port)
  std::vector<std::string> api_keys;      ///< empty: no auth
  int64_t max_header_bytes = 32 << 10;
  int max_headers = 100;
  int64_t max_body_bytes = 32 << 20;
  int max_connections = 4096;
  int64_t header_timeout_us = 10'000'000;
  int64_t body_min_bytes_per_second = 1024;  ///< judged after 10 s
  int64_t idle_timeout_us = 75'000'000;
  int64_t send_stall_timeout_us = 30'000'000;
  int64_t max_buffered_bytes = 1 << 20;   ///< unsent bytes of one stream; more cancels it
  int64_t max_pending_body_bytes = 1ll << 30;  ///< request bodies read and not yet handled, all together; else 503
  int request_threads = 4;
  bool cors = false;
  std::vector<std::string> metrics_compat;  ///< "vllm", "sglang": repeat metrics under their names
};

/// Prometheus registry over EngineStats and an EngineObserver. Thread safe.
class Metrics : public EngineObserver {
 public:
  static std::unique_ptr<Metrics> create(const std::string& model_name, const std::vector<std::string>& compat);
  virtual std::string render(const EngineStats& stats) = 0;  ///< text format 0.0.4
  virtual void on_http_response(int status) = 0;
};

class Server {
 public:
  /// Binds and listens (kUnavailable with the address and the system's reason if it cannot), then accepts until
  /// stop(). /metrics is answered here, everything else by `service`. References must outlive the server.
  static Result<std::unique_ptr<Server>> start(const ServerConfig& config, ApiService& service, Engine& engine,
                                               Metrics& metrics);
  virtual ~Server() = default;
  virtual int port() const = 0;

  /// Stops accepting and closes idle connections; answers in progress go on.
  virtual void stop_accepting() = 0;
  /// True once every answer in progress has been written, false when `timeout_us` passed first.
  virtual bool wait_idle(int64_t timeout_us) = 0;
  virtual void stop() = 0;  ///< closes everything and joins
};

}  // namespace dsv3
