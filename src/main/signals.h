// SIGINT and SIGTERM as values. The first one is taken by wait(); after abort_on_next() another one ends the process.
#pragma once

#include <csignal>
#include <cstdint>

namespace dsv3 {

class Signals {
 public:
  /// Blocks both signals in this thread and those it will start, and ignores SIGPIPE. Make it before any thread.
  Signals();

  /// The signal that came within `timeout_us`, or 0.
  int wait(int64_t timeout_us) const;

  /// From now on a signal ends the process at once, with exit code 128 + its number.
  void abort_on_next() const;

 private:
  sigset_t set_;
};

}  // namespace dsv3
