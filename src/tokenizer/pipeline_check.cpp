#include "pipeline_check.h"

#include <array>

#include "file_checks.h"
#include "piece_scanner.h"

namespace dsv3 {
namespace {

using tokenizer_file::is_unset;
using tokenizer_file::member;
using tokenizer_file::shown;
using tokenizer_file::shown_value;
using tokenizer_file::string_member;

Status bad(std::string message) {
  return tokenizer_file::bad("tokenizer.json", std::move(message));
}

// A stage's type as a message shows it.
std::string type_of(const Json& stage) {
  if (!stage.is_object()) return shown_value(stage);
  const Json* type = member(stage, "type");
  return type == nullptr ? "without a type" : shown_value(*type);
}

bool is_type(const Json& stage, std::string_view type) {
  return stage.is_object() && string_member(stage, "type") == type;
}

Status check_normalizer(const Json& root) {
  const Json* normalizer = member(root, "normalizer");
  if (normalizer == nullptr) return {};
  if (!is_type(*normalizer, "Sequence")) return bad("normalizer is " + type_of(*normalizer) + ", must be null");
  const Json* list = member(*normalizer, "normalizers");
  if (list == nullptr || !list->is_array() || !list->empty()) {
    return bad("normalizer.normalizers must be an empty array: text is not normalized");
  }
  return {};
}

Status check_split(const Json& stage, std::string_view pattern, const std::string& where) {
  if (!is_type(stage, "Split")) return bad(where + " is " + type_of(stage) + ", must be \"Split\"");
  const Json* wanted = member(stage, "pattern");
  const std::string_view seen =
      wanted != nullptr && wanted->is_object() ? string_member(*wanted, "Regex") : std::string_view();
  if (seen != pattern) {
    return bad(where + ".pattern.Regex is " + shown(seen) + ", which is not built in; known is DeepSeek-V3's " +
               shown(pattern));
  }
  if (string_member(stage, "behavior") != "Isolated") return bad(where + ".behavior must be \"Isolated\"");
  if (!is_unset(stage, "invert")) return bad(where + ".invert must be false");
  return {};
}

Status check_pre_tokenizer(const Json& root) {
  constexpr std::array<std::string_view, 3> kPatterns = {kDigitsPattern, kCjkPattern, kWordsPattern};
  const Json* sequence = member(root, "pre_tokenizer");
  if (sequence == nullptr) return bad("pre_tokenizer is missing");
  if (!is_type(*sequence, "Sequence")) return bad("pre_tokenizer is " + type_of(*sequence) + ", must be \"Sequence\"");
  const Json* stages = member(*sequence, "pretokenizers");
  if (stages == nullptr || !stages->is_array() || stages->size() != kPatterns.size() + 1) {
    return bad("pre_tokenizer.pretokenizers must be three \"Split\" and one \"ByteLevel\"");
  }
  const auto where = [](size_t i) { return "pre_tokenizer.pretokenizers[" + std::to_string(i) + "]"; };
  for (size_t i = 0; i < kPatterns.size(); ++i) DSV3_TRY(check_split((*stages)[i], kPatterns[i], where(i)));
  const Json& last = (*stages)[kPatterns.size()];
  if (!is_type(last, "ByteLevel")) {
    return bad(where(kPatterns.size()) + " is " + type_of(last) + ", must be \"ByteLevel\"");
  }
  for (const char* name : {"add_prefix_space", "use_regex"}) {
    // Absent means true in the reference.
    if (const Json* value = member(last, name); value == nullptr || *value != false) {
      return bad(where(kPatterns.size()) + "." + name + " must be false");
    }
  }
  return {};
}

}  // namespace

Status check_pipeline(const Json& root) {
  if (const Json* version = member(root, "version"); version != nullptr && *version != "1.0") {
    return bad("version is " + shown_value(*version) + ", must be \"1.0\"");
  }
  DSV3_TRY(check_normalizer(root));
  DSV3_TRY(check_pre_tokenizer(root));
  // TemplateProcessing writes the BOS, which tokenizer_config.json decides here.
  const Json* post = member(root, "post_processor");
  if (post != nullptr && !is_type(*post, "ByteLevel") && !is_type(*post, "TemplateProcessing")) {
    return bad("post_processor is " + type_of(*post) + ", must be null, \"ByteLevel\" or \"TemplateProcessing\"");
  }
  const Json* decoder = member(root, "decoder");
  if (decoder == nullptr || !is_type(*decoder, "ByteLevel")) {
    return bad("decoder is " + (decoder == nullptr ? std::string("missing") : type_of(*decoder)) +
               ", must be \"ByteLevel\"");
  }
  return {};
}

Status check_model(const Json& model) {
  if (!is_type(model, "BPE")) return bad("model.type is " + type_of(model) + ", must be \"BPE\"");
  for (const char* name :
       {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"}) {
    if (!is_unset(model, name)) return bad(std::string("model.") + name + " is set, which is not supported");
  }
  return {};
}

}  // namespace dsv3
