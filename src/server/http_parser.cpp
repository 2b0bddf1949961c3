// The request state machine. Runs on the loop thread; never allocates in proportion to what a client announces, only
// to what it has sent.
#include "http_parser.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace dsv3 {
namespace {

constexpr size_t kMaxMethodBytes = 32;
constexpr size_t kMaxChunkSizeDigits = 16;
constexpr size_t kMaxLengthDigits = 18;  // fits int64 without overflow
constexpr size_t kFirstBodyReserve = 64 << 10;
constexpr size_t kKeptLineBytes = 512;  // larger line buffers are given back after each request

// RFC 9110 tchar: what methods and field names are made of.
constexpr std::array<bool, 256> make_token_table() {
  std::array<bool, 256> table{};
  for (int c = '0'; c <= '9'; ++c) table[static_cast<size_t>(c)] = true;
  for (int c = 'a'; c <= 'z'; ++c) table[static_cast<size_t>(c)] = true;
  for (int c = 'A'; c <= 'Z'; ++c) table[static_cast<size_t>(c)] = true;
  for (const char c : {'!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~'}) {
    table[static_cast<unsigned char>(c)] = true;
  }
  return table;
}
constexpr std::array<bool, 256> kToken = make_token_table();

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return kToken[c]; });
}

bool is_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::string to_lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), lower);
  return out;
}

bool equals_ignoring_case(std::string_view text, std::string_view lower_case) {
  return text.size() == lower_case.size() &&
         std::equal(text.begin(), text.end(), lower_case.begin(), [](char a, char b) { return lower(a) == b; });
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = lower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool is_control(unsigned char c) {
  return c < 0x20 || c == 0x7f;
}

// A line's bytes may be anything but control characters; tab is legal in values, CR and LF only as its end.
bool has_stray_control(std::string_view bytes) {
  return std::any_of(bytes.begin(), bytes.end(),
                     [](unsigned char c) { return is_control(c) && c != '\t' && c != '\r' && c != '\n'; });
}

// An encoded line break in a header is an attempt on whoever decodes it later; nothing real sends one.
bool has_encoded_line_break(std::string_view value) {
  for (size_t at = value.find('%'); at != std::string_view::npos; at = value.find('%', at + 1)) {
    if (equals_ignoring_case(value.substr(at, 6), "%0d%0a")) return true;
  }
  return false;
}

bool percent_decode(std::string_view text, std::string* out) {
  out->reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return false;
      const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
      if (high < 0 || low < 0) return false;
      c = static_cast<char>(high * 16 + low);
      if (is_control(static_cast<unsigned char>(c))) return false;
      i += 2;
    }
    out->push_back(c);
  }
  return true;
}

}  // namespace

const std::string* HttpMessage::header(std::string_view lower_case_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_case_name) return &value;
  }
  return nullptr;
}

void HttpParser::fail(int status, const char* message) {
  state_ = State::kFailed;
  fault_ = {status, message};
}

size_t HttpParser::feed(std::string_view bytes) {
  size_t used = 0;
  while (used < bytes.size() && state_ != State::kComplete && state_ != State::kFailed) {
    const bool in_head = step_ == Step::kRequestLine || step_ == Step::kHeaderLine;
    const std::string_view rest = bytes.substr(used);
    used += step_ == Step::kFixedBody || step_ == Step::kChunkData ? feed_body(rest) : feed_line(rest);
    if (in_head && state_ == State::kBody) break;
  }
  return used;
}

size_t HttpParser::feed_line(std::string_view bytes) {
  const size_t newline = bytes.find('\n');
  const bool ends = newline != std::string_view::npos;
  const std::string_view piece = ends ? bytes.substr(0, newline + 1) : bytes;
  if (state_ == State::kIdle) state_ = State::kHead;

  switch (step_) {
    case Step::kChunkSize:
      if (line_.size() + piece.size() > kMaxChunkSizeDigits + 2) {
        fail(400, "a chunk size must be 1 to 16 hexadecimal digits and nothing else");
        return piece.size();
      }
      break;
    case Step::kChunkEnd:
      if (line_.size() + piece.size() > 2) {
        fail(400, "a chunk is longer than its announced size");
        return piece.size();
      }
      break;
    default:
      head_bytes_ += piece.size();
      if (head_bytes_ > limits_.max_header_bytes) {
        fail(431, "the request line and header fields exceed the size limit");
        return piece.size();
      }
  }
  // Judged as it comes, so that bytes of another protocol are refused at once and not when a line ends.
  if (has_stray_control(piece)) {
    fail(400, "a control character stands in the request head or chunk framing");
    return piece.size();
  }
  if (!ends) {
    line_.append(piece);
    return piece.size();
  }

  std::string_view line = piece;
  if (!line_.empty()) {
    line_.append(piece);
    line = line_;
  }
  if (line.size() < 2 || line[line.size() - 2] != '\r') {
    fail(400, "lines must end in CR LF");
    return piece.size();
  }
  line.remove_suffix(2);
  if (line.find('\r') != std::string_view::npos) {
    fail(400, "a CR stands inside a line");
    return piece.size();
  }
  on_line(line);
  line_.clear();
  return piece.size();
}

