// Truth, equality, order and arithmetic, with Python's rules.
#include "chat/jinja/ops.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace dsv3::jinja {
namespace {

bool type_error(Runtime& rt, std::string_view op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b}) {
    if (v->is_undefined()) return rt.fail({"'", v->name, "' is undefined"});
  }
  return rt.fail({"unsupported operand types for ", op, ": '", type_name(a), "' and '", type_name(b), "'"});
}

bool equal_at(Runtime& rt, const Value& a, const Value& b, int depth, bool* out) {
  *out = false;
  if (depth > kMaxValueDepth) return rt.fail("values nested too deeply to compare");
  if (!rt.charge()) return false;
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer())
      *out = a.as_int() == b.as_int();
    else
      *out = a.as_double() == b.as_double();
    return true;
  }
  if (a.kind != b.kind) return true;
  switch (a.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      *out = true;
      return true;
    case Kind::kString:
      *out = *a.text == *b.text;
      return a.text->size() == b.text->size() ? rt.charge_bytes(a.text->size()) : true;
    case Kind::kList:
    case Kind::kTuple: {
      if (a.list == b.list) return *out = true;
      std::vector<Value>* x = rt.items(a);
      std::vector<Value>* y = rt.items(b);
      if (x == nullptr || y == nullptr) return false;
      if (x->size() != y->size()) return true;
      for (size_t i = 0; i < x->size(); ++i) {
        if (!equal_at(rt, (*x)[i], (*y)[i], depth + 1, out)) return false;
        if (!*out) return true;
      }
      return *out = true;
    }
    case Kind::kDict: {
      if (a.dict == b.dict) return *out = true;
      DictObject* x = rt.entries(a);
      DictObject* y = rt.entries(b);
      if (x == nullptr || y == nullptr) return false;
      if (x->entries.size() != y->entries.size()) return true;
      for (auto& [key, value] : x->entries) {
        const Value* other = nullptr;
        if (key.is_string()) {
          other = rt.find(b, key.str());
        } else {
          for (auto& [name, element] : y->entries) {
            bool same = false;
            if (!equal_at(rt, key, name, depth + 1, &same)) return false;
            if (same) other = &element;
          }
        }
        if (other == nullptr) return *out = false, !rt.failed();
        if (!equal_at(rt, value, *other, depth + 1, out)) return false;
        if (!*out) return true;
      }
      return *out = true;
    }
    case Kind::kNamespace:
      *out = a.dict == b.dict;
      return true;
    case Kind::kLoop:
      *out = a.loop == b.loop;
      return true;
    case Kind::kMethod:
      *out = a.method == b.method;
      return true;
    case Kind::kFunction:
      *out = a.function == b.function;
      return true;
    case Kind::kMacro:
      *out = a.macro == b.macro;
      return true;
    default:
      return true;
  }
}

// -1, 0, 1; 2 where neither is less (NaN).
bool order(Runtime& rt, std::string_view op, const Value& a, const Value& b, int depth, int* out) {
  if (depth > kMaxValueDepth) return rt.fail("values nested too deeply to compare");
  if (!rt.charge()) return false;
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) {
      *out = a.as_int() < b.as_int() ? -1 : a.as_int() > b.as_int();
    } else {
      const double x = a.as_double(), y = b.as_double();
      *out = x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
    }
    return true;
  }
  if (a.is_string() && b.is_string()) {
    const int c = a.str().compare(b.str());  // UTF-8 keeps the order of code points
    *out = c < 0 ? -1 : c > 0;
    return rt.charge_bytes(std::min(a.str().size(), b.str().size()));
  }
  if (a.is_list() && a.kind == b.kind) {
    std::vector<Value>* x = rt.items(a);
    std::vector<Value>* y = rt.items(b);
    if (x == nullptr || y == nullptr) return false;
    for (size_t i = 0; i < x->size() && i < y->size(); ++i) {
      bool same = false;
      if (!equal_at(rt, (*x)[i], (*y)[i], depth + 1, &same)) return false;
      if (!same) return order(rt, op, (*x)[i], (*y)[i], depth + 1, out);
    }
    *out = x->size() < y->size() ? -1 : x->size() > y->size();
    return true;
  }
  if (a.is_undefined() || b.is_undefined()) return type_error(rt, op, a, b);
  return rt.fail({"'", op, "' not supported between instances of '", type_name(a), "' and '", type_name(b), "'"});
}

