#include "dsv3/base/log.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "dsv3/base/json.h"

namespace dsv3 {
namespace {

std::atomic<LogLevel> g_level{LogLevel::kInfo};  // set once at start from the command line
constexpr size_t kMaxValueBytes = 256;

const char* level_name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return "debug";
    case LogLevel::kInfo: return "info";
    case LogLevel::kWarn: return "warn";
    case LogLevel::kError: return "error";
    case LogLevel::kOff: return "off";
  }
  return "?";
}

}  // namespace

void set_log_level(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }
LogLevel log_level() { return g_level.load(std::memory_order_relaxed); }

void log_event(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  if (level < log_level() || level == LogLevel::kOff) return;
  Json line;
  line["ts_us"] = std::chrono::duration_cast<std::chrono::microseconds>(
                      std::chrono::system_clock::now().time_since_epoch())
                      .count();
  line["level"] = level_name(level);
  line["event"] = event;
  for (const auto& field : fields) {
    std::visit(
        [&](const auto& value) {
          if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string>) {
            line[std::string(field.key)] = value.substr(0, kMaxValueBytes);
          } else {
            line[std::string(field.key)] = value;
          }
        },
        field.value);
  }
  const std::string text = dump_json(line) + "\n";
  std::fwrite(text.data(), 1, text.size(), stderr);  // one call: lines of several threads stay whole
}

}  // namespace dsv3
