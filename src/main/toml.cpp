// A reader over one string: no recursion (arrays do not nest), no exceptions, every error with its line.
#include "toml.h"

#include <algorithm>
#include <cctype>

namespace dsv3 {
namespace {

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Result<std::vector<TomlEntry>> read() {
    std::vector<TomlEntry> out;
    while (true) {
      skip_blank(true);
      if (at_end()) return out;
      if (peek() == '[') {
        DSV3_TRY(read_heading());
        continue;
      }
      TomlEntry entry;
      DSV3_TRY(read_key(&entry.key));
      DSV3_TRY(read_values(&entry.values));
      DSV3_TRY(end_of_line());
      const auto same = [&](const TomlEntry& other) { return other.key == entry.key; };
      if (std::any_of(out.begin(), out.end(), same)) return error("'" + entry.key + "' is set twice");
      out.push_back(std::move(entry));
    }
  }

 private:
  bool at_end() const { return at_ >= text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[at_]; }
  Status error(const std::string& what) const {
    return {Code::kInvalidArgument, "line " + std::to_string(line_) + ": " + what};
  }
  static bool is_bare(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_'; }

  /// Spaces, and with `lines` also line ends and comments.
  void skip_blank(bool lines) {
    for (; !at_end(); ++at_) {
      const char c = peek();
      if (lines && c == '#') {
        while (!at_end() && peek() != '\n') ++at_;
        if (at_end()) return;
      }
      if (lines && peek() == '\n') ++line_;
      if (peek() != ' ' && peek() != '\t' && !(lines && (peek() == '\r' || peek() == '\n'))) return;
    }
  }

  Status end_of_line() {
    skip_blank(false);
    if (peek() == '#') {
      while (!at_end() && peek() != '\n') ++at_;
    }
    if (peek() == '\r') ++at_;
    if (!at_end() && peek() != '\n') return error("unexpected text after the value");
    return {};
  }

  Status read_heading() {
    ++at_;
    skip_blank(false);
    const size_t begin = at_;
    while (is_bare(peek())) ++at_;
    const bool empty = at_ == begin;
    skip_blank(false);
    if (empty || peek() != ']') return error("a heading is [name]");
    ++at_;
    return end_of_line();
  }

  Status read_key(std::string* key) {
    const size_t begin = at_;
    while (is_bare(peek())) ++at_;
    *key = text_.substr(begin, at_ - begin);
    skip_blank(false);
    if (key->empty() || peek() != '=') return error("expected: key = value");
    ++at_;
    skip_blank(false);
    return {};
  }

  Status read_values(std::vector<std::string>* values) {
    if (peek() != '[') {
      values->emplace_back();
      return read_scalar(&values->back());
    }
    ++at_;
    while (true) {
      skip_blank(true);
      if (peek() == ']') break;
      values->emplace_back();
      DSV3_TRY(read_scalar(&values->back()));
      skip_blank(true);
      if (peek() == ',') {
        ++at_;
      } else if (peek() != ']') {
        return error("expected ',' or ']' in the array");
      }
    }
    ++at_;
    if (values->empty()) return error("the array is empty");
    return {};
  }

  Status read_scalar(std::string* value) {
    if (peek() == '"') return read_basic(value);
    if (peek() == '\'') return read_literal(value);
    const size_t begin = at_;
    while (is_bare(peek()) || peek() == '+' || peek() == '.') ++at_;
    std::string word(text_.substr(begin, at_ - begin));
    if (word == "true" || word == "false") {
      *value = word;
      return {};
    }
    if (word.empty() || word.find_first_not_of("0123456789+-._eE") != std::string::npos ||
        word.find_first_of("0123456789") == std::string::npos) {
      return error(word.empty() ? "expected a value" : "'" + word + "' needs quotes");
    }
    word.erase(std::remove(word.begin(), word.end(), '_'), word.end());
    if (word.front() == '+') word.erase(0, 1);
    *value = word;
    return {};
  }

  Status read_literal(std::string* value) {
    ++at_;
    const size_t end = text_.find_first_of("'\n", at_);
    if (end == std::string_view::npos || text_[end] == '\n') return error("a quote is not closed");
    *value = text_.substr(at_, end - at_);
    at_ = end + 1;
    return {};
  }

  Status read_basic(std::string* value) {
    for (++at_; peek() != '"'; ++at_) {
      if (at_end() || peek() == '\n') return error("a quote is not closed");
      if (peek() != '\\') {
        *value += peek();
        continue;
      }
      ++at_;
      switch (peek()) {
        case '"': *value += '"'; break;
        case '\\': *value += '\\'; break;
        case 'n': *value += '\n'; break;
        case 't': *value += '\t'; break;
        default: return error("known escapes are \\\" \\\\ \\n \\t; 'single quotes' take text as it is");
      }
    }
    ++at_;
    return {};
  }

  std::string_view text_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace

Result<std::vector<TomlEntry>> parse_toml(std::string_view text) { return Reader(text).read(); }

}  // namespace dsv3
