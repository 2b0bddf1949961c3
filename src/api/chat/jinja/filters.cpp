// Filters on one value: text, numbers, JSON, defaults. Those on sequences are in sequence_filters.cpp.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "chat/jinja/builtins.h"
#include "chat/jinja/ops.h"
#include "chat/jinja/sequence_filters.h"

namespace dsv3::jinja {
namespace {

using Slots = std::vector<std::optional<Value>>;

bool flag(const std::optional<Value>& slot) {
  return slot.has_value() && truth(*slot);
}

bool integer(Runtime& rt, std::string_view what, const std::optional<Value>& slot, Int fallback, Int* out) {
  *out = fallback;
  if (!slot.has_value() || slot->is_none()) return true;
  if (!slot->is_integer()) return rt.fail({what, " must be an integer, not ", type_name(*slot)});
  *out = slot->as_int();
  return true;
}

// Calls a string method on str(value): jinja's filters take anything.
template <bool (*kPrepare)(Runtime&, const Value&, Value*)>
bool call_method(Runtime& rt, std::string_view method, const Value& self, const Args& args, Value* out) {
  Value text;
  return kPrepare(rt, self, &text) && find_method(text, method)(rt, text, args, out);
}

bool filter_trim(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return call_method<to_str>(rt, "strip", self, args, out);
}
bool filter_center(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Args with_width = args;
  if (args.positional.empty() && args.named.empty()) with_width.positional.push_back(Value::of(Int{80}));
  return call_method<to_str>(rt, "center", self, with_width, out);
}

template <char kMode>
bool filter_case(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  Value text;
  return bind_args(rt, "filter", args, {}, &slots) && to_str(rt, self, &text) && map_case(rt, *text.text, kMode, out);
}

// jinja's title: words begin after white space and - ( { [ <.
bool filter_title(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  Value text;
  if (!bind_args(rt, "title", args, {}, &slots) || !to_str(rt, self, &text)) return false;
  Text mapped;
  const std::string& bytes = text.str();
  bool at_word = true;
  for (size_t i = 0; i < bytes.size();) {
    char32_t c = 0;
    const size_t length = decode_char(bytes, i, &c);
    const bool breaks = is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    std::string to;
    if (c == 0xDF && at_word)
      to = "SS";
    else
      append_utf8(breaks ? c : at_word ? to_upper(c) : to_lower(c), &to);
    mapped.append(c == 0xFFFD ? std::string_view(bytes).substr(i, length) : std::string_view(to),
                  text.text->source_at(i));
    at_word = breaks;
    i += length;
  }
  return rt.string(std::move(mapped), out);
}

bool filter_string(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  return bind_args(rt, "string", args, {}, &slots) && to_str(rt, self, out);
}

bool filter_safe(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return filter_string(rt, self, args, out);
}

bool filter_replace(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "replace", args, {"old", "new", "count"}, &slots)) return false;
  if (!slots[0].has_value() || !slots[1].has_value()) return rt.fail("replace needs the old and the new text");
  Int count = -1;
  Value text, from, to;
  return integer(rt, "replace: count", slots[2], -1, &count) && to_str(rt, self, &text) &&
         to_str(rt, *slots[0], &from) && to_str(rt, *slots[1], &to) &&
         replace_text(rt, *text.text, *from.text, *to.text, count, out);
}

bool filter_indent(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "indent", args, {"width", "first", "blank"}, &slots)) return false;
  if (self.is_undefined()) return rt.fail({"'", self.name, "' is undefined"});
  if (!self.is_string()) return rt.fail({"indent needs a string, not ", type_name(self)});
  Text indention;
  if (slots[0].has_value() && slots[0]->is_string()) {
    indention = *slots[0]->text;
  } else {
    Int width = 4;
    if (!integer(rt, "indent: width", slots[0], 4, &width)) return false;
    if (width > static_cast<Int>(rt.limits().max_output_bytes)) return rt.fail("indent: width too large");
    indention = Text(std::string(static_cast<size_t>(std::max(width, Int{0})), ' '));
  }
  if (!rt.charge_bytes(indention.size())) return false;
  std::vector<Value> lines;
  Text source = *self.text;
  source.append("\n", Source::kTemplate);
  if (!split_lines(rt, source, false, &lines)) return false;
  const bool blank = flag(slots[2]);
  Writer writer(rt);
  if (flag(slots[1])) writer.write(indention);
  for (size_t i = 0; i < lines.size() && !writer.full(); ++i) {
    if (i > 0) {
      writer.write("\n");
      if (blank || lines[i].text->size() > 0) writer.write(indention);
    }
    writer.write(*lines[i].text);
  }
  return writer.finish(out);
}

