// The listening socket: bind, accept, and what to do when the process has no descriptor left. Loop thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "dsv3/base/status.h"

namespace dsv3 {

/// Raises RLIMIT_NOFILE's soft limit to at least `wanted`, as far as the hard limit lets it. Returns the soft limit.
int64_t raise_descriptor_limit(int64_t wanted);

class Listener {
 public:
  /// kUnavailable with the address and the system's reason when it cannot be had.
  static Result<std::unique_ptr<Listener>> open(const std::string& host, int port);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  int fd() const { return fd_; }
  int port() const { return port_; }

  enum class Outcome {
    kAccepted,
    kNothing,    ///< nobody waits
    kRefused,    ///< no descriptor: the client that waited was told 503 and closed, with the one kept for that
    kExhausted,  ///< no descriptor or memory at all: pause accepting
  };
  struct Accepted {
    Outcome outcome = Outcome::kNothing;
    int fd = -1;
  };
  /// `may_refuse`: when descriptors are out, spend the spare one on telling the client; else report kExhausted first.
  Accepted accept(bool may_refuse);

 private:
  Listener(int fd, int port);

  int fd_;
  int port_;
  int spare_fd_;  // given up for a moment to refuse a client when descriptors run out
};

}  // namespace dsv3
