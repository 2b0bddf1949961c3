#include "file_checks.h"

namespace dsv3::tokenizer_file {
namespace {

constexpr size_t kShownBytes = 64;

}  // namespace

std::string shown(std::string_view text) {
  // dump_json() replaces the half character that a cut may leave.
  if (text.size() <= kShownBytes) return dump_json(Json(std::string(text)));
  return dump_json(Json(std::string(text.substr(0, kShownBytes)))) + "... (" + std::to_string(text.size()) + " bytes)";
}

std::string shown_value(const Json& value) {
  if (value.is_string()) return shown(std::string_view(value.get_ref<const std::string&>()));
  if (value.is_array()) return "an array";
  if (value.is_object()) return "an object";
  return dump_json(value);
}

Status bad(std::string_view file, std::string message) {
  return Status(Code::kBadModelFile, std::string(file) + ": " + std::move(message));
}

const Json* member(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

bool is_unset(const Json& object, const char* name) {
  const Json* value = member(object, name);
  return value == nullptr || *value == false || *value == "";
}

std::string_view string_member(const Json& object, const char* name) {
  const Json* value = member(object, name);
  return value != nullptr && value->is_string() ? std::string_view(value->get_ref<const std::string&>())
                                                : std::string_view();
}

Result<bool> flag_member(const Json& object, const char* name, bool fallback, std::string_view file,
                         const std::string& where) {
  const Json* value = member(object, name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return bad(file, where + name + " is " + shown_value(*value) + ", must be true or false");
  return value->get<bool>();
}

}  // namespace dsv3::tokenizer_file
