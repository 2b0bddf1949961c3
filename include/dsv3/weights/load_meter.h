// Counts the bytes that loader threads have read and tells a callback how far they are, now and then.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

#include "dsv3/weights/weight_source.h"

namespace dsv3 {

/// Thread safe. The callback runs on whichever loader thread crosses the interval, never on two at once.
class LoadMeter {
 public:
  using Callback = std::function<void(const LoadProgress&)>;

  /// `total_bytes` 0: set by whoever opens the weights. A report at most every `interval_ms`; 0 reports every add.
  LoadMeter(int64_t total_bytes, int64_t interval_ms, Callback report);

  void add(int64_t bytes);
  /// Replaces the total; used by open_checkpoint where the caller left it 0.
  void set_total_if_unset(int64_t total_bytes);
  /// Bytes so far, mean rate since the first add, and the time left at that rate (0 before the first add).
  LoadProgress progress() const;
  /// A last report, whatever the interval says.
  void finish();

 private:
  const int64_t interval_us_;
  const Callback report_;
  std::atomic<int64_t> total_bytes_;
  std::atomic<int64_t> done_bytes_{0};
  std::atomic<int64_t> start_us_{0};  // 0 until the first add
  std::atomic<int64_t> next_report_us_{0};
  std::mutex report_mutex_;
};

}  // namespace dsv3
