// Attributes, subscripts, slices, membership, iteration: what is inside of a value, with Python's rules.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

bool loop_cycle(Runtime& rt, const Value& self, const Args& args, Value* out) {
  if (args.positional.empty()) return rt.fail("no items for cycling given");
  *out = args.positional[static_cast<size_t>(self.loop->index0 % static_cast<Int>(args.positional.size()))];
  return true;
}

bool loop_changed(Runtime& rt, const Value& self, const Args& args, Value* out) {
  const Value now = rt.list(args.positional, Kind::kTuple);
  bool same = false;
  if (self.loop->has_changed_value && !equal(rt, self.loop->last_changed, now, &same)) return false;
  self.loop->last_changed = now;
  self.loop->has_changed_value = true;
  *out = Value::of(!same);
  return true;
}

// index0, index, first, depth, previtem, cycle, changed. What needs to look ahead is the interpreter's.
bool loop_attribute(Runtime& rt, const Value& object, std::string_view name, Value* out) {
  LoopObject& loop = *object.loop;
  if (name == "index0")
    *out = Value::of(loop.index0);
  else if (name == "index")
    *out = Value::of(loop.index0 + 1);
  else if (name == "first")
    *out = Value::of(loop.index0 == 0);
  else if (name == "depth")
    *out = Value::of(loop.depth);
  else if (name == "depth0")
    *out = Value::of(loop.depth - 1);
  else if (name == "previtem")
    *out = loop.index0 == 0 ? Value::undefined("previtem") : loop.previous;
  else if (name == "cycle")
    *out = rt.method(object, loop_cycle);
  else if (name == "changed")
    *out = rt.method(object, loop_changed);
  else
    *out = Value::undefined(name);
  return rt.charge();
}

}  // namespace

bool contains(Runtime& rt, const Value& container, const Value& item, bool* out) {
  *out = false;
  switch (container.kind) {
    case Kind::kUndefined:
      return true;
    case Kind::kString:
      if (!item.is_string()) {
        return rt.fail({"'in <string>' requires string as left operand, not ", type_name(item)});
      }
      *out = container.str().find(item.str()) != std::string::npos;
      return rt.charge_bytes(container.str().size());
    case Kind::kDict: {
      if (item.is_string()) {
        *out = rt.find(container, item.str()) != nullptr;
        return !rt.failed();
      }
      DictObject* object = rt.entries(container);
      if (object == nullptr) return false;
      for (auto& [key, value] : object->entries) {
        if (!equal(rt, key, item, out)) return false;
        if (*out) return true;
      }
      return true;
    }
    case Kind::kList:
    case Kind::kTuple: {
      std::vector<Value>* items = rt.items(container);
      if (items == nullptr) return false;
      for (const Value& element : *items) {
        if (!equal(rt, element, item, out)) return false;
        if (*out) return true;
      }
      return true;
    }
    default:
      return rt.fail({"argument of type '", type_name(container), "' is not iterable"});
  }
}

bool get_attribute(Runtime& rt, const Value& object, std::string_view name, Value* out) {
  switch (object.kind) {
    case Kind::kUndefined:
      return rt.fail({"'", object.name, "' is undefined"});
    case Kind::kLoop:
      return loop_attribute(rt, object, name, out);
    case Kind::kDict:
    case Kind::kNamespace:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple: {
      if (Builtin method = find_method(object, name)) {
        *out = rt.method(object, method);
        return rt.charge();
      }
      if (object.kind == Kind::kDict || object.kind == Kind::kNamespace) {
        if (const Value* found = rt.find(object, name)) {
          *out = *found;
          return true;
        }
      }
      break;
    }
    default:
      break;
  }
  *out = Value::undefined(name);
  return !rt.failed();
}

bool get_item(Runtime& rt, const Value& object, const Value& key, Value* out) {
  if (object.is_undefined()) return rt.fail({"'", object.name, "' is undefined"});
  *out = Value::undefined("element");
  if (object.kind == Kind::kDict) {
    if (key.is_string()) {
      if (const Value* found = rt.find(object, key.str())) {
        *out = *found;
        return true;
      }
    } else {
      DictObject* dict = rt.entries(object);
      if (dict == nullptr) return false;
      for (auto& [name, value] : dict->entries) {
        bool same = false;
        if (!equal(rt, name, key, &same)) return false;
        if (same) {
          *out = value;
          return true;
        }
      }
    }
  }
  if (key.is_integer() && object.is_list() && !object.list->lazy) {
    std::vector<Value>* items = rt.items(object);
    if (items == nullptr) return false;
    Int index = key.as_int();
    const Int size = static_cast<Int>(items->size());
    if (index < 0) index += size;
    if (index >= 0 && index < size) *out = (*items)[static_cast<size_t>(index)];
    return true;
  }
  if (key.is_integer() && object.is_string()) {
    const std::string& text = object.str();
    if (!rt.charge_bytes(text.size())) return false;
    const Int size = static_cast<Int>(count_chars(text));
    Int index = key.as_int();
    if (index < 0) index += size;
    if (index < 0 || index >= size) return true;
    const size_t begin = char_offset(text, static_cast<size_t>(index));
    char32_t c = 0;
    return rt.string(object.text->slice(begin, begin + decode_char(text, begin, &c)), out);
  }
  if (key.is_string()) {
    if (!get_attribute(rt, object, key.str(), out)) return false;
    if (out->is_undefined()) *out = Value::undefined("element");  // the key's bytes may not live as long
  }
  return !rt.failed();
}

