// The sampling part of a request, the same in meaning on every route, and the checks that need the prompt's length.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "context.h"
#include "dsv3/api/output_parser.h"
#include "dsv3/engine/engine.h"
#include "field_reader.h"
#include "generation_job.h"

namespace dsv3::api {

struct SamplingFields {
  SamplingParams params;  ///< seed, suppressed_ids and num_logprobs are filled in later
  std::optional<uint64_t> seed;
  int32_t n = 1;
  std::optional<int64_t> max_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  bool include_stop = false;  ///< leave the matched stop string (or stop token's text) in the output
};

/// Model defaults (with --sampling-defaults model) or OpenAI's.
SamplingFields default_sampling(const ApiContext& context);

/// Fields of OpenAI routes: api.md 5.1 and 5.2. `max_tokens` is left to the caller.
void read_openai_sampling(FieldReader& reader, const ApiContext& context, SamplingFields& out);

/// A string or a list of strings; neither empty strings nor more or longer ones than configured.
std::vector<std::string> read_stop(FieldReader& reader, std::string_view name, const ApiContext& context);
/// A list of ids inside the vocabulary.
std::vector<int32_t> read_token_ids(FieldReader& reader, std::string_view name, const ApiContext& context);
std::vector<std::pair<int32_t, float>> read_logit_bias(FieldReader& reader, const ApiContext& context);

/// Ids of a prompt. `path` names the list in messages.
Result<std::vector<int32_t>> to_token_ids(const Json& list, const std::string& path, const ApiContext& context);

/// How the fields are called on the route, for messages.
struct FieldNames {
  std::string_view prompt = "prompt";
  std::string_view max_tokens = "max_tokens";
  std::string_view min_tokens = "min_tokens";
};

/// Puts together what the engine and the parser need for one prompt. Absent max_tokens: the rest of the context.
/// kContextLength with the figures when prompt and output do not fit.
Result<PromptJob> make_prompt_job(const ApiContext& context, const SamplingFields& fields, std::vector<int32_t> ids,
                                  const FieldNames& names);

}  // namespace dsv3::api
