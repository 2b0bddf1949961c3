// Tokenizer files for the tests and fuzzers of this module: the two real ones, loaded once, and small made-up ones.
#pragma once

#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/json.h"
#include "dsv3/tokenizer/tokenizer.h"
#include "piece_scanner.h"
#include "utf8.h"

namespace dsv3::test {

inline const Tokenizer& real_tokenizer() {
  static const auto loaded = Tokenizer::load(DSV3_TEST_DATA "/deepseek-v3-tokenizer");
  DSV3_CHECK(loaded.ok(), loaded.status().message().c_str());
  return **loaded;
}

inline const Tokenizer& tiny_tokenizer() {
  static const auto loaded = Tokenizer::load(DSV3_TEST_DATA "/dsv3-tiny");
  DSV3_CHECK(loaded.ok(), loaded.status().message().c_str());
  return **loaded;
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string{std::istreambuf_iterator<char>(file), {}};
}

/// The character that a vocabulary spells `byte` with.
inline std::string byte_character(int byte) {
  std::string text;
  int next = 0x100;
  for (int b = 0; b <= byte; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const int code_point = printable ? b : next++;
    if (b == byte) append_utf8(static_cast<uint32_t>(code_point), text);
  }
  return text;
}

inline Json added_token(int id, const std::string& content, bool special = false, bool normalized = true) {
  return {{"id", id},        {"content", content},       {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", normalized}, {"special", special}};
}

/// A whole tokenizer.json: the 256 bytes (ids 0 to 255 in byte order), `merges` ("left right", new ids from 256 on),
/// then `added`, with the ids after those.
inline Json small_file(const std::vector<std::string>& merges = {}, const std::vector<std::string>& added = {}) {
  const auto split = [](std::string_view pattern) {
    return Json{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  };
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[byte_character(byte)] = byte;
  for (const std::string& merge : merges) {
    std::string joined = merge;
    joined.erase(joined.find(' '), 1);
    if (!vocab.contains(joined)) vocab[joined] = vocab.size();
  }
  Json added_tokens = Json::array();
  for (const std::string& text : added) {
    added_tokens.push_back(added_token(static_cast<int>(vocab.size() + added_tokens.size()), text));
  }
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  return {
      {"version", "1.0"},
      {"added_tokens", added_tokens},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers", Json::array({split(kDigitsPattern), split(kCjkPattern), split(kWordsPattern), byte_level})}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"dropout", nullptr}, {"vocab", vocab}, {"merges", merges}}}};
}

inline std::shared_ptr<const Tokenizer> parse_or_die(const Json& file, std::string_view config = {}) {
  auto parsed = Tokenizer::parse(dump_json(file), config);
  DSV3_CHECK(parsed.ok(), parsed.status().message().c_str());
  return *parsed;
}

using Ids = std::vector<int32_t>;

}  // namespace dsv3::test
