// Text for messages about files: names from untrusted files on one line, shapes, lists.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace dsv3::weights {

/// In double quotes, control bytes and quotes escaped, cut at 160 bytes.
std::string in_quotes(std::string_view text);

/// [7168, 2048]
std::string shape_text(std::span<const int64_t> shape);

}  // namespace dsv3::weights
