// Python's operations on values: truth, equality, order, arithmetic, look-up, slicing, text. Every one that can fail
// or cost returns false with the reason in the Runtime.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "chat/jinja/runtime.h"
#include "chat/jinja/value.h"

namespace dsv3::jinja {

inline constexpr int kMaxValueDepth = 200;  ///< of containers in containers, for everything that walks them

bool truth(const Value& value);  ///< lists and dicts of the client are looked at without converting them

bool equal(Runtime& rt, const Value& a, const Value& b, bool* out);
/// `op` is one of == != < <= > >= in and "not in".
bool compare(Runtime& rt, std::string_view op, const Value& a, const Value& b, bool* out);
/// `op` is one of + - * / // % **.
bool binary(Runtime& rt, std::string_view op, const Value& a, const Value& b, Value* out);
bool negate(Runtime& rt, const Value& a, Value* out);
bool contains(Runtime& rt, const Value& container, const Value& item, bool* out);

bool get_attribute(Runtime& rt, const Value& object, std::string_view name, Value* out);
bool get_item(Runtime& rt, const Value& object, const Value& key, Value* out);
/// Bounds that are undefined Values are absent.
bool get_slice(Runtime& rt, const Value& object, const Value& begin, const Value& end, const Value& step, Value* out);
/// The method's function, or null. Methods that would change a list or dict do not exist.
Builtin find_method(const Value& object, std::string_view name);

/// What iterating gives: elements, keys, characters.
bool iterate(Runtime& rt, const Value& value, std::vector<Value>* out);
bool length(Runtime& rt, const Value& value, Int* out);

bool write_str(Runtime& rt, const Value& value, Writer* out);   ///< str(value)
bool write_repr(Runtime& rt, const Value& value, Writer* out);  ///< repr(value)
bool to_str(Runtime& rt, const Value& value, Value* out);       ///< the same as a string Value
std::string float_repr(double value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool has_indent = false;
  Text indent;  ///< of one level
  Text item_separator{", "};
  Text key_separator{": "};
};
/// json.dumps
bool write_json(Runtime& rt, const Value& value, const JsonStyle& style, Writer* out);

/// str.split and friends, shared by methods and filters. `separator` null: at runs of white space.
bool split_text(Runtime& rt, const Value& text, const std::string* separator, Int max_splits, bool from_right,
                std::vector<Value>* out);
bool replace_text(Runtime& rt, const Text& text, const Text& from, const Text& to, Int max_count, Value* out);
bool map_case(Runtime& rt, const Text& text, char mode,
              Value* out);  ///< 'u' upper, 'l' lower, 't' title, 'c' capitalize
bool split_lines(Runtime& rt, const Text& text, bool keep_ends, std::vector<Value>* out);
bool printf_text(Runtime& rt, const Text& format, const Args& args, Value* out);  ///< the % operator
bool parse_int(std::string_view text, int base, Int* out);                        ///< Python's int(text, base)
bool parse_float(std::string_view text, double* out);

}  // namespace dsv3::jinja
