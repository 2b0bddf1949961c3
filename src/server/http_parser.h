// Reads HTTP/1.x requests from bytes as they arrive: strict, bounded, incremental. A pure state machine: no sockets,
// no clocks, no threads. What two readers could understand differently is refused, never guessed
// (docs/adr/0002-http-guard.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsv3 {

struct HttpLimits {
  size_t max_header_bytes = 32 << 10;  ///< request line, header fields and trailers together
  size_t max_headers = 100;
  size_t max_body_bytes = 32 << 20;  ///< decoded, that is without chunk framing
};

/// Why a request is refused. Texts are constants: nothing of the request is repeated.
struct HttpFault {
  int status = 0;
  const char* message = "";
};

/// One whole request.
struct HttpMessage {
  std::string method;
  std::string path;   ///< percent-decoded; no control characters
  std::string query;  ///< raw, without '?'
  int minor_version = 1;
  bool keep_alive = true;
  bool expects_continue = false;
  std::vector<std::pair<std::string, std::string>> headers;  ///< names in lower case, values trimmed, never decoded
  std::string body;

  const std::string* header(std::string_view lower_case_name) const;
};

class HttpParser {
 public:
  enum class State {
    kIdle,      ///< nothing of a request seen yet
    kHead,      ///< inside the request line or the header fields
    kBody,      ///< the head is complete and acceptable, the body is not complete
    kComplete,  ///< take() the request
    kFailed,    ///< see fault(); the connection cannot be used further
  };

  explicit HttpParser(HttpLimits limits) : limits_(limits) {}

  /// Reads up to the end of one request and returns how many bytes that took. Takes nothing once complete or failed.
  /// Returns early, in kBody with body_bytes() == 0, at the end of the head, so that the caller can judge it.
  size_t feed(std::string_view bytes);

  State state() const { return state_; }
  const HttpFault& fault() const { return fault_; }
  const HttpMessage& message() const { return message_; }  ///< head fields are valid from kBody on
  size_t body_bytes() const { return message_.body.size(); }

  /// The complete request; the parser is ready for the next one.
  HttpMessage take();

 private:
  enum class Step { kRequestLine, kHeaderLine, kFixedBody, kChunkSize, kChunkData, kChunkEnd, kTrailerLine };

  size_t feed_line(std::string_view bytes);
  void on_line(std::string_view line);
  void on_request_line(std::string_view line);
  void on_target(std::string_view target);
  void on_field(std::string_view line, bool trailer);
  void on_known_field(std::string_view name, std::string_view value);
  void on_head_end();
  void on_chunk_size(std::string_view line);
  size_t feed_body(std::string_view bytes);
  void fail(int status, const char* message);

  HttpLimits limits_;
  State state_ = State::kIdle;
  Step step_ = Step::kRequestLine;
  HttpFault fault_;
  HttpMessage message_;
  std::string line_;              // the part of a line that came with earlier bytes
  size_t head_bytes_ = 0;         // of lines, against max_header_bytes
  size_t num_fields_ = 0;         // header and trailer fields, against max_headers
  uint64_t remaining_bytes_ = 0;  // of the fixed body or of the chunk
  uint64_t content_length_ = 0;
  bool has_length_ = false;
  bool chunked_ = false;
  bool has_host_ = false;
  bool has_close_ = false;
};

}  // namespace dsv3
