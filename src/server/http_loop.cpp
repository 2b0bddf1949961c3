// HttpLoop's turn: wait, mail, sockets, timers; and its life cycle.
#include "http_loop.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <future>

#include "dsv3/base/clock.h"
#include "dsv3/base/log.h"
#include "dsv3/base/thread_pool.h"

namespace dsv3 {
namespace {

constexpr size_t kReadBytes = 64 << 10;
constexpr int kSpareDescriptors = 512;  // beside connections: files, model shards, NCCL, refused connections
constexpr int64_t kLingerUs = 5'000'000;

}  // namespace

HttpLoop::HttpLoop(const ServerConfig& config, HttpHandler& handler, std::unique_ptr<Listener> listener, int epoll_fd,
                   std::shared_ptr<Mailbox> mailbox)
    : config_(config),
      handler_(handler),
      mailbox_(std::move(mailbox)),
      epoll_fd_(epoll_fd),
      port_(listener->port()),
      listener_(std::move(listener)),
      next_id_(kFirstConnectionId),
      scratch_(kReadBytes) {}

HttpLoop::~HttpLoop() {
  stop();
  close(epoll_fd_);
}

Result<std::unique_ptr<HttpLoop>> HttpLoop::create(const ServerConfig& config, HttpHandler& handler) {
  const int64_t wanted = int64_t{config.max_connections} + kSpareDescriptors;
  const int64_t descriptors = raise_descriptor_limit(wanted);
  if (descriptors < wanted) {
    log_event(LogLevel::kWarn, "few_descriptors", {{"limit", descriptors}, {"wanted", wanted}});
  }
  DSV3_ASSIGN(std::unique_ptr<Listener> listener, Listener::open(config.host, config.port));
  auto mailbox = std::make_shared<Mailbox>();
  const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0 || mailbox->fd() < 0) {
    if (epoll_fd >= 0) close(epoll_fd);
    return Status(Code::kUnavailable, "no file descriptor left for the event loop; raise the limit (ulimit -n)");
  }
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kListenerId;
  const bool listening = epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener->fd(), &event) == 0;
  event.data.u64 = kMailboxId;
  const bool reachable = epoll_ctl(epoll_fd, EPOLL_CTL_ADD, mailbox->fd(), &event) == 0;
  // From here on the loop's destructor closes everything.
  std::unique_ptr<HttpLoop> loop(new HttpLoop(config, handler, std::move(listener), epoll_fd, std::move(mailbox)));
  if (!listening || !reachable) return Status(Code::kUnavailable, "the system refuses to watch the listening socket");
  return loop;
}

void HttpLoop::start() {
  std::lock_guard lock(stop_mutex_);
  thread_ = std::thread([this] { run(); });
}

void HttpLoop::run() {
  set_thread_name("http-loop");
  std::array<epoll_event, 256> events;
  while (!stopping_) {
    const int count = epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()), wait_ms());
    now_us_ = now_us();
    bool mail = false;
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      if (event.data.u64 == kListenerId) {
        accept_all();
      } else if (event.data.u64 == kMailboxId) {
        mail = true;  // after the sockets: a client that has left gets nothing more written
      } else {
        on_event(event.data.u64, event.events);
      }
    }
    if (mail) on_mail();
    on_timers();
    dropped_.clear();
  }
  close_listener();
  while (!connections_.empty()) {
    Connection& connection = *connections_.begin()->second;
    if (connection.phase == Connection::Phase::kAnswering) {
      client_gone(connection);
    } else {
      // Unread bytes would turn the close into a reset, and an answer still on its way would be lost with it.
      if (connection.phase == Connection::Phase::kLingering) read_ready(connection);
      drop(connection, /*reset=*/false);
    }
  }
  dropped_.clear();
}

int HttpLoop::wait_ms() const {
  if (timers_.empty()) return -1;
  const int64_t wait_us = timers_.next_us() - now_us();
  if (wait_us <= 0) return 0;
  return static_cast<int>(std::min<int64_t>((wait_us + 999) / 1000, 3'600'000));
}

