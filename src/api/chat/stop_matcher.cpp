#include "chat/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace dsv3 {
namespace {

std::vector<std::string> without_empty(std::vector<std::string> stops) {
  std::erase_if(stops, [](const std::string& stop) { return stop.empty(); });
  return stops;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : stops_(without_empty(std::move(stops))), include_stop_(include_stop) {}

// Length of the longest end of held_ that a stop string begins with.
size_t StopMatcher::undecided_bytes() const {
  const std::string_view text = held_;
  size_t most = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, text.size()); n > most; --n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) most = n;
    }
  }
  return most;
}

std::string StopMatcher::push(std::string_view text) {
  if (matched()) return {};
  if (stops_.empty()) return std::string(text);
  held_.append(text);
  size_t best_begin = std::string::npos, best_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < best_end || (end == best_end && begin < best_begin)) {
      best_begin = begin;
      best_end = end;
    }
  }
  if (best_end != std::string::npos) {
    match_ = held_.substr(best_begin, best_end - best_begin);
    std::string out = held_.substr(0, include_stop_ ? best_end : best_begin);
    held_.clear();
    return out;
  }
  const size_t keep = undecided_bytes();
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return out;
}

std::string StopMatcher::flush() {
  return std::exchange(held_, {});
}

}  // namespace dsv3
