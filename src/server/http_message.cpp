#include "http_message.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>

#include "dsv3/base/json.h"

namespace dsv3 {
namespace {

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return status < 300 ? "OK" : "Error";
  }
}

void append_number(std::string* out, int64_t value, int base = 10) {
  std::array<char, 24> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, base).ptr;
  out->append(digits.data(), end);
}

// RFC 9110 IMF-fixdate, without the C locale.
void append_date(std::string* out) {
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::time(nullptr);
  std::tm tm{};
  gmtime_r(&now, &tm);
  const auto two = [out](int value) {
    out->push_back(static_cast<char>('0' + value / 10 % 10));
    out->push_back(static_cast<char>('0' + value % 10));
  };
  *out += kDays[tm.tm_wday];
  *out += ", ";
  two(tm.tm_mday);
  *out += ' ';
  *out += kMonths[tm.tm_mon];
  *out += ' ';
  append_number(out, tm.tm_year + 1900);
  *out += ' ';
  two(tm.tm_hour);
  *out += ':';
  two(tm.tm_min);
  *out += ':';
  two(tm.tm_sec);
  *out += " GMT";
}

bool is_safe_value(std::string_view value) {
  return std::none_of(value.begin(), value.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

bool is_safe_name(std::string_view name) {
  const bool token = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
  });
  if (!token) return false;
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return lower != "content-length" && lower != "transfer-encoding" && lower != "connection";
}

uint64_t mix(uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

std::string render_head(const ResponseHead& head, const std::vector<std::pair<std::string, std::string>>& extra) {
  std::string out;
  out.reserve(384);
  out += "HTTP/1.1 ";
  append_number(&out, head.status);
  out += ' ';
  out += reason_phrase(head.status);
  out += "\r\nDate: ";
  append_date(&out);
  if (!head.content_type.empty() && is_safe_value(head.content_type)) {
    out += "\r\nContent-Type: ";
    out += head.content_type;
  }
  if (head.chunked) out += "\r\nTransfer-Encoding: chunked";
  if (head.content_length >= 0) {
    out += "\r\nContent-Length: ";
    append_number(&out, head.content_length);
  }
  if (head.event_stream) out += "\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no";
  out += "\r\nx-request-id: ";
  out += head.request_id;
  if (!head.keep_alive) {
    out += "\r\nConnection: close";
  } else if (head.minor_version == 0) {
    out += "\r\nConnection: keep-alive";
  }
  if (head.cors) out += "\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: x-request-id";
  for (const auto& [name, value] : extra) {
    if (!is_safe_name(name) || !is_safe_value(value)) continue;
    out += "\r\n";
    out += name;
    out += ": ";
    out += value;
  }
  out += "\r\n\r\n";
  return out;
}

std::vector<std::pair<std::string, std::string>> preflight_headers() {
  return {{"Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, OPTIONS"},
          {"Access-Control-Allow-Headers", "authorization, content-type, x-request-id, *"},
          {"Access-Control-Max-Age", "86400"}};
}

std::string frame_chunk(std::string_view data) {
  std::string out;
  out.reserve(data.size() + 20);
  append_number(&out, static_cast<int64_t>(data.size()), 16);
  out += "\r\n";
  out += data;
  out += "\r\n";
  return out;
}

std::string error_body(int status, std::string_view message, const char* code) {
  Json error;
  error["message"] = message;
  error["type"] = status >= 500 ? "server_error" : "invalid_request_error";
  error["param"] = nullptr;
  error["code"] = code == nullptr ? Json(nullptr) : Json(code);
  Json body;
  body["error"] = std::move(error);
  return dump_json(body);
}

bool is_sane_request_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
}

RequestIds::RequestIds() {
  std::random_device random;
  for (auto& word : key_) word = (static_cast<uint64_t>(random()) << 32) | random();
}

std::string RequestIds::next() {
  static constexpr char kHex[] = "0123456789abcdef";
  ++count_;
  std::string id = "req-";
  for (const uint64_t key : key_) {
    const uint64_t word = mix(key + count_ * 0x9e3779b97f4a7c15ull);
    for (int shift = 60; shift >= 0; shift -= 4) id += kHex[(word >> shift) & 15];
  }
  return id;
}

}  // namespace dsv3
