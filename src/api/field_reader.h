// Reads typed fields of one JSON object of a request. null counts as absent; the first fault is kept, later reads
// return nothing, so that a parser is a flat list of reads with one check at its end.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/json.h"
#include "dsv3/base/status.h"

namespace dsv3::api {

struct NumberRange {
  double min = 0;
  double max = 0;
  bool min_excluded = false;
};

class FieldReader {
 public:
  /// `object` must outlive the reader. `path` is what stands before the field names in messages ("" at the top).
  /// Anything but an object, and an object of more than kMaxFields fields, is a fault.
  explicit FieldReader(const Json& object, std::string path = {});

  static constexpr size_t kMaxFields = 512;  ///< field look-up is linear; more fields than this are an attack

  std::optional<bool> boolean(std::string_view name);
  std::optional<int64_t> integer(std::string_view name, int64_t min,
                                 int64_t max = std::numeric_limits<int64_t>::max());
  std::optional<double> number(std::string_view name, NumberRange range);
  std::optional<std::string> string(std::string_view name, size_t max_bytes = SIZE_MAX);
  const Json* object(std::string_view name);  ///< nullptr when absent or faulty
  const Json* array(std::string_view name);
  const Json* any(std::string_view name);     ///< of any type
  void require(std::string_view name);        ///< absent or null: missing_required_parameter

  /// Accepted without effect, whatever they hold.
  void ignore(std::initializer_list<std::string_view> names);
  /// Present, and neither null, false, an empty array or object nor an empty string: unsupported_parameter.
  void refuse(std::initializer_list<std::string_view> names, std::string_view why);

  std::string path_of(std::string_view name) const;
  void fail(Status status);  ///< keeps the first fault
  bool ok() const { return status_.ok(); }
  /// The first fault. With `strict`, fields that nobody asked for are one.
  Status finish(bool strict = false);

 private:
  const Json& object_;
  std::string path_;
  Status status_;
  std::vector<std::string_view> known_;  // names are literals
};

/// Checks an integer that is not an object's field, such as a list's element. Integral floats count as integers.
Result<int64_t> to_integer(const Json& value, const std::string& path, int64_t min, int64_t max);

}  // namespace dsv3::api
