// See the header; the rules are api.md 5.3.
#include "messages.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <nlohmann/json.hpp>

#include "errors.h"
#include "field_reader.h"

namespace dsv3::api {
namespace {

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return text;
}

std::string indexed(const std::string& path, size_t i) { return path + "[" + std::to_string(i) + "]"; }

Result<std::string> part_text(const Json& part, const std::string& path) {
  FieldReader reader(part, path);
  reader.require("type");
  const std::string type = reader.string("type").value_or("");
  DSV3_TRY(reader.finish());
  if (type == "text" || type == "refusal") {
    reader.require(type == "text" ? "text" : "refusal");
    auto text = reader.string(type == "text" ? "text" : "refusal");
    DSV3_TRY(reader.finish());
    return std::move(*text);
  }
  if (type == "image_url" || type == "input_audio" || type == "file" || type == "video_url" || type == "audio_url") {
    return unsupported_parameter(path + ".type", "the model reads text only, got " + type);
  }
  return invalid_value(path + ".type", "is " + describe(Json(type)) + ", allowed text");
}

/// A string, or a list of parts joined by newlines.
Result<std::string> content_text(const Json& content, const std::string& path) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return invalid_type(path, "a string or an array of parts", content);
  std::string out;
  for (size_t i = 0; i < content.size(); ++i) {
    DSV3_ASSIGN(const std::string text, part_text(content[i], indexed(path, i)));
    if (i > 0) out += '\n';
    out += text;
  }
  return out;
}

/// {name, arguments} of a call, arguments as the text that the model should see again.
Result<Json> normalise_function(const Json& function, const std::string& path) {
  FieldReader reader(function, path);
  reader.require("name");
  const auto name = reader.string("name");
  const Json* arguments = reader.any("arguments");
  DSV3_TRY(reader.finish());
  if (name->empty()) return invalid_value(path + ".name", "is empty");
  Json out;
  out["name"] = *name;
  if (arguments == nullptr) {
    out["arguments"] = "{}";
  } else if (arguments->is_string()) {
    out["arguments"] = *arguments;
  } else if (arguments->is_object()) {
    out["arguments"] = dump_json(*arguments);
  } else {
    return invalid_type(path + ".arguments", "a string or an object", *arguments);
  }
  return out;
}

Result<Json> normalise_tool_calls(const Json& calls, const std::string& path) {
  Json out = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string call_path = indexed(path, i);
    FieldReader reader(calls[i], call_path);
    const auto id = reader.string("id");
    const std::string type = reader.string("type").value_or("function");
    reader.require("function");
    const Json* function = reader.any("function");
    DSV3_TRY(reader.finish());
    if (type != "function") return unsupported_parameter(call_path + ".type", "only function calls are");
    DSV3_ASSIGN(Json normal, normalise_function(*function, call_path + ".function"));
    Json call;
    if (id) call["id"] = *id;
    call["type"] = "function";
    call["function"] = std::move(normal);
    out.push_back(std::move(call));
  }
  return out;
}