bool filter_truncate(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "truncate", args, {"length", "killwords", "end", "leeway"}, &slots)) return false;
  if (!self.is_string()) return rt.fail({"truncate needs a string, not ", type_name(self)});
  Int limit = 255, leeway = 5;
  if (!integer(rt, "truncate: length", slots[0], 255, &limit) || !integer(rt, "truncate: leeway", slots[3], 5, &leeway))
    return false;
  Value end = Value::literal("...");
  if (slots[2].has_value()) {
    if (!slots[2]->is_string()) return rt.fail("truncate: end must be a string");
    end = *slots[2];
  }
  const Int end_chars = static_cast<Int>(count_chars(end.str()));
  if (limit < end_chars || leeway < 0)
    return rt.fail("truncate: length is less than that of the end, or leeway is negative");
  if (!rt.charge_bytes(self.str().size())) return false;
  if (static_cast<Int>(count_chars(self.str())) <= limit + std::min(leeway, Int{1} << 62)) return *out = self, true;
  size_t cut = char_offset(self.str(), static_cast<size_t>(limit - end_chars));
  if (!flag(slots[1])) {
    const size_t space = self.str().substr(0, cut).rfind(' ');
    if (space != std::string::npos) cut = space;
  }
  Text text = self.text->slice(0, cut);
  text.append(*end.text);
  return rt.string(std::move(text), out);
}

bool filter_wordcount(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  Value text;
  if (!bind_args(rt, "wordcount", args, {}, &slots) || !to_str(rt, self, &text) || !rt.charge_bytes(text.str().size()))
    return false;
  Int words = 0;
  bool inside = false;
  for (size_t i = 0; i < text.str().size();) {
    char32_t c = 0;
    i += decode_char(text.str(), i, &c);
    const bool word = is_letter(c) || is_numeric(c) || c == '_';
    words += word && !inside;
    inside = word;
  }
  *out = Value::of(words);
  return true;
}

bool filter_format(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Value text;
  if (!args.named.empty()) return rt.fail("format: named arguments are not supported");
  return to_str(rt, self, &text) && printf_text(rt, *text.text, args, out);
}

bool filter_default(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "default", args, {"default_value", "boolean"}, &slots)) return false;
  const bool replaces = self.is_undefined() || (flag(slots[1]) && !truth(self));
  *out = !replaces ? self : slots[0].has_value() ? *slots[0] : Value::literal("");
  return true;
}

bool filter_length(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  Int size = 0;
  if (!bind_args(rt, "length", args, {}, &slots) || !length(rt, self, &size)) return false;
  *out = Value::of(size);
  return true;
}

bool filter_int(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  Int base = 10;
  if (!bind_args(rt, "int", args, {"default", "base"}, &slots) || !integer(rt, "int: base", slots[1], 10, &base))
    return false;
  if (self.is_undefined()) return rt.fail({"'", self.name, "' is undefined"});
  *out = slots[0].has_value() ? *slots[0] : Value::of(Int{0});
  double number = 0;
  if (self.is_integer()) {
    *out = Value::of(self.as_int());
    return true;
  }
  if (self.is_string()) {
    Int parsed = 0;
    if (self.str().size() < 4096 &&
        parse_int(self.str(), static_cast<int>(std::clamp(base, Int{-1}, Int{37})), &parsed)) {
      *out = Value::of(parsed);
      return true;
    }
    if (self.str().size() >= 4096 || !parse_float(self.str(), &number)) return true;
  } else if (self.kind == Kind::kFloat) {
    number = self.number;
  } else {
    return true;
  }
  if (!std::isfinite(number)) return true;
  if (!(std::abs(number) < 1e38)) return rt.fail("int: number too large");
  *out = Value::of(static_cast<Int>(number));
  return true;
}

bool filter_float(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "float", args, {"default"}, &slots)) return false;
  if (self.is_undefined()) return rt.fail({"'", self.name, "' is undefined"});
  double number = 0;
  if (self.is_number())
    *out = Value::of(self.as_double());
  else if (self.is_string() && self.str().size() < 4096 && parse_float(self.str(), &number))
    *out = Value::of(number);
  else
    *out = slots[0].has_value() ? *slots[0] : Value::of(0.0);
  return true;
}

