#include "chat/jinja/text.h"

#include <utf8proc.h>

#include <algorithm>

namespace dsv3::jinja {

void Text::mark(size_t begin, size_t end, Source source) {
  if (begin == end || source == Source::kTemplate) return;
  if (!marks_.empty() && marks_.back().end == begin && marks_.back().source == source) {
    marks_.back().end = end;
  } else {
    marks_.push_back({begin, end, source});
  }
}

void Text::append(std::string_view bytes, Source source) {
  const size_t begin = bytes_.size();
  bytes_.append(bytes);
  mark(begin, bytes_.size(), source);
}

void Text::append(const Text& other, size_t begin, size_t end) {
  end = std::min(end, other.size());
  if (begin >= end) return;
  const size_t base = bytes_.size();
  bytes_.append(other.bytes_, begin, end - begin);
  auto it =
      std::partition_point(other.marks_.begin(), other.marks_.end(), [begin](const Mark& m) { return m.end <= begin; });
  for (; it != other.marks_.end() && it->begin < end; ++it) {
    mark(base + std::max(it->begin, begin) - begin, base + std::min(it->end, end) - begin, it->source);
  }
}

Text Text::slice(size_t begin, size_t end) const {
  Text out;
  out.append(*this, begin, end);
  return out;
}

Source Text::source_at(size_t offset) const {
  const auto it =
      std::partition_point(marks_.begin(), marks_.end(), [offset](const Mark& m) { return m.end <= offset; });
  return it != marks_.end() && it->begin <= offset ? it->source : Source::kTemplate;
}

size_t decode_char(std::string_view text, size_t offset, char32_t* code_point) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(offset);
  if (lead < 0x80) {
    *code_point = lead;
    return 1;
  }
  const size_t length = lead >= 0xF0 && lead <= 0xF4  ? 4
                        : lead >= 0xE0 && lead < 0xF0 ? 3
                        : lead >= 0xC2 && lead < 0xE0 ? 2
                                                      : 0;
  *code_point = 0xFFFD;
  if (length == 0 || offset + length > text.size()) return 1;
  char32_t c = lead & (0xFF >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(offset + i) & 0xC0) != 0x80) return 1;
    c = (c << 6) | (byte(offset + i) & 0x3F);
  }
  if ((length == 3 && c < 0x800) || (length == 4 && (c < 0x10000 || c > 0x10FFFF)) || (c >= 0xD800 && c < 0xE000)) {
    return 1;
  }
  *code_point = c;
  return length;
}

void append_utf8(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (c >> 6)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (c >> 12)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (c >> 18)));
    out->push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

bool is_valid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    char32_t c = 0;
    const size_t length = decode_char(text, i, &c);
    if (length == 1 && static_cast<unsigned char>(text[i]) >= 0x80) return false;
    i += length;
  }
  return true;
}

size_t count_chars(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

size_t char_offset(std::string_view text, size_t index) {
  size_t offset = 0;
  for (; index > 0 && offset < text.size(); --index) {
    char32_t c = 0;
    offset += decode_char(text, offset, &c);
  }
  return offset;
}

size_t previous_char(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && end - begin < 4 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  char32_t c = 0;
  return begin + decode_char(text, begin, &c) == end ? begin : end - 1;
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

namespace {

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

}  // namespace

bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool is_letter(char32_t c) {
  const utf8proc_category_t k = category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal_digit(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND;
}

bool is_numeric(char32_t c) {
  const utf8proc_category_t k = category(c);
  return k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
}

bool is_identifier_char(char32_t c) {
  if (c < 0x80) return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  const utf8proc_category_t k = category(c);
  return is_letter(c) || k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_MN ||
         k == UTF8PROC_CATEGORY_MC || k == UTF8PROC_CATEGORY_PC;
}

bool is_upper(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU;
}
bool is_lower(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA;
}
bool is_cased(char32_t c) {
  return is_upper(c) || is_lower(c) || category(c) == UTF8PROC_CATEGORY_LT;
}
char32_t to_upper(char32_t c) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)));
}
char32_t to_lower(char32_t c) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

Trimmed trim(std::string_view text, bool left, bool right, const std::string_view* chars) {
  const auto drops = [chars](std::string_view whole, size_t offset, size_t length, char32_t c) {
    if (chars == nullptr) return is_space(c);
    const std::string_view one = whole.substr(offset, length);
    for (size_t i = 0; i < chars->size();) {
      char32_t unused = 0;
      const size_t n = decode_char(*chars, i, &unused);
      if (chars->substr(i, n) == one) return true;
      i += n;
    }
    return false;
  };
  Trimmed range{0, text.size()};
  while (left && range.begin < range.end) {
    char32_t c = 0;
    const size_t length = decode_char(text, range.begin, &c);
    if (!drops(text, range.begin, length, c)) break;
    range.begin += length;
  }
  while (right && range.end > range.begin) {
    const size_t begin = previous_char(text, range.end);
    char32_t c = 0;
    decode_char(text, begin, &c);
    if (begin < range.begin || !drops(text, begin, range.end - begin, c)) break;
    range.end = begin;
  }
  return range;
}

}  // namespace dsv3::jinja
