// Text that knows, byte for byte, where it came from; and the UTF-8 helpers that Python-like strings need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsv3::jinja {

/// Who wrote a byte. Only kTemplate bytes may become control tokens.
enum class Source : uint8_t {
  kTemplate,
  kClient,
  kEndMark,  ///< put by us behind the content of a message that is to be continued; taken out after rendering
};

/// Bytes [begin, end) come from `source`, which is never kTemplate.
struct Mark {
  size_t begin = 0;
  size_t end = 0;
  Source source = Source::kClient;
  bool operator==(const Mark&) const = default;
};

/// A string and its marks: sorted, disjoint, touching marks of one source merged. Bytes without a mark are the
/// template's.
class Text {
 public:
  Text() = default;
  explicit Text(std::string_view bytes, Source source = Source::kTemplate) { append(bytes, source); }

  const std::string& bytes() const { return bytes_; }
  std::string_view view() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  const std::vector<Mark>& marks() const { return marks_; }

  void append(std::string_view bytes, Source source);
  void append(const Text& other) { append(other, 0, other.size()); }
  void append(const Text& other, size_t begin, size_t end);  ///< bytes [begin, end) of `other`
  Text slice(size_t begin, size_t end) const;
  Source source_at(size_t offset) const;

  bool operator==(const Text& other) const { return bytes_ == other.bytes_; }

 private:
  void mark(size_t begin, size_t end, Source source);

  std::string bytes_;
  std::vector<Mark> marks_;
};

/// Length of the character at `offset` and, in `code_point`, what it is. An invalid byte counts as one U+FFFD.
size_t decode_char(std::string_view text, size_t offset, char32_t* code_point);
void append_utf8(char32_t code_point, std::string* out);
bool is_valid_utf8(std::string_view text);

size_t count_chars(std::string_view text);
/// Byte offset of character number `index`; text.size() past the end.
size_t char_offset(std::string_view text, size_t index);
/// Offset of the character that ends at `end` (> 0).
size_t previous_char(std::string_view text, size_t end);

bool is_space(char32_t c);      ///< Python's str.isspace
bool is_printable(char32_t c);  ///< Python's str.isprintable
bool is_identifier_char(char32_t c);
bool is_letter(char32_t c);
bool is_decimal_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_cased(char32_t c);
char32_t to_upper(char32_t c);
char32_t to_lower(char32_t c);

/// Byte range of `text` without white space (or, with `chars`, without these characters) at its ends.
struct Trimmed {
  size_t begin = 0;
  size_t end = 0;
};
Trimmed trim(std::string_view text, bool left, bool right, const std::string_view* chars = nullptr);

}  // namespace dsv3::jinja
