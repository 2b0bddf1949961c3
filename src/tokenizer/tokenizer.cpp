// The doors into the module: from a model folder or from the files' contents.
#include "dsv3/tokenizer/tokenizer.h"

#include <filesystem>
#include <fstream>

#include "bpe_tokenizer.h"
#include "file_checks.h"
#include "tokenizer_file.h"

namespace dsv3 {
namespace {

// Whole contents of a regular file; its size is checked before memory is spent.
Result<std::string> read_file(const std::filesystem::path& path, size_t max_bytes) {
  const std::string name = path.filename().string();
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return tokenizer_file::bad(name, "missing or not a file");
  const uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) return tokenizer_file::bad(name, "cannot be read: " + error.message());
  if (bytes > max_bytes) {
    return tokenizer_file::bad(name, std::to_string(bytes) + " bytes, allowed " + std::to_string(max_bytes));
  }
  std::string text(static_cast<size_t>(bytes), '\0');
  std::ifstream in(path, std::ios::binary);
  if (!in.read(text.data(), static_cast<std::streamsize>(text.size()))) {
    return tokenizer_file::bad(name, "cannot be read");
  }
  return text;
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const std::string& model_dir) {
  const std::filesystem::path folder(model_dir);
  DSV3_ASSIGN(const std::string tokenizer_json, read_file(folder / "tokenizer.json", kMaxTokenizerFileBytes));
  const std::filesystem::path config_path = folder / "tokenizer_config.json";
  std::error_code error;
  std::string config_json;
  if (std::filesystem::exists(config_path, error)) {
    DSV3_ASSIGN(config_json, read_file(config_path, kMaxTokenizerConfigBytes));
    if (config_json.empty()) return tokenizer_file::bad("tokenizer_config.json", "is empty");
  }
  return parse(tokenizer_json, config_json);
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::parse(std::string_view tokenizer_json,
                                                          std::string_view tokenizer_config_json) {
  DSV3_ASSIGN(TokenizerFile file, parse_tokenizer_file(tokenizer_json));
  DSV3_ASSIGN(const TokenizerConfigFile config, parse_tokenizer_config_file(tokenizer_config_json));
  return BpeTokenizer::make(std::move(file), config);
}

}  // namespace dsv3
