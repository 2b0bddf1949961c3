// See the header. Never throws: every access is checked before it is made.
#include "field_reader.h"

#include <algorithm>
#include <cmath>

#include "errors.h"

namespace dsv3::api {
namespace {

std::string number_text(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return std::to_string(static_cast<int64_t>(value));
  return dump_json(Json(value));
}

std::string allowed(int64_t min, int64_t max) {
  if (max == std::numeric_limits<int64_t>::max()) return "allowed " + std::to_string(min) + " and above";
  return "allowed " + std::to_string(min) + " to " + std::to_string(max);
}

bool is_off(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return (value.is_array() || value.is_object()) && value.empty();
}

}  // namespace

Result<int64_t> to_integer(const Json& value, const std::string& path, int64_t min, int64_t max) {
  const auto out_of_range = [&] { return invalid_value(path, "is " + describe(value) + ", " + allowed(min, max)); };
  int64_t out = 0;
  if (value.is_number_unsigned()) {
    const uint64_t wide = value.get<uint64_t>();
    if (wide > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return out_of_range();
    out = static_cast<int64_t>(wide);
  } else if (value.is_number_integer()) {
    out = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double real = value.get<double>();
    if (real != std::floor(real)) return invalid_type(path, "an integer", value);
    if (std::abs(real) > 9007199254740992.0) return out_of_range();
    out = static_cast<int64_t>(real);
  } else {
    return invalid_type(path, "an integer", value);
  }
  if (out < min || out > max) return out_of_range();
  return out;
}

FieldReader::FieldReader(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  const std::string name = path_.empty() ? "the request body" : path_;
  if (!object_.is_object()) {
    const Status fault = invalid_type(name, "an object", object_);
    fail({fault.code(), fault.message(), path_, fault.reason()});
  } else if (object_.size() > kMaxFields) {
    fail({Code::kInvalidArgument,
          name + " has " + std::to_string(object_.size()) + " fields, allowed " + std::to_string(kMaxFields), path_,
          "invalid_value"});
  }
}

std::string FieldReader::path_of(std::string_view name) const {
  return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
}

void FieldReader::fail(Status status) {
  if (status_.ok()) status_ = std::move(status);
}

const Json* FieldReader::any(std::string_view name) {
  known_.push_back(name);
  if (!ok()) return nullptr;
  for (const auto& [key, value] : object_.get_ref<const Json::object_t&>()) {
    if (key == name) return value.is_null() ? nullptr : &value;
  }
  return nullptr;
}

std::optional<bool> FieldReader::boolean(std::string_view name) {
  const Json* value = any(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  fail(invalid_type(path_of(name), "a boolean", *value));
  return std::nullopt;
}

std::optional<int64_t> FieldReader::integer(std::string_view name, int64_t min, int64_t max) {
  const Json* value = any(name);
  if (value == nullptr) return std::nullopt;
  auto out = to_integer(*value, path_of(name), min, max);
  if (out.ok()) return *out;
  fail(out.status());
  return std::nullopt;
}

std::optional<double> FieldReader::number(std::string_view name, NumberRange range) {
  const Json* value = any(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    fail(invalid_type(path_of(name), "a number", *value));
    return std::nullopt;
  }
  const double out = value->get<double>();
  const bool low = range.min_excluded ? out <= range.min : out < range.min;
  if (low || out > range.max || std::isnan(out)) {
    fail(invalid_value(path_of(name), "is " + describe(*value) + ", allowed " +
                                          (range.min_excluded ? "above " : "") + number_text(range.min) + " to " +
                                          number_text(range.max)));
    return std::nullopt;
  }
  return out;
}

std::optional<std::string> FieldReader::string(std::string_view name, size_t max_bytes) {
  const Json* value = any(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    fail(invalid_type(path_of(name), "a string", *value));
    return std::nullopt;
  }
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    fail(invalid_value(path_of(name), "has " + std::to_string(text.size()) + " bytes, allowed " +
                                          std::to_string(max_bytes)));
    return std::nullopt;
  }
  return text;
}

const Json* FieldReader::object(std::string_view name) {
  const Json* value = any(name);
  if (value == nullptr || value->is_object()) return value;
  fail(invalid_type(path_of(name), "an object", *value));
  return nullptr;
}

const Json* FieldReader::array(std::string_view name) {
  const Json* value = any(name);
  if (value == nullptr || value->is_array()) return value;
  fail(invalid_type(path_of(name), "an array", *value));
  return nullptr;
}

void FieldReader::require(std::string_view name) {
  if (ok() && any(name) == nullptr) fail(missing_parameter(path_of(name)));
}

void FieldReader::ignore(std::initializer_list<std::string_view> names) {
  known_.insert(known_.end(), names.begin(), names.end());
}

void FieldReader::refuse(std::initializer_list<std::string_view> names, std::string_view why) {
  for (const auto name : names) {
    const Json* value = any(name);
    if (value != nullptr && !is_off(*value)) fail(unsupported_parameter(path_of(name), why));
  }
}

Status FieldReader::finish(bool strict) {
  if (ok() && strict) {
    for (const auto& [key, value] : object_.get_ref<const Json::object_t&>()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
        const std::string shown = key.size() <= 64 ? key : key.substr(0, 64);
        fail({Code::kInvalidArgument, path_of(shown) + " is not a known field", path_of(shown), "unknown_parameter"});
        break;
      }
    }
  }
  return status_;
}

}  // namespace dsv3::api
