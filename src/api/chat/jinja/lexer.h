// Cuts a template into tokens, with jinja2's white space rules under trim_blocks and lstrip_blocks.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"

namespace dsv3::jinja {

enum class TokenType {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type = TokenType::kEnd;
  std::string text;  ///< strings without quotes and escapes, numbers without underscores
  int line = 1;

  bool is(TokenType t) const { return type == t; }
  bool is_name(std::string_view name) const { return type == TokenType::kName && text == name; }
  bool is_operator(std::string_view op) const { return type == TokenType::kOperator && text == op; }
};

/// kBadModelFile with line and reason. The last token is kEnd.
Result<std::vector<Token>> tokenize(std::string_view source);

Status syntax_error(int line, const std::string& message);

}  // namespace dsv3::jinja
