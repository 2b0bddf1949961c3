// The filters, tests and global functions that templates may name.
#pragma once

#include <string_view>

#include "chat/jinja/value.h"

namespace dsv3::jinja {

Builtin find_filter(std::string_view name);    ///< null: there is none
Builtin find_test(std::string_view name);      ///< null: there is none; its result is a bool
Builtin find_function(std::string_view name);  ///< null: there is none

}  // namespace dsv3::jinja
