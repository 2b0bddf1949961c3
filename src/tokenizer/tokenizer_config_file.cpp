// tokenizer_config.json: which tokens begin and end a text, and whether raw prompts get the first one.
#include "dsv3/base/json.h"
#include "file_checks.h"
#include "tokenizer_file.h"

namespace dsv3 {
namespace {

using tokenizer_file::bad;
using tokenizer_file::flag_member;
using tokenizer_file::member;

constexpr std::string_view kFile = "tokenizer_config.json";

// "<bos>", {"content": "<bos>", ...} or null.
Result<std::string> read_token(const Json& root, const char* name) {
  const Json* value = member(root, name);
  if (value == nullptr) return std::string();
  if (value->is_object()) value = member(*value, "content");
  if (value == nullptr || !value->is_string() || value->get_ref<const std::string&>().empty()) {
    return bad(kFile, std::string(name) + " must be a text, an object with a text as content, or null");
  }
  return value->get<std::string>();
}

}  // namespace

Result<TokenizerConfigFile> parse_tokenizer_config_file(std::string_view json) {
  TokenizerConfigFile config;
  if (json.empty()) return config;
  const auto root = parse_json(json, {.max_bytes = kMaxTokenizerConfigBytes});
  if (!root.ok()) return bad(kFile, root.status().message());
  if (!root->is_object()) return bad(kFile, "not a JSON object");
  DSV3_ASSIGN(config.bos_token, read_token(*root, "bos_token"));
  DSV3_ASSIGN(config.eos_token, read_token(*root, "eos_token"));
  DSV3_ASSIGN(config.add_bos_token, flag_member(*root, "add_bos_token", false, kFile, ""));
  DSV3_ASSIGN(const bool add_eos_token, flag_member(*root, "add_eos_token", false, kFile, ""));
  if (add_eos_token) return bad(kFile, "add_eos_token is true, only false is supported");
  if (config.add_bos_token && config.bos_token.empty()) return bad(kFile, "add_bos_token is true without a bos_token");
  return config;
}

}  // namespace dsv3
