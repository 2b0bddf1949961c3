// Expressions, from the loosest binding to the tightest, then what may follow an operand.
#include "chat/jinja/expression_parser.h"

#include "chat/jinja/builtins.h"
#include "chat/jinja/ops.h"

namespace dsv3::jinja {

std::nullptr_t ExpressionParser::fail(const std::string& message, int line) {
  if (status_.ok()) status_ = syntax_error(line > 0 ? line : cur().line, message);
  return nullptr;
}

std::string ExpressionParser::describe(const Token& token) {
  switch (token.type) {
    case TokenType::kData:
      return "template data";
    case TokenType::kVariableBegin:
      return "'{{'";
    case TokenType::kVariableEnd:
      return "'}}'";
    case TokenType::kBlockBegin:
      return "'{%'";
    case TokenType::kBlockEnd:
      return "'%}'";
    case TokenType::kEnd:
      return "end of template";
    default:
      return "'" + token.text.substr(0, 64) + "'";
  }
}

bool ExpressionParser::skip_operator(std::string_view op) {
  if (!cur().is_operator(op)) return false;
  skip();
  return true;
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!cur().is_name(name)) return false;
  skip();
  return true;
}

bool ExpressionParser::expect_operator(std::string_view op) {
  if (skip_operator(op)) return true;
  fail("expected '" + std::string(op) + "', got " + describe(cur()));
  return false;
}

bool ExpressionParser::expect_name(std::string* name) {
  if (cur().type != TokenType::kName) {
    fail("expected a name, got " + describe(cur()));
    return false;
  }
  *name = cur().text;
  skip();
  return true;
}

bool ExpressionParser::expect_block_end() {
  if (cur().type == TokenType::kBlockEnd) {
    skip();
    return true;
  }
  fail("expected '%}', got " + describe(cur()));
  return false;
}

int ExpressionParser::symbol(const std::string& name) {
  const auto [it, added] = program_->symbols.emplace(name, static_cast<int>(program_->names.size()));
  if (added) program_->names.push_back(name);
  return it->second;
}

ExprPtr ExpressionParser::make(ExprKind kind, int line) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

ExprPtr ExpressionParser::expression(bool conditional) {
  Nested nested(*this);
  if (!nested.ok()) return nullptr;
  ExprPtr value = disjunction();
  for (int choices = 0; value && conditional && cur().is_name("if"); ++choices) {
    if (choices == max_depth_) return fail("more than " + std::to_string(max_depth_) + " inline ifs in a row");
    ExprPtr choice = make(ExprKind::kConditional, cur().line);
    skip();
    choice->parts.push_back(std::move(value));
    choice->parts.push_back(disjunction());
    if (skip_name("else")) choice->parts.push_back(expression());
    if (!status_.ok()) return nullptr;
    value = std::move(choice);
  }
  return value;
}

ExprPtr ExpressionParser::name_chain(std::string_view word, ExprKind kind, Level operand) {
  ExprPtr first = (this->*operand)();
  if (!first || !cur().is_name(word)) return first;
  ExprPtr chain = make(kind, first->line);
  chain->parts.push_back(std::move(first));
  while (skip_name(word)) {
    chain->parts.push_back((this->*operand)());
    if (!status_.ok()) return nullptr;
  }
  return chain;
}

ExprPtr ExpressionParser::disjunction() {
  return name_chain("or", ExprKind::kOr, &ExpressionParser::conjunction);
}

ExprPtr ExpressionParser::conjunction() {
  return name_chain("and", ExprKind::kAnd, &ExpressionParser::negation);
}

ExprPtr ExpressionParser::negation() {
  const int line = cur().line;
  int nots = 0;
  while (skip_name("not")) ++nots;
  ExprPtr value = comparison();
  if (!value || nots == 0) return value;
  for (int i = nots % 2 == 0 ? 2 : 1; i > 0; --i) {  // an even number still makes a bool
    ExprPtr inverted = make(ExprKind::kNot, line);
    inverted->parts.push_back(std::move(value));
    value = std::move(inverted);
  }
  return value;
}

