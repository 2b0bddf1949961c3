#include "fault_guard.h"

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <mutex>

namespace dsv3::weights {
namespace {

struct Guard {
  sigjmp_buf jump;
  uintptr_t begin, end;
};

// Written and read by one thread only: its code and its own synchronous signals.
thread_local Guard* volatile t_guard = nullptr;
struct sigaction g_previous;  // written once, before our handler can run

void on_sigbus(int signal, siginfo_t* info, void* context) {
  Guard* const guard = t_guard;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (guard != nullptr && info->si_code > 0 && address >= guard->begin && address < guard->end) {
    t_guard = nullptr;
    siglongjmp(guard->jump, 1);
  }
  if ((g_previous.sa_flags & SA_SIGINFO) != 0) {
    g_previous.sa_sigaction(signal, info, context);
  } else if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) {
    g_previous.sa_handler(signal);
  } else {
    // Not ours: die of it the usual way. A fault comes again on return; a sent signal has to be sent again.
    std::signal(signal, SIG_DFL);
    if (info->si_code <= 0) std::raise(signal);
  }
}

}  // namespace

void install_fault_guard() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, nullptr, &g_previous);
    sigaction(SIGBUS, &action, nullptr);
  });
}

bool run_with_fault_guard(const void* begin, size_t bytes, void (*body)(void*), void* context) {
  Guard guard;
  guard.begin = reinterpret_cast<uintptr_t>(begin);
  guard.end = guard.begin + bytes;
  // The mask is saved, at the price of a system call, and restored by the jump: otherwise SIGBUS would stay blocked, by
  // the kernel or by whatever wraps handlers (ThreadSanitizer does), and the second fault would end the process.
  if (sigsetjmp(guard.jump, 1) != 0) return false;
  t_guard = &guard;
  body(context);
  t_guard = nullptr;
  return true;
}

}  // namespace dsv3::weights
