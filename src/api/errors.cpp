// Maps Status to HTTP. The one place that decides what a client sees of a fault.
#include "errors.h"

namespace dsv3::api {
namespace {

const char* error_type(int status) {
  if (status == 429) return "rate_limit_error";
  if (status == 403) return "permission_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

/// OpenAI's `code` where the Status does not bring its own; nullptr: null.
const char* default_reason(Code code) {
  switch (code) {
    case Code::kContextLength:
      return "context_length_exceeded";
    case Code::kUnsupported:
      return "unsupported_parameter";
    case Code::kUnauthorized:
      return "invalid_api_key";
    case Code::kOverloaded:
      return "queue_full";
    case Code::kOutOfMemory:
    case Code::kDeviceLost:
    case Code::kUnavailable:
      return "not_ready";
    case Code::kOk:
    case Code::kInvalidArgument:
    case Code::kNotFound:
    case Code::kTooLarge:
    case Code::kCancelled:
    case Code::kBadModelFile:
    case Code::kInternal:
      return nullptr;
  }
  return nullptr;
}

std::string public_message(const Status& status) {
  switch (status.code()) {
    case Code::kInternal:
    case Code::kBadModelFile:
    case Code::kOk:
      return "internal error";
    case Code::kDeviceLost:
      return "the server lost a device and is going down";
    case Code::kOutOfMemory:
      return "the server is out of memory";
    case Code::kInvalidArgument:
    case Code::kContextLength:
    case Code::kUnsupported:
    case Code::kNotFound:
    case Code::kUnauthorized:
    case Code::kTooLarge:
    case Code::kOverloaded:
    case Code::kUnavailable:
    case Code::kCancelled:
      return status.message();
  }
  return "internal error";
}

}  // namespace

int http_status(Code code) {
  switch (code) {
    case Code::kOk:
      return 200;
    case Code::kInvalidArgument:
      return 400;
    case Code::kContextLength:
      return 400;
    case Code::kUnsupported:
      return 400;
    case Code::kNotFound:
      return 404;
    case Code::kUnauthorized:
      return 401;
    case Code::kTooLarge:
      return 413;
    case Code::kOverloaded:
      return 429;
    case Code::kUnavailable:
      return 503;
    case Code::kCancelled:
      return 503;
    case Code::kBadModelFile:
      return 500;
    case Code::kOutOfMemory:
      return 503;
    case Code::kDeviceLost:
      return 503;
    case Code::kInternal:
      return 500;
  }
  return 500;
}

Json error_body(const Status& status, ErrorShape shape) {
  const int http = http_status(status.code());
  const std::string message = public_message(status);
  const char* fallback = default_reason(status.code());
  const Json param = status.param().empty() ? Json(nullptr) : Json(status.param());
  switch (shape) {
    case ErrorShape::kOpenAi: {
      if (fallback == nullptr && status.code() == Code::kInvalidArgument && !status.param().empty()) fallback = "invalid_value";
      Json code = !status.reason().empty() ? Json(status.reason()) : fallback ? Json(fallback) : Json(nullptr);
      return {{"error", {{"message", message}, {"type", error_type(http)}, {"param", param}, {"code", code}}}};
    }
    case ErrorShape::kSglang:
      return {{"error", {{"message", message}}}};
    case ErrorShape::kLightllm:
      return {{"message", message}};
    case ErrorShape::kLmdeploy:
      return {{"object", "error"}, {"message", message}, {"type", error_type(http)}, {"param", param}, {"code", http}};
  }
  return {{"message", message}};
}

HttpResponse error_response(const Status& status, ErrorShape shape) {
  HttpResponse response;
  response.status = http_status(status.code());
  response.body = dump_json(error_body(status, shape));
  if (response.status == 429 || response.status == 503) response.headers.emplace_back("Retry-After", "1");
  return response;
}

std::string describe(const Json& value) {
  if (value.is_null()) return "null";
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  constexpr size_t kMaxBytes = 40;
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (text.size() <= kMaxBytes) return dump_json(value);
    size_t cut = kMaxBytes;
    while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xc0) == 0x80) --cut;  // not inside a character
    return dump_json(Json(text.substr(0, cut))) + "...";
  }
  return dump_json(value);
}

Status invalid_type(std::string_view path, std::string_view expected, const Json& seen) {
  const char* kind = seen.is_null()      ? "null"
                     : seen.is_boolean() ? "a boolean"
                     : seen.is_number()  ? "a number"
                     : seen.is_string()  ? "a string"
                     : seen.is_array()   ? "an array"
                                         : "an object";
  return {Code::kInvalidArgument, std::string(path) + " must be " + std::string(expected) + ", got " + kind,
          std::string(path), "invalid_type"};
}

Status invalid_value(std::string_view path, std::string message) {
  return {Code::kInvalidArgument, std::string(path) + " " + std::move(message), std::string(path), "invalid_value"};
}

Status missing_parameter(std::string_view path) {
  return {Code::kInvalidArgument, std::string(path) + " is required", std::string(path), "missing_required_parameter"};
}

Status unsupported_parameter(std::string_view path, std::string_view why) {
  return {Code::kUnsupported, std::string(path) + " is not supported: " + std::string(why), std::string(path),
          "unsupported_parameter"};
}

}  // namespace dsv3::api
