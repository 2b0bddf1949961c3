#include "utf8.h"

#include <cstring>

namespace dsv3 {

Utf8Step utf8_step(std::string_view text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  if (lead < 0x80) return {1, Utf8Kind::kValid};

  // The second byte's bounds shut out overlong forms, surrogates and values past U+10FFFF (Unicode, table 3-7).
  size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {1, Utf8Kind::kInvalid};
  }

  for (size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) return {i, Utf8Kind::kUnfinished};
    const auto byte = static_cast<unsigned char>(text[at + i]);
    if (byte < low || byte > high) return {i, Utf8Kind::kInvalid};
    low = 0x80;
    high = 0xBF;
  }
  return {length, Utf8Kind::kValid};
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    // Eight ASCII bytes at a time: most text is mostly that.
    while (text.size() - at >= 8) {
      uint64_t eight = 0;
      std::memcpy(&eight, text.data() + at, 8);
      if ((eight & 0x8080808080808080u) != 0) break;
      at += 8;
    }
    if (at == text.size()) break;
    const Utf8Step step = utf8_step(text, at);
    if (step.kind != Utf8Kind::kValid) break;
    at += step.bytes;
  }
  return at;
}

size_t append_replacing_invalid(std::string_view text, std::string& out) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t valid_bytes = valid_utf8_prefix(text.substr(at));
    out.append(text.substr(at, valid_bytes));
    at += valid_bytes;
    if (at == text.size()) break;
    const Utf8Step step = utf8_step(text, at);
    if (step.kind == Utf8Kind::kUnfinished) break;
    out.append(kReplacementCharacter);
    at += step.bytes;
  }
  return at;
}

void append_utf8(uint32_t code_point, std::string& out) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

}  // namespace dsv3
