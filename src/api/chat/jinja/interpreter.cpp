// Statements. Expressions are in evaluate.cpp.
#include "chat/jinja/interpreter.h"

#include "chat/jinja/ops.h"

namespace dsv3::jinja {

Scope* Interpreter::new_scope(Scope* parent) {
  Scope& scope = scopes_.emplace_back();
  scope.parent = parent;
  return &scope;
}

Value* Interpreter::find_here(Scope* scope, int symbol) {
  for (auto& [id, value] : scope->variables) {
    if (id == symbol) return &value;
  }
  return nullptr;
}

void Interpreter::set_variable(Scope* scope, int symbol, Value value) {
  if (Value* old = find_here(scope, symbol))
    *old = std::move(value);
  else
    scope->variables.emplace_back(symbol, std::move(value));
}

bool Interpreter::run(const std::vector<std::pair<std::string, Value>>& context, Text* out) {
  Scope* scope = new_scope(nullptr);
  for (const auto& [name, value] : context) {
    const auto it = program_.symbols.find(name);
    if (it != program_.symbols.end()) set_variable(scope, it->second, value);
  }
  Writer writer(rt_);
  Flow flow = Flow::kNormal;
  Value text;
  if (!exec_block(program_.body, new_scope(scope), &writer, &flow) || !writer.finish(&text)) return false;
  *out = *text.text;
  return true;
}

bool Interpreter::exec_block(const Block& block, Scope* scope, Writer* out, Flow* flow) {
  if (++block_depth_ > rt_.limits().max_depth) {
    return rt_.fail({"blocks and macros nested deeper than the allowed ", std::to_string(rt_.limits().max_depth)});
  }
  for (const StmtPtr& stmt : block) {
    if (!exec(*stmt, scope, out, flow)) return false;  // a failed rendering does not go on: depth may stay
    if (*flow != Flow::kNormal) break;
  }
  --block_depth_;
  return true;
}

bool Interpreter::exec(const Stmt& stmt, Scope* scope, Writer* out, Flow* flow) {
  line_ = stmt.line;
  if (!rt_.charge() || !out->check()) return false;
  Value value;
  switch (stmt.kind) {
    case StmtKind::kData:
      out->write(*stmt.data.text);
      return true;
    case StmtKind::kPrint:
      for (const ExprPtr& expr : stmt.exprs) {
        if (!eval(*expr, scope, &value) || !write_str(rt_, value, out)) return false;
      }
      return true;
    case StmtKind::kIf:
      return exec_if(stmt, scope, out, flow);
    case StmtKind::kFor:
      return exec_for(stmt, scope, out, flow);
    case StmtKind::kSet:
      return eval(*stmt.exprs[0], scope, &value) && assign(stmt.target, value, scope);
    case StmtKind::kSetBlock:
      return capture(stmt, scope, &value) && assign(stmt.target, value, scope);
    case StmtKind::kFilter:
      return capture(stmt, scope, &value) && write_str(rt_, value, out);
    case StmtKind::kMacro: {
      scope->captured = true;
      value.kind = Kind::kMacro;
      value.macro = &macros_.emplace_back(MacroObject{&stmt, scope});
      set_variable(scope, stmt.symbol, value);
      return true;
    }
    case StmtKind::kCall:
      return exec_call(stmt, scope, out);
    case StmtKind::kWith: {
      Scope* inner = new_scope(scope);
      for (size_t i = 0; i < stmt.targets.size(); ++i) {
        // Values are computed outside of the new scope.
        if (!eval(*stmt.exprs[i], scope, &value)) return false;
        set_variable(inner, stmt.targets[i].symbol, value);
      }
      return exec_block(stmt.bodies[0], inner, out, flow);
    }
    case StmtKind::kScope:
      return exec_block(stmt.bodies[0], new_scope(scope), out, flow);
    case StmtKind::kBreak:
      *flow = Flow::kBreak;
      return true;
    case StmtKind::kContinue:
      *flow = Flow::kContinue;
      return true;
  }
  return true;
}

bool Interpreter::exec_if(const Stmt& stmt, Scope* scope, Writer* out, Flow* flow) {
  for (size_t i = 0; i < stmt.exprs.size(); ++i) {
    Value condition;
    if (!eval(*stmt.exprs[i], scope, &condition)) return false;
    if (truth(condition)) return exec_block(stmt.bodies[i], scope, out, flow);
  }
  return exec_block(stmt.otherwise, scope, out, flow);
}

// A body whose output becomes a value: of a block set or a filter block.
bool Interpreter::capture(const Stmt& stmt, Scope* scope, Value* out) {
  Writer inner(rt_);
  Flow flow = Flow::kNormal;
  if (!exec_block(stmt.bodies[0], new_scope(scope), &inner, &flow) || !inner.finish(out)) return false;
  return !stmt.filter || eval_suffixes(*stmt.filter, scope, out);
}

bool Interpreter::assign(const Target& target, const Value& value, Scope* scope) {
  if (target.is_tuple) {
    std::vector<Value> parts;
    if (!iterate(rt_, value, &parts)) return false;
    if (parts.size() != target.items.size()) {
      return rt_.fail(
          {"cannot unpack ", std::to_string(parts.size()), " values into ", std::to_string(target.items.size())});
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!assign(target.items[i], parts[i], scope)) return false;
    }
    return true;
  }
  if (target.attribute.empty()) {
    set_variable(scope, target.symbol, value);
    return true;
  }
  for (Scope* s = scope; s != nullptr; s = s->parent) {
    const Value* object = find_here(s, target.symbol);
    if (object == nullptr) continue;
    if (object->kind != Kind::kNamespace) break;
    return rt_.set(*object, Value::literal(target.attribute), value);
  }
  return rt_.fail({"cannot assign attribute on non-namespace object '", target.name, "'"});
}