bool get_slice(Runtime& rt, const Value& object, const Value& begin, const Value& end, const Value& step, Value* out) {
  if (object.is_undefined()) return rt.fail({"'", object.name, "' is undefined"});
  if (!object.is_string() && !(object.is_list() && !object.list->lazy)) {
    return rt.fail({"'", type_name(object), "' object cannot be sliced"});
  }
  for (const Value* v : {&begin, &end, &step}) {
    if (!v->is_undefined() && !v->is_none() && !v->is_integer())
      return rt.fail("slice indices must be integers or None");
  }
  const auto given = [](const Value& v) { return v.is_integer(); };
  const Int stride = given(step) ? step.as_int() : 1;
  if (stride == 0) return rt.fail("slice step cannot be zero");
  std::vector<Value>* items = object.is_list() ? rt.items(object) : nullptr;
  if (object.is_list() && items == nullptr) return false;
  if (object.is_string() && !rt.charge_bytes(object.str().size())) return false;
  const Int size = static_cast<Int>(items != nullptr ? items->size() : count_chars(object.str()));
  const auto clamp = [&](const Value& v, Int fallback) {
    if (!given(v)) return fallback;
    Int i = v.as_int();
    if (i < 0) i = std::max(i + size, stride < 0 ? Int{-1} : Int{0});
    return std::min(i, stride < 0 ? size - 1 : size);
  };
  const Int first = clamp(begin, stride < 0 ? size - 1 : 0);
  const Int last = clamp(end, stride < 0 ? -1 : size);
  // A stride longer than the sequence takes one element; cutting it there keeps the index from overflowing.
  const Int hop = std::clamp(stride, -size - 1, size + 1);
  if (items != nullptr) {
    std::vector<Value> picked;
    for (Int i = first; hop > 0 ? i < last : i > last; i += hop) picked.push_back((*items)[static_cast<size_t>(i)]);
    if (!rt.charge(picked.size())) return false;
    *out = rt.list(std::move(picked), object.kind);
    return true;
  }
  const std::string& text = object.str();
  if (hop == 1) {
    if (first >= last) return rt.string(Text(), out);
    const size_t from = char_offset(text, static_cast<size_t>(first));
    const size_t to = from + char_offset(std::string_view(text).substr(from), static_cast<size_t>(last - first));
    return rt.string(object.text->slice(from, to), out);
  }
  std::vector<size_t> offsets;
  for (size_t i = 0; i < text.size();) {
    offsets.push_back(i);
    char32_t c = 0;
    i += decode_char(text, i, &c);
  }
  offsets.push_back(text.size());
  if (!rt.charge(offsets.size() / 16)) return false;
  Text picked;
  for (Int i = first; hop > 0 ? i < last : i > last; i += hop) {
    picked.append(*object.text, offsets[static_cast<size_t>(i)], offsets[static_cast<size_t>(i) + 1]);
  }
  return rt.string(std::move(picked), out);
}

bool iterate(Runtime& rt, const Value& value, std::vector<Value>* out) {
  out->clear();
  switch (value.kind) {
    case Kind::kUndefined:
      return true;
    case Kind::kList:
    case Kind::kTuple: {
      std::vector<Value>* items = rt.items(value);
      if (items == nullptr || !rt.charge(items->size() / 8)) return false;
      *out = *items;
      return true;
    }
    case Kind::kDict: {
      DictObject* dict = rt.entries(value);
      if (dict == nullptr || !rt.charge(dict->entries.size() / 8)) return false;
      for (auto& [key, element] : dict->entries) out->push_back(key);
      return true;
    }
    case Kind::kString: {
      const std::string& text = value.str();
      for (size_t i = 0; i < text.size();) {
        char32_t c = 0;
        const size_t length = decode_char(text, i, &c);
        Value one;
        if (!rt.charge() || !rt.string(value.text->slice(i, i + length), &one)) return false;
        out->push_back(std::move(one));
        i += length;
      }
      return true;
    }
    default:
      return rt.fail({"'", type_name(value), "' object is not iterable"});
  }
}

bool length(Runtime& rt, const Value& value, Int* out) {
  switch (value.kind) {
    case Kind::kUndefined:
      *out = 0;
      return true;
    case Kind::kString:
      *out = static_cast<Int>(count_chars(value.str()));
      return rt.charge_bytes(value.str().size());
    case Kind::kList:
    case Kind::kTuple:
      if (value.list->lazy) return rt.fail("object of type 'generator' has no len()");
      *out = static_cast<Int>(value.list->pending != nullptr ? value.list->pending->size() : value.list->items.size());
      return true;
    case Kind::kDict:
      *out =
          static_cast<Int>(value.dict->pending != nullptr ? value.dict->pending->size() : value.dict->entries.size());
      return true;
    default:
      return rt.fail({"object of type '", type_name(value), "' has no len()"});
  }
}

}  // namespace dsv3::jinja
