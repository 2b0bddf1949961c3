#include "listener.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>

namespace dsv3 {
namespace {

constexpr int kBacklog = 4096;                    // a load generator opens thousands of connections at once
constexpr int kMaxAttempts = 16;                  // connections that died while they waited, skipped in one call
constexpr int kNotSentLowWaterBytes = 128 << 10;  // what the kernel holds for a client that does not read

constexpr std::string_view kRefusalBody =
    "{\"error\":{\"message\":\"too many open connections\",\"type\":\"server_error\",\"param\":null,"
    "\"code\":\"too_many_connections\"}}";
constexpr std::string_view kRefusalHead =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 114\r\nRetry-After: 1\r\n"
    "Connection: close\r\n\r\n";
static_assert(kRefusalBody.size() == 114, "kRefusalHead announces this length");

std::string system_reason(int error) {
  return std::system_category().message(error);
}

void set_int(int fd, int level, int option, int value) {
  // An option that a kernel lacks costs comfort, not correctness.
  [[maybe_unused]] const int ignored = setsockopt(fd, level, option, &value, sizeof value);
}

int bound_port(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  if (address.ss_family == AF_INET6) {
    sockaddr_in6 v6;
    std::memcpy(&v6, &address, sizeof v6);
    return ntohs(v6.sin6_port);
  }
  sockaddr_in v4;
  std::memcpy(&v4, &address, sizeof v4);
  return ntohs(v4.sin_port);
}

}  // namespace

int64_t raise_descriptor_limit(int64_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const auto need = static_cast<rlim_t>(wanted);
  if (limit.rlim_cur < need) {
    rlimit raised = limit;
    raised.rlim_cur = std::min(need, limit.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  return limit.rlim_cur == RLIM_INFINITY ? INT64_MAX : static_cast<int64_t>(limit.rlim_cur);
}

Result<std::unique_ptr<Listener>> Listener::open(const std::string& host, int port) {
  const std::string where = host + " port " + std::to_string(port);
  if (port < 0 || port > 65535) {
    return Status(Code::kInvalidArgument, "port is " + std::to_string(port) + ", allowed 0 to 65535", "port");
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) {
    return Status(Code::kUnavailable, "cannot listen on " + where + ": " + gai_strerror(error), "host");
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);

  int reason = EADDRNOTAVAIL;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    const int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, address->ai_protocol);
    if (fd < 0) {
      reason = errno;
      continue;
    }
    set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    // Accepted sockets inherit these: events go out at once, a vanished peer is noticed, the kernel buffers little.
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
    set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
    set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
    set_int(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, kNotSentLowWaterBytes);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, kBacklog) == 0) {
      return std::unique_ptr<Listener>(new Listener(fd, bound_port(fd)));
    }
    reason = errno;
    close(fd);
  }
  return Status(Code::kUnavailable, "cannot listen on " + where + ": " + system_reason(reason), "port");
}

Listener::Listener(int fd, int port) : fd_(fd), port_(port), spare_fd_(::open("/dev/null", O_RDONLY | O_CLOEXEC)) {}

Listener::~Listener() {
  close(fd_);
  if (spare_fd_ >= 0) close(spare_fd_);
}

Listener::Accepted Listener::accept(bool may_refuse) {
  bool out_of_descriptors = false;
  for (int attempt = 0; attempt < kMaxAttempts && !out_of_descriptors; ++attempt) {
    const int fd = accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) return {Outcome::kAccepted, fd};
    if (errno == EAGAIN || errno == EWOULDBLOCK) return {Outcome::kNothing, -1};
    if (errno == ENOBUFS || errno == ENOMEM) return {Outcome::kExhausted, -1};
    out_of_descriptors = errno == EMFILE || errno == ENFILE;
    // All else is the fault of one connection that is gone by now (ECONNABORTED, EPROTO, ...): take the next.
  }
  if (!out_of_descriptors) return {Outcome::kNothing, -1};
  if (!may_refuse || spare_fd_ < 0) {
    if (spare_fd_ < 0) spare_fd_ = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    return {Outcome::kExhausted, -1};
  }
  close(spare_fd_);
  const int fd = accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) {
    for (const std::string_view part : {kRefusalHead, kRefusalBody}) {
      [[maybe_unused]] const ssize_t sent = send(fd, part.data(), part.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    shutdown(fd, SHUT_WR);
    close(fd);
  }
  spare_fd_ = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  return {fd >= 0 ? Outcome::kRefused : Outcome::kExhausted, -1};
}

}  // namespace dsv3
