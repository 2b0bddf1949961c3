#include "dsv3/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>

namespace dsv3 {
namespace {

TEST(TaskPool, RunsEverythingBeforeItEnds) {
  std::atomic<int> count{0};
  {
    TaskPool pool(3, "test");
    for (int i = 0; i < 1000; ++i) pool.post([&] { ++count; });
  }
  EXPECT_EQ(count, 1000);
}

TEST(Strand, KeepsOrder) {
  std::vector<int> seen;
  {
    TaskPool pool(4, "test");
    auto strand = std::make_shared<Strand>(pool);
    for (int i = 0; i < 1000; ++i) strand->post([&seen, i] { seen.push_back(i); });
  }
  std::vector<int> want(1000);
  std::iota(want.begin(), want.end(), 0);
  EXPECT_EQ(seen, want);
}

TEST(ForkJoin, CallsEachIndexOnce) {
  ForkJoin pool(4);
  for (int n : {0, 1, 2, 3, 100, 1000}) {
    for (int repeat = 0; repeat < 50; ++repeat) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
      pool.run(n, [&](int64_t i) { ++hits[static_cast<size_t>(i)]; });
      for (const auto& hit : hits) ASSERT_EQ(hit, 1);
    }
  }
}

}  // namespace
}  // namespace dsv3