void HttpLoop::on_mail() {
  mailbox_->take(&mail_);
  for (const uint64_t id : mail_.connections) {
    Connection* connection = find(id);
    if (connection == nullptr || connection->answer == nullptr) continue;
    if (!connection->has_output()) {
      flush(*connection);
    } else if (connection->answer->is_lost()) {  // else EPOLLOUT will bring what is new
      client_gone(*connection);
    }
  }
  for (const auto& call : mail_.calls) call();
}

void HttpLoop::on_event(uint64_t id, uint32_t events) {
  Connection* connection = find(id);
  if (connection == nullptr) return;  // dropped earlier in this turn
  if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
    // Once both sides have said all there is to say, the rest is read like any other end.
    return connection->phase == Connection::Phase::kLingering ? read_ready(*connection) : client_gone(*connection);
  }
  if ((events & EPOLLOUT) != 0) {
    flush(*connection);
    if (connection->dropped) return;
  }
  if (connection->phase == Connection::Phase::kAnswering) {
    if ((events & EPOLLRDHUP) != 0) {
      peer_half_closed(*connection);
    } else if ((events & EPOLLIN) != 0) {
      set_interest(*connection, connection->interest & ~EPOLLIN);  // the next request can wait in the kernel
    }
  } else if ((events & (EPOLLIN | EPOLLRDHUP)) != 0) {
    read_ready(*connection);
  }
}

// --- timers ---------------------------------------------------------------------------------------------------------

void HttpLoop::on_timers() {
  while (!timers_.empty() && timers_.next_us() <= now_us_) {
    const Timers::Entry entry = timers_.pop();
    if (entry.id == kListenerId) {
      if (listener_ == nullptr || !listener_paused_) continue;
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.u64 = kListenerId;
      listener_paused_ = epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, listener_->fd(), &event) != 0;
      if (listener_paused_) timers_.add(now_us_ + 1'000'000, kListenerId);
      continue;
    }
    Connection* connection = find(entry.id);
    if (connection == nullptr || connection->armed_us != entry.when_us) continue;
    connection->armed_us = kNever;
    if (connection->deadline_us <= now_us_) {
      on_deadline(*connection);
    } else if (connection->deadline_us != kNever) {
      connection->armed_us = connection->deadline_us;
      timers_.add(connection->armed_us, connection->id);
    }
  }
}

void HttpLoop::on_deadline(Connection& connection) {
  switch (connection.phase) {
    case Connection::Phase::kReading:
      switch (connection.parser.state()) {
        case HttpParser::State::kHead:
          return refuse(connection, {408, "the request head took too long to arrive"});
        case HttpParser::State::kBody:
          return refuse(connection, {408, "the request body arrives too slowly"});
        default:
          return drop(connection, /*reset=*/false);
      }
    case Connection::Phase::kAnswering:
      log_event(LogLevel::kDebug, "client_stalled");
      return client_gone(connection);
    case Connection::Phase::kLingering:
      return drop(connection, /*reset=*/false);
  }
}

void HttpLoop::update_deadline(Connection& connection) {
  int64_t deadline = kNever;
  const int64_t since = connection.phase_since_us;
  switch (connection.phase) {
    case Connection::Phase::kReading:
      switch (connection.parser.state()) {
        case HttpParser::State::kHead:
          deadline = since + config_.header_timeout_us;
          break;
        case HttpParser::State::kBody: {
          // The moment from which on the bytes received so far are too few, at the least rate allowed.
          const auto bytes = static_cast<int64_t>(connection.parser.body_bytes());
          const int64_t rate = std::max<int64_t>(config_.body_min_bytes_per_second, 1);
          deadline = since + std::max(config_.header_timeout_us, bytes * 1'000'000 / rate);
          break;
        }
        default:
          deadline = since + config_.idle_timeout_us;
      }
      break;
    case Connection::Phase::kAnswering:
      if (connection.has_output()) deadline = since + config_.send_stall_timeout_us;
      break;
    case Connection::Phase::kLingering:
      deadline = since + kLingerUs;
      break;
  }
  connection.deadline_us = deadline;
  if (deadline < connection.armed_us) {
    connection.armed_us = deadline;
    timers_.add(deadline, connection.id);
  }
}

