// A Tokenizer whose vocabulary is easy to reason about: ids 0 to 255 are the bytes, then whole pieces of text, then
// added tokens. Shared by the tests of templates and of the output parser.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dsv3/tokenizer/tokenizer.h"

namespace dsv3 {

inline constexpr std::string_view kToolTokens[] = {"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
                                                   "<｜tool▁call▁begin｜>",  "<｜tool▁call▁end｜>",
                                                   "<｜tool▁sep｜>",         "<｜tool▁output▁end｜>"};

class FakeTokenizer : public Tokenizer {
 public:
  struct Options {
    bool think_tokens = true;  ///< <think> and </think> are added tokens
    bool tool_tokens = true;
    std::vector<std::string> pieces = {};  ///< ordinary tokens of several bytes
  };

  FakeTokenizer() : FakeTokenizer(Options{}) {}
  explicit FakeTokenizer(Options options) {
    for (int byte = 0; byte < 256; ++byte) texts_.emplace_back(1, static_cast<char>(byte));
    for (const std::string& piece : options.pieces) texts_.push_back(piece);
    add("<｜begin▁of▁sentence｜>", true);
    add("<｜end▁of▁sentence｜>", true);
    add("<｜User｜>", false);
    add("<｜Assistant｜>", false);
    if (options.tool_tokens) {
      for (const std::string_view token : kToolTokens) add(token, false);
    }
    if (options.think_tokens) {
      add("<think>", false);
      add("</think>", false);
    }
  }

  std::vector<int32_t> encode(std::string_view text, bool add_bos, std::span<const ByteRange>) const override {
    std::vector<int32_t> ids;
    if (add_bos) ids.push_back(bos_id());
    for (size_t i = 0; i < text.size();) {
      const AddedToken* found = nullptr;
      for (const AddedToken& token : added_) {
        if (text.substr(i).starts_with(token.text)) found = &token;
      }
      ids.push_back(found != nullptr ? found->id : static_cast<unsigned char>(text[i]));
      i += found != nullptr ? found->text.size() : 1;
    }
    return ids;
  }
  std::string_view token_bytes(int32_t id) const override {
    return is_known(id) ? texts_[static_cast<size_t>(id)] : std::string_view();
  }
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    IncrementalDetokenizer detokenizer(*this, skip_special_tokens);
    std::string text;
    for (const int32_t id : ids) text += detokenizer.push(id);
    return text + detokenizer.finish();
  }
  bool is_known(int32_t id) const override { return id >= 0 && id < vocab_size(); }
  bool is_added(int32_t id) const override { return !added_.empty() && id >= added_.front().id && is_known(id); }
  bool is_special(int32_t id) const override {
    return is_added(id) && added_[static_cast<size_t>(id - added_.front().id)].special;
  }
  int32_t find_added(std::string_view text) const override {
    for (const AddedToken& token : added_) {
      if (token.text == text) return token.id;
    }
    return -1;
  }
  std::span<const AddedToken> added_tokens() const override { return added_; }
  int32_t vocab_size() const override { return static_cast<int32_t>(texts_.size()); }
  int32_t bos_id() const override { return find_added("<｜begin▁of▁sentence｜>"); }
  int32_t eos_id() const override { return find_added("<｜end▁of▁sentence｜>"); }
  bool adds_bos() const override { return true; }

 private:
  void add(std::string_view text, bool special) {
    added_.push_back({static_cast<int32_t>(texts_.size()), std::string(text), special});
    texts_.emplace_back(text);
  }

  std::vector<std::string> texts_;
  std::vector<AddedToken> added_;
};

}  // namespace dsv3
