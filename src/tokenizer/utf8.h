// UTF-8 as the tokenizer needs it: one step at a time, and invalid bytes replaced as WHATWG and Unicode advise.
// Stateless; never throws on bad input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dsv3 {

enum class Utf8Kind {
  kValid,      ///< one whole character
  kInvalid,    ///< a maximal invalid subsequence: stands for one U+FFFD
  kUnfinished  ///< the text ends inside a character that is well formed so far
};

struct Utf8Step {
  size_t bytes = 0;  ///< 1 to 4
  Utf8Kind kind = Utf8Kind::kValid;
};

/// What stands at text[at]; `at` must be less than text.size().
Utf8Step utf8_step(std::string_view text, size_t at);

/// Bytes of the longest beginning of `text` that is valid UTF-8 without an unfinished character.
size_t valid_utf8_prefix(std::string_view text);

/// Appends `text` with every maximal invalid subsequence replaced by U+FFFD. An unfinished character at the end is
/// not appended: its first byte's place is returned (text.size() if there is none).
size_t append_replacing_invalid(std::string_view text, std::string& out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

struct DecodedChar {
  uint32_t code_point = 0;
  uint32_t bytes = 0;
};

/// The character at `text[at]` of valid UTF-8. Not for unchecked bytes.
inline DecodedChar decode_valid_utf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at + i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

/// Appends the UTF-8 form of a scalar value.
void append_utf8(uint32_t code_point, std::string& out);

}  // namespace dsv3
