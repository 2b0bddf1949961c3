// The bytes of HTTP answers: heads, chunks, error bodies, request ids. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv3 {

struct ResponseHead {
  int status = 200;
  std::string_view content_type;
  int64_t content_length = -1;  ///< -1: not announced (chunked, until close, or no body at all)
  bool chunked = false;
  bool event_stream = false;  ///< adds the headers that keep proxies from holding events back
  bool keep_alive = true;
  int minor_version = 1;  ///< of the request: HTTP/1.0 is told about keep-alive explicitly
  bool cors = false;
  std::string_view request_id;
};

/// Status line and headers with the empty line. `extra` entries that could break framing are left out.
std::string render_head(const ResponseHead& head, const std::vector<std::pair<std::string, std::string>>& extra = {});

/// The head that answers a CORS preflight comes with these.
std::vector<std::pair<std::string, std::string>> preflight_headers();

/// Size line, data, CR LF: one chunk. `data` must not be empty, since that would end the body.
std::string frame_chunk(std::string_view data);
constexpr std::string_view kLastChunk = "0\r\n\r\n";
constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

/// OpenAI's nested error body. `code` may be null.
std::string error_body(int status, std::string_view message, const char* code);

/// 1 to 128 printable ASCII characters without blanks: safe to repeat in a header and a log line.
bool is_sane_request_id(std::string_view id);

/// Ids that are unique across restarts. One thread.
class RequestIds {
 public:
  RequestIds();
  std::string next();

 private:
  uint64_t key_[2];
  uint64_t count_ = 0;
};

}  // namespace dsv3
