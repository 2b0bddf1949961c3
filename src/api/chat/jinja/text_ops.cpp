// Python's string operations over marked text: what is cut, joined or mapped keeps its source.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

bool push_slice(Runtime& rt, const Value& text, size_t begin, size_t end, std::vector<Value>* out) {
  Value piece;
  if (!rt.charge() || !rt.string(text.text->slice(begin, end), &piece)) return false;
  out->push_back(std::move(piece));
  return true;
}

bool split_at_spaces(Runtime& rt, const Value& text, Int max_splits, bool from_right, std::vector<Value>* out) {
  const std::string& bytes = text.str();
  std::vector<std::pair<size_t, size_t>> words;
  for (size_t i = 0, begin = std::string::npos; i <= bytes.size();) {
    char32_t c = ' ';
    const size_t n = i < bytes.size() ? decode_char(bytes, i, &c) : 1;
    if (is_space(c)) {
      if (begin != std::string::npos) words.emplace_back(begin, i);
      begin = std::string::npos;
    } else if (begin == std::string::npos) {
      begin = i;
    }
    i += n;
  }
  const size_t limit =
      max_splits < 0 ? words.size() : static_cast<size_t>(std::min(max_splits, static_cast<Int>(words.size())));
  if (words.size() > limit + 1 || (words.size() == limit + 1 && max_splits >= 0)) {
    // The piece that is not split keeps its inner white space, and none at the outer end.
    if (from_right) {
      words.erase(words.begin() + 1, words.end() - static_cast<std::ptrdiff_t>(limit));
      const Trimmed rest =
          trim(std::string_view(bytes).substr(0, limit > 0 ? words[1].first : bytes.size()), false, true);
      words[0] = {0, rest.end};
    } else {
      const size_t begin = words[limit].first;
      words.resize(limit + 1);
      words[limit] = {begin, bytes.size()};
    }
  }
  for (const auto& [begin, end] : words) {
    if (!push_slice(rt, text, begin, end, out)) return false;
  }
  return true;
}

void append_mapped(const Text& text, size_t offset, size_t length, char32_t from, char32_t to, Text* out) {
  if (from == to) {
    out->append(text, offset, offset + length);
    return;
  }
  std::string bytes;
  append_utf8(to, &bytes);
  out->append(bytes, text.source_at(offset));
}

}  // namespace

bool split_text(Runtime& rt, const Value& text, const std::string* separator, Int max_splits, bool from_right,
                std::vector<Value>* out) {
  out->clear();
  const std::string& bytes = text.str();
  if (!rt.charge_bytes(bytes.size())) return false;
  if (separator == nullptr) return split_at_spaces(rt, text, max_splits, from_right, out);
  if (separator->empty()) return rt.fail("empty separator");
  if (from_right) {
    size_t end = bytes.size();
    for (Int i = 0; max_splits < 0 || i < max_splits; ++i) {
      const size_t at = end < separator->size() ? std::string::npos : bytes.rfind(*separator, end - separator->size());
      if (at == std::string::npos) break;
      if (!push_slice(rt, text, at + separator->size(), end, out)) return false;
      end = at;
    }
    if (!push_slice(rt, text, 0, end, out)) return false;
    std::reverse(out->begin(), out->end());
    return true;
  }
  size_t begin = 0;
  for (Int i = 0; max_splits < 0 || i < max_splits; ++i) {
    const size_t at = bytes.find(*separator, begin);
    if (at == std::string::npos) break;
    if (!push_slice(rt, text, begin, at, out)) return false;
    begin = at + separator->size();
  }
  return push_slice(rt, text, begin, bytes.size(), out);
}

bool replace_text(Runtime& rt, const Text& text, const Text& from, const Text& to, Int max_count, Value* out) {
  Writer writer(rt);
  const std::string& bytes = text.bytes();
  size_t begin = 0;
  Int count = 0;
  if (from.size() == 0) {
    // Python puts `to` before every character and at the end.
    while (!writer.full() && (max_count < 0 || count < max_count)) {
      if (!rt.charge()) return false;
      writer.write(to);
      ++count;
      if (begin >= bytes.size()) break;
      char32_t c = 0;
      const size_t length = decode_char(bytes, begin, &c);
      writer.write(text, begin, begin + length);
      begin += length;
    }
  } else {
    while (!writer.full() && (max_count < 0 || count < max_count)) {
      const size_t at = bytes.find(from.bytes(), begin);
      if (at == std::string::npos) break;
      if (!rt.charge()) return false;
      writer.write(text, begin, at);
      writer.write(to);
      begin = at + from.size();
      ++count;
    }
  }
  writer.write(text, begin, bytes.size());
  return rt.charge_bytes(bytes.size()) && writer.finish(out);
}

bool map_case(Runtime& rt, const Text& text, char mode, Value* out) {
  const std::string& bytes = text.bytes();
  Text mapped;
  bool inside_word = false;
  for (size_t i = 0; i < bytes.size();) {
    char32_t c = 0;
    const size_t length = decode_char(bytes, i, &c);
    const bool first = mode == 'c' ? i == 0 : mode == 't' && !inside_word;
    if (c == 0xDF && (mode == 'u' || first)) {
      mapped.append(mode == 'u' ? "SS" : "Ss", text.source_at(i));  // the one common letter whose capital is two
    } else {
      const char32_t to = mode == 'u' || first ? to_upper(c) : to_lower(c);
      append_mapped(text, i, length, c, to, &mapped);
    }
    inside_word = is_cased(c);
    i += length;
  }
  return rt.string(std::move(mapped), out);
}

