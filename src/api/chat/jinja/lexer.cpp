#include "chat/jinja/lexer.h"

#include <array>
#include <optional>

#include "chat/jinja/text.h"

namespace dsv3::jinja {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// "\r\n" and "\r" become "\n"; one newline at the very end is not part of the template.
std::string normalise_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  Result<std::vector<Token>> run() {
    while (pos_ < source_.size()) {
      if (Status status = root(); !status.ok()) return status;
    }
    add(TokenType::kEnd, "", pos_);
    return std::move(tokens_);
  }

 private:
  char at(size_t i) const { return i < source_.size() ? source_[i] : '\0'; }
  bool starts(size_t i, std::string_view what) const { return source_.compare(i, what.size(), what) == 0; }

  size_t skip_space(size_t i) const {
    while (i < source_.size()) {
      char32_t c = 0;
      const size_t length = decode_char(source_, i, &c);
      if (!is_space(c)) break;
      i += length;
    }
    return i;
  }

  int line_of(size_t offset) {
    for (; counted_ < offset && counted_ < source_.size(); ++counted_) line_ += source_[counted_] == '\n';
    return line_;
  }

  void add(TokenType type, std::string text, size_t offset) {
    tokens_.push_back({type, std::move(text), line_of(offset)});
  }
  Status error(size_t offset, const std::string& message) { return syntax_error(line_of(offset), message); }

