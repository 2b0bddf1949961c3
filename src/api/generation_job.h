// What a validated request asks to have generated, whatever route it came by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dsv3/api/output_parser.h"
#include "dsv3/engine/engine.h"

namespace dsv3::api {

/// One prompt: one engine request with request.n choices.
struct PromptJob {
  GenerationRequest request;
  OutputParserOptions parser;
  std::string text;        ///< the prompt as text, where the answer repeats it (echo) or the log shows it
  std::string client_rid;  ///< the caller's id for abort; empty: none
};

struct GenerationJob {
  std::string id;        ///< as the answer shows it
  std::string route;     ///< for the log
  std::string param;     ///< the field that a fault of the prompt is blamed on
  std::string request_id;
  bool stream = false;
  std::vector<PromptJob> prompts;  ///< answered all or none
};

}  // namespace dsv3::api
