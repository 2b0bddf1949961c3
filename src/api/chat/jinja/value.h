// The values a template computes with. Containers belong to the Runtime of one rendering; strings are shared and
// immutable. Copying a Value never copies what it refers to.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "chat/jinja/text.h"
#include "dsv3/base/json.h"

namespace dsv3::jinja {

__extension__ typedef __int128 Int;  // wide enough for every integer that JSON brings in

class Runtime;
struct Value;
struct Args;
struct ListObject;
struct DictObject;
struct LoopObject;
struct MethodObject;
struct MacroObject;

/// A filter, a method or a global function. False: the Runtime holds the error.
using Builtin = bool (*)(Runtime& rt, const Value& self, const Args& args, Value* out);

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kNamespace,
  kLoop,
  kMethod,
  kFunction,
  kMacro,
};

struct Value {
  Kind kind = Kind::kUndefined;
  union {
    bool boolean;
    Int integer;
    double number;
    ListObject* list;  // kList, kTuple
    DictObject* dict;  // kDict, kNamespace
    LoopObject* loop;
    MethodObject* method;
    Builtin function;
    MacroObject* macro;
    std::string_view name;  // kUndefined: what was looked up; lives in the program or is a literal
  };
  std::shared_ptr<const Text> text;  // kString

  Value() : name() {}
  static Value undefined(std::string_view what) {
    Value v;
    v.name = what;
    return v;
  }
  static Value none() {
    Value v;
    v.kind = Kind::kNone;
    return v;
  }
  static Value of(bool b) {
    Value v;
    v.kind = Kind::kBool;
    v.boolean = b;
    return v;
  }
  static Value of(Int i) {
    Value v;
    v.kind = Kind::kInt;
    v.integer = i;
    return v;
  }
  static Value of(double d) {
    Value v;
    v.kind = Kind::kFloat;
    v.number = d;
    return v;
  }
  static Value of(Builtin f) {
    Value v;
    v.kind = Kind::kFunction;
    v.function = f;
    return v;
  }
  /// A string that is already within the limits: literals and names.
  static Value literal(std::string_view bytes) { return of(std::make_shared<const Text>(bytes)); }
  static Value of(std::shared_ptr<const Text> t) {
    Value v;
    v.kind = Kind::kString;
    v.text = std::move(t);
    return v;
  }

  bool is_undefined() const { return kind == Kind::kUndefined; }
  bool is_none() const { return kind == Kind::kNone; }
  bool is_string() const { return kind == Kind::kString; }
  bool is_list() const { return kind == Kind::kList || kind == Kind::kTuple; }
  bool is_integer() const { return kind == Kind::kInt || kind == Kind::kBool; }  // as in Python, bool is an int
  bool is_number() const { return is_integer() || kind == Kind::kFloat; }
  Int as_int() const { return kind == Kind::kBool ? Int{boolean} : integer; }
  double as_double() const { return kind == Kind::kFloat ? number : static_cast<double>(as_int()); }
  const std::string& str() const { return text->bytes(); }
};

/// Positional and named arguments of a call.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct ListObject {
  std::vector<Value> items;
  bool lazy = false;              // stands for a Python generator: true whatever it holds, and without a length
  const Json* pending = nullptr;  // not converted yet; Runtime::items does it
};

struct DictObject {
  std::vector<std::pair<Value, Value>> entries;        // in order of insertion
  std::unordered_map<std::string_view, size_t> index;  // of string keys, once there are many
  const Json* pending = nullptr;
};

/// The `loop` variable.
struct LoopObject {
  Int index0 = -1;
  Value current, previous;
  std::vector<Value> source;  // what is iterated; with a filter, what is left of it may not belong to the loop
  size_t next = 0;            // first of `source` that was not looked at
  std::vector<Value> ahead;   // accepted by the filter already, in order
  size_t ahead_next = 0;
  const void* filter = nullptr;  // the interpreter's For statement if it has a filter, else null
  void* filter_scope = nullptr;
  Int depth = 1;
  Value last_changed;
  bool has_changed_value = false;
};

struct MethodObject {
  Value self;
  Builtin function = nullptr;
};

std::string int_to_string(Int value);
const char* type_name(const Value& value);  ///< Python's name of the type, for messages

}  // namespace dsv3::jinja
