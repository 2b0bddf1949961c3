// Cuts a text into the pieces that BPE merges within: the three patterns of DeepSeek-V3's pre_tokenizer, written as
// one hand-made scanner. One pass, a look-ahead no longer than the piece (or the white space) it yields, no recursion.
#pragma once

#include <cstddef>
#include <string_view>

#include "char_class.h"

namespace dsv3 {

/// The patterns that PieceScanner stands for, in their order; a tokenizer.json must have exactly these.
inline constexpr std::string_view kDigitsPattern = R"(\p{N}{1,3})";
inline constexpr std::string_view kCjkPattern = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+";
// clang-format off
inline constexpr std::string_view kWordsPattern =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    "|\\s+(?!\\S)"
    "|\\s+";
// clang-format on

/// Yields the pieces of `text` in order; joined they are the text. The text must be valid UTF-8 and outlive this.
class PieceScanner {
 public:
  PieceScanner(const CharClasses& classes, std::string_view text) : classes_(classes), text_(text) {}

  std::string_view next();  ///< empty at the end

 private:
  struct Char {
    CharClass kind = CharClass::kOther;
    bool cjk = false;     // in the class of kCjkPattern
    bool inside = false;  // false at the end of the text and where another section begins
    uint32_t bytes = 0;
  };

  Char read(size_t at) const;
  Char peek(size_t at) const;
  size_t skip(size_t at, CharClass kind) const;
  size_t digits_end(size_t at, Char c) const;
  size_t match_end(size_t at, Char c) const;
  size_t white_space_end(size_t at) const;
  size_t unmatched_end(size_t at, Char c) const;

  const CharClasses& classes_;
  std::string_view text_;
  size_t at_ = 0;
  bool section_is_cjk_ = false;
};

}  // namespace dsv3
