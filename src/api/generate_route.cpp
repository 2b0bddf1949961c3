// /generate belongs to several servers: the body says whose form it is (api.md section 1).
#include "body.h"
#include "native.h"
#include "routes.h"

namespace dsv3::api {

Status handle_generate(Call& call) {
  DSV3_ASSIGN(const Json body, parse_body(call.request));
  const auto has = [&](const char* key) { return body.contains(key) && !body[key].is_null(); };
  Status status;
  ErrorShape shape = ErrorShape::kSglang;
  if (has("inputs")) {
    shape = ErrorShape::kLightllm;
    status = start_lightllm(call, body, false);
  } else if (has("prompt") ||
             (has("input_ids") && !has("text") && !has("sampling_params") &&
              (has("max_tokens") || has("session_id") || has("temperature")))) {
    if (has("text") || has("sampling_params")) {
      return {Code::kInvalidArgument, "prompt belongs to one form of this route, text and sampling_params to another",
              "prompt", "invalid_value"};
    }
    shape = ErrorShape::kLmdeploy;
    status = start_lmdeploy(call, body);
  } else if (has("text") || has("input_ids") || has("input_embeds") || has("sampling_params")) {
    status = start_sglang(call, body);
  } else {
    return {Code::kInvalidArgument,
            "one of these fields is needed: text or input_ids with sampling_params; inputs with parameters; prompt with "
            "max_tokens",
            "text", "missing_required_parameter"};
  }
  if (!status.ok()) call.exchange->respond(error_response(status, shape));
  return {};
}

}  // namespace dsv3::api
