#include "json_cursor.h"

#include <cstring>

namespace dsv3::weights {

bool valid_utf8(std::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = p + text.size();
  while (p < end) {
    if (end - p >= 8) {  // eight ASCII bytes at once: headers are nearly all ASCII
      uint64_t word;
      std::memcpy(&word, p, 8);
      if ((word & 0x8080808080808080u) == 0) {
        p += 8;
        continue;
      }
    }
    const unsigned lead = *p;
    int more;
    unsigned low = 0x80, high = 0xbf;  // allowed range of the second byte
    if (lead < 0x80) {
      more = 0;
    } else if (lead >= 0xc2 && lead <= 0xdf) {
      more = 1;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      more = 2;
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      more = 3;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    } else {
      return false;
    }
    if (end - p <= more) return false;
    for (int i = 1; i <= more; ++i) {
      if (p[i] < low || p[i] > high) return false;
      low = 0x80;
      high = 0xbf;
    }
    p += more + 1;
  }
  return true;
}

bool JsonCursor::hex4(uint32_t* out) {
  if (text_.size() - at_ < 4) return fail("unfinished \\u escape");
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = text_[at_++];
    uint32_t digit;
    if (c >= '0' && c <= '9') {
      digit = static_cast<uint32_t>(c - '0');
    } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
      digit = static_cast<uint32_t>((c | 0x20) - 'a') + 10;
    } else {
      return fail("bad \\u escape");
    }
    value = value << 4 | digit;
  }
  *out = value;
  return true;
}

// The escape after a backslash at at_ - 1; writes at *write, which never passes at_, as no escape grows.
bool JsonCursor::escape(size_t* write) {
  if (at_ >= text_.size()) return fail("unfinished string");
  const char c = text_[at_++];
  constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
  if (const size_t simple = kFrom.find(c); simple != std::string_view::npos) {
    text_[(*write)++] = kTo[simple];
    return true;
  }
  if (c != 'u') return fail("unknown escape");
  uint32_t code;
  if (!hex4(&code)) return false;
  if (code >= 0xdc00 && code <= 0xdfff) return fail("lone surrogate");
  if (code >= 0xd800 && code <= 0xdbff) {
    uint32_t second;
    if (text_.size() - at_ < 6 || text_[at_] != '\\' || text_[at_ + 1] != 'u') return fail("lone surrogate");
    at_ += 2;
    if (!hex4(&second)) return false;
    if (second < 0xdc00 || second > 0xdfff) return fail("lone surrogate");
    code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
  }
  const auto put = [&](uint32_t byte) { text_[(*write)++] = static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 63));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 63));
    put(0x80 | (code & 63));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 63));
    put(0x80 | (code >> 6 & 63));
    put(0x80 | (code & 63));
  }
  return true;
}

bool JsonCursor::string(std::string_view* out) {
  if (!expect('"', "a string was expected")) return false;
  const size_t begin = at_;
  // Most strings hold no escape and need no writing.
  const char* const base = text_.data();
  const size_t size = text_.size();
  size_t read = at_;
  while (read < size && base[read] != '"' && base[read] != '\\' && static_cast<unsigned char>(base[read]) >= 0x20)
    ++read;
  size_t write = at_ = read;
  while (at_ < size) {
    const auto c = static_cast<unsigned char>(text_[at_++]);
    if (c == '"') {
      *out = std::string_view(text_).substr(begin, write - begin);
      return true;
    }
    if (c == '\\') {
      if (!escape(&write)) return false;
    } else if (c < 0x20) {
      return fail("control character in a string");
    } else {
      text_[write++] = static_cast<char>(c);
    }
  }
  return fail("unfinished string");
}

bool JsonCursor::integer(uint64_t* out) {
  skip_space();
  const size_t begin = at_;
  uint64_t value = 0;
  while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
    const auto digit = static_cast<uint64_t>(text_[at_++] - '0');
    constexpr uint64_t kMax = (uint64_t{1} << 63) - 1;
    if (value > (kMax - digit) / 10) return fail("number of 2^63 or more");
    value = value * 10 + digit;
  }
  if (at_ == begin) return fail("a non-negative integer was expected");
  if (text_[begin] == '0' && at_ - begin > 1) return fail("number with a leading zero");
  if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) {
    return fail("a non-negative integer was expected");
  }
  *out = value;
  return true;
}

}  // namespace dsv3::weights
