// Expressions and calls. Statements are in interpreter.cpp.
#include <algorithm>

#include "chat/jinja/builtins.h"
#include "chat/jinja/interpreter.h"
#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

constexpr int kExpressionsPerLevel = 8;  // nodes that one level of parentheses can put on top of each other

}  // namespace

bool Interpreter::eval(const Expr& expr, Scope* scope, Value* out) {
  if (!rt_.charge()) return false;
  line_ = expr.line;
  if (expr.kind == ExprKind::kConst) {
    *out = expr.value;
    return true;
  }
  if (expr.kind == ExprKind::kName) return eval_name(expr, scope, out);
  if (++eval_depth_ > rt_.limits().max_depth * kExpressionsPerLevel) return rt_.fail("expressions nested too deeply");
  const bool ok = eval_inner(expr, scope, out);
  --eval_depth_;
  return ok;
}

bool Interpreter::eval_name(const Expr& expr, Scope* scope, Value* out) {
  for (Scope* s = scope; s != nullptr; s = s->parent) {
    if (const Value* found = find_here(s, expr.symbol)) {
      *out = *found;
      return true;
    }
  }
  const Builtin function = find_function(expr.name);
  *out = function != nullptr ? Value::of(function) : Value::undefined(expr.name);
  return true;
}

bool Interpreter::eval_inner(const Expr& expr, Scope* scope, Value* out) {
  Value right;
  switch (expr.kind) {
    case ExprKind::kTuple:
    case ExprKind::kList:
    case ExprKind::kDict:
      return eval_container(expr, scope, out);
    case ExprKind::kJoin: {
      Writer writer(rt_);
      for (const ExprPtr& part : expr.parts) {
        if (!eval(*part, scope, &right) || !write_str(rt_, right, &writer)) return false;
      }
      return writer.finish(out);
    }
    case ExprKind::kBinary: {
      if (!eval(*expr.parts[0], scope, out)) return false;
      for (size_t i = 0; i < expr.operators.size(); ++i) {
        if (!eval(*expr.parts[i + 1], scope, &right)) return false;
        const Value left = std::move(*out);
        if (!binary(rt_, expr.operators[i], left, right, out)) return false;
      }
      return true;
    }
    case ExprKind::kCompare:
      return eval_compare(expr, scope, out);
    case ExprKind::kAnd:
    case ExprKind::kOr:
      for (const ExprPtr& part : expr.parts) {
        if (!eval(*part, scope, out)) return false;
        if (truth(*out) == (expr.kind == ExprKind::kOr)) break;
      }
      return true;
    case ExprKind::kNot:
      if (!eval(*expr.parts[0], scope, out)) return false;
      *out = Value::of(!truth(*out));
      return true;
    case ExprKind::kNegative:
      return eval(*expr.parts[0], scope, &right) && negate(rt_, right, out);
    case ExprKind::kPositive: {
      if (!eval(*expr.parts[0], scope, &right)) return false;
      Value negative;
      return negate(rt_, right, &negative) && negate(rt_, negative, out);
    }
    case ExprKind::kConditional: {
      Value condition;
      if (!eval(*expr.parts[1], scope, &condition)) return false;
      if (truth(condition)) return eval(*expr.parts[0], scope, out);
      if (expr.parts.size() > 2) return eval(*expr.parts[2], scope, out);
      *out = Value::undefined("inline if without else");
      return true;
    }
    case ExprKind::kSuffixed:
      return eval(*expr.parts[0], scope, out) && eval_suffixes(expr, scope, out);
    default:
      return rt_.fail("unknown expression");
  }
}

bool Interpreter::eval_container(const Expr& expr, Scope* scope, Value* out) {
  if (expr.kind == ExprKind::kDict) {
    const Value dict = rt_.dict();
    for (size_t i = 0; i < expr.parts.size(); i += 2) {
      Value key, value;
      if (!eval(*expr.parts[i], scope, &key) || !eval(*expr.parts[i + 1], scope, &value) || !rt_.set(dict, key, value))
        return false;
    }
    *out = dict;
    return true;
  }
  std::vector<Value> items(expr.parts.size());
  for (size_t i = 0; i < items.size(); ++i) {
    if (!eval(*expr.parts[i], scope, &items[i])) return false;
  }
  *out = rt_.list(std::move(items), expr.kind == ExprKind::kTuple ? Kind::kTuple : Kind::kList);
  return true;
}

