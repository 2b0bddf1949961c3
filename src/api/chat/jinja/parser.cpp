#include "chat/jinja/parser.h"

#include <algorithm>
#include <initializer_list>

#include "chat/jinja/expression_parser.h"

namespace dsv3::jinja {
namespace {

constexpr size_t kMaxSourceBytes = 1u << 20;

// Statements on top of expressions.
class Parser : private ExpressionParser {
 public:
  Parser(std::vector<Token> tokens, int max_depth) : ExpressionParser(std::move(tokens), max_depth) {}

  Result<std::shared_ptr<const Program>> run() {
    program_->loop_symbol = symbol("loop");
    program_->caller_symbol = symbol("caller");
    program_->varargs_symbol = symbol("varargs");
    program_->kwargs_symbol = symbol("kwargs");
    if (!block_until({}, &program_->body)) return status_;
    return std::shared_ptr<const Program>(std::move(program_));
  }

 private:
  StmtPtr make_stmt(StmtKind kind, int line) const {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line;
    return stmt;
  }

  // Statements up to a {% word %} of `end_words`, whose word is then the current token; up to the end if there are
  // none.
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
      return fail(std::string("Unexpected end of template: '") + *(end_words.end() - 1) +
                  "' of the block begun in line " + std::to_string(begin_line) + " is missing"),
             false;
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
    if (call.kind != ExprKind::kSuffixed || call.suffixes.back().kind != Suffix::Kind::kCall)
      return fail("expected call", line);
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

  int loops_ = 0;
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
