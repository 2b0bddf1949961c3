// The renderings of the DeepSeek family that we bring along, as Jinja sources for our own interpreter.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace dsv3 {

struct BuiltinTemplate {
  std::string_view name;   ///< "deepseek-v3.1"
  std::string_view alias;  ///< "v3.1"
  std::span<const std::string_view> parts;

  std::string source() const;
};

std::span<const BuiltinTemplate> builtin_templates();

}  // namespace dsv3
