// Small checks that the readers of the tokenizer's files share: typed members, and how much of a file's text a message
// may show.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "dsv3/base/json.h"
#include "dsv3/base/status.h"

namespace dsv3::tokenizer_file {

/// `text` as JSON would write it, cut to 64 bytes: files may hold anything.
std::string shown(std::string_view text);

/// A value as a message shows it.
std::string shown_value(const Json& value);

Status bad(std::string_view file, std::string message);

/// The member, or nullptr where it is absent or null.
const Json* member(const Json& object, const char* name);

/// True if the member is absent, null, false or an empty string: the forms in which files say "not used".
bool is_unset(const Json& object, const char* name);

/// The member as a string; empty if it is absent or of another type.
std::string_view string_member(const Json& object, const char* name);

/// The member as a flag, `fallback` where it is absent or null. Refuses other types; `where` is put before the name.
Result<bool> flag_member(const Json& object, const char* name, bool fallback, std::string_view file,
                         const std::string& where);

}  // namespace dsv3::tokenizer_file
