// The JSON body of a request.
#pragma once

#include "dsv3/api/exchange.h"
#include "dsv3/base/json.h"
#include "dsv3/base/status.h"

namespace dsv3::api {

/// Content-Type must be application/json or absent; the body one JSON object, nested 64 deep at most.
Result<Json> parse_body(const HttpRequest& request);

}  // namespace dsv3::api
