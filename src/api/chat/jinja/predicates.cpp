// The tests that stand after `is`, and the global functions.
#include <array>
#include <cmath>
#include <ctime>

#include "chat/jinja/builtins.h"
#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

using Slots = std::vector<std::optional<Value>>;

constexpr Int kMaxRange = 100'000;  // as in jinja's sandbox

template <bool (*kTest)(const Value&)>
bool simple(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  *out = Value::of(kTest(self));
  return bind_args(rt, "test", args, {}, &slots);
}

bool is_defined(const Value& v) {
  return !v.is_undefined();
}
bool is_undefined(const Value& v) {
  return v.is_undefined();
}
bool is_none(const Value& v) {
  return v.is_none();
}
bool is_boolean(const Value& v) {
  return v.kind == Kind::kBool;
}
bool is_true(const Value& v) {
  return v.kind == Kind::kBool && v.boolean;
}
bool is_false(const Value& v) {
  return v.kind == Kind::kBool && !v.boolean;
}
bool is_integer(const Value& v) {
  return v.kind == Kind::kInt;
}
bool is_float(const Value& v) {
  return v.kind == Kind::kFloat;
}
bool is_number(const Value& v) {
  return v.is_number();
}
bool is_string(const Value& v) {
  return v.is_string();
}
bool is_mapping(const Value& v) {
  return v.kind == Kind::kDict;
}
bool is_iterable(const Value& v) {
  return v.is_undefined() || v.is_string() || v.is_list() || v.kind == Kind::kDict || v.kind == Kind::kLoop;
}
bool is_sequence(const Value& v) {
  return v.is_undefined() || v.is_string() || (v.is_list() && !v.list->lazy) || v.kind == Kind::kDict;
}
bool is_callable(const Value& v) {
  return v.is_undefined() || v.kind == Kind::kFunction || v.kind == Kind::kMethod || v.kind == Kind::kMacro;
}
bool is_escaped(const Value&) {
  return false;
}

template <bool (*kChar)(char32_t)>
bool cased(Runtime& rt, const Value& self, const Args&, Value* out) {
  Value text;
  if (!to_str(rt, self, &text) || !rt.charge_bytes(text.str().size())) return false;
  bool any = false, all = true;
  for (size_t i = 0; i < text.str().size() && all;) {
    char32_t c = 0;
    i += decode_char(text.str(), i, &c);
    if (!is_cased(c)) continue;
    any = true;
    all = kChar(c);
  }
  *out = Value::of(any && all);
  return true;
}

template <int kRemainder>
bool parity(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  Value remainder;
  if (!bind_args(rt, "test", args, {}, &slots) || !binary(rt, "%", self, Value::of(Int{2}), &remainder)) return false;
  bool same = false;
  if (!equal(rt, remainder, Value::of(Int{kRemainder}), &same)) return false;
  *out = Value::of(same);
  return true;
}

bool test_divisibleby(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "divisibleby", args, {"num"}, &slots)) return false;
  if (!slots[0].has_value()) return rt.fail("divisibleby needs a number");
  Value remainder;
  if (!binary(rt, "%", self, *slots[0], &remainder)) return false;
  *out = Value::of(!truth(remainder));
  return true;
}

bool compare_with(Runtime& rt, std::string_view op, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, op, args, {"other"}, &slots)) return false;
  if (!slots[0].has_value()) return rt.fail("the test needs something to compare with");
  bool result = false;
  if (!compare(rt, op, self, *slots[0], &result)) return false;
  *out = Value::of(result);
  return true;
}

bool test_eq(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return compare_with(rt, "==", self, args, out);
}
bool test_ne(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return compare_with(rt, "!=", self, args, out);
}
bool test_lt(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return compare_with(rt, "<", self, args, out);
}
bool test_le(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return compare_with(rt, "<=", self, args, out);
}
bool test_gt(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return compare_with(rt, ">", self, args, out);
}
bool test_ge(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return compare_with(rt, ">=", self, args, out);
}
bool test_in(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return compare_with(rt, "in", self, args, out);
}

bool test_sameas(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "sameas", args, {"other"}, &slots)) return false;
  if (!slots[0].has_value()) return rt.fail("sameas needs something to compare with");
  const Value& other = *slots[0];
  bool same = self.kind == other.kind;
  if (same) {
    switch (self.kind) {
      case Kind::kList:
      case Kind::kTuple:
        same = self.list == other.list;
        break;
      case Kind::kDict:
        same = self.dict == other.dict;
        break;
      default:
        if (!equal(rt, self, other, &same)) return false;
    }
  }
  *out = Value::of(same);
  return true;
}

template <Builtin (*kFind)(std::string_view)>
bool exists(Runtime&, const Value& self, const Args&, Value* out) {
  *out = Value::of(self.is_string() && kFind(self.str()) != nullptr);
  return true;
}

// Global functions; `self` is not used.

bool function_raise(Runtime& rt, const Value&, const Args& args, Value*) {
  Value text;
  if (args.positional.size() != 1) return rt.fail("raise_exception() needs one message");
  if (!to_str(rt, args.positional[0], &text)) return false;
  return rt.fail(text.str());
}

