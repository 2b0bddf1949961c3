// /tokenize (text or chat form) and /detokenize, with the reply keys of both vLLM and SGLang.
#include "body.h"
#include "chat_request.h"
#include "openai_responses.h"
#include "routes.h"

namespace dsv3::api {
namespace {

/// The chat form takes the fields of a chat request that shape its prompt.
Status tokenize_chat(const Json& body, const ApiContext& context, std::vector<int32_t>* ids) {
  Json chat = Json::object();
  for (const char* key : {"model", "messages", "tools", "tool_choice", "chat_template", "chat_template_kwargs",
                          "add_generation_prompt", "continue_final_message", "thinking", "reasoning", "reasoning_effort"}) {
    if (body.contains(key)) chat[key] = body[key];
  }
  DSV3_ASSIGN(const ChatRequest request, parse_chat_request(chat, context));
  DSV3_ASSIGN(EncodedChat encoded, encode_chat(request, context));
  *ids = std::move(encoded.ids);
  return {};
}

}  // namespace

Status handle_tokenize(Call& call) {
  const ApiContext& context = *call.context;
  DSV3_ASSIGN(const Json body, parse_body(call.request));
  FieldReader reader(body);
  check_model(reader, context);
  const Json* prompt = reader.any("prompt");
  const Json* messages = reader.any("messages");
  const bool special = reader.boolean("add_special_tokens").value_or(true);
  const bool token_strs = reader.boolean("return_token_strs").value_or(false);
  if (prompt == nullptr && messages == nullptr) reader.require("prompt");
  if (prompt != nullptr && messages != nullptr) reader.fail(invalid_value("messages", "and prompt exclude each other"));
  DSV3_TRY(reader.finish());

  std::vector<std::vector<int32_t>> lists;
  const bool add_bos = special && context.tokenizer->adds_bos();
  if (messages != nullptr) {
    lists.emplace_back();
    DSV3_TRY(tokenize_chat(body, context, &lists.back()));
  } else if (prompt->is_string()) {
    lists.push_back(context.tokenizer->encode(prompt->get_ref<const std::string&>(), add_bos));
  } else if (prompt->is_array()) {
    for (size_t i = 0; i < prompt->size(); ++i) {
      const Json& entry = (*prompt)[i];
      if (!entry.is_string()) return invalid_type("prompt[" + std::to_string(i) + "]", "a string", entry);
      lists.push_back(context.tokenizer->encode(entry.get_ref<const std::string&>(), add_bos));
    }
  } else {
    return invalid_type("prompt", "a string or an array of strings", *prompt);
  }

  Json counts = Json::array(), tokens = Json::array(), strings = Json::array();
  for (const auto& ids : lists) {
    counts.push_back(ids.size());
    tokens.push_back(ids);
    Json texts = Json::array();
    if (token_strs) {
      for (const int32_t id : ids) texts.push_back(token_text(*context.tokenizer, id));
    }
    strings.push_back(std::move(texts));
  }
  const bool batch = prompt != nullptr && prompt->is_array();
  Json out;
  out["count"] = batch ? counts : counts[0];
  out["max_model_len"] = context.context_tokens;
  out["tokens"] = batch ? tokens : tokens[0];
  out["token_strs"] = !token_strs ? Json(nullptr) : batch ? strings : strings[0];
  respond_json(*call.exchange, out);
  return {};
}

Status handle_detokenize(Call& call) {
  const ApiContext& context = *call.context;
  DSV3_ASSIGN(const Json body, parse_body(call.request));
  FieldReader reader(body);
  check_model(reader, context);
  reader.require("tokens");
  const Json* tokens = reader.array("tokens");
  const bool skip_special = reader.boolean("skip_special_tokens").value_or(true);
  DSV3_TRY(reader.finish());
  const bool batch = !tokens->empty() && (*tokens)[0].is_array();
  Json texts = Json::array();
  for (size_t i = 0; i < (batch ? tokens->size() : 1); ++i) {
    const std::string path = batch ? "tokens[" + std::to_string(i) + "]" : "tokens";
    const Json& list = batch ? (*tokens)[i] : *tokens;
    if (!list.is_array()) return invalid_type(path, "an array of token ids", list);
    DSV3_ASSIGN(const auto ids, to_token_ids(list, path, context));
    texts.push_back(context.tokenizer->decode(ids, skip_special));
  }
  Json out;
  out["text"] = batch ? texts : texts[0];
  out["prompt"] = batch ? texts : texts[0];
  respond_json(*call.exchange, out);
  return {};
}

}  // namespace dsv3::api
