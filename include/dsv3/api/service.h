// The HTTP API without HTTP: routes, request validation, rendering, and turning token updates into answers.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "dsv3/api/chat_template.h"
#include "dsv3/api/exchange.h"
#include "dsv3/base/status.h"
#include "dsv3/base/thread_pool.h"
#include "dsv3/engine/engine.h"
#include "dsv3/tokenizer/tokenizer.h"
#include "dsv3/weights/model_config.h"

namespace dsv3 {

struct ApiConfig {
  std::string model_path;                 ///< as the operator gave it; the default model id
  std::string served_model_name;          ///< empty: model_path
  bool accept_any_model = false;
  bool sampling_defaults_from_model = false;  ///< --sampling-defaults model
  GenerationDefaults generation_defaults;
  std::string reasoning_parser;           ///< "", deepseek-r1, deepseek-r1-0528, deepseek-v3.1
  bool default_thinking = false;
  bool reasoning_field_both = false;      ///< also emit `reasoning`
  bool strict_fields = false;             ///< unknown request fields are a 400
  bool log_requests = false;              ///< put prompts into the log
  int32_t max_stop_strings = 16, max_stop_bytes = 256, max_n = 128, max_logprobs = 20;
  int64_t request_timeout_us = 0;         ///< deadline of every request; 0: none
};

/// Serves every API route. handle() runs on a request thread and may return before the answer is complete; the rest
/// happens on `pool`. All references must outlive the service and everything posted to the pool.
class ApiService {
 public:
  struct Dependencies {
    Engine& engine;
    std::shared_ptr<const Tokenizer> tokenizer;
    std::shared_ptr<const ChatTemplate> chat_template;
    const ModelConfig& model_config;
    TaskPool& pool;
  };

  static std::unique_ptr<ApiService> create(ApiConfig config, Dependencies dependencies);
  virtual ~ApiService() = default;

  /// Answers any method and path; 404 and 405 included.
  virtual void handle(HttpRequest request, std::shared_ptr<Exchange> exchange) = 0;

  /// From now on /health is 503 and new generations are refused (kUnavailable).
  virtual void set_draining() = 0;
};

}  // namespace dsv3
