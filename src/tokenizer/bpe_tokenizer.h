// The Tokenizer that the files describe: cleans the text, finds added tokens, cuts the rest into pieces, merges each.
// Immutable after construction; all working memory belongs to the call.
#pragma once

#include <memory>

#include "added_tokens.h"
#include "char_class.h"
#include "dsv3/tokenizer/tokenizer.h"
#include "merges.h"
#include "tokenizer_file.h"

namespace dsv3 {

class BpeTokenizer final : public Tokenizer {
 public:
  static Result<std::shared_ptr<const Tokenizer>> make(TokenizerFile file, const TokenizerConfigFile& config);

  std::vector<int32_t> encode(std::string_view text, bool add_bos, std::span<const ByteRange> untrusted) const override;
  std::string_view token_bytes(int32_t id) const override;
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override;
  bool is_known(int32_t id) const override;
  bool is_added(int32_t id) const override;
  bool is_special(int32_t id) const override;
  int32_t find_added(std::string_view text) const override;
  std::span<const AddedToken> added_tokens() const override { return added_; }
  int32_t vocab_size() const override { return static_cast<int32_t>(begins_.size()) - 1; }
  int32_t bos_id() const override { return bos_id_; }
  int32_t eos_id() const override { return eos_id_; }
  bool adds_bos() const override { return adds_bos_; }

 private:
  enum class TokenKind : uint8_t { kText, kAdded, kSpecial };

  BpeTokenizer(TokenizerFile file, Merges merges);

  std::string bytes_;
  std::vector<uint32_t> begins_;   // [vocab_size + 1]
  std::vector<TokenKind> kinds_;   // [vocab_size]
  std::vector<AddedToken> added_;  // sorted by id
  AddedTokens added_finder_;
  Merges merges_;
  CharClasses classes_;
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
  bool adds_bos_ = false;
};

}  // namespace dsv3
