// One JSON request a line on stdin, one JSON answer a line on stdout: what the comparisons with jinja2 talk to.
//   {"jinja": source | "builtin": name, "messages", "tools", "kwargs", "add_generation_prompt",
//    "continue_final_message", "bos", "eos"}  ->  {"text", "untrusted": [[begin, end], ...]} or {"error"}
//   {"source_of": builtin name}  ->  {"source"}
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "chat/builtin_templates.h"
#include "dsv3/api/chat_template.h"

namespace dsv3 {
namespace {

Json error(const Status& status) {
  return Json{{"error", status.message()}};
}

class Renderer {
 public:
  Json answer(const std::string& line) {
    const auto request = parse_json(line);
    if (!request.ok()) return error(request.status());
    const Json& r = *request;
    if (r.contains("source_of")) {
      for (const BuiltinTemplate& builtin : builtin_templates()) {
        if (builtin.name == r["source_of"]) return Json{{"source", builtin.source()}};
      }
      return Json{{"error", "no such template"}};
    }
    const std::string key = r.value(r.contains("builtin") ? "builtin" : "jinja", "");
    auto it = compiled_.find(key);
    if (it == compiled_.end()) {
      auto made = r.contains("builtin")
                      ? ChatTemplate::builtin(r.value("builtin", ""))
                      : ChatTemplate::compile(r.value("jinja", ""), r.value("bos", "<bos>"), r.value("eos", "<eos>"));
      if (!made.ok()) return error(made.status());
      it = compiled_.emplace(key, *made).first;
    }
    const Json messages = r.value("messages", Json::array());
    const Json tools = r.value("tools", Json());
    const Json kwargs = r.value("kwargs", Json::object());
    const auto prompt = it->second->render({.messages = messages,
                                            .tools = tools,
                                            .kwargs = kwargs,
                                            .add_generation_prompt = r.value("add_generation_prompt", true),
                                            .continue_final_message = r.value("continue_final_message", false)});
    if (!prompt.ok()) return error(prompt.status());
    Json ranges = Json::array();
    for (const ByteRange& range : prompt->untrusted) ranges.push_back({range.begin, range.end});
    return Json{{"text", prompt->text}, {"untrusted", ranges}};
  }

 private:
  std::map<std::string, std::shared_ptr<const ChatTemplate>> compiled_;
};

}  // namespace
}  // namespace dsv3

int main() {
  dsv3::Renderer renderer;
  std::string line;
  while (std::getline(std::cin, line)) std::cout << dsv3::dump_json(renderer.answer(line)) << "\n" << std::flush;
}
