// A cursor over JSON text that allocates nothing: strings are unescaped in place. For the safetensors header, where a
// document tree would cost many times the text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dsv3::weights {

/// True if `text` is valid UTF-8 (no overlong forms, no surrogates).
bool valid_utf8(std::string_view text);

/// Every function returns false, and leaves error() and at(), on text that is not what was asked for.
class JsonCursor {
 public:
  explicit JsonCursor(std::string& text) : text_(text) {}

  size_t at() const { return at_; }
  bool at_end() const { return at_ == text_.size(); }
  const char* error() const { return error_; }
  bool fail(const char* error) {
    error_ = error;
    return false;
  }

  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) {
      ++at_;
    }
  }
  /// Skips space, then takes `c` if it is next.
  bool take(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool expect(char c, const char* error) { return take(c) || fail(error); }

  /// A string; `*out` stays valid as long as the text.
  bool string(std::string_view* out);

  /// A plain integer in [0, 2^63): no sign, fraction, exponent or leading zero.
  bool integer(uint64_t* out);

 private:
  bool escape(size_t* write);
  bool hex4(uint32_t* out);

  std::string& text_;
  size_t at_ = 0;
  const char* error_ = "";
};

}  // namespace dsv3::weights