  // Data in front of a tag; sign is the tag's '-', '+' or 0.
  void add_data(size_t begin, size_t end, char sign, bool variable) {
    const std::string_view text = std::string_view(source_).substr(begin, end - begin);
    size_t keep = text.size();
    if (sign == '-') {
      keep = trim(text, false, true).end;
    } else if (sign != '+' && !variable) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_begin > 0 || line_starting_) &&
          trim(text.substr(line_begin), true, false).begin == text.size() - line_begin) {
        keep = line_begin;
      }
    }
    if (keep > 0) add(TokenType::kData, std::string(text.substr(0, keep)), begin);
  }

  void moved_to(size_t pos) {
    pos_ = pos;
    line_starting_ = pos > 0 && source_[pos - 1] == '\n';
  }

  // Behind "%}" or "#}" at `end`: '-' eats white space, nothing eats one newline, '+' keeps it.
  size_t after_block(size_t end, char sign) const {
    if (sign == '-') return skip_space(end);
    return sign == '+' || at(end) != '\n' ? end : end + 1;
  }

  Status root() {
    size_t tag = pos_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos) {
        add(TokenType::kData, source_.substr(pos_), pos_);
        pos_ = source_.size();
        return {};
      }
      if (at(tag + 1) == '%' || at(tag + 1) == '{' || at(tag + 1) == '#') break;
    }
    const char kind = at(tag + 1);
    const char sign = at(tag + 2) == '-' || at(tag + 2) == '+' ? at(tag + 2) : '\0';
    const size_t inside = tag + 2 + (sign != '\0');
    add_data(pos_, tag, sign, kind == '{');
    if (kind == '#') return comment(tag, inside);
    if (kind == '%') {
      if (const std::optional<size_t> body = raw_begin(inside)) return raw(tag, *body);
    }
    add(kind == '%' ? TokenType::kBlockBegin : TokenType::kVariableBegin, "", tag);
    pos_ = inside;
    return tag_tokens(kind == '%');
  }

  Status comment(size_t tag, size_t inside) {
    const size_t end = source_.find("#}", inside);
    if (end == std::string::npos) return error(tag, "Missing end of comment tag");
    const char sign = end > inside && (at(end - 1) == '-' || at(end - 1) == '+') ? at(end - 1) : '\0';
    moved_to(after_block(end + 2, sign));
    return {};
  }

  std::optional<size_t> raw_begin(size_t inside) const {
    size_t i = skip_space(inside);
    if (!starts(i, "raw")) return std::nullopt;
    i = skip_space(i + 3);
    if (starts(i, "-%}")) return skip_space(i + 3);
    if (starts(i, "%}")) return i + 2;
    return std::nullopt;
  }

  Status raw(size_t tag, size_t body) {
    line_starting_ = body > 0 && source_[body - 1] == '\n';
    for (size_t end = source_.find("{%", body); end != std::string::npos; end = source_.find("{%", end + 2)) {
      const char sign = at(end + 2) == '-' || at(end + 2) == '+' ? at(end + 2) : '\0';
      size_t i = skip_space(end + 2 + (sign != '\0'));
      if (!starts(i, "endraw")) continue;
      i = skip_space(i + 6);
      const char close = at(i) == '-' || at(i) == '+' ? at(i) : '\0';
      if (!starts(i + (close != '\0'), "%}")) continue;
      add_data(body, end, sign, false);
      moved_to(after_block(i + (close != '\0') + 2, close));
      return {};
    }
    return error(tag, "Missing end of raw directive");
  }

  // The inside of {{ }} or {% %}, up to and with its end.
  Status tag_tokens(bool block) {
    const size_t begin = pos_;
    const std::string_view close = block ? "%}" : "}}";
    std::string open;  // closing brackets that are due
    while (pos_ < source_.size()) {
      if (open.empty()) {
        const char sign = at(pos_) == '-' || (block && at(pos_) == '+') ? at(pos_) : '\0';
        if (starts(pos_ + (sign != '\0'), close)) {
          const size_t end = pos_ + (sign != '\0') + 2;
          add(block ? TokenType::kBlockEnd : TokenType::kVariableEnd, "", pos_);
          moved_to(block ? after_block(end, sign) : sign == '-' ? skip_space(end) : end);
          return {};
        }
      }
      if (const size_t next = skip_space(pos_); next > pos_) {
        pos_ = next;
        continue;
      }
      if (tokens_.size() > kMaxTokens) return error(pos_, "more than " + std::to_string(kMaxTokens) + " tokens");
      if (is_digit(at(pos_)))
        number();
      else if (at(pos_) == '\'' || at(pos_) == '"')
        DSV3_TRY(string());
      else if (!name())
        DSV3_TRY(operation(&open));
    }
    return error(begin,
                 block ? "unexpected end of template, expected '%}'" : "unexpected end of template, expected '}}'");
  }

  // (\d+_)*\d+ from `i`; `i` itself if there is none.
  size_t digits_end(size_t i) const {
    size_t end = i;
    while (is_digit(at(end)) || (at(end) == '_' && end > i && at(end - 1) != '_' && is_digit(at(end + 1)))) ++end;
    return end;
  }

  void number() {
    const size_t begin = pos_;
    TokenType type = TokenType::kInteger;
    size_t end = begin;
    const char prefix = static_cast<char>(at(begin + 1) | 0x20);
    const auto based = [&](auto accepts) {
      size_t i = begin + 2;
      while (accepts(at(i)) || (at(i) == '_' && accepts(at(i + 1)))) ++i;
      return i > begin + 2 ? i : begin;
    };
    const auto exponent_end = [&](size_t i) {
      if ((at(i) | 0x20) != 'e') return i;
      const size_t digits = i + 1 + (at(i + 1) == '+' || at(i + 1) == '-');
      return digits_end(digits) > digits ? digits_end(digits) : i;
    };
    if (begin == 0 || at(begin - 1) != '.') {  // after a dot it is an index: x.0.1
      const size_t whole = digits_end(begin);
      size_t fraction = whole;
      if (at(whole) == '.' && is_digit(at(whole + 1))) fraction = digits_end(whole + 1);
      const size_t exponent = exponent_end(fraction);
      if (exponent > whole) {
        type = TokenType::kFloat;
        end = exponent;
      }
    }
    if (end == begin && at(begin) == '0') {
      if (prefix == 'x') end = based([](char c) { return is_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'); });
      if (prefix == 'o') end = based([](char c) { return c >= '0' && c <= '7'; });
      if (prefix == 'b') end = based([](char c) { return c == '0' || c == '1'; });
      if (end == begin) {
        ++end;
        while (at(end) == '0' || (at(end) == '_' && at(end + 1) == '0')) ++end;
      }
    }
    if (end == begin) end = digits_end(begin);
    std::string text;
    for (size_t i = begin; i < end; ++i) {
      if (at(i) != '_') text.push_back(at(i));
    }
    add(type, std::move(text), begin);
    pos_ = end;
  }

  bool name() {
    const size_t begin = pos_;
    while (pos_ < source_.size()) {
      char32_t c = 0;
      const size_t length = decode_char(source_, pos_, &c);
      if (!is_identifier_char(c)) break;
      pos_ += length;
    }
    if (pos_ == begin) return false;
    add(TokenType::kName, source_.substr(begin, pos_ - begin), begin);
    return true;
  }

  Status operation(std::string* open) {
    static constexpr std::array<std::string_view, 6> kDouble{"//", "**", "==", "!=", ">=", "<="};
    for (const std::string_view op : kDouble) {
      if (!starts(pos_, op)) continue;
      add(TokenType::kOperator, std::string(op), pos_);
      pos_ += 2;
      return {};
    }
    const char c = at(pos_);
    if (c == '\0' || std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos) {
      return error(pos_, "unexpected character");
    }
    if (c == '(') open->push_back(')');
    if (c == '[') open->push_back(']');
    if (c == '{') open->push_back('}');
    if (c == ')' || c == ']' || c == '}') {
      if (open->empty()) return error(pos_, std::string("unexpected '") + c + "'");
      if (open->back() != c) return error(pos_, std::string("unexpected '") + c + "', expected '" + open->back() + "'");
      open->pop_back();
    }
    add(TokenType::kOperator, std::string(1, c), pos_);
    ++pos_;
    return {};
  }

  Status string() {
    const size_t begin = pos_;
    const char quote = at(begin);
    std::string value;
    size_t i = begin + 1;
    for (;; ++i) {
      if (i >= source_.size()) return error(begin, "a string without an end");
      if (source_[i] == quote) break;
      if (source_[i] != '\\') {
        value.push_back(source_[i]);
        continue;
      }
      if (++i >= source_.size()) return error(begin, "a string without an end");
      DSV3_TRY(escape(begin, &i, &value));
    }
    add(TokenType::kString, std::move(value), begin);
    pos_ = i + 1;
    return {};
  }

  // The escape whose letter stands at *i; leaves *i at its last byte.
  Status escape(size_t begin, size_t* i, std::string* value) {
    const char c = source_[*i];
    static constexpr std::string_view kLetters = "abfnrtv\\'\"";
    static constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t known = kLetters.find(c); known != std::string_view::npos) {
      value->push_back(kValues[known]);
      return {};
    }
    if (c == '\n') return {};
    const auto code_point = [&](size_t from, size_t max_digits, int base, bool exact, size_t* used) {
      char32_t cp = 0;
      for (*used = 0; *used < max_digits; ++*used) {
        const char d = at(from + *used);
        const int digit = is_digit(d) ? d - '0' : (d | 0x20) >= 'a' && (d | 0x20) <= 'f' ? (d | 0x20) - 'a' + 10 : 99;
        if (digit >= base) break;
        cp = cp * static_cast<char32_t>(base) + static_cast<char32_t>(digit);
      }
      return exact && *used < max_digits ? char32_t{0xFFFFFFFF} : cp;
    };
    size_t used = 0;
    char32_t cp = 0;
    if (c >= '0' && c <= '7') {
      cp = code_point(*i, 3, 8, false, &used);
      *i += used - 1;
    } else if (c == 'x' || c == 'u' || c == 'U') {
      cp = code_point(*i + 1, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16, true, &used);
      *i += used;
    } else if (c == 'N') {
      return error(begin, "\\N{...} escapes are not supported");
    } else {
      value->push_back('\\');  // an unknown escape stands for itself
      value->push_back(c);
      return {};
    }
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000)) return error(begin, "a malformed escape in a string");
    append_utf8(cp, value);
    return {};
  }

  static constexpr size_t kMaxTokens = 500'000;

  const std::string source_;
  size_t pos_ = 0;
  bool line_starting_ = true;
  int line_ = 1;
  size_t counted_ = 0;
  std::vector<Token> tokens_;
};

}  // namespace

Status syntax_error(int line, const std::string& message) {
  return Status(Code::kBadModelFile, "chat template, line " + std::to_string(line) + ": " + message);
}

Result<std::vector<Token>> tokenize(std::string_view source) {
  if (!is_valid_utf8(source)) return syntax_error(1, "not valid UTF-8");
  return Lexer(normalise_newlines(source)).run();
}

}  // namespace dsv3::jinja
