#include "chat/jinja/runtime.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

constexpr size_t kIndexFrom = 16;  // entries of a dict from which an index pays

void index_entries(DictObject& dict) {
  if (dict.entries.size() < kIndexFrom) return;
  for (size_t i = dict.index.empty() ? 0 : dict.entries.size() - 1; i < dict.entries.size(); ++i) {
    const Value& key = dict.entries[i].first;
    if (key.is_string()) dict.index.emplace(key.str(), i);
  }
}

}  // namespace

std::string int_to_string(Int value) {
  if (value == 0) return "0";
  __extension__ typedef unsigned __int128 Unsigned;
  Unsigned rest = value < 0 ? -static_cast<Unsigned>(value) : static_cast<Unsigned>(value);
  std::string digits;
  for (; rest > 0; rest /= 10) digits.push_back(static_cast<char>('0' + static_cast<int>(rest % 10)));
  if (value < 0) digits.push_back('-');
  std::reverse(digits.begin(), digits.end());
  return digits;
}

const char* type_name(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kMethod:
    case Kind::kFunction:
      return "function";
    case Kind::kMacro:
      return "Macro";
  }
  return "value";
}

bool Runtime::fail(std::string message) {
  if (!failed_) {
    failed_ = true;
    error_ = std::move(message);
  }
  return false;
}

bool Runtime::fail(std::initializer_list<std::string_view> parts) {
  if (failed_) return false;
  std::string message;
  for (const std::string_view part : parts) message += part;
  return fail(std::move(message));
}

bool Runtime::charge(uint64_t steps) {
  if (failed_) return false;
  steps_ += steps;
  if (steps_ <= static_cast<uint64_t>(limits_.max_steps)) return true;
  return fail("more work than the allowed " + std::to_string(limits_.max_steps) + " steps");
}

bool Runtime::string(Text text, Value* out) {
  if (text.size() > limits_.max_output_bytes) {
    return fail("a text longer than the allowed " + std::to_string(limits_.max_output_bytes) + " bytes");
  }
  if (!charge_bytes(text.size() + text.marks().size() * sizeof(Mark))) return false;
  if (out != nullptr) *out = Value::of(std::make_shared<const Text>(std::move(text)));
  return true;
}

Value Runtime::list(std::vector<Value> items, Kind kind, bool lazy) {
  ListObject& object = lists_.emplace_back();
  object.items = std::move(items);
  object.lazy = lazy;
  Value value;
  value.kind = kind;
  value.list = &object;
  return value;
}

Value Runtime::dict() {
  Value value;
  value.kind = Kind::kDict;
  value.dict = &dicts_.emplace_back();
  return value;
}

Value Runtime::name_space() {
  Value value = dict();
  value.kind = Kind::kNamespace;
  return value;
}

Value Runtime::method(const Value& self, Builtin function) {
  Value value;
  value.kind = Kind::kMethod;
  value.method = &methods_.emplace_back(MethodObject{self, function});
  return value;
}

LoopObject* Runtime::loop() {
  return &loops_.emplace_back();
}

Value Runtime::from_json(const Json& json, Source source) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::of(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::of(Int{json.get<int64_t>()});
    case Json::value_t::number_unsigned:
      return Value::of(static_cast<Int>(json.get<uint64_t>()));
    case Json::value_t::number_float:
      return Value::of(json.get<double>());
    case Json::value_t::string: {
      Value value;
      string(Text(json.get_ref<const std::string&>(), source), &value);
      return value;
    }
    case Json::value_t::array: {
      Value value = list({});
      value.list->pending = &json;
      return value;
    }
    case Json::value_t::object: {
      Value value = dict();
      value.dict->pending = &json;
      return value;
    }
    default:
      return Value::none();
  }
}

std::vector<Value>* Runtime::items(const Value& value) {
  ListObject& object = *value.list;
  if (const Json* json = std::exchange(object.pending, nullptr)) {
    if (!charge(json->size())) return nullptr;
    object.items.reserve(json->size());
    for (const Json& element : *json) object.items.push_back(from_json(element));
  }
  return failed_ ? nullptr : &object.items;
}

DictObject* Runtime::entries(const Value& value) {
  DictObject& object = *value.dict;
  if (const Json* json = std::exchange(object.pending, nullptr)) {
    if (!charge(json->size())) return nullptr;
    object.entries.reserve(json->size());
    for (const auto& [key, element] : json->items()) {
      Value name;
      if (!string(Text(key, Source::kClient), &name)) return nullptr;
      object.entries.emplace_back(std::move(name), from_json(element));
    }
    index_entries(object);
  }
  return failed_ ? nullptr : &object;
}

Value* Runtime::find(const Value& value, std::string_view key) {
  DictObject* object = entries(value);
  if (object == nullptr) return nullptr;
  if (!object->index.empty()) {
    const auto it = object->index.find(key);
    return it == object->index.end() ? nullptr : &object->entries[it->second].second;
  }
  for (auto& [name, element] : object->entries) {
    if (name.is_string() && name.str() == key) return &element;
  }
  return nullptr;
}

bool Runtime::set(const Value& value, const Value& key, Value element) {
  DictObject* object = entries(value);
  if (object == nullptr) return false;
  if (key.is_string()) {
    if (Value* old = find(value, key.str())) {
      *old = std::move(element);
      return true;
    }
  } else {
    if (key.is_list() || key.kind == Kind::kDict) return fail("unhashable type: '" + std::string(type_name(key)) + "'");
    for (auto& [name, old] : object->entries) {
      bool same = false;
      if (!equal(*this, name, key, &same)) return false;
      if (same) {
        old = std::move(element);
        return true;
      }
    }
  }
  object->entries.emplace_back(key, std::move(element));
  index_entries(*object);
  return charge();
}

void Writer::write(std::string_view bytes, Source source) {
  if (text_.size() + bytes.size() > rt_.limits().max_output_bytes) overflow_ = true;
  // The first byte over the limit is kept, so that finish() sees that there was one.
  if (!overflow_)
    text_.append(bytes, source);
  else if (text_.size() <= rt_.limits().max_output_bytes)
    text_.append(bytes.substr(0, rt_.limits().max_output_bytes + 1 - text_.size()), source);
}

void Writer::write(const Text& text, size_t begin, size_t end) {
  end = std::min(end, text.size());
  if (begin >= end) return;
  const size_t limit = rt_.limits().max_output_bytes;
  if (text_.size() + (end - begin) > limit) {
    overflow_ = true;
    end = begin + std::min(end - begin, text_.size() <= limit ? limit + 1 - text_.size() : 0);
  }
  text_.append(text, begin, end);
}

bool bind_args(Runtime& rt, std::string_view function, const Args& args, const std::vector<std::string_view>& names,
               std::vector<std::optional<Value>>* slots) {
  slots->assign(names.size(), std::nullopt);
  if (args.positional.size() > names.size()) {
    return rt.fail({function, "() takes at most ", std::to_string(names.size()), " arguments, ",
                    std::to_string(args.positional.size()), " given"});
  }
  for (size_t i = 0; i < args.positional.size(); ++i) (*slots)[i] = args.positional[i];
  for (const auto& [name, value] : args.named) {
    const auto it = std::find(names.begin(), names.end(), name);
    if (it == names.end()) {
      return rt.fail({function, "() got an unexpected keyword argument '", name, "'"});
    }
    auto& slot = (*slots)[static_cast<size_t>(it - names.begin())];
    if (slot.has_value()) return rt.fail({function, "() got '", name, "' twice"});
    slot = value;
  }
  return true;
}

}  // namespace dsv3::jinja