bool split_lines(Runtime& rt, const Text& text, bool keep_ends, std::vector<Value>* out) {
  const std::string& bytes = text.bytes();
  const Value whole = Value::of(std::make_shared<const Text>(text));
  size_t begin = 0;
  for (size_t i = 0; i < bytes.size();) {
    char32_t c = 0;
    size_t next = i + decode_char(bytes, i, &c);
    const bool ends = (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (ends) {
      if (c == '\r' && next < bytes.size() && bytes[next] == '\n') ++next;
      if (!push_slice(rt, whole, begin, keep_ends ? next : i, out)) return false;
      begin = next;
    }
    i = next;
  }
  return begin >= bytes.size() || push_slice(rt, whole, begin, bytes.size(), out);
}

bool printf_text(Runtime& rt, const Text& format, const Args& args, Value* out) {
  const std::string& bytes = format.bytes();
  Writer writer(rt);
  size_t next_arg = 0;
  size_t plain = 0;
  for (size_t i = bytes.find('%'); i != std::string::npos; i = bytes.find('%', i)) {
    writer.write(format, plain, i);
    size_t j = i + 1;
    int precision = -1;
    if (j < bytes.size() && bytes[j] == '.') {
      const auto parsed = std::from_chars(bytes.data() + j + 1, bytes.data() + bytes.size(), precision);
      if (parsed.ec != std::errc() || precision > 100) return rt.fail("bad precision in a format string");
      j = static_cast<size_t>(parsed.ptr - bytes.data());
    }
    if (j >= bytes.size()) return rt.fail("incomplete format");
    const char conversion = bytes[j];
    if (conversion == '%') {
      writer.write("%");
    } else {
      if (next_arg >= args.positional.size()) return rt.fail("not enough arguments for format string");
      const Value& arg = args.positional[next_arg++];
      if (conversion == 's' || conversion == 'r') {
        if (!(conversion == 's' ? write_str(rt, arg, &writer) : write_repr(rt, arg, &writer))) return false;
      } else if (conversion == 'd' || conversion == 'i') {
        if (!arg.is_number()) return rt.fail({"%d format: a real number is required, not ", type_name(arg)});
        if (arg.kind == Kind::kFloat && !(std::abs(arg.number) < 1e37)) return rt.fail("number out of range for %d");
        writer.write(int_to_string(arg.kind == Kind::kFloat ? static_cast<Int>(arg.number) : arg.as_int()));
      } else if (conversion == 'f') {
        if (!arg.is_number()) return rt.fail({"must be real number, not ", type_name(arg)});
        char buffer[512];
        const int size = std::snprintf(buffer, sizeof(buffer), "%.*f", precision < 0 ? 6 : precision, arg.as_double());
        writer.write(std::string_view(buffer, static_cast<size_t>(std::max(size, 0))));
      } else {
        return rt.fail({"unsupported format character '", std::string_view(&conversion, 1), "'"});
      }
    }
    i = plain = j + 1;
    if (!rt.charge()) return false;
  }
  if (next_arg < args.positional.size() && !args.positional.empty()) {
    return rt.fail("not all arguments converted during string formatting");
  }
  writer.write(format, plain, bytes.size());
  return writer.finish(out);
}

bool parse_int(std::string_view text, int base, Int* out) {
  const Trimmed range = trim(text, true, true);
  text = text.substr(range.begin, range.end - range.begin);
  bool negative = false;
  if (!text.empty() && (text.front() == '-' || text.front() == '+')) {
    negative = text.front() == '-';
    text.remove_prefix(1);
  }
  if (text.size() > 2 && text[0] == '0') {
    const char mark = static_cast<char>(text[1] | 0x20);
    const int named = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      base = named;
      text.remove_prefix(2);
      if (text.front() == '_') text.remove_prefix(1);
    }
  }
  if (base == 0) base = 10;
  if (text.empty() || base < 2 || base > 36) return false;
  Int value = 0;
  bool digit_before = false;
  for (const char c : text) {
    if (c == '_') {
      if (!digit_before) return false;
      digit_before = false;
      continue;
    }
    const int digit = c >= '0' && c <= '9'                     ? c - '0'
                      : (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (c | 0x20) - 'a' + 10
                                                               : 99;
    if (digit >= base) return false;
    if (__builtin_mul_overflow(value, Int{base}, &value) || __builtin_add_overflow(value, Int{digit}, &value))
      return false;
    digit_before = true;
  }
  if (!digit_before) return false;
  *out = negative ? -value : value;
  return true;
}

bool parse_float(std::string_view text, double* out) {
  const Trimmed range = trim(text, true, true);
  std::string digits;
  bool underscore = false;
  for (const char c : text.substr(range.begin, range.end - range.begin)) {
    if (c == '_') {
      if (digits.empty() || underscore || digits.back() < '0' || digits.back() > '9') return false;
      underscore = true;
      continue;
    }
    if (underscore && (c < '0' || c > '9')) return false;
    underscore = false;
    digits.push_back(c);
  }
  if (underscore) return false;
  std::string_view view = digits;
  if (!view.empty() && view.front() == '+') {
    view.remove_prefix(1);
    if (!view.empty() && view.front() == '-') return false;
  }
  if (view.empty()) return false;
  const auto parsed = std::from_chars(view.data(), view.data() + view.size(), *out);
  if (parsed.ptr != view.data() + view.size()) return false;
  if (parsed.ec == std::errc::result_out_of_range) {
    // Python gives inf or 0; which one shows in the sign of the exponent.
    const size_t e = view.find_first_of("eE");
    const bool tiny = e != std::string_view::npos && e + 1 < view.size() && view[e + 1] == '-';
    *out = tiny ? 0.0 : HUGE_VAL;
    if (view.front() == '-') *out = -*out;
    return true;
  }
  return parsed.ec == std::errc();
}

}  // namespace dsv3::jinja
