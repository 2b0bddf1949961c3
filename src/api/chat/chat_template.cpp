// ChatTemplate over our Jinja interpreter: compiling, choosing and rendering. Thread safe: a rendering owns its state.
#include "dsv3/api/chat_template.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "chat/builtin_templates.h"
#include "chat/jinja/interpreter.h"
#include "chat/jinja/parser.h"

namespace dsv3 {
namespace {

using jinja::Kind;
using jinja::Source;
using jinja::Text;
using jinja::Value;

constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr size_t kMaxFileBytes = 64u << 20;
constexpr size_t kMaxErrorBytes = 512;

// Behind the content of a message to be continued. The space shows whether the template trims contents.
constexpr std::string_view kEndMark = "x ";

std::string shorten(std::string text) {
  if (text.size() <= kMaxErrorBytes) return text;
  size_t end = kMaxErrorBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

Status invalid(const std::string& message, const char* param = "messages") {
  return Status(Code::kInvalidArgument, message, param);
}

// Puts the end mark behind the last message's content.
Status mark_final_message(jinja::Runtime& rt, const Value& messages) {
  std::vector<Value>* items = messages.is_list() ? rt.items(messages) : nullptr;
  if (items == nullptr || items->empty() || items->back().kind != Kind::kDict) {
    return invalid("there is no last message to continue");
  }
  const Value& message = items->back();
  const Value* content = rt.find(message, "content");
  Text text;
  if (content != nullptr && content->is_string())
    text = *content->text;
  else if (content != nullptr && !content->is_none())
    return invalid("the content of a message to continue must be a string");
  text.append(kEndMark, Source::kEndMark);
  if (!rt.set(message, Value::literal("content"), Value::of(std::make_shared<const Text>(std::move(text))))) {
    return invalid("the chat template could not be rendered: " + rt.error());
  }
  return {};
}

// Cuts a rendering at the end mark.
Status cut_at_mark(Text* text) {
  const auto& marks = text->marks();
  for (auto it = marks.rbegin(); it != marks.rend(); ++it) {
    if (it->source != Source::kEndMark) continue;
    size_t end = it->begin;
    if (it->end - it->begin < kEndMark.size()) {
      end = jinja::trim(text->view().substr(0, end), false, true).end;  // the template trims, so nothing hangs over
    }
    *text = text->slice(0, end);
    return {};
  }
  return invalid("the chat template does not show the content of the last message, so it cannot be continued");
}

class JinjaTemplate : public ChatTemplate {
 public:
  JinjaTemplate(std::shared_ptr<const jinja::Program> program, std::string bos, std::string eos, TemplateLimits limits)
      : program_(std::move(program)), bos_(std::move(bos)), eos_(std::move(eos)), limits_(limits) {}

  Result<RenderedPrompt> render(const ChatRequestView& request) const override {
    jinja::Runtime rt(limits_);
    const Value messages = rt.from_json(request.messages);
    if (request.continue_final_message) DSV3_TRY(mark_final_message(rt, messages));
    std::vector<std::pair<std::string, Value>> context{
        {"messages", messages},
        {"tools", rt.from_json(request.tools)},
        {"documents", Value::none()},
        {"add_generation_prompt", Value::of(request.add_generation_prompt && !request.continue_final_message)},
        {"bos_token", Value::literal(bos_)},
        {"eos_token", Value::literal(eos_)}};
    DSV3_TRY(add_kwargs(rt, request.kwargs, &context));
    Text text;
    jinja::Interpreter interpreter(*program_, rt);
    if (!interpreter.run(context, &text)) {
      return invalid("the chat template cannot render these messages: " + shorten(rt.error()) + " (line " +
                     std::to_string(interpreter.failed_line()) + " of the template)");
    }
    if (request.continue_final_message) DSV3_TRY(cut_at_mark(&text));
    RenderedPrompt prompt;
    for (const jinja::Mark& mark : text.marks()) {
      if (!prompt.untrusted.empty() && prompt.untrusted.back().end == mark.begin)
        prompt.untrusted.back().end = mark.end;
      else
        prompt.untrusted.push_back({mark.begin, mark.end});
    }
    prompt.text = text.bytes();
    return prompt;
  }

 private:
  static Status add_kwargs(jinja::Runtime& rt, const Json& kwargs,
                           std::vector<std::pair<std::string, Value>>* context) {
    if (kwargs.is_null()) return {};
    if (!kwargs.is_object()) return invalid("chat_template_kwargs must be an object", "chat_template_kwargs");
    for (const auto& [name, value] : kwargs.items()) {
      for (const auto& reserved : *context) {
        if (name == reserved.first && name != "documents") {
          return invalid("chat_template_kwargs may not hold \"" + name + "\"", "chat_template_kwargs");
        }
      }
    }
    for (const auto& [name, value] : kwargs.items()) context->emplace_back(name, rt.from_json(value));
    return {};
  }

  const std::shared_ptr<const jinja::Program> program_;
  const std::string bos_, eos_;
  const TemplateLimits limits_;
};

Result<std::string> read_file(const std::string& path, const std::string& shown) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (error) return Status(Code::kBadModelFile, shown + " cannot be read: " + error.message());
  if (bytes > kMaxFileBytes) {
    return Status(Code::kBadModelFile,
                  shown + " has " + std::to_string(bytes) + " bytes, allowed " + std::to_string(kMaxFileBytes));
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  if (!file.good() && bytes > 0) return Status(Code::kBadModelFile, shown + " cannot be read");
  return std::move(content).str();
}

std::string join_names() {
  std::string names;
  for (const BuiltinTemplate& builtin : builtin_templates())
    names += (names.empty() ? "" : ", ") + std::string(builtin.name);
  return names;
}

const BuiltinTemplate* find_builtin(std::string_view name) {
  for (const BuiltinTemplate& builtin : builtin_templates()) {
    if (name == builtin.name || name == builtin.alias) return &builtin;
  }
  return nullptr;
}

// The `chat_template` of tokenizer_config.json; empty if there is none.
Result<std::string> template_of_config(const std::string& path) {
  DSV3_ASSIGN(const std::string content, read_file(path, "tokenizer_config.json"));
  const auto config = parse_json(content, {.allow_duplicate_keys = true});
  if (!config.ok()) return Status(Code::kBadModelFile, "tokenizer_config.json: " + config.status().message());
  if (!config->is_object() || !config->contains("chat_template")) return std::string();
  const Json& entry = (*config)["chat_template"];
  if (entry.is_null()) return std::string();
  if (entry.is_string()) return entry.get<std::string>();
  if (entry.is_array()) {
    for (const Json& named : entry) {
      if (!named.is_object() || !named.contains("name") || !named.contains("template")) continue;
      if (named["name"] == "default" && named["template"].is_string()) return named["template"].get<std::string>();
    }
    return Status(Code::kBadModelFile,
                  "tokenizer_config.json: chat_template is a list without a template named \"default\"");
  }
  return Status(Code::kBadModelFile, "tokenizer_config.json: chat_template must be a string or a list");
}

}  // namespace

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::compile(std::string_view jinja, std::string bos_token,
                                                                  std::string eos_token, TemplateLimits limits) {
  DSV3_ASSIGN(auto program, jinja::parse(jinja, limits.max_depth));
  return std::shared_ptr<const ChatTemplate>(
      std::make_shared<JinjaTemplate>(std::move(program), std::move(bos_token), std::move(eos_token), limits));
}

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::builtin(std::string_view name) {
  const BuiltinTemplate* found = find_builtin(name);
  if (found == nullptr) {
    return Status(Code::kNotFound,
                  "no built-in chat template \"" + std::string(name) + "\"; there are " + join_names());
  }
  return compile(found->source(), std::string(kBos), std::string(kEos));
}

std::vector<std::string> ChatTemplate::builtin_names() {
  std::vector<std::string> names;
  for (const BuiltinTemplate& builtin : builtin_templates()) names.emplace_back(builtin.name);
  return names;
}

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::load(const std::string& model_dir,
                                                               const std::string& override_name,
                                                               const Tokenizer& tokenizer, std::string* chosen) {
  const auto compile_here = [&](std::string_view source) {
    const auto text_of = [&](int32_t id) { return id < 0 ? std::string() : std::string(tokenizer.token_bytes(id)); };
    return compile(source, text_of(tokenizer.bos_id()), text_of(tokenizer.eos_id()));
  };
  const auto compile_own = [&](std::string_view source,
                               const std::string& name) -> Result<std::shared_ptr<const ChatTemplate>> {
    *chosen = name;
    auto compiled = compile_here(source);
    if (compiled.ok()) return compiled;
    return Status(Code::kBadModelFile, compiled.status().message() + " (in " + name +
                                           "; --chat-template takes another file or one of " + join_names() + ")");
  };
  if (!override_name.empty()) {
    if (const BuiltinTemplate* found = find_builtin(override_name)) {
      *chosen = found->name;
      return compile_here(found->source());
    }
    std::error_code error;
    if (!std::filesystem::is_regular_file(override_name, error)) {
      return Status(Code::kNotFound,
                    "--chat-template " + override_name + " is neither a file nor one of " + join_names(),
                    "--chat-template");
    }
    DSV3_ASSIGN(const std::string source, read_file(override_name, override_name));
    return compile_own(source, override_name);
  }
  std::error_code error;
  const std::filesystem::path folder(model_dir);
  if (std::filesystem::is_regular_file(folder / "chat_template.jinja", error)) {
    DSV3_ASSIGN(const std::string source, read_file((folder / "chat_template.jinja").string(), "chat_template.jinja"));
    return compile_own(source, "chat_template.jinja");
  }
  if (std::filesystem::is_regular_file(folder / "tokenizer_config.json", error)) {
    DSV3_ASSIGN(const std::string source, template_of_config((folder / "tokenizer_config.json").string()));
    if (!source.empty()) return compile_own(source, "tokenizer_config.json");
  }
  *chosen = builtin_templates().front().name;
  return compile_here(builtin_templates().front().source());
}

}  // namespace dsv3
