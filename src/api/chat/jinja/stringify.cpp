// str(), repr() and json.dumps(): values as text, every byte with its source.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

// Walks the sources of a text from front to back.
class Sources {
 public:
  explicit Sources(const Text& text) : text_(text) {}
  Source at(size_t offset) {
    const auto& marks = text_.marks();
    while (next_ < marks.size() && marks[next_].end <= offset) ++next_;
    return next_ < marks.size() && marks[next_].begin <= offset ? marks[next_].source : Source::kTemplate;
  }

 private:
  const Text& text_;
  size_t next_ = 0;
};

// \x41, \u0041 or \U00000041
std::string hex_escape(char letter, char32_t c) {
  static constexpr char kDigits[] = "0123456789abcdef";
  const size_t digits = letter == 'x' ? 2 : letter == 'u' ? 4 : 8;
  std::string out(digits + 2, '\\');
  out[1] = letter;
  for (size_t i = digits; i > 0; --i, c >>= 4) out[i + 1] = kDigits[c & 15];
  return out;
}

void write_quoted(const Text& text, Writer* out) {
  const std::string& bytes = text.bytes();
  const bool has_single = bytes.find('\'') != std::string::npos;
  const char quote = has_single && bytes.find('"') == std::string::npos ? '"' : '\'';
  Sources sources(text);
  out->write(std::string_view(&quote, 1));
  for (size_t i = 0; i < bytes.size() && !out->full();) {
    char32_t c = 0;
    const size_t length = decode_char(bytes, i, &c);
    const Source source = sources.at(i);
    if (c == static_cast<char32_t>(quote) || c == '\\') out->write("\\", source);
    if (c == '\n')
      out->write("\\n", source);
    else if (c == '\r')
      out->write("\\r", source);
    else if (c == '\t')
      out->write("\\t", source);
    else if (is_printable(c))
      out->write(std::string_view(bytes).substr(i, length), source);
    else if (c < 0x100)
      out->write(hex_escape('x', c), source);
    else if (c < 0x10000)
      out->write(hex_escape('u', c), source);
    else
      out->write(hex_escape('U', c), source);
    i += length;
  }
  out->write(std::string_view(&quote, 1));
}

bool repr_at(Runtime& rt, const Value& value, int depth, Writer* out);

bool repr_list(Runtime& rt, const Value& value, int depth, Writer* out) {
  if (value.list->lazy) return out->write("<generator object>"), true;
  std::vector<Value>* items = rt.items(value);
  if (items == nullptr) return false;
  const bool tuple = value.kind == Kind::kTuple;
  out->write(tuple ? "(" : "[");
  for (size_t i = 0; i < items->size(); ++i) {
    if (i > 0) out->write(", ");
    if (!repr_at(rt, (*items)[i], depth + 1, out)) return false;
  }
  if (tuple && items->size() == 1) out->write(",");
  out->write(tuple ? ")" : "]");
  return true;
}

bool repr_dict(Runtime& rt, const Value& value, int depth, Writer* out) {
  DictObject* dict = rt.entries(value);
  if (dict == nullptr) return false;
  out->write("{");
  bool first = true;
  for (auto& [key, element] : dict->entries) {
    if (!std::exchange(first, false)) out->write(", ");
    if (!repr_at(rt, key, depth + 1, out)) return false;
    out->write(": ");
    if (!repr_at(rt, element, depth + 1, out)) return false;
  }
  out->write("}");
  return true;
}

bool repr_at(Runtime& rt, const Value& value, int depth, Writer* out) {
  if (depth > kMaxValueDepth) return rt.fail("values nested too deeply to print");
  if (!rt.charge() || !out->check()) return false;
  switch (value.kind) {
    case Kind::kUndefined:
      out->write("Undefined");
      return true;
    case Kind::kNone:
      out->write("None");
      return true;
    case Kind::kBool:
      out->write(value.boolean ? "True" : "False");
      return true;
    case Kind::kInt:
      out->write(int_to_string(value.integer));
      return true;
    case Kind::kFloat:
      out->write(float_repr(value.number));
      return true;
    case Kind::kString:
      write_quoted(*value.text, out);
      return true;
    case Kind::kList:
    case Kind::kTuple:
      return repr_list(rt, value, depth, out);
    case Kind::kDict:
      return repr_dict(rt, value, depth, out);
    case Kind::kNamespace:
      out->write("<Namespace ");
      if (!repr_dict(rt, value, depth, out)) return false;
      out->write(">");
      return true;
    case Kind::kLoop:
      out->write("<LoopContext>");
      return true;
    case Kind::kMethod:
    case Kind::kFunction:
      out->write("<function>");
      return true;
    case Kind::kMacro:
      out->write("<Macro>");
      return true;
  }
  return true;
}

void write_json_string(const Text& text, bool ensure_ascii, Writer* out) {
  const std::string& bytes = text.bytes();
  Sources sources(text);
  out->write("\"");
  for (size_t i = 0; i < bytes.size() && !out->full();) {
    char32_t c = 0;
    const size_t length = decode_char(bytes, i, &c);
    const Source source = sources.at(i);
    if (c == '"')
      out->write("\\\"", source);
    else if (c == '\\')
      out->write("\\\\", source);
    else if (c == '\n')
      out->write("\\n", source);
    else if (c == '\r')
      out->write("\\r", source);
    else if (c == '\t')
      out->write("\\t", source);
    else if (c == '\f')
      out->write("\\f", source);
    else if (c == '\b')
      out->write("\\b", source);
    else if (c < 0x20)
      out->write(hex_escape('u', c), source);
    else if (ensure_ascii && c >= 0x10000) {
      out->write(hex_escape('u', 0xD800 + ((c - 0x10000) >> 10)), source);
      out->write(hex_escape('u', 0xDC00 + ((c - 0x10000) & 0x3FF)), source);
    } else if (ensure_ascii && c >= 0x7F) {
      if (c == 0x7F)
        out->write("\x7f", source);
      else
        out->write(hex_escape('u', c), source);
    } else {
      out->write(std::string_view(bytes).substr(i, length), source);
    }
    i += length;
  }
  out->write("\"");
}

