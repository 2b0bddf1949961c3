#include "signals.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dsv3 {
namespace {

/// The wait status of a child that runs `body`, which must end the process itself.
template <class Body>
int in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(99);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

TEST(Signals, FirstIsAValueSecondEnds) {
  const int status = in_child([] {
    const Signals signals;
    if (signals.wait(1000) != 0) ::_exit(1);
    ::raise(SIGTERM);
    if (signals.wait(1'000'000) != SIGTERM) ::_exit(2);
    signals.abort_on_next();
    ::raise(SIGINT);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + SIGINT);
}

TEST(Signals, BrokenPipesDoNotEnd) {
  const int status = in_child([] {
    const Signals signals;
    ::raise(SIGPIPE);
    ::_exit(0);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace dsv3
