// Strict JSON parsing for untrusted bytes: bounded depth, no duplicate keys, valid UTF-8, no exceptions out.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "dsv3/base/status.h"

namespace dsv3 {

using Json = nlohmann::ordered_json;  ///< keeps the order of keys: templates and tool schemas show it

struct JsonLimits {
  int max_depth = 64;                ///< nesting of arrays and objects
  size_t max_bytes = 64ull << 20;    ///< refused before parsing
  size_t max_values = 10'000'000;    ///< scalars, arrays and objects together
  bool allow_duplicate_keys = false;
};

/// Parses one JSON document. Refuses (kInvalidArgument, with the byte offset) trailing bytes, duplicate keys,
/// invalid UTF-8, lone surrogates, NaN/Infinity, numbers that overflow a double, and anything over `limits`.
Result<Json> parse_json(std::string_view text, const JsonLimits& limits = {});

/// Serialises as one line of UTF-8. Invalid UTF-8 becomes U+FFFD; NaN and infinities become null.
std::string dump_json(const Json& value);

}  // namespace dsv3
