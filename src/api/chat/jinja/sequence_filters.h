// Filters on lists and dicts; filters.cpp looks here second.
#pragma once

#include <string_view>

#include "chat/jinja/value.h"

namespace dsv3::jinja {

Builtin find_sequence_filter(std::string_view name);  ///< null: there is none

}  // namespace dsv3::jinja
