// The border between HTTP and the API: one request in, one answer out. server implements it over a socket, tests
// over a string.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv3 {

struct HttpRequest {
  std::string method;      ///< "GET", "POST", ...
  std::string path;        ///< percent-decoded, without the query
  std::string query;       ///< raw, without '?'
  std::vector<std::pair<std::string, std::string>> headers;  ///< names in lower case
  std::string body;
  std::string request_id;  ///< the client's x-request-id, or ours

  /// nullptr if absent.
  const std::string* header(std::string_view lower_case_name) const {
    for (const auto& [name, value] : headers) {
      if (name == lower_case_name) return &value;
    }
    return nullptr;
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  ///< extra ones: Retry-After, Allow
};

/// Answers one request, from any thread, now or later: either respond() once, or begin_stream(), send() any number
/// of times, end(). Calls after the client left do nothing. Thread safe.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual void respond(HttpResponse response) = 0;
  virtual void begin_stream(std::string content_type) = 0;  ///< status 200, chunked
  virtual void send(std::string bytes) = 0;                 ///< goes out as exactly one HTTP chunk
  virtual void end() = 0;

  /// Called at most once, from a server thread, when the client left before the answer was complete. Called at once
  /// if it has left already.
  virtual void on_disconnect(std::function<void()> callback) = 0;
};

}  // namespace dsv3
