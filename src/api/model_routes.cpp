// What the served model is called: /v1/models and SGLang's /get_model_info.
#include "routes.h"

namespace dsv3::api {
namespace {

Json model_json(const ApiContext& context) {
  Json out;
  out["id"] = context.model_name;
  out["object"] = "model";
  out["created"] = context.started_unix_s;
  out["owned_by"] = "dsv3-serve";
  out["root"] = context.config.model_path;
  out["parent"] = nullptr;
  out["max_model_len"] = context.context_tokens;
  return out;
}

}  // namespace

Status handle_models(Call& call) {
  Json out;
  out["object"] = "list";
  out["data"] = Json::array({model_json(*call.context)});
  respond_json(*call.exchange, out);
  return {};
}

Status handle_model(Call& call) {
  const ApiContext& context = *call.context;
  // A path that begins with '/' meets the route's own slash, and some clients fold the two into one.
  if (!context.serves_model(call.tail) && !context.serves_model("/" + call.tail)) {
    return context.unknown_model(call.tail);
  }
  respond_json(*call.exchange, model_json(context));
  return {};
}

Status handle_model_info(Call& call) {
  const ApiContext& context = *call.context;
  Json out;
  out["model_path"] = context.config.model_path;
  out["tokenizer_path"] = context.config.model_path;
  out["served_model_name"] = context.model_name;
  out["is_generation"] = true;
  out["preferred_sampling_params"] = nullptr;
  out["weight_version"] = "default";
  respond_json(*call.exchange, out);
  return {};
}

}  // namespace dsv3::api