// --- bookkeeping ----------------------------------------------------------------------------------------------------

Connection* HttpLoop::find(uint64_t id) {
  const auto found = connections_.find(id);
  return found == connections_.end() ? nullptr : found->second.get();
}

void HttpLoop::set_phase(Connection& connection, Connection::Phase phase) {
  const bool was = connection.phase == Connection::Phase::kAnswering;
  const bool is = phase == Connection::Phase::kAnswering;
  connection.phase = phase;
  connection.phase_since_us = now_us_;
  if (was == is) return;
  std::lock_guard lock(idle_mutex_);
  num_answering_ += is ? 1 : -1;
  if (num_answering_ == 0) idle_changed_.notify_all();
}

void HttpLoop::set_interest(Connection& connection, uint32_t events) {
  if (connection.interest == events) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = connection.id;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, connection.fd, &event) == 0) connection.interest = events;
}

void HttpLoop::set_idle(Connection& connection, bool idle) {
  if (connection.in_idle_list == idle) return;
  connection.in_idle_list = idle;
  if (idle) {
    connection.idle_entry = idle_.insert(idle_.end(), connection.id);
  } else {
    idle_.erase(connection.idle_entry);
  }
}

void HttpLoop::uncharge(Connection& connection) {
  if (connection.charged_bytes != 0) release(connection.charged_bytes);
  connection.charged_bytes = 0;
}

void HttpLoop::begin_reading(Connection& connection) {
  set_phase(connection, Connection::Phase::kReading);
  connection.answer.reset();
  connection.answer_complete = false;
  connection.head_checked = false;
  set_idle(connection, true);
  set_interest(connection, EPOLLIN | EPOLLRDHUP);
  update_deadline(connection);
}

// `reset`: what the kernel still holds for the client is thrown away and the client sees an error.
void HttpLoop::drop(Connection& connection, bool reset) {
  if (connection.dropped) return;
  connection.dropped = true;
  set_phase(connection, Connection::Phase::kLingering);
  set_idle(connection, false);
  uncharge(connection);
  connection.answer.reset();
  if (reset) {
    const struct ::linger option { 1, 0 };
    setsockopt(connection.fd, SOL_SOCKET, SO_LINGER, &option, sizeof option);
  }
  close(connection.fd);
  const auto found = connections_.find(connection.id);
  dropped_.push_back(std::move(found->second));
  connections_.erase(found);
}

// --- life cycle, called from other threads
// ----------------------------------------------------------------------------

void HttpLoop::stop_accepting() {
  mailbox_->draining.store(true);
  auto done = std::make_shared<std::promise<void>>();
  std::future<void> finished = done->get_future();
  {
    std::lock_guard lock(stop_mutex_);
    if (!thread_.joinable()) return;
    mailbox_->call([this, done] {
      close_listener();
      const std::vector<uint64_t> idle(idle_.begin(), idle_.end());
      for (const uint64_t id : idle) close_if_idle(*find(id));
      done->set_value();
    });
    finished.wait();
  }
}

bool HttpLoop::wait_idle(int64_t timeout_us) {
  std::unique_lock lock(idle_mutex_);
  return idle_changed_.wait_for(lock, std::chrono::microseconds(timeout_us), [this] { return num_answering_ == 0; });
}

void HttpLoop::stop() {
  std::lock_guard lock(stop_mutex_);
  if (!thread_.joinable()) return;
  mailbox_->draining.store(true);
  mailbox_->call([this] { stopping_ = true; });
  thread_.join();
}

}  // namespace dsv3
