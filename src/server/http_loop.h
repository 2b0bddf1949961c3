// The event loop: one thread that owns the listening socket and every connection. It reads complete, bounded requests,
// hands them to a handler and writes what their Answers say. It never runs code of the service, never blocks on a
// client, and sleeps until a socket, the mailbox or the nearest deadline wakes it.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "answer.h"
#include "connection.h"
#include "dsv3/base/status.h"
#include "dsv3/server/server.h"
#include "http_message.h"
#include "listener.h"
#include "timers.h"

namespace dsv3 {

// Epoll and timer ids that are not connections.
constexpr uint64_t kListenerId = 0;
constexpr uint64_t kMailboxId = 1;
constexpr uint64_t kFirstConnectionId = 2;

/// What the loop asks of its owner. All called on the loop thread, all must return at once.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  /// Judges a request by its head, before its body is read. A fault refuses it and ends the connection.
  virtual std::optional<HttpFault> check_head(const HttpMessage& head) = 0;
  /// A whole request. The bytes of its body are charged to the loop's budget until HttpLoop::release(charged_bytes).
  virtual void on_request(HttpRequest request, std::shared_ptr<AnswerExchange> exchange, int64_t charged_bytes) = 0;
  /// A client left before its answer was complete: what the service wants to do then.
  virtual void on_client_left(std::function<void()> callback) = 0;
  virtual void on_response(int status) = 0;
};

class HttpLoop {
 public:
  /// Binds and listens; clients wait in the backlog until start().
  static Result<std::unique_ptr<HttpLoop>> create(const ServerConfig& config, HttpHandler& handler);
  ~HttpLoop();
  HttpLoop(const HttpLoop&) = delete;
  HttpLoop& operator=(const HttpLoop&) = delete;

  void start();
  int port() const { return port_; }
  void stop_accepting();
  bool wait_idle(int64_t timeout_us);
  void stop();
  void release(int64_t charged_bytes) { buffered_body_bytes_.fetch_sub(charged_bytes, std::memory_order_relaxed); }

 private:
  HttpLoop(const ServerConfig& config, HttpHandler& handler, std::unique_ptr<Listener> listener, int epoll_fd,
           std::shared_ptr<Mailbox> mailbox);

  void run();
  int wait_ms() const;
  void on_mail();
  void on_event(uint64_t id, uint32_t events);
  void on_timers();
  void on_deadline(Connection& connection);

  // Accepting (http_accept.cpp).
  void accept_all();
  void add_connection(int fd);
  bool evict_idle();
  void pause_accepting();
  void close_listener();

  // Reading.
  void read_ready(Connection& connection);
  void consume(Connection& connection, std::string_view bytes);
  bool judge(Connection& connection);
  void dispatch(Connection& connection);
  void refuse(Connection& connection, HttpFault fault);
  void peer_half_closed(Connection& connection);

  // Writing.
  void flush(Connection& connection);
  bool write_out(Connection& connection);
  void answer_written(Connection& connection);
  void close_if_idle(Connection& connection);
  void client_gone(Connection& connection);
  void linger(Connection& connection);

  // Bookkeeping.
  void begin_reading(Connection& connection);
  void set_phase(Connection& connection, Connection::Phase phase);
  void set_interest(Connection& connection, uint32_t events);
  void update_deadline(Connection& connection);
  void set_idle(Connection& connection, bool idle);
  void uncharge(Connection& connection);
  void drop(Connection& connection, bool reset);
  Connection* find(uint64_t id);

  const ServerConfig config_;
  HttpHandler& handler_;
  const std::shared_ptr<Mailbox> mailbox_;
  const int epoll_fd_;
  const int port_;
  std::unique_ptr<Listener> listener_;
  bool listener_paused_ = false;
  std::unordered_map<uint64_t, std::unique_ptr<Connection>> connections_;
  std::vector<std::unique_ptr<Connection>> dropped_;  // freed at the end of each turn
  std::list<uint64_t> idle_;                          // connections between requests, longest idle first
  Timers timers_;
  RequestIds request_ids_;
  uint64_t next_id_;
  std::vector<char> scratch_;  // one recv()
  Mailbox::Contents mail_;
  int64_t now_us_ = 0;  // of this turn
  bool stopping_ = false;

  std::atomic<int64_t> buffered_body_bytes_{0};
  std::mutex idle_mutex_;
  std::condition_variable idle_changed_;
  int num_answering_ = 0;  // guarded by idle_mutex_
  std::mutex stop_mutex_;
  std::thread thread_;  // guarded by stop_mutex_ once started
};

}  // namespace dsv3
