// Fields that chat and completions share besides sampling: model, streaming, ids, and what is accepted or refused.
#pragma once

#include <optional>
#include <string>

#include "context.h"
#include "field_reader.h"
#include "sampling_fields.h"

namespace dsv3::api {

struct OpenAiFields {
  SamplingFields sampling;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool return_token_ids = false;
  std::string rid;
  std::string cache_salt;
  int32_t priority = 0;
};

/// Reads all of them; a fault is left in the reader.
OpenAiFields read_openai_fields(FieldReader& reader, const ApiContext& context);

/// The `model` field: absent, or one of the names that this server answers to, else kNotFound.
void check_model(FieldReader& reader, const ApiContext& context);

/// `rid` or `request_id`.
std::string read_rid(FieldReader& reader);

/// Fields of both SGLang's and OpenAI's forms that only matter to features which are not built: null and off are fine.
void refuse_unbuilt_features(FieldReader& reader);

void apply_openai_fields(const OpenAiFields& fields, PromptJob& job);

}  // namespace dsv3::api