bool function_range(Runtime& rt, const Value&, const Args& args, Value* out) {
  const size_t count = args.positional.size();
  if (count < 1 || count > 3 || !args.named.empty()) return rt.fail("range() takes one to three integers");
  for (const Value& v : args.positional) {
    if (!v.is_integer()) return rt.fail({"'", type_name(v), "' object cannot be interpreted as an integer"});
    if (v.as_int() > INT64_MAX || v.as_int() < INT64_MIN) return rt.fail("range() argument too large");
  }
  const Int begin = count > 1 ? args.positional[0].as_int() : 0;
  const Int end = args.positional[count > 1 ? 1 : 0].as_int();
  const Int step = count > 2 ? args.positional[2].as_int() : 1;
  if (step == 0) return rt.fail("range() arg 3 must not be zero");
  const Int size = step > 0 ? (end > begin ? (end - begin + step - 1) / step : 0)
                            : (begin > end ? (begin - end - step - 1) / -step : 0);
  if (size > kMaxRange) return rt.fail("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  if (!rt.charge(static_cast<uint64_t>(size))) return false;
  std::vector<Value> items;
  for (Int i = 0; i < size; ++i) items.push_back(Value::of(begin + i * step));
  *out = rt.list(std::move(items));
  return true;
}

bool fill_dict(Runtime& rt, const Args& args, const Value& target) {
  if (args.positional.size() > 1) return rt.fail("dict() takes at most one positional argument");
  if (args.positional.size() == 1) {
    const Value& from = args.positional[0];
    if (from.kind == Kind::kDict) {
      DictObject* entries = rt.entries(from);
      if (entries == nullptr) return false;
      for (const auto& [key, value] : entries->entries) {
        if (!rt.set(target, key, value)) return false;
      }
    } else {
      std::vector<Value> pairs;
      if (!iterate(rt, from, &pairs)) return false;
      for (const Value& pair : pairs) {
        std::vector<Value> two;
        if (!iterate(rt, pair, &two)) return false;
        if (two.size() != 2) return rt.fail("dict(): every element must be a pair");
        if (!rt.set(target, two[0], two[1])) return false;
      }
    }
  }
  for (const auto& [name, value] : args.named) {
    if (!rt.set(target, Value::literal(name), value)) return false;
  }
  return true;
}

bool function_dict(Runtime& rt, const Value&, const Args& args, Value* out) {
  *out = rt.dict();
  return fill_dict(rt, args, *out);
}

bool function_namespace(Runtime& rt, const Value&, const Args& args, Value* out) {
  *out = rt.name_space();
  return fill_dict(rt, args, *out);
}

bool function_strftime_now(Runtime& rt, const Value&, const Args& args, Value* out) {
  if (args.positional.size() != 1 || !args.positional[0].is_string()) return rt.fail("strftime_now() needs a format");
  const std::string& format = args.positional[0].str();
  if (format.size() > 256) return rt.fail("strftime_now(): the format is longer than 256 bytes");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 4096> buffer;
  const size_t size = std::strftime(buffer.data(), buffer.size(), format.c_str(), &local);
  // The result is marked like the format: a client's format must not gain the template's trust.
  const Source source = args.positional[0].text->marks().empty() ? Source::kTemplate : Source::kClient;
  return rt.string(Text(std::string_view(buffer.data(), size), source), out);
}

struct Entry {
  std::string_view name;
  Builtin function;
};

constexpr std::array kTests{Entry{"!=", test_ne},
                            Entry{"<", test_lt},
                            Entry{"<=", test_le},
                            Entry{"==", test_eq},
                            Entry{">", test_gt},
                            Entry{">=", test_ge},
                            Entry{"boolean", simple<is_boolean>},
                            Entry{"callable", simple<is_callable>},
                            Entry{"defined", simple<is_defined>},
                            Entry{"divisibleby", test_divisibleby},
                            Entry{"eq", test_eq},
                            Entry{"equalto", test_eq},
                            Entry{"escaped", simple<is_escaped>},
                            Entry{"even", parity<0>},
                            Entry{"false", simple<is_false>},
                            Entry{"filter", exists<find_filter>},
                            Entry{"float", simple<is_float>},
                            Entry{"ge", test_ge},
                            Entry{"greaterthan", test_gt},
                            Entry{"gt", test_gt},
                            Entry{"in", test_in},
                            Entry{"integer", simple<is_integer>},
                            Entry{"iterable", simple<is_iterable>},
                            Entry{"le", test_le},
                            Entry{"lessthan", test_lt},
                            Entry{"lower", cased<is_lower>},
                            Entry{"lt", test_lt},
                            Entry{"mapping", simple<is_mapping>},
                            Entry{"ne", test_ne},
                            Entry{"none", simple<is_none>},
                            Entry{"number", simple<is_number>},
                            Entry{"odd", parity<1>},
                            Entry{"sameas", test_sameas},
                            Entry{"sequence", simple<is_sequence>},
                            Entry{"string", simple<is_string>},
                            Entry{"test", exists<find_test>},
                            Entry{"true", simple<is_true>},
                            Entry{"undefined", simple<is_undefined>},
                            Entry{"upper", cased<is_upper>}};

constexpr std::array kFunctions{Entry{"dict", function_dict}, Entry{"namespace", function_namespace},
                                Entry{"raise_exception", function_raise}, Entry{"range", function_range},
                                Entry{"strftime_now", function_strftime_now}};

template <class Table>
Builtin find_in(const Table& table, std::string_view name) {
  for (const Entry& entry : table) {
    if (entry.name == name) return entry.function;
  }
  return nullptr;
}

}  // namespace

Builtin find_test(std::string_view name) {
  return find_in(kTests, name);
}
Builtin find_function(std::string_view name) {
  return find_in(kFunctions, name);
}

}  // namespace dsv3::jinja
