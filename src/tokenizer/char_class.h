// Character classes that the pre-tokenizer's patterns speak of. The ranges are our own table (Unicode 16.0, the
// version of the reference's regex engine) and not the C library's or utf8proc's: ids must not depend on what a
// distribution ships. Immutable after construction.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dsv3 {

enum class CharClass : uint8_t {
  kOther,                ///< control, format, unassigned, private use
  kLetterOrMark,         ///< \p{L} or \p{M}: the patterns tell them apart nowhere that changes a match
  kNumber,               ///< \p{N}
  kPunctuationOrSymbol,  ///< \p{P} or \p{S}
  kSpace,                ///< White_Space other than CR and LF
  kNewline,              ///< CR, LF
};

struct CodePointRange {
  uint32_t first = 0;
  uint32_t last = 0;  ///< inclusive
};

/// Ascending, disjoint. In char_class_ranges.cpp.
std::span<const CodePointRange> letter_or_mark_ranges();
std::span<const CodePointRange> number_ranges();
std::span<const CodePointRange> punctuation_or_symbol_ranges();
std::span<const CodePointRange> white_space_ranges();

/// One byte a code point, in pages of 256 of which equal ones are stored once.
class CharClasses {
 public:
  CharClasses();

  CharClass operator()(uint32_t code_point) const {
    return static_cast<CharClass>(entries_[pages_[code_point >> 8] + (code_point & 0xFF)]);
  }

 private:
  std::vector<uint32_t> pages_;   // [0x1100] start of the page in entries_
  std::vector<uint8_t> entries_;  // [256 * different pages]
};

}  // namespace dsv3
