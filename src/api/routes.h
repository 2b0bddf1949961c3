// The handlers, by file. Each validates its body itself and keeps nothing between calls.
#pragma once

#include "router.h"

namespace dsv3::api {

Status handle_chat_completions(Call& call);  // chat_route.cpp
Status handle_completions(Call& call);       // completion_route.cpp

Status handle_generate(Call& call);          // generate_route.cpp
Status handle_generate_stream(Call& call);   // lightllm.cpp
Status handle_root(Call& call);              // both of the above: the body's `stream` says which

Status handle_models(Call& call);            // model_routes.cpp
Status handle_model(Call& call);
Status handle_model_info(Call& call);

Status handle_alive(Call& call);             // probe_routes.cpp; 200 as long as anybody answers, draining or not
Status handle_health(Call& call);            // whether a request would be served
Status handle_health_generate(Call& call);   // whether a token comes out

Status handle_server_info(Call& call);       // control_routes.cpp
Status handle_version(Call& call);
Status handle_flush_cache(Call& call);
Status handle_abort_request(Call& call);

Status handle_tokenize(Call& call);          // tokenize_routes.cpp
Status handle_detokenize(Call& call);

}  // namespace dsv3::api
