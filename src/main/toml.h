// The part of TOML that a list of settings needs. CLI11's own reader cuts quoted strings at '#' and accepts bare words.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"

namespace dsv3 {

struct TomlEntry {
  std::string key;
  std::vector<std::string> values;  ///< as text: strings unescaped, numbers without '_', booleans as true/false
};

/// Entries of `key = value` with strings ("basic" and 'literal'), integers, floats, booleans and arrays of them.
/// [table] lines are headings only. Anything else, duplicate keys included, is kInvalidArgument with the line number.
Result<std::vector<TomlEntry>> parse_toml(std::string_view text);

}  // namespace dsv3
