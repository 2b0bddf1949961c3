// Chat messages: checks them and brings them into the one form that templates see.
#pragma once

#include <string>

#include "dsv3/base/json.h"
#include "dsv3/base/status.h"

namespace dsv3::api {

/// Content parts become one string (joined by newlines), developer becomes system, function becomes tool,
/// function_call becomes tool_calls, arguments become strings, empty tool_calls vanish, and tool results stand in the
/// order of their calls. Faults name the path, e.g. messages[0].content.
Result<Json> normalise_messages(const Json& messages);

/// Tools: checks names and shapes; functions (deprecated) become tools. Returns an array, maybe empty.
Result<Json> normalise_tools(const Json* tools, const Json* functions);

}  // namespace dsv3::api