bool Interpreter::eval_compare(const Expr& expr, Scope* scope, Value* out) {
  Value left, right;
  bool holds = true;
  if (!eval(*expr.parts[0], scope, &left)) return false;
  for (size_t i = 0; i < expr.operators.size() && holds; ++i) {
    if (!eval(*expr.parts[i + 1], scope, &right) || !compare(rt_, expr.operators[i], left, right, &holds)) return false;
    left = std::move(right);
  }
  *out = Value::of(holds);
  return true;
}

// last, length, nextitem, revindex, revindex0: what makes a loop look at elements before their turn.
bool Interpreter::eval_loop_ahead(const Value& object, const std::string& name, Value* out, bool* handled) {
  const bool one = name == "last" || name == "nextitem";
  *handled = one || name == "length" || name == "revindex" || name == "revindex0";
  if (!*handled) return true;
  LoopObject& loop = *object.loop;
  while (loop.ahead_next == loop.ahead.size() || !one) {
    bool found = false;
    Value element;
    if (!fetch_accepted(&loop, &found, &element)) return false;
    if (!found) break;
    loop.ahead.push_back(std::move(element));
  }
  const Int left = static_cast<Int>(loop.ahead.size() - loop.ahead_next);
  if (name == "last")
    *out = Value::of(left == 0);
  else if (name == "nextitem")
    *out = left == 0 ? Value::undefined("nextitem") : loop.ahead[loop.ahead_next];
  else if (name == "length")
    *out = Value::of(loop.index0 + 1 + left);
  else
    *out = Value::of(name == "revindex" ? left + 1 : left);
  return true;
}

bool Interpreter::eval_suffixes(const Expr& expr, Scope* scope, Value* value) {
  for (size_t i = 0; i < expr.suffixes.size(); ++i) {
    const Suffix& suffix = expr.suffixes[i];
    if (!rt_.charge()) return false;
    line_ = suffix.line;
    const Value object = std::move(*value);
    switch (suffix.kind) {
      case Suffix::Kind::kAttribute: {
        bool handled = false;
        if (object.kind == Kind::kLoop && !eval_loop_ahead(object, suffix.name, value, &handled)) return false;
        if (handled) break;
        // A method that is called at once needs no object of its own.
        const bool called = i + 1 < expr.suffixes.size() && expr.suffixes[i + 1].kind == Suffix::Kind::kCall;
        if (Builtin method = called ? find_method(object, suffix.name) : nullptr) {
          Args args;
          if (!eval_args(expr.suffixes[i + 1].args, scope, &args) || !method(rt_, object, args, value)) return false;
          ++i;
          break;
        }
        if (!get_attribute(rt_, object, suffix.name, value)) return false;
        break;
      }
      case Suffix::Kind::kItem: {
        Value key;
        if (!eval(*suffix.key, scope, &key)) return false;
        if (object.kind == Kind::kLoop && key.is_string())
          return rt_.fail("loop['...'] is not supported; write loop.name");
        if (!get_item(rt_, object, key, value)) return false;
        break;
      }
      case Suffix::Kind::kSlice: {
        Value begin, end, step;
        if ((suffix.key && !eval(*suffix.key, scope, &begin)) || (suffix.end && !eval(*suffix.end, scope, &end)) ||
            (suffix.step && !eval(*suffix.step, scope, &step)) || !get_slice(rt_, object, begin, end, step, value)) {
          return false;
        }
        break;
      }
      case Suffix::Kind::kCall: {
        Args args;
        if (!eval_args(suffix.args, scope, &args) || !call(object, args, value)) return false;
        break;
      }
      case Suffix::Kind::kFilter:
      case Suffix::Kind::kTest: {
        Args args;
        if (!eval_args(suffix.args, scope, &args) || !suffix.function(rt_, object, args, value)) return false;
        if (suffix.negated) *value = Value::of(!truth(*value));
        break;
      }
    }
  }
  return true;
}