Result<Json> normalise_assistant(FieldReader& reader, const std::string& path) {
  Json out;
  out["role"] = "assistant";
  const Json* content = reader.any("content");
  const auto refusal = reader.string("refusal");
  const Json* calls = reader.array("tool_calls");
  const Json* function_call = reader.object("function_call");
  const auto reasoning = reader.string("reasoning");
  const auto reasoning_content = reader.string("reasoning_content");
  const auto prefix = reader.boolean("prefix");
  DSV3_TRY(reader.finish());

  Json tool_calls = Json::array();
  if (calls != nullptr) {
    DSV3_ASSIGN(tool_calls, normalise_tool_calls(*calls, path + ".tool_calls"));
  }
  if (tool_calls.empty() && function_call != nullptr) {
    DSV3_ASSIGN(Json function, normalise_function(*function_call, path + ".function_call"));
    tool_calls.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  if (content != nullptr) {
    DSV3_ASSIGN(std::string text, content_text(*content, path + ".content"));
    // Some templates tell a call from an answer by content being none.
    out["content"] = text.empty() && !tool_calls.empty() ? Json(nullptr) : Json(std::move(text));
  } else if (refusal) {
    out["content"] = *refusal;
  } else if (!tool_calls.empty()) {
    out["content"] = nullptr;
  } else if (reasoning || reasoning_content) {
    out["content"] = "";
  } else {
    return missing_parameter(path + ".content");
  }
  if (reasoning_content || reasoning) out["reasoning_content"] = reasoning_content ? *reasoning_content : *reasoning;
  if (prefix) out["prefix"] = *prefix;
  if (!tool_calls.empty()) out["tool_calls"] = std::move(tool_calls);
  return out;
}

Result<Json> normalise_message(const Json& message, const std::string& path) {
  FieldReader reader(message, path);
  reader.require("role");
  const std::string role = lower(reader.string("role").value_or(""));
  const auto name = reader.string("name");
  DSV3_TRY(reader.finish());
  Json out;
  if (role == "assistant") {
    DSV3_ASSIGN(out, normalise_assistant(reader, path));
  } else if (role == "system" || role == "developer" || role == "user" || role == "tool" || role == "function") {
    reader.require("content");
    const Json* content = reader.any("content");
    const auto call_id = reader.string("tool_call_id");
    DSV3_TRY(reader.finish());
    out["role"] = role == "developer" ? "system" : role == "function" ? "tool" : role;
    DSV3_ASSIGN(out["content"], content_text(*content, path + ".content"));
    if (call_id) out["tool_call_id"] = *call_id;
  } else {
    return invalid_value(path + ".role", "is " + describe(message["role"]) +
                                             ", allowed system, developer, user, assistant, tool, function");
  }
  if (name) out["name"] = *name;
  return out;
}

/// Templates do not render call ids, so results are put in the order of the calls of the message before them, when
/// every id is known.
void order_tool_results(Json& messages) {
  auto& list = messages.get_ref<Json::array_t&>();
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].contains("tool_calls")) continue;
    std::map<std::string, size_t> order;
    bool usable = true;
    for (const auto& call : list[i]["tool_calls"]) {
      usable = usable && call.contains("id") && order.emplace(call["id"].get<std::string>(), order.size()).second;
    }
    size_t end = i + 1;
    for (; end < list.size() && list[end]["role"] == "tool"; ++end) {
      usable = usable && list[end].contains("tool_call_id") &&
               order.contains(list[end]["tool_call_id"].get<std::string>());
    }
    if (!usable) continue;
    std::stable_sort(list.begin() + static_cast<ptrdiff_t>(i) + 1, list.begin() + static_cast<ptrdiff_t>(end),
                     [&](const Json& a, const Json& b) {
                       return order[a["tool_call_id"].get<std::string>()] < order[b["tool_call_id"].get<std::string>()];
                     });
  }
}

bool is_function_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '-';
  });
}

Status check_function_definition(const Json& function, const std::string& path) {
  FieldReader reader(function, path);
  reader.require("name");
  const auto name = reader.string("name");
  (void)reader.string("description");
  (void)reader.object("parameters");
  (void)reader.boolean("strict");
  DSV3_TRY(reader.finish());
  if (!is_function_name(*name)) {
    return invalid_value(path + ".name", "is " + describe(Json(*name)) +
                                             ", allowed 1 to 64 letters, digits, underscores and hyphens");
  }
  return {};
}

}  // namespace

Result<Json> normalise_messages(const Json& messages) {
  if (!messages.is_array()) return invalid_type("messages", "an array", messages);
  if (messages.empty()) return invalid_value("messages", "is empty, at least one message is needed");
  Json out = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    DSV3_ASSIGN(Json message, normalise_message(messages[i], indexed("messages", i)));
    out.push_back(std::move(message));
  }
  order_tool_results(out);
  return out;
}

Result<Json> normalise_tools(const Json* tools, const Json* functions) {
  Json out = Json::array();
  if (tools != nullptr) {
    for (size_t i = 0; i < tools->size(); ++i) {
      const std::string path = indexed("tools", i);
      FieldReader reader((*tools)[i], path);
      reader.require("type");
      const std::string type = reader.string("type").value_or("");
      DSV3_TRY(reader.finish());
      if (type != "function") return unsupported_parameter(path + ".type", "only function tools are");
      reader.require("function");
      const Json* function = reader.any("function");
      DSV3_TRY(reader.finish());
      DSV3_TRY(check_function_definition(*function, path + ".function"));
      out.push_back((*tools)[i]);
    }
  }
  if (functions != nullptr) {
    for (size_t i = 0; i < functions->size(); ++i) {
      DSV3_TRY(check_function_definition((*functions)[i], indexed("functions", i)));
      out.push_back({{"type", "function"}, {"function", (*functions)[i]}});
    }
  }
  return out;
}

}  // namespace dsv3::api
