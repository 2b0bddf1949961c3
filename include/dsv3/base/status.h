// Status and Result: how functions report faults that the world can cause. Our own bugs abort (DSV3_CHECK).
#pragma once

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

namespace dsv3 {

/// What went wrong, in classes that decide what a caller does next. api/errors.cpp maps each one to HTTP.
enum class Code {
  kOk,
  kInvalidArgument,   ///< a request or flag is wrong; never worth repeating
  kContextLength,     ///< a prompt, or prompt + max tokens, exceeds the context
  kUnsupported,       ///< legal, but not built here
  kNotFound,          ///< no such model, route, file
  kUnauthorized,      ///< bad or missing key
  kTooLarge,          ///< a body or header over its limit
  kOverloaded,        ///< queue full; worth repeating later
  kUnavailable,       ///< loading, draining or unhealthy; worth repeating later
  kCancelled,         ///< the client went away or asked to abort
  kBadModelFile,      ///< checkpoint, tokenizer or template file refused
  kOutOfMemory,       ///< the memory plan does not fit
  kDeviceLost,        ///< a device or rank is gone; the process must end
  kInternal,          ///< our fault
};

/// Outcome of an operation. `param` names the request field or flag at fault, `reason` is a stable word for
/// clients (OpenAI's `code`, e.g. "invalid_type"); both may be empty.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message, std::string param = {}, std::string reason = {})
      : code_(code), message_(std::move(message)), param_(std::move(param)), reason_(std::move(reason)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& param() const { return param_; }
  const std::string& reason() const { return reason_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
  std::string param_;
  std::string reason_;
};

/// A value, or the Status that says why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {         // NOLINT: implicit on purpose
    if (status_.ok()) status_ = Status(Code::kInternal, "Result built from an ok Status");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition, const char* why) {
  std::fprintf(stderr, "{\"level\":\"fatal\",\"event\":\"check_failed\",\"at\":\"%s:%d\",\"condition\":\"%s\",\"why\":\"%s\"}\n",
               file, line, condition, why);
  std::abort();
}

}  // namespace dsv3

/// Aborts on our own mistakes. Never reachable from a request, a file or a peer.
#define DSV3_CHECK(condition, why) \
  ((condition) ? (void)0 : ::dsv3::check_failed(__FILE__, __LINE__, #condition, why))

/// Returns the Status of `expression` from the enclosing function unless it is ok.
#define DSV3_TRY(expression)                                   \
  do {                                                         \
    if (::dsv3::Status dsv3_status_ = (expression); !dsv3_status_.ok()) return dsv3_status_; \
  } while (false)

#define DSV3_CONCAT_INNER(a, b) a##b
#define DSV3_CONCAT(a, b) DSV3_CONCAT_INNER(a, b)

/// DSV3_ASSIGN(auto x, f()): x = value of the Result, or return its Status from the enclosing function.
#define DSV3_ASSIGN(target, expression) DSV3_ASSIGN_INNER(DSV3_CONCAT(dsv3_result_, __LINE__), target, expression)
#define DSV3_ASSIGN_INNER(result, target, expression) \
  auto result = (expression);                         \
  if (!result.ok()) return result.status();           \
  target = std::move(result).value()
