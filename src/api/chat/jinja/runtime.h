// What one rendering owns: its containers, its budget and its first error. One thread, one rendering.
#pragma once

#include <deque>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "chat/jinja/value.h"
#include "dsv3/api/chat_template.h"

namespace dsv3::jinja {

/// Functions that can fail return false and leave the reason here; the first one counts.
class Runtime {
 public:
  explicit Runtime(const TemplateLimits& limits) : limits_(limits) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  bool fail(std::string message);
  bool fail(std::initializer_list<std::string_view> parts);  ///< the parts joined
  bool failed() const { return failed_; }
  const std::string& error() const { return error_; }
  const TemplateLimits& limits() const { return limits_; }

  /// Spends `steps` of the budget. Work on strings is spent too, 256 bytes a step.
  bool charge(uint64_t steps = 1);
  bool charge_bytes(size_t bytes) { return charge(bytes / 256); }

  bool string(Text text, Value* out);
  Value list(std::vector<Value> items, Kind kind = Kind::kList, bool lazy = false);
  Value dict();
  Value name_space();
  Value method(const Value& self, Builtin function);
  LoopObject* loop();

  /// A value of the client's. Containers are converted when they are looked into.
  Value from_json(const Json& json, Source source = Source::kClient);

  /// Elements of a list or tuple; null after an error.
  std::vector<Value>* items(const Value& list);
  /// Entries of a dict or namespace; null after an error.
  DictObject* entries(const Value& dict);
  /// Null if absent or after an error.
  Value* find(const Value& dict, std::string_view key);
  bool set(const Value& dict, const Value& key, Value value);

 private:
  TemplateLimits limits_;
  uint64_t steps_ = 0;
  bool failed_ = false;
  std::string error_;
  std::deque<ListObject> lists_;
  std::deque<DictObject> dicts_;
  std::deque<LoopObject> loops_;
  std::deque<MethodObject> methods_;
};

/// Collects a string under the output limit.
class Writer {
 public:
  explicit Writer(Runtime& rt) : rt_(rt) {}
  void write(std::string_view bytes, Source source = Source::kTemplate);
  void write(const Text& text) { write(text, 0, text.size()); }
  void write(const Text& text, size_t begin, size_t end);
  bool full() const { return overflow_; }
  bool check() { return overflow_ ? rt_.string(std::move(text_), nullptr) : true; }
  bool finish(Value* out) { return rt_.string(std::move(text_), out); }
  Text& text() { return text_; }

 private:
  Runtime& rt_;
  Text text_;
  bool overflow_ = false;
};

/// Puts arguments into slots by position and name. Missing ones stay nullopt; what does not fit is an error.
bool bind_args(Runtime& rt, std::string_view function, const Args& args, const std::vector<std::string_view>& names,
               std::vector<std::optional<Value>>* slots);

}  // namespace dsv3::jinja