// `value` is a reference: callers compute it in the expression that tells of the overflow.
bool int_result(Runtime& rt, bool overflow, const Int& value, Value* out) {
  if (overflow) return rt.fail("integer too large");
  *out = Value::of(value);
  return true;
}

bool power(Runtime& rt, const Value& a, const Value& b, Value* out) {
  if (a.is_integer() && b.is_integer() && b.as_int() >= 0) {
    Int base = a.as_int(), exponent = b.as_int(), result = 1;
    bool overflow = false;
    while (exponent > 0 && !overflow) {
      if (exponent & 1) overflow = __builtin_mul_overflow(result, base, &result);
      exponent >>= 1;
      if (exponent > 0 && !overflow && __builtin_mul_overflow(base, base, &base)) overflow = true;
    }
    return int_result(rt, overflow, result, out);
  }
  const double x = a.as_double(), y = b.as_double();
  if (x == 0 && y < 0) return rt.fail("0.0 cannot be raised to a negative power");
  const double result = std::pow(x, y);
  if (!std::isfinite(result) && std::isfinite(x) && std::isfinite(y)) return rt.fail("power out of range");
  *out = Value::of(result);
  return true;
}

bool arithmetic(Runtime& rt, std::string_view op, const Value& a, const Value& b, Value* out) {
  if (op == "**") return power(rt, a, b, out);
  const bool divides = op == "/" || op == "//" || op == "%";
  if (divides && b.as_double() == 0) return rt.fail("division by zero");
  if (a.is_integer() && b.is_integer() && op != "/") {
    const Int x = a.as_int(), y = b.as_int();
    Int result = 0;
    if (op == "+") return int_result(rt, __builtin_add_overflow(x, y, &result), result, out);
    if (op == "-") return int_result(rt, __builtin_sub_overflow(x, y, &result), result, out);
    if (op == "*") return int_result(rt, __builtin_mul_overflow(x, y, &result), result, out);
    if (y == -1)
      return op == "%" ? int_result(rt, false, 0, out)
                       : int_result(rt, __builtin_sub_overflow(Int{0}, x, &result), result, out);
    const Int remainder = x % y;
    const bool floors = remainder != 0 && (remainder < 0) != (y < 0);
    return int_result(rt, false, op == "%" ? remainder + (floors ? y : 0) : x / y - (floors ? 1 : 0), out);
  }
  const double x = a.as_double(), y = b.as_double();
  double result = 0;
  if (op == "+")
    result = x + y;
  else if (op == "-")
    result = x - y;
  else if (op == "*")
    result = x * y;
  else if (op == "/")
    result = x / y;
  else {
    double remainder = std::fmod(x, y);
    if (remainder != 0 && (remainder < 0) != (y < 0)) remainder += y;
    if (remainder == 0) remainder = std::copysign(0.0, y);
    result = op == "%" ? remainder : std::floor((x - remainder) / y + 0.5);
  }
  *out = Value::of(result);
  return true;
}

bool repeat(Runtime& rt, const Value& a, Int times, Value* out) {
  times = std::max(times, Int{0});
  if (a.is_string()) {
    if (times > 0 && static_cast<Int>(a.text->size()) > static_cast<Int>(rt.limits().max_output_bytes) / times) {
      return a.text->size() == 0
                 ? rt.string(Text(), out)
                 : rt.fail({"a text longer than the allowed ", std::to_string(rt.limits().max_output_bytes), " bytes"});
    }
    if (!rt.charge(static_cast<uint64_t>(a.text->size() == 0 ? 0 : times))) return false;
    Text text;
    if (a.text->size() > 0)
      for (Int i = 0; i < times; ++i) text.append(*a.text);
    return rt.string(std::move(text), out);
  }
  std::vector<Value>* items = rt.items(a);
  if (items == nullptr) return false;
  const Int size = static_cast<Int>(items->size());
  if (size > 0 && times > rt.limits().max_steps / size)
    return rt.fail("a list longer than the allowed number of steps");
  if (!rt.charge(static_cast<uint64_t>(size * times))) return false;
  std::vector<Value> all;
  for (Int i = 0; i < times && size > 0; ++i) all.insert(all.end(), items->begin(), items->end());
  *out = rt.list(std::move(all), a.kind);
  return true;
}

}  // namespace