void HttpParser::on_line(std::string_view line) {
  switch (step_) {
    case Step::kRequestLine:
      on_request_line(line);
      break;
    case Step::kHeaderLine:
      if (line.empty()) {
        on_head_end();
      } else {
        on_field(line, /*trailer=*/false);
      }
      break;
    case Step::kTrailerLine:
      if (line.empty()) {
        state_ = State::kComplete;
      } else {
        on_field(line, /*trailer=*/true);
      }
      break;
    case Step::kChunkSize:
      on_chunk_size(line);
      break;
    case Step::kChunkEnd:
      step_ = Step::kChunkSize;
      break;  // feed_line saw that it is exactly CR LF
    case Step::kFixedBody:
    case Step::kChunkData:
      break;  // not read by lines
  }
}

void HttpParser::on_request_line(std::string_view line) {
  if (line.empty()) {  // RFC 9112 2.2: an empty line before a request is ignored, as some clients end bodies with one
    state_ = State::kIdle;
    return;
  }
  const size_t first = line.find(' ');
  const size_t second = first == std::string_view::npos ? first : line.find(' ', first + 1);
  if (second == std::string_view::npos || line.find(' ', second + 1) != std::string_view::npos) {
    return fail(400, "the request line must be: method, one space, target, one space, version");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view version = line.substr(second + 1);
  if (!is_token(method) || method.size() > kMaxMethodBytes) return fail(400, "the method is not a token");
  if (version.size() != 8 || version.substr(0, 5) != "HTTP/" || !is_digits(version.substr(5, 1)) || version[6] != '.' ||
      !is_digits(version.substr(7, 1))) {
    return fail(400, "the version must be HTTP/1.1 or HTTP/1.0");
  }
  if (version[5] != '1' || version[7] > '1') return fail(505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
  message_.method = method;
  message_.minor_version = version[7] - '0';
  message_.keep_alive = message_.minor_version == 1;
  on_target(line.substr(first + 1, second - first - 1));
  step_ = Step::kHeaderLine;
}

void HttpParser::on_target(std::string_view target) {
  // Absolute form, which clients of a proxy send: the host is not used for routing.
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!equals_ignoring_case(target.substr(0, scheme.size()), scheme)) continue;
    target.remove_prefix(scheme.size());
    target.remove_prefix(std::min(target.find_first_of("/?"), target.size()));
    if (target.empty()) target = "/";
    break;
  }
  const bool asterisk = target == "*" && message_.method == "OPTIONS";
  if (!asterisk && (target.empty() || target.front() != '/')) return fail(400, "the request target must be a path");
  if (std::any_of(target.begin(), target.end(), [](unsigned char c) { return c <= 0x20 || c >= 0x7f || c == '#'; })) {
    return fail(400, "the request target has characters that must be percent-encoded");
  }
  const size_t question = target.find('?');
  if (question != std::string_view::npos) message_.query = target.substr(question + 1);
  if (!percent_decode(target.substr(0, question), &message_.path)) {
    return fail(400, "the path has a bad percent-encoding or an encoded control character");
  }
}

void HttpParser::on_field(std::string_view line, bool trailer) {
  if (++num_fields_ > limits_.max_headers) return fail(431, "too many header fields");
  if (line.front() == ' ' || line.front() == '\t') return fail(400, "folded header lines are not accepted");
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos) return fail(400, "a header line has no colon");
  const std::string_view name = line.substr(0, colon);
  const std::string_view value = trim(line.substr(colon + 1));
  if (!is_token(name)) return fail(400, "a header name is not a token directly followed by a colon");
  if (has_encoded_line_break(value)) return fail(400, "a header value holds an encoded line break");
  if (trailer) return;  // nothing reads trailers; their syntax still counts
  std::string key = to_lower(name);
  on_known_field(key, value);
  if (state_ == State::kFailed) return;
  message_.headers.emplace_back(std::move(key), std::string(value));
}

