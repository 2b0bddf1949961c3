// Reads fields of one JSON object with a range each, and keeps the first fault. Knows nothing of models.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/json.h"
#include "dsv3/base/status.h"

namespace dsv3::weights {

/// null counts as absent. After the first fault everything reads as its lowest value or `fallback`; ask status() once
/// at the end. Messages are one line: `config.json: hidden_size is -1, allowed 1 to 131072`.
class Fields {
 public:
  /// `where` begins every message, `prefix` every field name ("rope_scaling.").
  Fields(const Json& object, std::string where, std::string prefix = {})
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  const Status& status() const { return status_; }
  /// Null if absent or null.
  const Json* get(std::string_view name) const;

  /// Without a fallback the field is required.
  int64_t integer(std::string_view name, int64_t low, int64_t high, std::optional<int64_t> fallback = {});
  /// Finite and in [low, high].
  double number(std::string_view name, double low, double high, std::optional<double> fallback = {});
  bool boolean(std::string_view name, bool fallback);
  std::string text(std::string_view name, std::string_view fallback);
  /// One token id or a list of them, each in [0, vocab_size).
  std::vector<int32_t> token_ids(std::string_view name, int64_t vocab_size, std::vector<int32_t> fallback);
  /// Null if absent; a fault if it is no object.
  const Json* object(std::string_view name);

  /// Records `<where>: <field> is <value>, <allowed>`.
  void refuse(std::string_view name, const std::string& allowed, Code code = Code::kBadModelFile);
  /// Records `<where>: <message>`; `name` is the field at fault.
  void fault(std::string_view name, const std::string& message, Code code = Code::kBadModelFile);

 private:
  const Json& object_;
  const std::string where_, prefix_;
  Status status_;
};

/// Up to six significant digits, without an exponent where that is shorter to read.
std::string number_text(double value);

}  // namespace dsv3::weights
