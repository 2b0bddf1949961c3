// The table of routes, and the one place where exceptions of libraries end.
#include "router.h"

#include <new>

#include "dsv3/base/log.h"
#include "routes.h"

namespace dsv3::api {
namespace {

enum Method : unsigned { kGet = 1, kPost = 2, kPut = 4 };

struct Route {
  std::string_view path;  ///< ending in "/*": any non-empty rest
  unsigned methods;
  Handler handler;
  ErrorShape shape;
};

constexpr Route kRoutes[] = {
    {"/v1/chat/completions", kPost, handle_chat_completions, ErrorShape::kOpenAi},
    {"/chat/completions", kPost, handle_chat_completions, ErrorShape::kOpenAi},
    {"/v1/completions", kPost, handle_completions, ErrorShape::kOpenAi},
    {"/completions", kPost, handle_completions, ErrorShape::kOpenAi},
    {"/v1/models", kGet, handle_models, ErrorShape::kOpenAi},
    {"/models", kGet, handle_models, ErrorShape::kOpenAi},
    {"/v1/models/*", kGet, handle_model, ErrorShape::kOpenAi},
    {"/models/*", kGet, handle_model, ErrorShape::kOpenAi},
    {"/generate", kPost | kPut, handle_generate, ErrorShape::kSglang},
    {"/generate_stream", kPost, handle_generate_stream, ErrorShape::kLightllm},
    {"/", kPost, handle_root, ErrorShape::kLightllm},
    {"/health", kGet, handle_health, ErrorShape::kOpenAi},
    {"/healthz", kGet, handle_health, ErrorShape::kOpenAi},
    {"/readyz", kGet, handle_health, ErrorShape::kOpenAi},
    {"/readiness", kGet, handle_health, ErrorShape::kOpenAi},
    {"/ping", kGet, handle_health, ErrorShape::kOpenAi},
    {"/livez", kGet, handle_alive, ErrorShape::kOpenAi},
    {"/liveness", kGet, handle_alive, ErrorShape::kOpenAi},
    {"/health_generate", kGet, handle_health_generate, ErrorShape::kOpenAi},
    {"/get_model_info", kGet, handle_model_info, ErrorShape::kSglang},
    {"/model_info", kGet, handle_model_info, ErrorShape::kSglang},
    {"/get_server_info", kGet, handle_server_info, ErrorShape::kSglang},
    {"/server_info", kGet, handle_server_info, ErrorShape::kSglang},
    {"/version", kGet, handle_version, ErrorShape::kOpenAi},
    {"/tokenize", kPost, handle_tokenize, ErrorShape::kOpenAi},
    {"/detokenize", kPost, handle_detokenize, ErrorShape::kOpenAi},
    {"/flush_cache", kGet | kPost, handle_flush_cache, ErrorShape::kSglang},
    {"/reset_prefix_cache", kPost, handle_flush_cache, ErrorShape::kOpenAi},
    {"/abort_request", kPost, handle_abort_request, ErrorShape::kSglang},
};

unsigned method_bit(std::string_view method) {
  if (method == "GET" || method == "HEAD") return kGet;  // server leaves the body out of an answer to HEAD
  if (method == "POST") return kPost;
  if (method == "PUT") return kPut;
  return 0;
}

std::string allow_header(unsigned methods) {
  std::string out;
  for (const auto& [bit, name] : {std::pair{kGet, "GET, HEAD"}, {kPost, "POST"}, {kPut, "PUT"}}) {
    if (methods & bit) out += (out.empty() ? "" : ", ") + std::string(name);
  }
  return out;
}

const Route* find_route(std::string_view path, std::string* tail) {
  for (const auto& route : kRoutes) {
    if (route.path == path) return &route;
    if (route.path.ends_with("/*")) {
      const std::string_view prefix = route.path.substr(0, route.path.size() - 1);
      if (path.size() > prefix.size() && path.starts_with(prefix)) {
        *tail = std::string(path.substr(prefix.size()));
        return &route;
      }
    }
  }
  return nullptr;
}

Status run(Handler handler, Call& call) {
  try {
    return handler(call);
  } catch (const std::bad_alloc&) {
    return {Code::kOutOfMemory, "bad_alloc in a handler"};
  } catch (const std::exception& e) {
    return {Code::kInternal, e.what()};
  }
}

}  // namespace

void dispatch(Call call) {
  const std::shared_ptr<Exchange> exchange = call.exchange;
  const Route* route = find_route(call.request.path, &call.tail);
  if (route == nullptr) {
    exchange->respond(error_response(
        {Code::kNotFound, "no route " + describe(Json(call.request.path)) + " on this server"}, ErrorShape::kOpenAi));
    return;
  }
  if ((route->methods & method_bit(call.request.method)) == 0) {
    const std::string allow = allow_header(route->methods);
    auto response = error_response({Code::kInvalidArgument, "method not allowed here, allowed " + allow}, route->shape);
    response.status = 405;
    response.headers.emplace_back("Allow", allow);
    exchange->respond(std::move(response));
    return;
  }
  const Status status = run(route->handler, call);
  if (status.ok()) return;
  const bool ours = http_status(status.code()) >= 500 && status.code() != Code::kUnavailable;
  log_event(ours ? LogLevel::kError : LogLevel::kDebug, "refused",
            {{"request_id", call.request.request_id}, {"route", route->path}, {"why", status.message()}});
  exchange->respond(error_response(status, route->shape));
}

void respond_json(Exchange& exchange, const Json& body) {
  HttpResponse response;
  response.body = dump_json(body);
  exchange.respond(std::move(response));
}

void respond_text(Exchange& exchange, std::string text) {
  HttpResponse response;
  response.content_type = "text/plain; charset=utf-8";
  response.body = std::move(text);
  exchange.respond(std::move(response));
}

}  // namespace dsv3::api
