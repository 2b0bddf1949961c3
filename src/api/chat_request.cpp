// Validation of chat requests: api.md sections 5, 8, 9, 10.
#include "chat_request.h"

#include "errors.h"
#include "messages.h"

namespace dsv3::api {
namespace {

/// none / auto are built; whatever needs constrained decoding is not.
void read_tool_choice(FieldReader& reader, ChatRequest& out) {
  const Json* choice = reader.any("tool_choice");
  const Json* legacy = reader.any("function_call");
  const char* field = choice != nullptr ? "tool_choice" : "function_call";
  if (choice == nullptr) choice = legacy;
  if (choice == nullptr) return;
  if (choice->is_string()) {
    const auto& text = choice->get_ref<const std::string&>();
    if (text == "none") {
      out.tools = Json::array();
    } else if (text == "required") {
      reader.fail(unsupported_parameter(field, "required calls need constrained decoding, which is not built; use auto"));
    } else if (text != "auto") {
      reader.fail(invalid_value(field, "is " + describe(*choice) + ", allowed none, auto"));
    }
    return;
  }
  if (!choice->is_object()) return reader.fail(invalid_type(field, "a string or an object", *choice));
  const Json* function = choice;
  std::string path = field;
  if (choice->contains("type")) {
    FieldReader inner(*choice, field);
    const std::string type = inner.string("type").value_or("");
    if (!inner.ok()) return reader.fail(inner.finish());
    if (type == "allowed_tools" || type == "custom") {
      return reader.fail(unsupported_parameter(field, "the type " + type + " is not built"));
    }
    if (type != "function") {
      return reader.fail(invalid_value(path + ".type", "is " + describe(Json(type)) + ", allowed function"));
    }
    inner.require("function");
    function = inner.any("function");
    if (!inner.ok()) return reader.fail(inner.finish());
    path += ".function";
  }
  FieldReader inner(*function, path);
  inner.require("name");
  const std::string name = inner.string("name").value_or("");
  if (!inner.ok()) return reader.fail(inner.finish());
  for (const auto& tool : out.tools) {
    if (tool["function"]["name"] == name) {
      return reader.fail(
          unsupported_parameter(field, "a named call needs constrained decoding, which is not built; use auto"));
    }
  }
  reader.fail(invalid_value(path + ".name", "is " + describe(Json(name)) + ", which is not one of the tools"));
}

/// api.md section 8: who switches thinking on or off; first hit wins. nullopt: nobody did.
std::optional<bool> read_thinking(FieldReader& reader, const Json& kwargs) {
  std::optional<bool> from_kwargs, from_thinking, from_reasoning, from_effort;
  FieldReader kwargs_reader(kwargs, "chat_template_kwargs");
  const auto thinking = kwargs_reader.boolean("thinking");
  const auto enable_thinking = kwargs_reader.boolean("enable_thinking");
  if (!kwargs_reader.ok()) reader.fail(kwargs_reader.finish());
  from_kwargs = thinking ? thinking : enable_thinking;

  const auto effort_switch = [&](const std::optional<std::string>& effort,
                                 const std::string& path) -> std::optional<bool> {
    if (!effort) return std::nullopt;
    for (const char* on : {"minimal", "low", "medium", "high", "xhigh", "max"}) {
      if (*effort == on) return true;
    }
    if (*effort == "none") return false;
    reader.fail(invalid_value(path, "is " + describe(Json(*effort)) +
                                        ", allowed none, minimal, low, medium, high, xhigh, max"));
    return std::nullopt;
  };

  if (const Json* object = reader.object("thinking")) {
    FieldReader inner(*object, "thinking");
    inner.require("type");
    const auto type = inner.string("type");
    if (!inner.ok()) {
      reader.fail(inner.finish());
    } else if (*type == "enabled" || *type == "disabled") {
      from_thinking = *type == "enabled";
    } else {
      reader.fail(invalid_value("thinking.type", "is " + describe(Json(*type)) + ", allowed enabled, disabled"));
    }
  }
  if (const Json* object = reader.object("reasoning")) {
    FieldReader inner(*object, "reasoning");
    const auto enabled = inner.boolean("enabled");
    const auto effort = inner.string("effort");
    if (!inner.ok()) reader.fail(inner.finish());
    const auto by_effort = effort_switch(effort, "reasoning.effort");
    from_reasoning = enabled ? enabled : by_effort;
  }
  from_effort = effort_switch(reader.string("reasoning_effort"), "reasoning_effort");
  for (const auto& source : {from_kwargs, from_thinking, from_reasoning, from_effort}) {
    if (source) return source;
  }
  return std::nullopt;
}

void read_template_fields(FieldReader& reader, const ApiContext& context, ChatRequest& out) {
  if (const Json* kwargs = reader.object("chat_template_kwargs")) out.template_kwargs = *kwargs;
  std::optional<bool> thinking = read_thinking(reader, out.template_kwargs);
  if (!thinking && context.config.default_thinking) thinking = true;
  if (thinking && reader.ok()) {
    out.template_kwargs["thinking"] = *thinking;
    out.template_kwargs["enable_thinking"] = *thinking;
  }
  reader.refuse({"chat_template"}, "the operator chooses the template");
  const auto generation_prompt = reader.boolean("add_generation_prompt");
  out.continue_final_message = reader.boolean("continue_final_message").value_or(false);
  if (!reader.ok()) return;
  if (!out.messages.empty()) {
    const Json& last = out.messages.back();
    if (last.contains("prefix") && last["prefix"] == true) out.continue_final_message = true;
    if (out.continue_final_message && (last["role"] != "assistant" || last.contains("tool_calls"))) {
      return reader.fail(invalid_value("continue_final_message",
                                       "needs a last message of the assistant without tool calls"));
    }
  }
  if (out.continue_final_message && generation_prompt.value_or(false)) {
    return reader.fail(invalid_value("add_generation_prompt", "cannot be true together with continue_final_message"));
  }
  out.add_generation_prompt = generation_prompt.value_or(!out.continue_final_message);
}

void read_logprobs(FieldReader& reader, const ApiContext& context, ChatRequest& out) {
  out.logprobs = reader.boolean("logprobs").value_or(false);
  const auto top = reader.integer("top_logprobs", 0, context.config.max_logprobs);
  if (top && !out.logprobs) {
    reader.fail(invalid_value("top_logprobs", "needs logprobs to be true"));
  }
  out.top_logprobs = static_cast<int32_t>(top.value_or(0));
}

void read_modalities(FieldReader& reader) {
  if (const Json* list = reader.array("modalities")) {
    for (const auto& entry : *list) {
      if (entry != "text") reader.fail(unsupported_parameter("modalities", "the model writes text only"));
    }
  }
  reader.refuse({"audio", "web_search_options"}, "the model reads and writes text only");
}

void read_prompt(FieldReader& reader, const ApiContext& context, ChatRequest& out) {
  const Json* input_ids = reader.array("input_ids");
  const Json* prompt_ids = reader.array("prompt_token_ids");
  if (input_ids == nullptr) input_ids = prompt_ids;
  if (input_ids != nullptr) {
    auto ids = to_token_ids(*input_ids, prompt_ids == input_ids ? "prompt_token_ids" : "input_ids", context);
    if (!ids.ok()) return reader.fail(ids.status());
    out.input_ids = std::move(ids).value();
    reader.ignore({"messages"});
    return;
  }
  reader.require("messages");
  const Json* messages = reader.any("messages");
  if (messages == nullptr) return;
  auto normal = normalise_messages(*messages);
  if (!normal.ok()) return reader.fail(normal.status());
  out.messages = std::move(normal).value();
}

void read_tools(FieldReader& reader, ChatRequest& out) {
  const Json* tools = reader.array("tools");
  const Json* functions = reader.array("functions");
  if (!reader.ok()) return;
  auto normal = normalise_tools(tools, functions);
  if (!normal.ok()) return reader.fail(normal.status());
  out.tools = std::move(normal).value();
  out.legacy_functions = (tools == nullptr || tools->empty()) && !out.tools.empty();
  out.parallel_tool_calls = reader.boolean("parallel_tool_calls").value_or(true) && !out.legacy_functions;
  read_tool_choice(reader, out);
}

/// Templates disagree about a null content beside tool calls: most want it, some fail on it and want an empty string.
Result<RenderedPrompt> render(const ChatTemplate& chat_template, const ChatRequestView& view) {
  auto rendered = chat_template.render(view);
  if (rendered.ok()) return rendered;
  Json messages = view.messages;
  bool changed = false;
  for (auto& message : messages) {
    if (message["content"].is_null()) {
      message["content"] = "";
      changed = true;
    }
  }
  if (!changed) return rendered;
  auto again = chat_template.render(
      {messages, view.tools, view.kwargs, view.add_generation_prompt, view.continue_final_message});
  return again.ok() ? std::move(again) : std::move(rendered);
}

}  // namespace

Result<ChatRequest> parse_chat_request(const Json& body, const ApiContext& context) {
  FieldReader reader(body);
  ChatRequest out;
  out.common = read_openai_fields(reader, context);
  if (reader.ok()) read_prompt(reader, context, out);
  if (reader.ok()) read_tools(reader, out);
  read_template_fields(reader, context, out);
  read_logprobs(reader, context, out);
  read_modalities(reader);
  const auto max_tokens = reader.integer("max_tokens", 1);
  const auto max_completion_tokens = reader.integer("max_completion_tokens", 1);
  out.common.sampling.max_tokens = max_completion_tokens ? max_completion_tokens : max_tokens;
  out.separate_reasoning = reader.boolean("separate_reasoning").value_or(true);
  out.stream_reasoning = reader.boolean("stream_reasoning").value_or(true);
  if (reader.integer("best_of", 1).value_or(1) != 1) {
    reader.fail(unsupported_parameter("best_of", "only 1 is; use n"));
  }
  if (reader.boolean("echo").value_or(false)) {
    reader.fail(unsupported_parameter("echo", "only completions repeat the prompt"));
  }
  DSV3_TRY(reader.finish(context.config.strict_fields));
  return out;
}

Result<EncodedChat> encode_chat(const ChatRequest& request, const ApiContext& context) {
  EncodedChat out;
  if (request.input_ids) {
    out.ids = *request.input_ids;
    return out;
  }
  const Json no_tools(nullptr);
  DSV3_ASSIGN(RenderedPrompt prompt,
              render(*context.chat_template, {request.messages, request.tools.empty() ? no_tools : request.tools,
                                              request.template_kwargs, request.add_generation_prompt,
                                              request.continue_final_message}));
  out.ids = context.tokenizer->encode(prompt.text, false, prompt.untrusted);  // the template wrote BOS
  out.text = std::move(prompt.text);
  return out;
}

}  // namespace dsv3::api