bool filter_abs(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "abs", args, {}, &slots)) return false;
  if (!self.is_number()) return rt.fail({"bad operand type for abs(): '", type_name(self), "'"});
  if (self.kind == Kind::kFloat)
    *out = Value::of(std::abs(self.number));
  else if (self.as_int() < 0)
    return negate(rt, self, out);
  else
    *out = Value::of(self.as_int());
  return true;
}

bool filter_round(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  Int precision = 0;
  if (!bind_args(rt, "round", args, {"precision", "method"}, &slots) ||
      !integer(rt, "round: precision", slots[0], 0, &precision))
    return false;
  if (!self.is_number()) return rt.fail({"round needs a number, not ", type_name(self)});
  if (precision < -30 || precision > 30) return rt.fail("round: precision is out of the allowed -30 to 30");
  const std::string method = slots[1].has_value() && slots[1]->is_string() ? slots[1]->str() : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    return rt.fail("round: method must be common, ceil or floor");
  if (method == "common" && self.is_integer() && precision >= 0) return *out = Value::of(self.as_int()), true;
  const double scale = std::pow(10.0, static_cast<double>(precision));
  double value = self.as_double();
  if (method == "ceil")
    value = std::ceil(value * scale) / scale;
  else if (method == "floor")
    value = std::floor(value * scale) / scale;
  else if (precision < 0)
    value = std::nearbyint(value * scale) * std::pow(10.0, static_cast<double>(-precision));
  else if (std::isfinite(value)) {
    char buffer[512];  // the C library rounds the exact binary value, as Python does
    const int size = std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(precision), value);
    if (size > 0 && size < static_cast<int>(sizeof(buffer))) std::from_chars(buffer, buffer + size, value);
  }
  *out = self.is_integer() && method == "common" ? Value::of(static_cast<Int>(value)) : Value::of(value);
  return true;
}

bool filter_tojson(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"}, &slots)) return false;
  JsonStyle style;
  style.ensure_ascii = flag(slots[0]);
  style.sort_keys = flag(slots[3]);
  if (slots[1].has_value() && !slots[1]->is_none()) {
    style.has_indent = true;
    style.item_separator = Text(",");
    if (slots[1]->is_string()) {
      style.indent = *slots[1]->text;
    } else {
      Int width = 0;
      if (!integer(rt, "tojson: indent", slots[1], 0, &width)) return false;
      style.indent = Text(std::string(static_cast<size_t>(std::clamp(width, Int{0}, Int{1000})), ' '));
    }
  }
  if (slots[2].has_value() && !slots[2]->is_none()) {
    std::vector<Value> pair;
    if (!iterate(rt, *slots[2], &pair)) return false;
    if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
      return rt.fail("tojson: separators must be two strings");
    style.item_separator = *pair[0].text;
    style.key_separator = *pair[1].text;
  }
  Writer writer(rt);
  return write_json(rt, self, style, &writer) && writer.finish(out);
}

struct Entry {
  std::string_view name;
  Builtin function;
};

constexpr std::array kFilters{Entry{"abs", filter_abs},         Entry{"capitalize", filter_case<'c'>},
                              Entry{"center", filter_center},   Entry{"count", filter_length},
                              Entry{"d", filter_default},       Entry{"default", filter_default},
                              Entry{"float", filter_float},     Entry{"format", filter_format},
                              Entry{"indent", filter_indent},   Entry{"int", filter_int},
                              Entry{"length", filter_length},   Entry{"lower", filter_case<'l'>},
                              Entry{"replace", filter_replace}, Entry{"round", filter_round},
                              Entry{"safe", filter_safe},       Entry{"string", filter_string},
                              Entry{"title", filter_title},     Entry{"tojson", filter_tojson},
                              Entry{"trim", filter_trim},       Entry{"truncate", filter_truncate},
                              Entry{"upper", filter_case<'u'>}, Entry{"wordcount", filter_wordcount}};

}  // namespace

Builtin find_filter(std::string_view name) {
  for (const Entry& entry : kFilters) {
    if (entry.name == name) return entry.function;
  }
  return find_sequence_filter(name);
}

}  // namespace dsv3::jinja
