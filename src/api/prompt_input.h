// Raw prompts: one text or one list of ids, or a batch of either.
#pragma once

#include <string>
#include <vector>

#include "context.h"

namespace dsv3::api {

struct PromptInput {
  std::vector<int32_t> ids;
  std::string text;    ///< as the client sent it; empty for ids
  bool is_ids = false;
};

constexpr size_t kMaxPrompts = 1024;  ///< of one request

/// string, [string], [int] or [[int]]. Texts are tokenised, with BOS where `add_special_tokens` and the tokenizer say
/// so; special tokens in them count, as the client writes the whole prompt. Faults name `field`.
Result<std::vector<PromptInput>> parse_prompts(const Json& prompt, const std::string& field, bool add_special_tokens,
                                               const ApiContext& context);

}  // namespace dsv3::api
