// The half of the parser that reads expressions, and the token stream that both halves share. parser.cpp derives
// the half that reads statements.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "chat/jinja/ast.h"
#include "chat/jinja/lexer.h"

namespace dsv3::jinja {

/// Recursive descent by jinja2's grammar. Functions return null or false once status_ holds an error.
class ExpressionParser {
 protected:
  ExpressionParser(std::vector<Token> tokens, int max_depth) : tokens_(std::move(tokens)), max_depth_(max_depth) {}
  using Level = ExprPtr (ExpressionParser::*)();

  const Token& cur() const { return tokens_[next_]; }
  const Token& look() const { return tokens_[std::min(next_ + 1, tokens_.size() - 1)]; }
  void skip() {
    if (next_ + 1 < tokens_.size()) ++next_;
  }

  std::nullptr_t fail(const std::string& message, int line = 0);  ///< line 0: the current token's
  static std::string describe(const Token& token);
  bool skip_operator(std::string_view op);
  bool skip_name(std::string_view name);
  bool expect_operator(std::string_view op);
  bool expect_name(std::string* name);
  bool expect_block_end();
  int symbol(const std::string& name);
  ExprPtr make(ExprKind kind, int line) const;

  // Counts nesting for as long as it lives.
  class Nested {
   public:
    explicit Nested(ExpressionParser& parser) : parser_(parser) {
      if (++parser_.depth_ > parser_.max_depth_) {
        parser_.fail("nested deeper than the allowed " + std::to_string(parser_.max_depth_));
      }
    }
    ~Nested() { --parser_.depth_; }
    bool ok() const { return parser_.status_.ok(); }

   private:
    ExpressionParser& parser_;
  };

  // From the loosest binding to the tightest.
  ExprPtr expression(bool conditional = true);
  ExprPtr name_chain(std::string_view word, ExprKind kind, Level operand);
  ExprPtr disjunction();
  ExprPtr conjunction();
  ExprPtr negation();
  ExprPtr comparison();
  ExprPtr operator_chain(std::initializer_list<const char*> operators, Level operand);
  ExprPtr sum();
  ExprPtr join();
  ExprPtr product();
  ExprPtr power();
  ExprPtr filtered() { return unary(true); }
  ExprPtr unary(bool with_filters);
  ExprPtr constant(Value value, int line);
  ExprPtr primary();
  ExprPtr list_literal(int line);
  ExprPtr dict_literal(int line);
  bool at_tuple_end(std::string_view end_word) const;
  ExprPtr tuple(bool conditional, bool parentheses, std::string_view end_word);
  ExprPtr suffixed(ExprPtr value, bool with_filters);
  bool subscript(Suffix* suffix);
  bool subscribed(Suffix* suffix, std::vector<ExprPtr>* keys);
  bool call_args(CallArgs* args);
  bool dotted_name(std::string* name);
  bool filter(Suffix* suffix);
  bool test(Suffix* suffix);

  const std::vector<Token> tokens_;
  const int max_depth_;
  size_t next_ = 0;
  int depth_ = 0;
  struct {
    bool varargs = false, kwargs = false, caller = false;
  } special_;  // names seen in the macro that is being parsed
  Status status_;
  std::shared_ptr<Program> program_ = std::make_shared<Program>();
};

}  // namespace dsv3::jinja
