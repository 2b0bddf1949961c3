// The native request forms of other servers. Each parses its body and starts a generation; errors in the returned
// Status are for the caller to answer in the form's shape.
#pragma once

#include "router.h"

namespace dsv3::api {

Status start_sglang(Call& call, const Json& body);                  // sglang.cpp
Status start_lmdeploy(Call& call, const Json& body);                // lmdeploy.cpp
Status start_lightllm(Call& call, const Json& body, bool stream);   // lightllm.cpp

}  // namespace dsv3::api
