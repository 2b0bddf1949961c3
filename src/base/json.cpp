#include "dsv3/base/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

namespace dsv3 {
namespace {

// Builds the document while it is read, so that the limits hold before memory is spent.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return add(Json(nullptr)); }
  bool boolean(bool value) override { return add(Json(value)); }
  bool number_integer(number_integer_t value) override { return add(Json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return add(Json(value)); }
  bool number_float(number_float_t value, const string_t&) override {
    if (!std::isfinite(value)) return fail("number out of range");
    return add(Json(value));
  }
  bool string(string_t& value) override { return add(Json(std::move(value))); }
  bool binary(binary_t&) override { return fail("binary value"); }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (!limits_.allow_duplicate_keys && !keys_.back().insert(name).second) {
      return fail("duplicate key \"" + name.substr(0, 64) + "\"");
    }
    pending_key_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    offset_ = position;
    return fail("not valid JSON");
  }

  Json take() { return std::move(root_); }
  std::string error() const {
    return offset_ > 0 ? error_ + " at byte " + std::to_string(offset_) : error_;
  }

 private:
  bool fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
    return false;
  }

  bool count() { return ++values_ <= limits_.max_values ? true : fail("more values than allowed"); }

  Json* place(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    // emplace_back on the underlying vector: duplicates were checked (or the last one must win).
    if (limits_.allow_duplicate_keys) return &(parent[pending_key_] = std::move(value));
    auto& object = parent.get_ref<Json::object_t&>();
    object.emplace_back(std::move(pending_key_), std::move(value));
    return &object.back().second;
  }

  bool add(Json value) {
    if (!count()) return false;
    place(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (static_cast<int>(stack_.size()) >= limits_.max_depth) {
      return fail("nested deeper than " + std::to_string(limits_.max_depth));
    }
    if (!count()) return false;
    stack_.push_back(place(std::move(value)));
    keys_.emplace_back();
    return true;
  }

  bool close() {
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  const JsonLimits& limits_;
  Json root_;
  std::vector<Json*> stack_;  // a parent's storage does not move while a child of it is open
  std::vector<std::set<std::string, std::less<>>> keys_;
  std::string pending_key_;
  std::string error_;
  size_t offset_ = 0;
  size_t values_ = 0;
};

}  // namespace

Result<Json> parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Status(Code::kTooLarge, "JSON of " + std::to_string(text.size()) + " bytes, allowed " +
                                       std::to_string(limits.max_bytes));
  }
  Builder builder(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    return Status(Code::kInvalidArgument, "invalid JSON: " + builder.error());
  }
  return builder.take();
}

std::string dump_json(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace dsv3
