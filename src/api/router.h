// The table of routes. Adding one is one line in router.cpp.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "context.h"
#include "dsv3/api/exchange.h"
#include "errors.h"

namespace dsv3::api {

/// One request on its way through a handler.
struct Call {
  std::shared_ptr<ApiContext> context;
  HttpRequest request;
  std::shared_ptr<Exchange> exchange;
  std::string tail;  ///< what followed the route's path, for routes that take a rest
};

/// Answers through the exchange (now or later) and returns ok, or returns what to answer with in the route's shape.
using Handler = Status (*)(Call& call);

/// Finds the route and runs its handler; 404 and 405 included. Never throws.
void dispatch(Call call);

void respond_json(Exchange& exchange, const Json& body);
void respond_text(Exchange& exchange, std::string text);

}  // namespace dsv3::api
