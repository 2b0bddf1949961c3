// Reads /proc and /sys; files that are absent or odd count as no limit.
#include "host_memory.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>

namespace dsv3 {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::optional<int64_t> leading_number(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return std::nullopt;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), value);
  if (error != std::errc() || end == text.data() + begin) return std::nullopt;
  return static_cast<int64_t>(std::min<uint64_t>(value, std::numeric_limits<int64_t>::max()));
}

/// The number behind `key` at the beginning of a line.
std::optional<int64_t> number_of(const std::string& text, std::string_view key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(key)) return leading_number(std::string_view(line).substr(key.size()));
  }
  return std::nullopt;
}

/// Visits `path` and its parents down to the root of the hierarchy.
int64_t least_left(const std::string& mount, std::string path, const char* limit, const char* usage, const char* cache_key) {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int depth = 0; depth < 64; ++depth) {
    const std::string folder = mount + path + "/";
    const auto max = leading_number(read_file(folder + limit));
    const auto used = leading_number(read_file(folder + usage));
    if (max && used) {
      const int64_t droppable = number_of(read_file(folder + "memory.stat"), cache_key).value_or(0);
      const int64_t left = *max - std::max<int64_t>(0, *used - droppable);
      least = std::min(least, std::max<int64_t>(0, left));
    }
    if (path.empty()) break;
    path.erase(path.rfind('/'));
  }
  return least;
}

}  // namespace

int64_t available_memory_bytes(const std::string& root) {
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  int64_t least = kNoLimit;
  if (const auto kib = number_of(read_file(root + "/proc/meminfo"), "MemAvailable:")) least = std::min(*kib, kNoLimit / 1024) * 1024;
  std::istringstream groups(read_file(root + "/proc/self/cgroup"));
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:/path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path.empty() || path.front() != '/' || path.find("..") != std::string::npos) continue;
    if (path == "/") path.clear();
    if (controllers.empty()) {
      least = std::min(least, least_left(root + "/sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file "));
    } else if (controllers == "memory") {
      least = std::min(least, least_left(root + "/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                         "total_inactive_file "));
    }
  }
  return least == kNoLimit ? 0 : least;
}

}  // namespace dsv3