ExprPtr ExpressionParser::comparison() {
  ExprPtr first = sum();
  if (!first) return nullptr;
  ExprPtr chain;
  for (;;) {
    std::string op;
    for (const char* known : {"==", "!=", "<", "<=", ">", ">="}) {
      if (cur().is_operator(known)) op = known;
    }
    if (cur().is_name("in")) op = "in";
    if (cur().is_name("not") && look().is_name("in")) {
      op = "not in";
      skip();
    }
    if (op.empty()) break;
    skip();
    if (!chain) {
      chain = make(ExprKind::kCompare, first->line);
      chain->parts.push_back(std::move(first));
    }
    chain->operators.push_back(op);
    chain->parts.push_back(sum());
    if (!status_.ok()) return nullptr;
  }
  return chain ? std::move(chain) : std::move(first);
}

ExprPtr ExpressionParser::operator_chain(std::initializer_list<const char*> operators, Level operand) {
  ExprPtr first = (this->*operand)();
  if (!first) return nullptr;
  ExprPtr chain;
  for (;;) {
    const char* op = nullptr;
    for (const char* known : operators) {
      if (cur().is_operator(known)) op = known;
    }
    if (op == nullptr) break;
    if (!chain) {
      chain = make(ExprKind::kBinary, cur().line);
      chain->parts.push_back(std::move(first));
    }
    skip();
    chain->operators.emplace_back(op);
    chain->parts.push_back((this->*operand)());
    if (!status_.ok()) return nullptr;
  }
  return chain ? std::move(chain) : std::move(first);
}

ExprPtr ExpressionParser::sum() {
  return operator_chain({"+", "-"}, &ExpressionParser::join);
}

ExprPtr ExpressionParser::join() {
  ExprPtr chain = operator_chain({"~"}, &ExpressionParser::product);
  if (chain && chain->kind == ExprKind::kBinary && chain->operators[0] == "~") chain->kind = ExprKind::kJoin;
  return chain;
}

ExprPtr ExpressionParser::product() {
  return operator_chain({"*", "/", "//", "%"}, &ExpressionParser::power);
}

ExprPtr ExpressionParser::power() {
  return operator_chain({"**"}, &ExpressionParser::filtered);
}

ExprPtr ExpressionParser::unary(bool with_filters) {
  ExprPtr value;
  if (cur().is_operator("-") || cur().is_operator("+")) {
    Nested nested(*this);
    if (!nested.ok()) return nullptr;
    value = make(cur().is_operator("-") ? ExprKind::kNegative : ExprKind::kPositive, cur().line);
    skip();
    value->parts.push_back(unary(false));
  } else {
    value = primary();
  }
  if (!status_.ok()) return nullptr;
  return suffixed(std::move(value), with_filters);
}

ExprPtr ExpressionParser::constant(Value value, int line) {
  ExprPtr expr = make(ExprKind::kConst, line);
  expr->value = std::move(value);
  return expr;
}

ExprPtr ExpressionParser::primary() {
  const Token& token = cur();
  const int line = token.line;
  switch (token.type) {
    case TokenType::kName: {
      const std::string name = token.text;
      skip();
      if (name == "true" || name == "True") return constant(Value::of(true), line);
      if (name == "false" || name == "False") return constant(Value::of(false), line);
      if (name == "none" || name == "None") return constant(Value::none(), line);
      ExprPtr expr = make(ExprKind::kName, line);
      expr->name = name;
      expr->symbol = symbol(name);
      special_.varargs |= name == "varargs";
      special_.kwargs |= name == "kwargs";
      special_.caller |= name == "caller";
      return expr;
    }
    case TokenType::kString: {
      std::string text;
      for (; cur().type == TokenType::kString; skip()) text += cur().text;
      return constant(Value::literal(text), line);
    }
    case TokenType::kInteger: {
      Int value = 0;
      if (!parse_int(token.text, 0, &value)) return fail("integer too large");
      skip();
      return constant(Value::of(value), line);
    }
    case TokenType::kFloat: {
      double value = 0;
      if (!parse_float(token.text, &value)) return fail("malformed number");
      skip();
      return constant(Value::of(value), line);
    }
    default:
      break;
  }
  if (skip_operator("(")) {
    ExprPtr value = tuple(true, true, {});
    return value && expect_operator(")") ? std::move(value) : nullptr;
  }
  if (skip_operator("[")) return list_literal(line);
  if (skip_operator("{")) return dict_literal(line);
  return fail("unexpected " + describe(token));
}

