#include "config_fields.h"

#include <cmath>
#include <cstdio>

namespace dsv3::weights {
namespace {

std::string range_text(int64_t low, int64_t high) {
  return "allowed " + std::to_string(low) + " to " + std::to_string(high);
}

/// False if `value` is no integer that an int64 holds.
bool as_integer(const Json& value, int64_t* out) {
  if (value.is_number_unsigned()) {
    const auto wide = value.get<uint64_t>();
    if (wide > static_cast<uint64_t>(INT64_MAX)) return false;
    *out = static_cast<int64_t>(wide);
    return true;
  }
  if (!value.is_number_integer()) return false;
  *out = value.get<int64_t>();
  return true;
}

}  // namespace

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

const Json* Fields::get(std::string_view name) const {
  const auto found = object_.find(std::string(name));
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void Fields::fault(std::string_view name, const std::string& message, Code code) {
  if (status_.ok()) status_ = Status(code, where_ + ": " + message, prefix_ + std::string(name));
}

void Fields::refuse(std::string_view name, const std::string& allowed, Code code) {
  constexpr size_t kMaxShownBytes = 80;
  const Json* const value = get(name);
  std::string seen = "missing";
  if (value != nullptr) {
    seen =
        value->is_structured() && value->size() > 8 ? std::string("a long ") + value->type_name() : dump_json(*value);
    if (seen.size() > kMaxShownBytes) seen = seen.substr(0, kMaxShownBytes) + "...";
  }
  fault(name, prefix_ + std::string(name) + " is " + seen + ", " + allowed, code);
}

int64_t Fields::integer(std::string_view name, int64_t low, int64_t high, std::optional<int64_t> fallback) {
  const Json* const value = get(name);
  if (value == nullptr && fallback) return *fallback;
  int64_t number = low;
  if (value == nullptr || !as_integer(*value, &number) || number < low || number > high) {
    refuse(name, (value != nullptr && value->is_number() ? "" : "an integer is wanted, ") + range_text(low, high));
    return low;
  }
  return number;
}

double Fields::number(std::string_view name, double low, double high, std::optional<double> fallback) {
  const Json* const value = get(name);
  if (value == nullptr && fallback) return *fallback;
  const double number = value != nullptr && value->is_number() ? value->get<double>() : NAN;
  if (!(number >= low && number <= high)) {
    refuse(name, std::string(value != nullptr && value->is_number() ? "" : "a number is wanted, ") + "allowed " +
                     number_text(low) + " to " + number_text(high));
    return low;
  }
  return number;
}

bool Fields::boolean(std::string_view name, bool fallback) {
  const Json* const value = get(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    refuse(name, "allowed true or false");
    return fallback;
  }
  return value->get<bool>();
}

std::string Fields::text(std::string_view name, std::string_view fallback) {
  const Json* const value = get(name);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    refuse(name, "a string is wanted");
    return std::string(fallback);
  }
  return value->get<std::string>();
}

std::vector<int32_t> Fields::token_ids(std::string_view name, int64_t vocab_size, std::vector<int32_t> fallback) {
  const Json* const value = get(name);
  if (value == nullptr) return fallback;
  constexpr size_t kMaxIds = 1024;
  std::vector<int32_t> ids;
  const auto add = [&](const Json& id) {
    int64_t number;
    const bool valid = as_integer(id, &number) && number >= 0 && number < vocab_size && ids.size() < kMaxIds;
    if (valid) ids.push_back(static_cast<int32_t>(number));
    return valid;
  };
  bool valid = true;
  if (value->is_array()) {
    for (const auto& id : *value) valid = valid && add(id);
  } else {
    valid = add(*value);
  }
  if (!valid) refuse(name, "a token id or a list of them is wanted, allowed 0 to " + std::to_string(vocab_size - 1));
  return ids;
}

const Json* Fields::object(std::string_view name) {
  const Json* const value = get(name);
  if (value == nullptr || value->is_object()) return value;
  refuse(name, "an object is wanted");
  return nullptr;
}

}  // namespace dsv3::weights
