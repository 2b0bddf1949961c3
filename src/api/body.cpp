// See the header.
#include "body.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "errors.h"

namespace dsv3::api {
namespace {

bool is_json_type(std::string_view content_type) {
  content_type = content_type.substr(0, content_type.find(';'));
  while (!content_type.empty() && (content_type.back() == ' ' || content_type.back() == '\t')) {
    content_type.remove_suffix(1);
  }
  while (!content_type.empty() && (content_type.front() == ' ' || content_type.front() == '\t')) {
    content_type.remove_prefix(1);
  }
  constexpr std::string_view kJson = "application/json";
  return std::equal(content_type.begin(), content_type.end(), kJson.begin(), kJson.end(),
                    [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) == b; });
}

}  // namespace

Result<Json> parse_body(const HttpRequest& request) {
  if (const std::string* type = request.header("content-type"); type != nullptr && !is_json_type(*type)) {
    return Status(Code::kInvalidArgument,
                  "Content-Type is " + describe(Json(*type)) + ", this route takes application/json");
  }
  if (request.body.empty()) return Status(Code::kInvalidArgument, "the request body is empty, a JSON object is needed");
  DSV3_ASSIGN(Json body, parse_json(request.body));
  if (!body.is_object()) return Status(Code::kInvalidArgument, "the request body must be a JSON object");
  return body;
}

}  // namespace dsv3::api