bool truth(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return value.boolean;
    case Kind::kInt:
      return value.integer != 0;
    case Kind::kFloat:
      return value.number != 0;
    case Kind::kString:
      return value.text->size() > 0;
    case Kind::kList:
    case Kind::kTuple:
      if (value.list->lazy) return true;
      return value.list->pending != nullptr ? !value.list->pending->empty() : !value.list->items.empty();
    case Kind::kDict:
      return value.dict->pending != nullptr ? !value.dict->pending->empty() : !value.dict->entries.empty();
    default:
      return true;
  }
}

bool equal(Runtime& rt, const Value& a, const Value& b, bool* out) {
  return equal_at(rt, a, b, 0, out);
}

bool compare(Runtime& rt, std::string_view op, const Value& a, const Value& b, bool* out) {
  if (op == "==" || op == "!=") {
    if (!equal(rt, a, b, out)) return false;
    if (op == "!=") *out = !*out;
    return true;
  }
  if (op == "in" || op == "not in") {
    if (!contains(rt, b, a, out)) return false;
    if (op == "not in") *out = !*out;
    return true;
  }
  int c = 0;
  if (!order(rt, op, a, b, 0, &c)) return false;
  *out = op == "<" ? c == -1 : op == "<=" ? c == -1 || c == 0 : op == ">" ? c == 1 : c == 1 || c == 0;
  return true;
}

bool binary(Runtime& rt, std::string_view op, const Value& a, const Value& b, Value* out) {
  if (a.is_number() && b.is_number()) return arithmetic(rt, op, a, b, out);
  if (op == "+" && a.is_string() && b.is_string()) {
    if (a.text->size() + b.text->size() > rt.limits().max_output_bytes)
      return rt.fail({"a text longer than the allowed ", std::to_string(rt.limits().max_output_bytes), " bytes"});
    Text text = *a.text;
    text.append(*b.text);
    return rt.string(std::move(text), out);
  }
  if (op == "+" && a.is_list() && a.kind == b.kind && !a.list->lazy && !b.list->lazy) {
    std::vector<Value>* x = rt.items(a);
    std::vector<Value>* y = rt.items(b);
    if (x == nullptr || y == nullptr || !rt.charge(x->size() + y->size())) return false;
    std::vector<Value> all = *x;
    all.insert(all.end(), y->begin(), y->end());
    *out = rt.list(std::move(all), a.kind);
    return true;
  }
  if (op == "*" && b.is_integer() && (a.is_string() || a.is_list())) return repeat(rt, a, b.as_int(), out);
  if (op == "*" && a.is_integer() && (b.is_string() || b.is_list())) return repeat(rt, b, a.as_int(), out);
  if (op == "%" && a.is_string() && !b.is_undefined()) {
    Args args;
    if (b.kind == Kind::kTuple) {
      std::vector<Value>* items = rt.items(b);
      if (items == nullptr) return false;
      args.positional = *items;
    } else {
      args.positional.push_back(b);
    }
    return printf_text(rt, *a.text, args, out);
  }
  return type_error(rt, op, a, b);
}

bool negate(Runtime& rt, const Value& a, Value* out) {
  if (a.is_undefined()) return rt.fail({"'", a.name, "' is undefined"});
  if (!a.is_number()) return rt.fail({"bad operand type for unary -: '", type_name(a), "'"});
  if (a.kind == Kind::kFloat) {
    *out = Value::of(-a.number);
    return true;
  }
  Int result = 0;
  return int_result(rt, __builtin_sub_overflow(Int{0}, a.as_int(), &result), result, out);
}

}  // namespace dsv3::jinja
