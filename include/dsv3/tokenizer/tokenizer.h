// The byte-level BPE tokenizer of the DeepSeek family, read from tokenizer.json. Immutable and thread safe after load.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"

namespace dsv3 {

/// Bytes [begin, end) of a text.
struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
  bool operator==(const ByteRange&) const = default;
};

struct AddedToken {
  int32_t id = 0;
  std::string text;      ///< UTF-8
  bool special = false;  ///< left out of text when skip_special_tokens is asked for
};

class Tokenizer {
 public:
  /// Reads `tokenizer.json` and, where present, `tokenizer_config.json` of a model folder. kBadModelFile with the
  /// reason for anything that is not a DeepSeek-style byte-level BPE, or not well formed.
  static Result<std::shared_ptr<const Tokenizer>> load(const std::string& model_dir);

  /// The same from the files' contents; `tokenizer_config_json` may be empty.
  static Result<std::shared_ptr<const Tokenizer>> parse(std::string_view tokenizer_json,
                                                        std::string_view tokenizer_config_json);

  virtual ~Tokenizer() = default;

  /// Ids of `text`, with added tokens recognised everywhere except where the match touches a byte of `untrusted`
  /// (sorted, disjoint ranges). The text is pre-tokenized as one piece of text either way, so merges across the
  /// seams equal the reference's. Invalid UTF-8: each maximal invalid subsequence is replaced by U+FFFD first.
  /// With `add_bos`, bos_id() is put in front. Time is near-linear in the text; no recursion.
  virtual std::vector<int32_t> encode(std::string_view text, bool add_bos,
                                      std::span<const ByteRange> untrusted = {}) const = 0;

  /// The bytes that a token stands for; empty for ids that the tokenizer does not know. Not always whole characters.
  virtual std::string_view token_bytes(int32_t id) const = 0;

  /// Text of a sequence: the tokens' bytes joined, invalid UTF-8 replaced by U+FFFD.
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const = 0;

  virtual bool is_known(int32_t id) const = 0;    ///< false for holes and ids past the end
  virtual bool is_added(int32_t id) const = 0;    ///< one of added_tokens()
  virtual bool is_special(int32_t id) const = 0;  ///< an added token with `special` set
  virtual int32_t find_added(std::string_view text) const = 0;  ///< id of an added token, -1 if there is none
  virtual std::span<const AddedToken> added_tokens() const = 0;  ///< sorted by id
  virtual int32_t vocab_size() const = 0;  ///< 1 + largest id; the model's head may be larger
  virtual int32_t bos_id() const = 0;      ///< -1 if there is none
  virtual int32_t eos_id() const = 0;      ///< -1 if there is none
  virtual bool adds_bos() const = 0;       ///< tokenizer_config's add_bos_token: raw prompts get bos_id() in front
};

/// Turns ids into text as they come and never emits half a character: bytes of an unfinished character are held.
/// Invalid bytes come out as U+FFFD. Not thread safe; the tokenizer must outlive it.
class IncrementalDetokenizer {
 public:
  IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

  std::string push(int32_t id);  ///< the text that became complete with this token; may be empty
  std::string finish();          ///< what was held, as U+FFFD; empty if nothing was

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string held_;  // at most 3 bytes: the beginning of a character
};

}  // namespace dsv3
