// A client that sends exactly the bytes it is told to and shows exactly the bytes that come back.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "dsv3/base/clock.h"

namespace dsv3 {

struct RawResponse {
  int status = 0;
  std::string head;  ///< status line and headers
  std::string body;  ///< chunks joined
  std::vector<std::string> chunks;

  bool has(std::string_view header_line) const {
    return head.find(std::string(header_line) + "\r\n") != std::string::npos;
  }
  std::string header(const std::string& name) const {
    const size_t at = head.find("\r\n" + name + ": ");
    if (at == std::string::npos) return "";
    const size_t begin = at + name.size() + 4;
    return head.substr(begin, head.find("\r\n", begin) - begin);
  }
};

class RawClient {
 public:
  static constexpr int kTimeoutMs = 10'000;

  explicit RawClient(int port, int receive_buffer_bytes = 0) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer_bytes > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    }
    if (port > 0) connect(port);
  }
  ~RawClient() { close(); }
  RawClient(RawClient&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), connected_(other.connected_), buffer_(std::move(other.buffer_)) {}
  RawClient& operator=(RawClient&&) = delete;

  bool connect(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    const int one = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return connected_;
  }
  bool connected() const { return connected_; }
  int fd() const { return fd_; }

  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  void finish_sending() { shutdown(fd_, SHUT_WR); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void reset() {
    const struct ::linger option { 1, 0 };
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &option, sizeof option);
    close();
  }

  /// What one recv() brings: nothing on timeout, an empty string at the end of the connection or on a reset.
  std::optional<std::string> receive(int timeout_ms = kTimeoutMs) {
    pollfd poller{fd_, POLLIN, 0};
    if (poll(&poller, 1, timeout_ms) != 1) return std::nullopt;
    std::string bytes(64 << 10, '\0');
    const ssize_t got = recv(fd_, bytes.data(), bytes.size(), 0);
    bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return bytes;
  }

  /// Everything until the server closes; nothing when it does not within the timeout.
  std::optional<std::string> receive_all(int timeout_ms = kTimeoutMs) {
    const int64_t end_us = now_us() + int64_t{timeout_ms} * 1000;
    std::string all = std::exchange(buffer_, "");
    while (now_us() < end_us) {
      const auto bytes = receive(static_cast<int>((end_us - now_us()) / 1000) + 1);
      if (!bytes) return std::nullopt;
      if (bytes->empty()) return all;
      all += *bytes;
    }
    return std::nullopt;
  }

  /// One answer; status 0 when the connection ends or stalls before it is whole.
  RawResponse response(bool head_only = false) {
    RawResponse out;
    size_t end;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
      if (!fill()) return {};
    }
    out.head = buffer_.substr(0, end + 2);
    buffer_.erase(0, end + 4);
    const int status = std::atoi(out.head.c_str() + 9);
    if (out.has("Transfer-Encoding: chunked") && !head_only) {
      while (true) {
        size_t line;
        while ((line = buffer_.find("\r\n")) == std::string::npos) {
          if (!fill()) return {};
        }
        const size_t size = std::strtoul(buffer_.c_str(), nullptr, 16);
        while (buffer_.size() < line + 2 + size + 2) {
          if (!fill()) return {};
        }
        if (size > 0) out.chunks.push_back(buffer_.substr(line + 2, size));
        if (buffer_.compare(line + 2 + size, 2, "\r\n") != 0) return {};
        buffer_.erase(0, line + 2 + size + 2);
        if (size == 0) break;
        out.body += out.chunks.back();
      }
    } else if (!head_only) {
      const size_t length = std::strtoul(out.header("Content-Length").c_str(), nullptr, 10);
      while (buffer_.size() < length) {
        if (!fill()) return {};
      }
      out.body = buffer_.substr(0, length);
      buffer_.erase(0, length);
    }
    out.status = status;
    return out;
  }

  RawResponse ask(std::string_view bytes) { return send(bytes) ? response() : RawResponse{}; }
  bool closed_by_server(int timeout_ms = kTimeoutMs) {
    const auto bytes = receive(timeout_ms);
    return bytes && bytes->empty();
  }

 private:
  bool fill() {
    const auto bytes = receive();
    if (!bytes || bytes->empty()) return false;
    buffer_ += *bytes;
    return true;
  }

  int fd_;
  bool connected_ = false;
  std::string buffer_;
};

inline std::string get(const std::string& target, const std::string& headers = "") {
  return "GET " + target + " HTTP/1.1\r\nHost: test\r\n" + headers + "\r\n";
}
inline std::string post(const std::string& target, const std::string& body, const std::string& headers = "") {
  return "POST " + target +
         " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n" + headers + "\r\n" + body;
}

}  // namespace dsv3
