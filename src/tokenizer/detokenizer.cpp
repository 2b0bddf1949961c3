// IncrementalDetokenizer: joined, what it returns is what decode() makes of the whole sequence.
#include "dsv3/tokenizer/tokenizer.h"
#include "utf8.h"

namespace dsv3 {

std::string IncrementalDetokenizer::push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return {};
  // What is held is the beginning of a character, so a cut there changes nothing about how the bytes are read.
  held_.append(tokenizer_->token_bytes(id));
  std::string text;
  const size_t done = append_replacing_invalid(held_, text);
  held_.erase(0, done);
  return text;
}

std::string IncrementalDetokenizer::finish() {
  if (held_.empty()) return {};
  held_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace dsv3
