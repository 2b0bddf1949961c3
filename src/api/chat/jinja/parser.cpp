#include "chat/jinja/parser.h"

#include <algorithm>
#include <initializer_list>

#include "chat/jinja/builtins.h"
#include "chat/jinja/lexer.h"
#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

constexpr size_t kMaxSourceBytes = 1u << 20;

// Recursive descent. Functions return null (or false) once status_ holds an error.
class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth) : tokens_(std::move(tokens)), max_depth_(max_depth) {}

  Result<std::shared_ptr<const Program>> run() {
    program_ = std::make_shared<Program>();
    program_->loop_symbol = symbol("loop");
    program_->caller_symbol = symbol("caller");
    program_->varargs_symbol = symbol("varargs");
    program_->kwargs_symbol = symbol("kwargs");
    if (!block_until({}, &program_->body)) return status_;
    return std::shared_ptr<const Program>(std::move(program_));
  }

 private:
  const Token& cur() const { return tokens_[next_]; }
  const Token& look() const { return tokens_[std::min(next_ + 1, tokens_.size() - 1)]; }
  void skip() { if (next_ + 1 < tokens_.size()) ++next_; }

  std::nullptr_t fail(const std::string& message, int line = 0) {
    if (status_.ok()) status_ = syntax_error(line > 0 ? line : cur().line, message);
    return nullptr;
  }
  static std::string describe(const Token& token) {
    switch (token.type) {
      case TokenType::kData: return "template data";
      case TokenType::kVariableBegin: return "'{{'";
      case TokenType::kVariableEnd: return "'}}'";
      case TokenType::kBlockBegin: return "'{%'";
      case TokenType::kBlockEnd: return "'%}'";
      case TokenType::kEnd: return "end of template";
      default: return "'" + token.text.substr(0, 64) + "'";
    }
  }
  bool skip_operator(std::string_view op) {
    if (!cur().is_operator(op)) return false;
    skip();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!cur().is_name(name)) return false;
    skip();
    return true;
  }
  bool expect_operator(std::string_view op) {
    if (skip_operator(op)) return true;
    fail("expected '" + std::string(op) + "', got " + describe(cur()));
    return false;
  }
  bool expect_name(std::string* name) {
    if (cur().type != TokenType::kName) {
      fail("expected a name, got " + describe(cur()));
      return false;
    }
    *name = cur().text;
    skip();
    return true;
  }
  bool expect_block_end() {
    if (cur().type == TokenType::kBlockEnd) {
      skip();
      return true;
    }
    fail("expected '%}', got " + describe(cur()));
    return false;
  }
  int symbol(const std::string& name) {
    const auto [it, added] = program_->symbols.emplace(name, static_cast<int>(program_->names.size()));
    if (added) program_->names.push_back(name);
    return it->second;
  }
  ExprPtr make(ExprKind kind, int line) const {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    return expr;
  }

  // Counts nesting for as long as it lives.
  class Nested {
   public:
    explicit Nested(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > parser_.max_depth_) {
        parser_.fail("nested deeper than the allowed " + std::to_string(parser_.max_depth_));
      }
    }
    ~Nested() { --parser_.depth_; }
    bool ok() const { return parser_.status_.ok(); }

   private:
    Parser& parser_;
  };

  // Expressions, loosest binding first.

  ExprPtr expression(bool conditional = true) {
    Nested nested(*this);
    if (!nested.ok()) return nullptr;
    ExprPtr value = disjunction();
    while (value && conditional && cur().is_name("if")) {
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

  template <class Operand>
  ExprPtr name_chain(std::string_view word, ExprKind kind, Operand operand) {
    ExprPtr first = operand();
    if (!first || !cur().is_name(word)) return first;
    ExprPtr chain = make(kind, first->line);
    chain->parts.push_back(std::move(first));
    while (skip_name(word)) {
      chain->parts.push_back(operand());
      if (!status_.ok()) return nullptr;
    }
    return chain;
  }

  ExprPtr disjunction() {
    return name_chain("or", ExprKind::kOr, [this] { return conjunction(); });
  }
  ExprPtr conjunction() {
    return name_chain("and", ExprKind::kAnd, [this] { return negation(); });
  }

  ExprPtr negation() {
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

  ExprPtr comparison() {
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

  template <class Operand>
  ExprPtr operator_chain(std::initializer_list<const char*> operators, Operand operand) {
    ExprPtr first = operand();
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
      chain->parts.push_back(operand());
      if (!status_.ok()) return nullptr;
    }
    return chain ? std::move(chain) : std::move(first);
  }

  ExprPtr sum() {
    return operator_chain({"+", "-"}, [this] { return join(); });
  }
  ExprPtr join() {
    ExprPtr chain = operator_chain({"~"}, [this] { return product(); });
    if (chain && chain->kind == ExprKind::kBinary && chain->operators[0] == "~") chain->kind = ExprKind::kJoin;
    return chain;
  }
  ExprPtr product() {
    return operator_chain({"*", "/", "//", "%"}, [this] { return power(); });
  }
  ExprPtr power() {
    return operator_chain({"**"}, [this] { return unary(true); });
  }

  ExprPtr unary(bool with_filters) {
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

  ExprPtr constant(Value value, int line) {
    ExprPtr expr = make(ExprKind::kConst, line);
    expr->value = std::move(value);
    return expr;
  }

  ExprPtr primary() {
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
      default: break;
    }
    if (skip_operator("(")) {
      ExprPtr value = tuple(true, true, {});
      return value && expect_operator(")") ? std::move(value) : nullptr;
    }
    if (skip_operator("[")) return list_literal(line);
    if (skip_operator("{")) return dict_literal(line);
    return fail("unexpected " + describe(token));
  }

  ExprPtr list_literal(int line) {
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

  ExprPtr dict_literal(int line) {
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

  bool at_tuple_end(std::string_view end_word) const {
    return cur().type == TokenType::kVariableEnd || cur().type == TokenType::kBlockEnd || cur().is_operator(")") ||
           (!end_word.empty() && cur().is_name(end_word));
  }

  // One expression, or several with commas: then a tuple.
  ExprPtr tuple(bool conditional, bool parentheses, std::string_view end_word) {
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

  ExprPtr suffixed(ExprPtr value, bool with_filters) {
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

  bool subscript(Suffix* suffix) {
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

  bool subscribed(Suffix* suffix, std::vector<ExprPtr>* keys) {
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

  bool call_args(CallArgs* args) {
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

  bool dotted_name(std::string* name) {
    if (!expect_name(name)) return false;
    while (skip_operator(".")) {
      std::string part;
      if (!expect_name(&part)) return false;
      *name += "." + part;
    }
    return true;
  }

  // Behind the '|'.
  bool filter(Suffix* suffix) {
    suffix->kind = Suffix::Kind::kFilter;
    suffix->line = cur().line;
    if (!dotted_name(&suffix->name)) return false;
    suffix->function = find_filter(suffix->name);
    if (suffix->function == nullptr) {
      return fail("No filter named '" + suffix->name.substr(0, 64) + "'.", suffix->line), false;
    }
    return !cur().is_operator("(") || call_args(&suffix->args);
  }

  bool test(Suffix* suffix) {
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

  // Statements.

  StmtPtr make_stmt(StmtKind kind, int line) const {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line;
    return stmt;
  }

  // Statements up to a {% word %} of `end_words`, whose word is then the current token; up to the end if there are none.
  bool block_until(std::initializer_list<const char*> end_words, Block* block) {
    Nested nested(*this);
    if (!nested.ok()) return false;
    const int begin_line = cur().line;
    while (cur().type != TokenType::kEnd) {
      const int line = cur().line;
      if (cur().type == TokenType::kData) {
        block->push_back(make_stmt(StmtKind::kData, line));
        block->back()->data = Value::literal(cur().text);
        skip();
        continue;
      }
      if (cur().type == TokenType::kVariableBegin) {
        skip();
        StmtPtr print = make_stmt(StmtKind::kPrint, line);
        print->exprs.push_back(tuple(true, false, {}));
        if (!status_.ok()) return false;
        if (cur().type != TokenType::kVariableEnd) return fail("expected '}}', got " + describe(cur())), false;
        skip();
        block->push_back(std::move(print));
        continue;
      }
      skip();
      for (const char* word : end_words) {
        if (cur().is_name(word)) return true;
      }
      StmtPtr stmt = statement();
      if (!stmt || !expect_block_end()) return false;
      block->push_back(std::move(stmt));
    }
    if (end_words.size() > 0) {
      return fail(std::string("Unexpected end of template: '") + *(end_words.end() - 1) + "' of the block begun in line " +
                  std::to_string(begin_line) + " is missing"), false;
    }
    return true;
  }

  // The body behind a statement's head, through its end word.
  bool body_through(const char* end_word, Stmt* stmt) {
    skip_operator(":");
    stmt->bodies.emplace_back();
    if (!expect_block_end() || !block_until({end_word}, &stmt->bodies.back())) return false;
    skip();
    return true;
  }

  StmtPtr statement() {
    if (cur().type != TokenType::kName) return fail("tag name expected");
    const std::string word = cur().text;
    const int line = cur().line;
    skip();
    if (word == "if") return if_statement(line);
    if (word == "for") return for_statement(line);
    if (word == "set") return set_statement(line);
    if (word == "macro") return macro_statement(line);
    if (word == "call") return call_statement(line);
    if (word == "filter") return filter_statement(line);
    if (word == "with") return with_statement(line);
    if (word == "generation") {
      StmtPtr stmt = make_stmt(StmtKind::kScope, line);
      return body_through("endgeneration", stmt.get()) ? std::move(stmt) : nullptr;
    }
    if (word == "print") {
      StmtPtr stmt = make_stmt(StmtKind::kPrint, line);
      while (cur().type != TokenType::kBlockEnd) {
        if (!stmt->exprs.empty() && !expect_operator(",")) return nullptr;
        stmt->exprs.push_back(expression());
        if (!status_.ok()) return nullptr;
      }
      return stmt;
    }
    if (word == "break" || word == "continue") {
      if (loops_ == 0) return fail("'" + word + "' outside of a loop", line);
      return make_stmt(word == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
    }
    for (const char* known : {"block", "extends", "include", "import", "from", "autoescape"}) {
      if (word == known) return fail("'" + word + "' is not supported in chat templates", line);
    }
    return fail("Encountered unknown tag '" + word.substr(0, 64) + "'.", line);
  }

  StmtPtr if_statement(int line) {
    StmtPtr stmt = make_stmt(StmtKind::kIf, line);
    for (;;) {
      stmt->exprs.push_back(tuple(false, false, {}));
      if (!status_.ok()) return nullptr;
      skip_operator(":");
      stmt->bodies.emplace_back();
      if (!expect_block_end() || !block_until({"elif", "else", "endif"}, &stmt->bodies.back())) return nullptr;
      if (skip_name("elif")) continue;
      break;
    }
    if (skip_name("else")) {
      skip_operator(":");
      if (!expect_block_end() || !block_until({"endif"}, &stmt->otherwise)) return nullptr;
    }
    skip();  // endif
    return stmt;
  }

  static bool assigns_loop(const Target& target) {
    if (!target.is_tuple) return target.name == "loop";
    return std::any_of(target.items.begin(), target.items.end(), assigns_loop);
  }

  StmtPtr for_statement(int line) {
    StmtPtr stmt = make_stmt(StmtKind::kFor, line);
    if (!target(&stmt->target, false, true)) return nullptr;
    if (assigns_loop(stmt->target)) return fail("Can't assign to special loop variable in for-loop target", line);
    if (!skip_name("in")) return fail("expected 'in', got " + describe(cur()));
    stmt->exprs.push_back(tuple(false, false, "recursive"));
    if (!status_.ok()) return nullptr;
    if (skip_name("if")) {
      stmt->filter = expression();
      if (!stmt->filter) return nullptr;
    }
    if (cur().is_name("recursive")) return fail("recursive loops are not supported");
    skip_operator(":");
    stmt->bodies.emplace_back();
    ++loops_;
    const bool parsed = expect_block_end() && block_until({"else", "endfor"}, &stmt->bodies.back());
    --loops_;
    if (!parsed) return nullptr;
    if (skip_name("else")) {
      skip_operator(":");
      if (!expect_block_end() || !block_until({"endfor"}, &stmt->otherwise)) return nullptr;
    }
    skip();  // endfor
    return stmt;
  }

  bool single_target(Target* out, bool with_namespace) {
    Nested nested(*this);
    if (!nested.ok()) return false;
    if (skip_operator("(")) return target(out, with_namespace, true) && expect_operator(")");
    std::string name;
    if (!expect_name(&name)) return false;
    for (const char* reserved : {"true", "True", "false", "False", "none", "None"}) {
      if (name == reserved) return fail("can't assign to '" + name + "'"), false;
    }
    out->name = name;
    out->symbol = symbol(name);
    if (with_namespace && skip_operator(".")) return expect_name(&out->attribute);
    return true;
  }

  bool target(Target* out, bool with_namespace, bool ends_at_in) {
    std::vector<Target> items;
    bool is_tuple = false;
    for (;;) {
      if (!items.empty() && !expect_operator(",")) return false;
      if (!items.empty() && (cur().is_operator(")") || cur().is_operator("=") || cur().type == TokenType::kBlockEnd ||
                             (ends_at_in && cur().is_name("in")))) {
        break;
      }
      if (!single_target(&items.emplace_back(), with_namespace)) return false;
      if (!cur().is_operator(",")) break;
      is_tuple = true;
    }
    if (is_tuple) {
      out->is_tuple = true;
      out->items = std::move(items);
    } else {
      *out = std::move(items[0]);
    }
    return true;
  }

  // A chain of filters without an operand.
  bool filter_chain(bool begins_inline, ExprPtr* out) {
    while (begins_inline || cur().is_operator("|")) {
      if (!begins_inline) skip();
      begins_inline = false;
      if (!*out) *out = make(ExprKind::kSuffixed, cur().line);
      if (!filter(&(*out)->suffixes.emplace_back())) return false;
    }
    return true;
  }

  StmtPtr set_statement(int line) {
    StmtPtr stmt = make_stmt(StmtKind::kSet, line);
    if (!target(&stmt->target, true, false)) return nullptr;
    if (skip_operator("=")) {
      stmt->exprs.push_back(tuple(true, false, {}));
      return status_.ok() ? std::move(stmt) : nullptr;
    }
    stmt->kind = StmtKind::kSetBlock;
    return filter_chain(false, &stmt->filter) && body_through("endset", stmt.get()) ? std::move(stmt) : nullptr;
  }

  bool signature(Stmt* stmt) {
    if (!expect_operator("(")) return false;
    while (!cur().is_operator(")")) {
      if (!stmt->params.empty() && !expect_operator(",")) return false;
      std::string name;
      if (!expect_name(&name)) return false;
      stmt->params.emplace_back(name, symbol(name));
      if (skip_operator("=")) {
        stmt->defaults.push_back(expression());
        if (!status_.ok()) return false;
      } else if (!stmt->defaults.empty()) {
        return fail("non-default argument follows default argument"), false;
      }
    }
    skip();
    return true;
  }

  // A body that is called, not run in place: loops around it do not count, special names in it do.
  bool macro_body(const char* end_word, Stmt* stmt) {
    const int loops = std::exchange(loops_, 0);
    const auto outer = special_;
    special_ = {};
    const bool parsed = body_through(end_word, stmt);
    loops_ = loops;
    stmt->uses_varargs = special_.varargs;
    stmt->uses_kwargs = special_.kwargs;
    stmt->uses_caller = special_.caller;
    special_ = outer;
    return parsed;
  }

  StmtPtr macro_statement(int line) {
    StmtPtr stmt = make_stmt(StmtKind::kMacro, line);
    if (!expect_name(&stmt->name) || !signature(stmt.get())) return nullptr;
    stmt->symbol = symbol(stmt->name);
    return macro_body("endmacro", stmt.get()) ? std::move(stmt) : nullptr;
  }

  StmtPtr call_statement(int line) {
    StmtPtr stmt = make_stmt(StmtKind::kCall, line);
    stmt->name = "caller";
    if (cur().is_operator("(") && !signature(stmt.get())) return nullptr;
    stmt->exprs.push_back(expression());
    if (!status_.ok()) return nullptr;
    const Expr& call = *stmt->exprs[0];
    if (call.kind != ExprKind::kSuffixed || call.suffixes.back().kind != Suffix::Kind::kCall) return fail("expected call", line);
    return macro_body("endcall", stmt.get()) ? std::move(stmt) : nullptr;
  }

  StmtPtr filter_statement(int line) {
    StmtPtr stmt = make_stmt(StmtKind::kFilter, line);
    return filter_chain(true, &stmt->filter) && body_through("endfilter", stmt.get()) ? std::move(stmt) : nullptr;
  }

  StmtPtr with_statement(int line) {
    StmtPtr stmt = make_stmt(StmtKind::kWith, line);
    while (cur().type != TokenType::kBlockEnd) {
      if (!stmt->targets.empty() && !expect_operator(",")) return nullptr;
      if (!single_target(&stmt->targets.emplace_back(), false) || !expect_operator("=")) return nullptr;
      stmt->exprs.push_back(expression());
      if (!status_.ok()) return nullptr;
    }
    return body_through("endwith", stmt.get()) ? std::move(stmt) : nullptr;
  }

  const std::vector<Token> tokens_;
  const int max_depth_;
  size_t next_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  struct {
    bool varargs = false, kwargs = false, caller = false;
  } special_;  // names seen in the macro that is being parsed
  Status status_;
  std::shared_ptr<Program> program_;
};

}  // namespace

Result<std::shared_ptr<const Program>> parse(std::string_view source, int max_depth) {
  if (source.size() > kMaxSourceBytes) {
    return Status(Code::kBadModelFile, "chat template of " + std::to_string(source.size()) + " bytes, allowed " +
                                           std::to_string(kMaxSourceBytes));
  }
  DSV3_ASSIGN(auto tokens, tokenize(source));
  return Parser(std::move(tokens), max_depth).run();
}

}  // namespace dsv3::jinja