ExprPtr ExpressionParser::list_literal(int line) {
  ExprPtr list = make(ExprKind::kList, line);
  while (!cur().is_operator("]")) {
    if (!list->parts.empty() && !expect_operator(",")) return nullptr;
    if (cur().is_operator("]")) break;
    list->parts.push_back(expression());
    if (!status_.ok()) return nullptr;
  }
  skip();
  return list;
}

ExprPtr ExpressionParser::dict_literal(int line) {
  ExprPtr dict = make(ExprKind::kDict, line);
  while (!cur().is_operator("}")) {
    if (!dict->parts.empty() && !expect_operator(",")) return nullptr;
    if (cur().is_operator("}")) break;
    dict->parts.push_back(expression());
    if (!status_.ok() || !expect_operator(":")) return nullptr;
    dict->parts.push_back(expression());
    if (!status_.ok()) return nullptr;
  }
  skip();
  return dict;
}

bool ExpressionParser::at_tuple_end(std::string_view end_word) const {
  return cur().type == TokenType::kVariableEnd || cur().type == TokenType::kBlockEnd || cur().is_operator(")") ||
         (!end_word.empty() && cur().is_name(end_word));
}

// One expression, or several with commas: then a tuple.
ExprPtr ExpressionParser::tuple(bool conditional, bool parentheses, std::string_view end_word) {
  const int line = cur().line;
  std::vector<ExprPtr> parts;
  bool is_tuple = false;
  for (;;) {
    if (!parts.empty() && !expect_operator(",")) return nullptr;
    if (at_tuple_end(end_word)) break;
    parts.push_back(expression(conditional));
    if (!status_.ok()) return nullptr;
    if (!cur().is_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (!parts.empty()) return std::move(parts[0]);
    if (!parentheses) return fail("Expected an expression, got " + describe(cur()));
  }
  ExprPtr expr = make(ExprKind::kTuple, line);
  expr->parts = std::move(parts);
  return expr;
}

ExprPtr ExpressionParser::suffixed(ExprPtr value, bool with_filters) {
  ExprPtr whole;
  bool filters = false;  // once a filter or test was seen, only those and calls may follow
  for (;;) {
    Suffix suffix;
    suffix.line = cur().line;
    if (!filters && (cur().is_operator(".") || cur().is_operator("["))) {
      if (!subscript(&suffix)) return nullptr;
    } else if (cur().is_operator("(")) {
      suffix.kind = Suffix::Kind::kCall;
      if (!call_args(&suffix.args)) return nullptr;
    } else if (with_filters && cur().is_operator("|")) {
      filters = true;
      skip();
      if (!filter(&suffix)) return nullptr;
    } else if (with_filters && cur().is_name("is")) {
      filters = true;
      if (!test(&suffix)) return nullptr;
    } else {
      break;
    }
    if (!whole) {
      whole = make(ExprKind::kSuffixed, value->line);
      whole->parts.push_back(std::move(value));
    }
    whole->suffixes.push_back(std::move(suffix));
  }
  return whole ? std::move(whole) : std::move(value);
}

bool ExpressionParser::subscript(Suffix* suffix) {
  if (skip_operator(".")) {
    if (cur().type == TokenType::kName) {
      suffix->kind = Suffix::Kind::kAttribute;
      suffix->name = cur().text;
      skip();
      return true;
    }
    if (cur().type != TokenType::kInteger) return fail("expected name or number"), false;
    suffix->kind = Suffix::Kind::kItem;
    suffix->key = primary();
    return status_.ok();
  }
  skip();
  const int line = cur().line;
  std::vector<ExprPtr> keys;
  while (!cur().is_operator("]")) {
    if (!keys.empty() && !expect_operator(",")) return false;
    if (!subscribed(suffix, &keys)) return false;
  }
  skip();
  if (suffix->kind == Suffix::Kind::kSlice) {
    if (!keys.empty()) return fail("a slice cannot stand with other subscripts", line), false;
    return true;
  }
  suffix->kind = Suffix::Kind::kItem;
  if (keys.size() == 1) {
    suffix->key = std::move(keys[0]);
  } else {
    suffix->key = make(ExprKind::kTuple, line);
    suffix->key->parts = std::move(keys);
  }
  return true;
}

bool ExpressionParser::subscribed(Suffix* suffix, std::vector<ExprPtr>* keys) {
  ExprPtr first;
  if (!cur().is_operator(":")) {
    first = expression();
    if (!first) return false;
    if (!cur().is_operator(":")) {
      if (suffix->kind == Suffix::Kind::kSlice) return fail("a slice cannot stand with other subscripts"), false;
      keys->push_back(std::move(first));
      return true;
    }
  }
  if (suffix->kind == Suffix::Kind::kSlice) return fail("a slice cannot stand with other subscripts"), false;
  skip();
  suffix->kind = Suffix::Kind::kSlice;
  suffix->key = std::move(first);
  const auto ends = [this] { return cur().is_operator("]") || cur().is_operator(",") || cur().is_operator(":"); };
  if (!ends()) suffix->end = expression();
  if (status_.ok() && skip_operator(":") && !ends()) suffix->step = expression();
  return status_.ok();
}

bool ExpressionParser::call_args(CallArgs* args) {
  const int line = cur().line;
  skip();
  bool first = true;
  const auto ensure = [&](bool allowed) {
    if (!allowed) fail("invalid syntax for function call expression", line);
    return allowed;
  };
  while (!cur().is_operator(")")) {
    if (!first) {
      if (!expect_operator(",")) return false;
      if (cur().is_operator(")")) break;
    }
    first = false;
    if (skip_operator("*")) {
      if (!ensure(!args->list && !args->mapping)) return false;
      args->list = expression();
    } else if (skip_operator("**")) {
      if (!ensure(!args->mapping)) return false;
      args->mapping = expression();
    } else if (cur().type == TokenType::kName && look().is_operator("=")) {
      if (!ensure(!args->mapping)) return false;
      const std::string name = cur().text;
      skip();
      skip();
      args->named.emplace_back(name, expression());
    } else {
      if (!ensure(!args->list && !args->mapping && args->named.empty())) return false;
      args->positional.push_back(expression());
    }
    if (!status_.ok()) return false;
  }
  skip();
  return true;
}

bool ExpressionParser::dotted_name(std::string* name) {
  if (!expect_name(name)) return false;
  while (skip_operator(".")) {
    std::string part;
    if (!expect_name(&part)) return false;
    *name += "." + part;
  }
  return true;
}

// Behind the '|'.
bool ExpressionParser::filter(Suffix* suffix) {
  suffix->kind = Suffix::Kind::kFilter;
  suffix->line = cur().line;
  if (!dotted_name(&suffix->name)) return false;
  suffix->function = find_filter(suffix->name);
  if (suffix->function == nullptr) {
    return fail("No filter named '" + suffix->name.substr(0, 64) + "'.", suffix->line), false;
  }
  return !cur().is_operator("(") || call_args(&suffix->args);
}

bool ExpressionParser::test(Suffix* suffix) {
  skip();
  suffix->kind = Suffix::Kind::kTest;
  suffix->negated = skip_name("not");
  if (!dotted_name(&suffix->name)) return false;
  suffix->function = find_test(suffix->name);
  if (suffix->function == nullptr) {
    return fail("No test named '" + suffix->name.substr(0, 64) + "'.", suffix->line), false;
  }
  if (cur().is_operator("(")) return call_args(&suffix->args);
  const TokenType type = cur().type;
  const bool operand = type == TokenType::kName || type == TokenType::kString || type == TokenType::kInteger ||
                       type == TokenType::kFloat || cur().is_operator("[") || cur().is_operator("{");
  if (!operand || cur().is_name("else") || cur().is_name("or") || cur().is_name("and")) return true;
  if (cur().is_name("is")) return fail("You cannot chain multiple tests with is"), false;
  Nested nested(*this);
  if (!nested.ok()) return false;
  ExprPtr argument = primary();
  if (!argument) return false;
  argument = suffixed(std::move(argument), false);
  if (!argument) return false;
  suffix->args.positional.push_back(std::move(argument));
  return true;
}

}  // namespace dsv3::jinja