// The fields that framing hangs on. Each may come once.
void HttpParser::on_known_field(std::string_view name, std::string_view value) {
  if (name == "content-length") {
    if (has_length_) return fail(400, "more than one Content-Length");
    if (!is_digits(value)) return fail(400, "Content-Length must be decimal digits only");
    has_length_ = true;
    const size_t zeros = std::min(value.find_first_not_of('0'), value.size());
    const std::string_view digits = value.substr(zeros);
    if (digits.size() > kMaxLengthDigits) {
      content_length_ = UINT64_MAX;
    } else {
      std::from_chars(digits.data(), digits.data() + digits.size(), content_length_);
    }
  } else if (name == "transfer-encoding") {
    if (chunked_) return fail(400, "more than one Transfer-Encoding");
    if (!equals_ignoring_case(value, "chunked")) return fail(400, "the only Transfer-Encoding accepted is chunked");
    chunked_ = true;
  } else if (name == "host") {
    if (has_host_) return fail(400, "more than one Host");
    has_host_ = true;
  } else if (name == "connection") {
    while (!value.empty()) {
      const size_t comma = std::min(value.find(','), value.size());
      const std::string_view option = trim(value.substr(0, comma));
      if (equals_ignoring_case(option, "close")) has_close_ = true;
      if (equals_ignoring_case(option, "keep-alive")) message_.keep_alive = true;
      value.remove_prefix(std::min(comma + 1, value.size()));
    }
  } else if (name == "expect") {
    if (!equals_ignoring_case(value, "100-continue")) return fail(417, "the only expectation met is 100-continue");
    message_.expects_continue = message_.minor_version == 1;
  } else if (name == "content-encoding") {
    if (!equals_ignoring_case(value, "identity")) return fail(415, "request bodies must not be compressed");
  }
}

void HttpParser::on_head_end() {
  if (has_close_) message_.keep_alive = false;
  if (!has_host_ && message_.minor_version == 1) return fail(400, "HTTP/1.1 needs a Host header");
  if (chunked_ && has_length_) return fail(400, "Content-Length and Transfer-Encoding together");
  if (chunked_ && message_.minor_version == 0) return fail(400, "HTTP/1.0 has no Transfer-Encoding");
  if (!chunked_ && !has_length_ && message_.header("content-type") != nullptr &&
      (message_.method == "POST" || message_.method == "PUT" || message_.method == "PATCH")) {
    return fail(411, "a body needs Content-Length or chunked Transfer-Encoding");
  }
  if (content_length_ > limits_.max_body_bytes) return fail(413, "the body exceeds the size limit");
  if (!chunked_ && content_length_ == 0) {
    state_ = State::kComplete;
    return;
  }
  state_ = State::kBody;
  if (chunked_) {
    step_ = Step::kChunkSize;
  } else {
    step_ = Step::kFixedBody;
    remaining_bytes_ = content_length_;
    message_.body.reserve(std::min<size_t>(static_cast<size_t>(content_length_), kFirstBodyReserve));
  }
}

void HttpParser::on_chunk_size(std::string_view line) {
  if (line.empty() || line.size() > kMaxChunkSizeDigits ||
      !std::all_of(line.begin(), line.end(), [](char c) { return hex_digit(c) >= 0; })) {
    return fail(400, "a chunk size must be 1 to 16 hexadecimal digits and nothing else");
  }
  uint64_t size = 0;
  std::from_chars(line.data(), line.data() + line.size(), size, 16);
  if (size > limits_.max_body_bytes - message_.body.size()) return fail(413, "the body exceeds the size limit");
  remaining_bytes_ = size;
  step_ = size == 0 ? Step::kTrailerLine : Step::kChunkData;
}

size_t HttpParser::feed_body(std::string_view bytes) {
  const auto take_bytes = static_cast<size_t>(std::min<uint64_t>(remaining_bytes_, bytes.size()));
  message_.body.append(bytes.substr(0, take_bytes));
  remaining_bytes_ -= take_bytes;
  if (remaining_bytes_ == 0) {
    if (step_ == Step::kFixedBody) {
      state_ = State::kComplete;
    } else {
      step_ = Step::kChunkEnd;
    }
  }
  return take_bytes;
}

HttpMessage HttpParser::take() {
  HttpMessage message = std::move(message_);
  std::string line = std::move(line_);
  line.clear();
  if (line.capacity() > kKeptLineBytes) line = std::string();
  *this = HttpParser(limits_);
  line_ = std::move(line);
  return message;
}

}  // namespace dsv3