bool Interpreter::eval_args(const CallArgs& args, Scope* scope, Args* out) {
  out->positional.resize(args.positional.size());
  for (size_t i = 0; i < args.positional.size(); ++i) {
    if (!eval(*args.positional[i], scope, &out->positional[i])) return false;
  }
  for (const auto& [name, expr] : args.named) {
    if (!eval(*expr, scope, &out->named.emplace_back(name, Value()).second)) return false;
  }
  Value more;
  if (args.list) {
    std::vector<Value> items;
    if (!eval(*args.list, scope, &more) || !iterate(rt_, more, &items)) return false;
    out->positional.insert(out->positional.end(), items.begin(), items.end());
  }
  if (args.mapping) {
    if (!eval(*args.mapping, scope, &more)) return false;
    if (more.kind != Kind::kDict) return rt_.fail({"argument after ** must be a mapping, not ", type_name(more)});
    DictObject* dict = rt_.entries(more);
    if (dict == nullptr) return false;
    for (const auto& [key, value] : dict->entries) {
      if (!key.is_string()) return rt_.fail("keywords must be strings");
      out->named.emplace_back(key.str(), value);
    }
  }
  return true;
}

bool Interpreter::call(const Value& callee, const Args& args, Value* out) {
  *out = Value();
  switch (callee.kind) {
    case Kind::kFunction:
      return callee.function(rt_, callee, args, out);
    case Kind::kMethod:
      return callee.method->function(rt_, callee.method->self, args, out);
    case Kind::kMacro:
      return call_macro(*callee.macro, args, out);
    case Kind::kUndefined:
      return rt_.fail({"'", callee.name, "' is undefined"});
    default:
      return rt_.fail({"'", type_name(callee), "' object is not callable"});
  }
}

bool Interpreter::call_macro(const MacroObject& macro, const Args& args, Value* out) {
  const Stmt& definition = *macro.definition;
  Scope* scope = new_scope(macro.scope);
  const size_t count = definition.params.size();
  std::vector<Value> extra;
  for (size_t i = 0; i < args.positional.size(); ++i) {
    if (i < count)
      set_variable(scope, definition.params[i].second, args.positional[i]);
    else
      extra.push_back(args.positional[i]);
  }
  const Value keywords = rt_.dict();
  for (const auto& [name, value] : args.named) {
    const auto it = std::find_if(definition.params.begin(), definition.params.end(),
                                 [&n = name](const auto& p) { return p.first == n; });
    if (it != definition.params.end()) {
      if (find_here(scope, it->second) != nullptr) {
        return rt_.fail({"macro '", definition.name, "' got argument '", name, "' twice"});
      }
      set_variable(scope, it->second, value);
    } else if (name == "caller" && definition.uses_caller) {
      set_variable(scope, program_.caller_symbol, value);
    } else if (!definition.uses_kwargs) {
      return rt_.fail({"macro '", definition.name, "' takes no keyword argument '", name.substr(0, 64), "'"});
    } else if (!rt_.set(keywords, Value::literal(name), value)) {
      return false;
    }
  }
  if (!extra.empty() && !definition.uses_varargs) {
    return rt_.fail({"macro '", definition.name, "' takes not more than ", std::to_string(count), " argument(s)"});
  }
  const size_t first_default = count - definition.defaults.size();
  for (size_t i = 0; i < count; ++i) {
    if (find_here(scope, definition.params[i].second) != nullptr) continue;
    Value value = Value::undefined(definition.params[i].first);
    if (i >= first_default && !eval(*definition.defaults[i - first_default], scope, &value)) return false;
    set_variable(scope, definition.params[i].second, value);
  }
  set_variable(scope, program_.varargs_symbol, rt_.list(std::move(extra), Kind::kTuple));
  set_variable(scope, program_.kwargs_symbol, keywords);
  if (find_here(scope, program_.caller_symbol) == nullptr) {
    set_variable(scope, program_.caller_symbol, Value::undefined("caller"));
  }
  Writer inner(rt_);
  Flow flow = Flow::kNormal;
  return exec_block(definition.bodies[0], scope, &inner, &flow) && inner.finish(out);
}

}  // namespace dsv3::jinja
