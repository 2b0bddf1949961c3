#include "dsv3/weights/load_meter.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace dsv3 {
namespace {

TEST(LoadMeter, CountsFromManyThreadsAndReportsOneAtATime) {
  std::atomic<int> inside{0}, reports{0};
  LoadMeter meter(0, 0, [&](const LoadProgress& progress) {
    EXPECT_EQ(inside.fetch_add(1), 0);
    EXPECT_LE(progress.bytes_done, 40000);
    EXPECT_GT(progress.bytes_per_second, 0);
    ++reports;
    inside.fetch_sub(1);
  });
  meter.set_total_if_unset(80000);
  meter.set_total_if_unset(1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) meter.add(10);
    });
  }
  for (auto& thread : threads) thread.join();
  const LoadProgress progress = meter.progress();
  EXPECT_EQ(progress.bytes_done, 40000);
  EXPECT_EQ(progress.bytes_total, 80000);
  EXPECT_GT(progress.eta_seconds, 0);
  EXPECT_GE(reports, 1);
}

TEST(LoadMeter, KeepsTheInterval) {
  int reports = 0;
  LoadMeter meter(100, 60'000, [&](const LoadProgress&) { ++reports; });
  EXPECT_EQ(meter.progress().bytes_per_second, 0);
  for (int i = 0; i < 100; ++i) meter.add(1);
  EXPECT_EQ(reports, 0);
  meter.finish();
  EXPECT_EQ(reports, 1);
  EXPECT_EQ(meter.progress().eta_seconds, 0);
}

TEST(LoadMeter, NeedsNoCallback) {
  LoadMeter meter(10, 0, nullptr);
  meter.add(10);
  meter.finish();
  EXPECT_EQ(meter.progress().bytes_done, 10);
}

}  // namespace
}  // namespace dsv3
