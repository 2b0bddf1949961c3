// A compiled template: statements and expressions, built by the parser and only read afterwards.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "chat/jinja/value.h"

namespace dsv3::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct CallArgs {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr list;     // *args
  ExprPtr mapping;  // **kwargs
};

/// What follows an operand: .name  [key]  [a:b:c]  (args)  |filter(args)  is test(args)
struct Suffix {
  enum class Kind { kAttribute, kItem, kSlice, kCall, kFilter, kTest };
  Kind kind = Kind::kAttribute;
  int line = 1;
  std::string name;
  ExprPtr key, end, step;  // kItem: key; kSlice: key is the begin; each may be absent
  CallArgs args;
  Builtin function = nullptr;
  bool negated = false;  // is not
};

enum class ExprKind {
  kConst,
  kName,
  kTuple,
  kList,
  kDict,
  kJoin,     // a ~ b ~ ...
  kBinary,   // a op b op ...: from left to right
  kCompare,  // a op b op ...: chained as in Python
  kAnd,
  kOr,
  kNot,
  kNegative,
  kPositive,
  kConditional,  // parts: value, condition, otherwise (may be absent)
  kSuffixed,     // parts[0] and suffixes
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 1;
  Value value;                 // kConst
  int symbol = -1;             // kName
  std::string name;            // kName
  std::vector<ExprPtr> parts;  // operands; kDict: key, value, key, value, ...
  std::vector<std::string> operators;
  std::vector<Suffix> suffixes;
};

/// Where an assignment goes: a name, name.attribute, or a tuple of targets.
struct Target {
  int symbol = -1;
  std::string name;
  std::string attribute;  // of a namespace
  std::vector<Target> items;
  bool is_tuple = false;
};

struct Stmt;
using StmtPtr = std::unique_ptr<Stmt>;
using Block = std::vector<StmtPtr>;

enum class StmtKind {
  kData,
  kPrint,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kCall,
  kFilter,
  kWith,
  kScope,
  kBreak,
  kContinue,
};

struct Stmt {
  StmtKind kind = StmtKind::kData;
  int line = 1;
  Value data;                   // kData
  std::vector<ExprPtr> exprs;   // kPrint; kIf: conditions; kSet/kCall/kFor: one; kWith: values
  ExprPtr filter;               // kFor: condition or absent; kSetBlock/kFilter: an expression on a placeholder
  Target target;                // kFor, kSet, kSetBlock
  std::vector<Target> targets;  // kWith
  std::vector<Block> bodies;    // kIf: one a condition; others: one
  Block otherwise;              // kIf, kFor
  std::string name;             // kMacro
  int symbol = -1;              // kMacro
  std::vector<std::pair<std::string, int>> params;                      // kMacro, kCall: names and symbols
  std::vector<ExprPtr> defaults;                                        // of the last params
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;  // kMacro, kCall: its body names them
};

struct Program {
  Block body;
  std::unordered_map<std::string, int> symbols;
  std::vector<std::string> names;  // of the symbols
  int loop_symbol = -1, caller_symbol = -1, varargs_symbol = -1, kwargs_symbol = -1;
};

}  // namespace dsv3::jinja
