// Steady time in microseconds. Never jumps with the wall clock.
#pragma once

#include <chrono>
#include <cstdint>

namespace dsv3 {

inline int64_t now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Seconds since 1970, for fields that clients read as a date. Not for measuring.
inline int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace dsv3
