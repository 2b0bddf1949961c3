// HttpLoop's accepting half: limits on connections, and what happens at them.
#include <unistd.h>

#include "dsv3/base/clock.h"
#include "dsv3/base/log.h"
#include "http_loop.h"

namespace dsv3 {
namespace {

constexpr int kAcceptsPerTurn = 256;     // then sockets that are open get their turn
constexpr int64_t kPauseUs = 100'000;    // when the system has no descriptor or memory for a connection
constexpr int64_t kMinIdleUs = 100'000;  // younger idle connections may have a request under way
constexpr int kEvictionAttempts = 64;
constexpr size_t kMaxRefusedConnections = 256;  // over the limit, open only to be told so

}  // namespace

void HttpLoop::accept_all() {
  for (int i = 0; i < kAcceptsPerTurn && listener_ != nullptr; ++i) {
    Listener::Accepted accepted = listener_->accept(/*may_refuse=*/false);
    if (accepted.outcome == Listener::Outcome::kExhausted) {
      if (evict_idle()) continue;
      accepted = listener_->accept(/*may_refuse=*/true);
    }
    switch (accepted.outcome) {
      case Listener::Outcome::kAccepted:
        add_connection(accepted.fd);
        break;
      case Listener::Outcome::kNothing:
        return;
      case Listener::Outcome::kRefused:
        handler_.on_response(503);
        break;
      case Listener::Outcome::kExhausted:
        pause_accepting();
        return;
    }
  }
}

void HttpLoop::add_connection(int fd) {
  const auto limit = static_cast<size_t>(config_.max_connections);
  bool refused = connections_.size() >= limit && !evict_idle();
  if (connections_.size() >= limit + kMaxRefusedConnections) {
    close(fd);
    return;
  }
  HttpLimits limits;
  limits.max_header_bytes = static_cast<size_t>(config_.max_header_bytes);
  limits.max_headers = static_cast<size_t>(config_.max_headers);
  limits.max_body_bytes = static_cast<size_t>(config_.max_body_bytes);
  auto owned = std::make_unique<Connection>(next_id_++, fd, limits);
  Connection& connection = *owned;
  epoll_event event{};
  event.events = connection.interest = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = connection.id;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    close(fd);
    return;
  }
  connections_.emplace(connection.id, std::move(owned));
  if (refused) {
    refuse(connection, {503, "too many open connections"});
    return;
  }
  begin_reading(connection);
}

// Makes room by closing the connection that has been idle longest. One whose next request is already in the kernel's
// buffer is read instead, and stays.
bool HttpLoop::evict_idle() {
  for (int i = 0; i < kEvictionAttempts && !idle_.empty(); ++i) {
    Connection* oldest = find(idle_.front());
    if (now_us_ - oldest->phase_since_us < kMinIdleUs) return false;
    close_if_idle(*oldest);
    if (oldest->dropped) return true;
  }
  return false;
}

void HttpLoop::pause_accepting() {
  if (listener_paused_) return;
  listener_paused_ = true;
  epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, listener_->fd(), nullptr);
  timers_.add(now_us_ + kPauseUs, kListenerId);
  log_event(LogLevel::kWarn, "accept_paused", {{"connections", connections_.size()}});
}

void HttpLoop::close_listener() {
  listener_.reset();
}  // closing takes it out of the epoll set

}  // namespace dsv3