// The next element of the loop: one that a look ahead found already, or a new one.
bool Interpreter::fetch_next(LoopObject* loop, bool* found, Value* out) {
  if (loop->ahead_next == loop->ahead.size()) return fetch_accepted(loop, found, out);
  *out = loop->ahead[loop->ahead_next++];
  *found = true;
  if (loop->ahead_next == loop->ahead.size()) {
    loop->ahead.clear();
    loop->ahead_next = 0;
  }
  return true;
}

// The next element of what is iterated that the loop's filter accepts.
bool Interpreter::fetch_accepted(LoopObject* loop, bool* found, Value* out) {
  *found = false;
  const Stmt* stmt = static_cast<const Stmt*>(loop->filter);
  while (loop->next < loop->source.size()) {
    Value element = loop->source[loop->next++];
    if (stmt != nullptr) {
      Scope* scope = new_scope(static_cast<Scope*>(loop->filter_scope));
      Value accepted;
      if (!rt_.charge() || !assign(stmt->target, element, scope) || !eval(*stmt->filter, scope, &accepted))
        return false;
      if (!scope->captured && &scopes_.back() == scope) scopes_.pop_back();
      if (!truth(accepted)) continue;
    }
    *out = std::move(element);
    *found = true;
    return true;
  }
  return true;
}

bool Interpreter::exec_for(const Stmt& stmt, Scope* scope, Writer* out, Flow* flow) {
  Value iterable;
  if (!eval(*stmt.exprs[0], scope, &iterable)) return false;
  LoopObject* loop = rt_.loop();
  if (!iterate(rt_, iterable, &loop->source)) return false;
  if (stmt.filter) {
    loop->filter = &stmt;
    loop->filter_scope = scope;
  }
  Value loop_value;
  loop_value.kind = Kind::kLoop;
  loop_value.loop = loop;
  Scope* inner = nullptr;
  for (;;) {
    bool found = false;
    Value element;
    if (!fetch_next(loop, &found, &element)) return false;
    if (!found) break;
    if (!rt_.charge()) return false;
    ++loop->index0;
    loop->previous = std::move(loop->current);
    loop->current = element;
    if (inner == nullptr || inner->captured)
      inner = new_scope(scope);
    else
      inner->variables.clear();
    set_variable(inner, program_.loop_symbol, loop_value);
    if (!assign(stmt.target, element, inner)) return false;
    Flow body_flow = Flow::kNormal;
    if (!exec_block(stmt.bodies[0], inner, out, &body_flow)) return false;
    if (body_flow == Flow::kBreak) break;
  }
  const bool empty = loop->index0 < 0;
  loop->source.clear();
  loop->source.shrink_to_fit();
  loop->next = 0;
  return !empty || exec_block(stmt.otherwise, new_scope(scope), out, flow);
}

// {% call(x) macro(...) %}body{% endcall %}: the body is a macro that the called one knows as `caller`.
bool Interpreter::exec_call(const Stmt& stmt, Scope* scope, Writer* out) {
  scope->captured = true;
  Value caller;
  caller.kind = Kind::kMacro;
  caller.macro = &macros_.emplace_back(MacroObject{&stmt, scope});
  const Expr& expr = *stmt.exprs[0];
  Value callee;
  if (!eval(*expr.parts[0], scope, &callee)) return false;
  if (expr.suffixes.size() != 1) return rt_.fail("a call block must call a macro by its name");
  Args args;
  if (!eval_args(expr.suffixes[0].args, scope, &args)) return false;
  args.named.emplace_back("caller", caller);
  Value text;
  return call(callee, args, &text) && write_str(rt_, text, out);
}

}  // namespace dsv3::jinja
