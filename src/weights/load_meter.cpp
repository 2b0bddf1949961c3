#include "dsv3/weights/load_meter.h"

#include <algorithm>

#include "dsv3/base/clock.h"

namespace dsv3 {

LoadMeter::LoadMeter(int64_t total_bytes, int64_t interval_ms, Callback report)
    : interval_us_(interval_ms * 1000), report_(std::move(report)), total_bytes_(total_bytes) {}

void LoadMeter::set_total_if_unset(int64_t total_bytes) {
  int64_t unset = 0;
  total_bytes_.compare_exchange_strong(unset, total_bytes, std::memory_order_relaxed);
}

void LoadMeter::add(int64_t bytes) {
  const int64_t now = now_us();
  int64_t unset = 0;
  if (start_us_.compare_exchange_strong(unset, now, std::memory_order_relaxed)) {
    next_report_us_.store(now + interval_us_, std::memory_order_relaxed);
  }
  done_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  if (!report_) return;
  int64_t due = next_report_us_.load(std::memory_order_relaxed);
  // Whoever moves the deadline reports; the others go on reading.
  if (now < due || !next_report_us_.compare_exchange_strong(due, now + interval_us_, std::memory_order_relaxed)) return;
  if (const std::unique_lock lock(report_mutex_, std::try_to_lock); lock) report_(progress());
}

LoadProgress LoadMeter::progress() const {
  LoadProgress progress;
  progress.bytes_done = done_bytes_.load(std::memory_order_relaxed);
  progress.bytes_total = total_bytes_.load(std::memory_order_relaxed);
  const int64_t start = start_us_.load(std::memory_order_relaxed);
  if (start == 0) return progress;
  const double seconds = 1e-6 * static_cast<double>(std::max<int64_t>(now_us() - start, 1));
  progress.bytes_per_second = static_cast<double>(progress.bytes_done) / seconds;
  const auto left = static_cast<double>(std::max<int64_t>(progress.bytes_total - progress.bytes_done, 0));
  if (progress.bytes_per_second > 0) progress.eta_seconds = left / progress.bytes_per_second;
  return progress;
}

void LoadMeter::finish() {
  if (!report_) return;
  const std::lock_guard lock(report_mutex_);
  report_(progress());
}

}  // namespace dsv3