std::string json_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return float_repr(value);
}

void new_line(const JsonStyle& style, int depth, Writer* out) {
  if (!style.has_indent) return;
  out->write("\n");
  for (int i = 0; i < depth; ++i) out->write(style.indent);
}

bool json_at(Runtime& rt, const Value& value, const JsonStyle& style, int depth, Writer* out);

bool json_key(Runtime& rt, const Value& key, const JsonStyle& style, Writer* out) {
  switch (key.kind) {
    case Kind::kString:
      write_json_string(*key.text, style.ensure_ascii, out);
      return true;
    case Kind::kNone:
      out->write("\"null\"");
      return true;
    case Kind::kBool:
      out->write(key.boolean ? "\"true\"" : "\"false\"");
      return true;
    case Kind::kInt:
    case Kind::kFloat:
      out->write("\"");
      out->write(key.kind == Kind::kInt ? int_to_string(key.integer) : json_float(key.number));
      out->write("\"");
      return true;
    default:
      return rt.fail({"keys must be str, int, float, bool or None, not ", type_name(key)});
  }
}

bool json_dict(Runtime& rt, const Value& value, const JsonStyle& style, int depth, Writer* out) {
  DictObject* dict = rt.entries(value);
  if (dict == nullptr) return false;
  if (dict->entries.empty()) return out->write("{}"), true;
  std::vector<const std::pair<Value, Value>*> order;
  for (const auto& entry : dict->entries) order.push_back(&entry);
  if (style.sort_keys) {
    bool ok = true;
    std::stable_sort(order.begin(), order.end(), [&](const auto* a, const auto* b) {
      bool less = false;
      if (ok) ok = compare(rt, "<", a->first, b->first, &less);
      return less;
    });
    if (!ok) return false;
  }
  out->write("{");
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0) out->write(style.item_separator);
    new_line(style, depth + 1, out);
    if (!json_key(rt, order[i]->first, style, out)) return false;
    out->write(style.key_separator);
    if (!json_at(rt, order[i]->second, style, depth + 1, out)) return false;
  }
  new_line(style, depth, out);
  out->write("}");
  return true;
}

bool json_at(Runtime& rt, const Value& value, const JsonStyle& style, int depth, Writer* out) {
  if (depth > kMaxValueDepth) return rt.fail("values nested too deeply for JSON");
  if (!rt.charge() || !out->check()) return false;
  switch (value.kind) {
    case Kind::kNone:
      out->write("null");
      return true;
    case Kind::kBool:
      out->write(value.boolean ? "true" : "false");
      return true;
    case Kind::kInt:
      out->write(int_to_string(value.integer));
      return true;
    case Kind::kFloat:
      out->write(json_float(value.number));
      return true;
    case Kind::kString:
      write_json_string(*value.text, style.ensure_ascii, out);
      return true;
    case Kind::kList:
    case Kind::kTuple: {
      if (value.list->lazy) break;
      std::vector<Value>* items = rt.items(value);
      if (items == nullptr) return false;
      if (items->empty()) return out->write("[]"), true;
      out->write("[");
      for (size_t i = 0; i < items->size(); ++i) {
        if (i > 0) out->write(style.item_separator);
        new_line(style, depth + 1, out);
        if (!json_at(rt, (*items)[i], style, depth + 1, out)) return false;
      }
      new_line(style, depth, out);
      out->write("]");
      return true;
    }
    case Kind::kDict:
      return json_dict(rt, value, style, depth, out);
    default:
      break;
  }
  return rt.fail({"Object of type ", type_name(value), " is not JSON serializable"});
}

}  // namespace

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 40> buffer;
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific).ptr;
  std::string_view text(buffer.data(), static_cast<size_t>(end - buffer.data()));
  std::string out;
  if (text.front() == '-') {
    out = "-";
    text.remove_prefix(1);
  }
  const size_t e = text.find('e');
  int exponent = 0;
  const char* exponent_begin = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(exponent_begin, text.data() + text.size(), exponent);
  std::string digits(1, text[0]);
  if (e > 2) digits.append(text.substr(2, e - 2));
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits.substr(0, 1);
    if (count > 1) out += "." + digits.substr(1);
    const std::string size = std::to_string(std::abs(exponent));
    return out + (exponent < 0 ? "e-" : "e+") + (size.size() < 2 ? "0" : "") + size;
  }
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1) return out + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  return out + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

bool write_repr(Runtime& rt, const Value& value, Writer* out) {
  return repr_at(rt, value, 0, out) && out->check();
}

bool write_str(Runtime& rt, const Value& value, Writer* out) {
  if (value.is_undefined()) return true;
  if (value.is_string()) {
    out->write(*value.text);
    return out->check();
  }
  return write_repr(rt, value, out);
}

bool to_str(Runtime& rt, const Value& value, Value* out) {
  if (value.is_string()) {
    *out = value;
    return true;
  }
  Writer writer(rt);
  return write_str(rt, value, &writer) && writer.finish(out);
}

bool write_json(Runtime& rt, const Value& value, const JsonStyle& style, Writer* out) {
  return json_at(rt, value, style, 0, out) && out->check();
}

}  // namespace dsv3::jinja
