#include "piece_scanner.h"

#include "utf8.h"

namespace dsv3 {
namespace {

constexpr int kMaxDigits = 3;

bool is_ascii_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool is_cjk(uint32_t code_point) {
  return (code_point >= 0x4E00 && code_point <= 0x9FA5) || (code_point >= 0x3040 && code_point <= 0x30FF);
}

}  // namespace

// The first two patterns cut the text into sections: up to three digits, runs of CJK, and what lies between. The
// third pattern works inside a section as if there were nothing around it, so a character of another section reads
// as the end of the text. Digits are not matched by the third pattern: they stay as they are.

PieceScanner::Char PieceScanner::read(size_t at) const {
  if (at >= text_.size()) return {};
  const DecodedChar c = decode_valid_utf8(text_, at);
  return {classes_(c.code_point), is_cjk(c.code_point), true, c.bytes};
}

PieceScanner::Char PieceScanner::peek(size_t at) const {
  Char c = read(at);
  c.inside = c.inside && c.kind != CharClass::kNumber && c.cjk == section_is_cjk_;
  return c;
}

size_t PieceScanner::skip(size_t at, CharClass kind) const {
  for (Char c = peek(at); c.inside && c.kind == kind; c = peek(at)) at += c.bytes;
  return at;
}

std::string_view PieceScanner::next() {
  const size_t begin = at_;
  const Char c = read(begin);
  if (!c.inside) return {};
  if (c.kind == CharClass::kNumber) {
    at_ = digits_end(begin, c);
  } else {
    section_is_cjk_ = c.cjk;
    at_ = match_end(begin, c);
  }
  return text_.substr(begin, at_ - begin);
}

size_t PieceScanner::digits_end(size_t at, Char c) const {
  for (int i = 0; i < kMaxDigits && c.inside && c.kind == CharClass::kNumber; ++i) {
    at += c.bytes;
    c = read(at);
  }
  return at;
}

// The alternatives of the third pattern, in its order, told apart by the first character's class:
//   (a) ASCII punctuation [A-Za-z]+     (b) [^\r\n\p{L}\p{P}\p{S}]? [\p{L}\p{M}]+     (c) " "? [\p{P}\p{S}]+ [\r\n]*
//   (d) \s* [\r\n]+                     (e) \s+ (?!\S)                                (f) \s+
size_t PieceScanner::match_end(size_t at, Char c) const {
  const size_t second = at + c.bytes;
  switch (c.kind) {
    case CharClass::kLetterOrMark:  // (b); a mark may be the optional character, to the same end
      return skip(second, CharClass::kLetterOrMark);

    case CharClass::kPunctuationOrSymbol:
      if (c.bytes == 1 && second < text_.size() && is_ascii_letter(text_[second])) {  // (a)
        size_t end = second;
        while (end < text_.size() && is_ascii_letter(text_[end])) ++end;
        return end;
      }
      return skip(skip(second, CharClass::kPunctuationOrSymbol), CharClass::kNewline);  // (c)

    case CharClass::kSpace: {
      const Char after = peek(second);
      if (after.inside && after.kind == CharClass::kLetterOrMark) return skip(second, CharClass::kLetterOrMark);  // (b)
      if (after.inside && after.kind == CharClass::kPunctuationOrSymbol && text_[at] == ' ') {                    // (c)
        return skip(skip(second, CharClass::kPunctuationOrSymbol), CharClass::kNewline);
      }
      return white_space_end(at);
    }

    case CharClass::kNewline:
      return white_space_end(at);

    case CharClass::kOther:
    case CharClass::kNumber:
      break;
  }
  return unmatched_end(at, c);
}

// (d), (e), (f): up to the last line end if there is one, else all but the last character, which belongs to what
// follows, unless nothing follows or there is only one.
size_t PieceScanner::white_space_end(size_t at) const {
  size_t last_newline_end = 0;
  size_t last_begin = at;
  size_t end = at;
  Char c = peek(end);
  for (; c.inside && (c.kind == CharClass::kSpace || c.kind == CharClass::kNewline); c = peek(end)) {
    last_begin = end;
    end += c.bytes;
    if (c.kind == CharClass::kNewline) last_newline_end = end;
  }
  if (last_newline_end > 0) return last_newline_end;
  if (!c.inside || last_begin == at) return end;
  return last_begin;
}

// A character of no class can only be (b)'s optional first one. What no alternative matches stays together as one
// piece, up to the next match.
size_t PieceScanner::unmatched_end(size_t at, Char c) const {
  size_t end = at;
  while (c.inside && c.kind == CharClass::kOther) {
    const Char after = peek(end + c.bytes);
    if (after.inside && after.kind == CharClass::kLetterOrMark) {
      return end == at ? skip(end + c.bytes, CharClass::kLetterOrMark) : end;
    }
    end += c.bytes;
    c = after;
  }
  return end;
}

}  // namespace dsv3
