// From Status to what a client sees: HTTP status, the body in the dialect of the route, and makers of the usual faults.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "dsv3/api/exchange.h"
#include "dsv3/base/json.h"
#include "dsv3/base/status.h"

namespace dsv3::api {

/// Whose error body a route answers with.
enum class ErrorShape {
  kOpenAi,    ///< {"error":{message,type,param,code}}
  kSglang,    ///< {"error":{message}}
  kLightllm,  ///< {"message"}
  kLmdeploy,  ///< flat {"object":"error",message,type,param,code}
};

int http_status(Code code);

/// The body for `status`. Messages of our own faults are replaced by a fixed text: internals stay in the log.
Json error_body(const Status& status, ErrorShape shape);
HttpResponse error_response(const Status& status, ErrorShape shape);

Status invalid_type(std::string_view path, std::string_view expected, const Json& seen);
Status invalid_value(std::string_view path, std::string message);
Status missing_parameter(std::string_view path);
Status unsupported_parameter(std::string_view path, std::string_view why);

/// The value as a short text for messages: scalars as JSON, cut at 40 bytes; containers by their kind.
std::string describe(const Json& value);

}  // namespace dsv3::api
