// See the header.
#include "prompt_input.h"

#include <nlohmann/json.hpp>

#include "errors.h"
#include "sampling_fields.h"

namespace dsv3::api {
namespace {

PromptInput from_text(const Json& text, bool add_special_tokens, const ApiContext& context) {
  PromptInput out;
  out.text = text.get<std::string>();
  out.ids = context.tokenizer->encode(out.text, add_special_tokens && context.tokenizer->adds_bos());
  return out;
}

Result<PromptInput> from_ids(const Json& list, const std::string& path, const ApiContext& context) {
  if (list.empty()) return invalid_value(path, "is an empty list, at least one token is needed");
  PromptInput out;
  out.is_ids = true;
  DSV3_ASSIGN(out.ids, to_token_ids(list, path, context));
  return out;
}

}  // namespace

Result<std::vector<PromptInput>> parse_prompts(const Json& prompt, const std::string& field, bool add_special_tokens,
                                               const ApiContext& context) {
  std::vector<PromptInput> out;
  if (prompt.is_string()) {
    out.push_back(from_text(prompt, add_special_tokens, context));
    return out;
  }
  if (!prompt.is_array()) return invalid_type(field, "a string, a list of strings, or token ids", prompt);
  if (prompt.empty()) return invalid_value(field, "is an empty list");
  if (prompt[0].is_number()) {
    DSV3_ASSIGN(PromptInput one, from_ids(prompt, field, context));
    out.push_back(std::move(one));
    return out;
  }
  if (prompt.size() > kMaxPrompts) {
    return invalid_value(field,
                         "has " + std::to_string(prompt.size()) + " prompts, allowed " + std::to_string(kMaxPrompts));
  }
  for (size_t i = 0; i < prompt.size(); ++i) {
    const Json& entry = prompt[i];
    const std::string path = field + "[" + std::to_string(i) + "]";
    if (entry.is_string()) {
      out.push_back(from_text(entry, add_special_tokens, context));
    } else if (entry.is_array()) {
      DSV3_ASSIGN(PromptInput one, from_ids(entry, path, context));
      out.push_back(std::move(one));
    } else {
      return invalid_type(path, "a string or a list of token ids", entry);
    }
  }
  return out;
}

}  // namespace dsv3::api
