// Tokens to a program, by jinja2's grammar. Nesting is bounded, so that neither the parser nor whoever walks the tree
// can run out of stack.
#pragma once

#include <memory>
#include <string_view>

#include "chat/jinja/ast.h"
#include "dsv3/base/status.h"

namespace dsv3::jinja {

/// kBadModelFile with line and reason. Inheritance, include, import and autoescape are refused by name.
Result<std::shared_ptr<const Program>> parse(std::string_view source, int max_depth);

}  // namespace dsv3::jinja
