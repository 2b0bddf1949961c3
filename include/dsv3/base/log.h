// One JSON line per event on stderr: {"ts_us":..., "level":"info", "event":"ready", ...}. Thread safe.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

namespace dsv3 {

enum class LogLevel { kDebug, kInfo, kWarn, kError, kOff };

/// One field of an event. Strings are escaped and cut at 256 bytes.
struct LogField {
  std::string_view key;
  std::variant<int64_t, double, bool, std::string> value;

  LogField(std::string_view k, std::string_view v) : key(k), value(std::string(v)) {}
  LogField(std::string_view k, const std::string& v) : key(k), value(v) {}
  LogField(std::string_view k, const char* v) : key(k), value(std::string(v)) {}
  LogField(std::string_view k, bool v) : key(k), value(v) {}
  LogField(std::string_view k, double v) : key(k), value(v) {}
  LogField(std::string_view k, int v) : key(k), value(int64_t{v}) {}
  LogField(std::string_view k, unsigned v) : key(k), value(int64_t{v}) {}
  LogField(std::string_view k, long v) : key(k), value(int64_t{v}) {}
  LogField(std::string_view k, long long v) : key(k), value(int64_t{v}) {}
  LogField(std::string_view k, unsigned long v) : key(k), value(static_cast<int64_t>(v)) {}
};

void set_log_level(LogLevel level);
LogLevel log_level();
void log_event(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

}  // namespace dsv3
