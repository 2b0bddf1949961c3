// Runs a program over a context and gives the text with its sources. Bounded in steps, depth and bytes.
#pragma once

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "chat/jinja/ast.h"
#include "chat/jinja/runtime.h"

namespace dsv3::jinja {

/// Variables of one template, loop, macro call or `with`. Belongs to the Interpreter.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<int, Value>> variables;
  bool captured = false;  // a macro refers to it: it may not be used again
};

struct MacroObject {
  const Stmt* definition = nullptr;
  Scope* scope = nullptr;
};

/// One rendering. `program` and everything in `context` must outlive it.
class Interpreter {
 public:
  Interpreter(const Program& program, Runtime& rt) : program_(program), rt_(rt) {}

  /// Names that the program does not use are ignored. False: rt holds the error, failed_line() where.
  bool run(const std::vector<std::pair<std::string, Value>>& context, Text* out);
  int failed_line() const { return line_; }

 private:
  enum class Flow { kNormal, kBreak, kContinue };

  bool exec_block(const Block& block, Scope* scope, Writer* out, Flow* flow);
  bool exec(const Stmt& stmt, Scope* scope, Writer* out, Flow* flow);
  bool exec_if(const Stmt& stmt, Scope* scope, Writer* out, Flow* flow);
  bool exec_for(const Stmt& stmt, Scope* scope, Writer* out, Flow* flow);
  bool exec_call(const Stmt& stmt, Scope* scope, Writer* out);
  bool capture(const Stmt& stmt, Scope* scope, Value* out);
  bool assign(const Target& target, const Value& value, Scope* scope);
  bool fetch_next(LoopObject* loop, bool* found, Value* out);
  bool fetch_accepted(LoopObject* loop, bool* found, Value* out);

  bool eval(const Expr& expr, Scope* scope, Value* out);
  bool eval_inner(const Expr& expr, Scope* scope, Value* out);
  bool eval_name(const Expr& expr, Scope* scope, Value* out);
  bool eval_container(const Expr& expr, Scope* scope, Value* out);
  bool eval_compare(const Expr& expr, Scope* scope, Value* out);
  bool eval_suffixes(const Expr& expr, Scope* scope, Value* value);
  bool eval_loop_ahead(const Value& object, const std::string& name, Value* out, bool* handled);
  bool eval_args(const CallArgs& args, Scope* scope, Args* out);
  bool call(const Value& callee, const Args& args, Value* out);
  bool call_macro(const MacroObject& macro, const Args& args, Value* out);

  Scope* new_scope(Scope* parent);
  static Value* find_here(Scope* scope, int symbol);
  static void set_variable(Scope* scope, int symbol, Value value);

  const Program& program_;
  Runtime& rt_;
  std::deque<Scope> scopes_;
  std::deque<MacroObject> macros_;
  int block_depth_ = 0;
  int eval_depth_ = 0;
  int line_ = 1;
};

}  // namespace dsv3::jinja
