#include "signals.h"

#include <ctime>
#include <pthread.h>
#include <unistd.h>

namespace dsv3 {
namespace {

extern "C" void end_now(int signal) {  // async-signal-safe calls only
  constexpr char kLine[] = "{\"level\":\"warn\",\"event\":\"aborted\",\"why\":\"second signal\"}\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kLine, sizeof kLine - 1);
  ::_exit(128 + signal);
}

}  // namespace

Signals::Signals() {
  sigemptyset(&set_);
  sigaddset(&set_, SIGINT);
  sigaddset(&set_, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

int Signals::wait(int64_t timeout_us) const {
  const timespec timeout = {timeout_us / 1'000'000, timeout_us % 1'000'000 * 1000};
  const int signal = sigtimedwait(&set_, nullptr, &timeout);
  return signal > 0 ? signal : 0;
}

void Signals::abort_on_next() const {
  struct sigaction action = {};
  action.sa_handler = end_now;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
}

}  // namespace dsv3
