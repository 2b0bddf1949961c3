// Filters on sequences and mappings: join, first, map, select, sort, ...
#include "chat/jinja/sequence_filters.h"

#include <algorithm>
#include <array>

#include "chat/jinja/builtins.h"
#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

using Slots = std::vector<std::optional<Value>>;

bool flag(const std::optional<Value>& slot) {
  return slot.has_value() && truth(*slot);
}

// item.a.0.b, as jinja's `attribute` arguments mean it; each step is a subscript.
bool follow(Runtime& rt, const Value& path, const Value& item, Value* out) {
  *out = item;
  if (path.is_integer()) return get_item(rt, item, path, out);
  if (!path.is_string()) return rt.fail("attribute must be a string or an integer");
  std::vector<Value> parts;
  const std::string dot = ".";
  if (!split_text(rt, path, &dot, -1, false, &parts)) return false;
  for (Value& part : parts) {
    Int index = 0;
    const bool digits = !part.str().empty() && part.str().find_first_not_of("0123456789") == std::string::npos;
    if (digits && parse_int(part.str(), 10, &index)) part = Value::of(index);
    const Value from = *out;
    if (!get_item(rt, from, part, out)) return false;
  }
  return true;
}

bool fold_case(Runtime& rt, bool case_sensitive, Value* value) {
  if (case_sensitive || !value->is_string()) return true;
  const Value original = *value;
  return map_case(rt, *original.text, 'l', value);
}

bool filter_list(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items;
  if (!bind_args(rt, "list", args, {}, &slots) || !iterate(rt, self, &items)) return false;
  *out = rt.list(std::move(items));
  return true;
}

bool filter_first(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items;
  if (!bind_args(rt, "first", args, {}, &slots) || !iterate(rt, self, &items)) return false;
  *out = items.empty() ? Value::undefined("first item") : items.front();
  return true;
}

bool filter_last(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items;
  if (!bind_args(rt, "last", args, {}, &slots) || !iterate(rt, self, &items)) return false;
  *out = items.empty() ? Value::undefined("last item") : items.back();
  return true;
}

bool filter_join(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items;
  if (!bind_args(rt, "join", args, {"d", "attribute"}, &slots) || !iterate(rt, self, &items)) return false;
  Value separator = Value::literal("");
  if (slots[0].has_value() && !to_str(rt, *slots[0], &separator)) return false;
  Writer writer(rt);
  for (size_t i = 0; i < items.size() && !writer.full(); ++i) {
    Value item = items[i];
    if (slots[1].has_value() && !slots[1]->is_none() && !follow(rt, *slots[1], items[i], &item)) return false;
    if (i > 0) writer.write(*separator.text);
    if (!write_str(rt, item, &writer)) return false;
  }
  return writer.finish(out);
}

bool filter_reverse(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items;
  if (!bind_args(rt, "reverse", args, {}, &slots) || !iterate(rt, self, &items)) return false;
  std::reverse(items.begin(), items.end());
  if (!self.is_string()) {
    *out = rt.list(std::move(items), Kind::kList, true);
    return true;
  }
  Text text;
  for (const Value& c : items) text.append(*c.text);
  return rt.string(std::move(text), out);
}

bool filter_items(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "items", args, {}, &slots)) return false;
  if (self.is_undefined()) return *out = rt.list({}, Kind::kList, true), true;
  if (self.kind != Kind::kDict) return rt.fail("Can only get item pairs from a mapping.");
  if (!find_method(self, "items")(rt, self, args, out)) return false;
  out->list->lazy = true;
  return true;
}

// Sorts by keys[i], stable; equal keys keep their order even when reversed, as in Python.
bool sort_by(Runtime& rt, std::vector<Value>* items, const std::vector<Value>& keys, bool reverse) {
  std::vector<size_t> order(items->size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    bool less = false;
    if (!rt.failed()) compare(rt, "<", keys[reverse ? b : a], keys[reverse ? a : b], &less);
    return less && !rt.failed();
  });
  if (rt.failed()) return false;
  std::vector<Value> sorted;
  sorted.reserve(order.size());
  for (const size_t i : order) sorted.push_back((*items)[i]);
  *items = std::move(sorted);
  return true;
}

bool filter_sort(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items;
  if (!bind_args(rt, "sort", args, {"reverse", "case_sensitive", "attribute"}, &slots) || !iterate(rt, self, &items))
    return false;
  std::vector<Value> paths;
  if (slots[2].has_value() && slots[2]->is_string()) {
    const std::string comma = ",";
    if (!split_text(rt, *slots[2], &comma, -1, false, &paths)) return false;
  } else if (slots[2].has_value() && !slots[2]->is_none()) {
    paths.push_back(*slots[2]);
  }
  std::vector<Value> keys;
  for (const Value& item : items) {
    std::vector<Value> key;
    if (paths.empty()) key.push_back(item);
    for (const Value& path : paths) {
      if (!follow(rt, path, item, &key.emplace_back())) return false;
    }
    for (Value& part : key) {
      if (!fold_case(rt, flag(slots[1]), &part)) return false;
    }
    keys.push_back(rt.list(std::move(key)));
    if (!rt.charge()) return false;
  }
  if (!sort_by(rt, &items, keys, flag(slots[0]))) return false;
  *out = rt.list(std::move(items));
  return true;
}

bool filter_dictsort(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "dictsort", args, {"case_sensitive", "by", "reverse"}, &slots)) return false;
  if (self.kind != Kind::kDict) return rt.fail({"dictsort needs a mapping, not ", type_name(self)});
  const bool by_value = slots[1].has_value() && slots[1]->is_string() && slots[1]->str() == "value";
  if (slots[1].has_value() && !by_value && !(slots[1]->is_string() && slots[1]->str() == "key")) {
    return rt.fail("You can only sort by either \"key\" or \"value\"");
  }
  DictObject* dict = rt.entries(self);
  if (dict == nullptr) return false;
  std::vector<Value> pairs, keys;
  for (const auto& [key, value] : dict->entries) {
    Value sort_key = by_value ? value : key;
    if (!rt.charge() || !fold_case(rt, flag(slots[0]), &sort_key)) return false;
    keys.push_back(std::move(sort_key));
    pairs.push_back(rt.list({key, value}, Kind::kTuple));
  }
  if (!sort_by(rt, &pairs, keys, flag(slots[2]))) return false;
  *out = rt.list(std::move(pairs));
  return true;
}

bool filter_unique(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items, kept, seen;
  if (!bind_args(rt, "unique", args, {"case_sensitive", "attribute"}, &slots) || !iterate(rt, self, &items))
    return false;
  for (const Value& item : items) {
    Value key = item;
    if (slots[1].has_value() && !slots[1]->is_none() && !follow(rt, *slots[1], item, &key)) return false;
    if (!fold_case(rt, flag(slots[0]), &key)) return false;
    bool found = false;
    for (size_t i = 0; i < seen.size() && !found; ++i) {
      if (!equal(rt, seen[i], key, &found)) return false;
    }
    if (found) continue;
    seen.push_back(std::move(key));
    kept.push_back(item);
  }
  *out = rt.list(std::move(kept), Kind::kList, true);
  return true;
}

template <bool kMax>
bool filter_extreme(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items;
  if (!bind_args(rt, kMax ? "max" : "min", args, {"case_sensitive", "attribute"}, &slots) || !iterate(rt, self, &items))
    return false;
  *out = Value::undefined("aggregated item");
  Value best;
  for (size_t i = 0; i < items.size(); ++i) {
    Value key = items[i];
    if (slots[1].has_value() && !slots[1]->is_none() && !follow(rt, *slots[1], items[i], &key)) return false;
    if (!fold_case(rt, flag(slots[0]), &key)) return false;
    bool better = i == 0;
    if (!better && !compare(rt, kMax ? ">" : "<", key, best, &better)) return false;
    if (better) {
      best = key;
      *out = items[i];
    }
  }
  return true;
}

bool filter_sum(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items;
  if (!bind_args(rt, "sum", args, {"attribute", "start"}, &slots) || !iterate(rt, self, &items)) return false;
  Value total = slots[1].has_value() ? *slots[1] : Value::of(Int{0});
  if (total.is_string()) return rt.fail("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : items) {
    Value value = item, before = total;
    if (slots[0].has_value() && !slots[0]->is_none() && !follow(rt, *slots[0], item, &value)) return false;
    if (!rt.charge() || !binary(rt, "+", before, value, &total)) return false;
  }
  *out = total;
  return true;
}

bool filter_batch(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items, rows, row;
  if (!bind_args(rt, "batch", args, {"linecount", "fill_with"}, &slots) || !iterate(rt, self, &items)) return false;
  if (!slots[0].has_value() || !slots[0]->is_integer() || slots[0]->as_int() < 1)
    return rt.fail("batch: linecount must be a positive integer");
  const Int size = slots[0]->as_int();
  for (Value& item : items) {
    if (static_cast<Int>(row.size()) == size) rows.push_back(rt.list(std::exchange(row, {})));
    row.push_back(std::move(item));
    if (!rt.charge()) return false;
  }
  if (!row.empty()) {
    const bool fills = slots[1].has_value() && !slots[1]->is_none();
    while (fills && static_cast<Int>(row.size()) < size) {
      if (!rt.charge()) return false;
      row.push_back(*slots[1]);
    }
    rows.push_back(rt.list(std::move(row)));
  }
  *out = rt.list(std::move(rows), Kind::kList, true);
  return true;
}

bool filter_attr(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "attr", args, {"name"}, &slots)) return false;
  if (!slots[0].has_value() || !slots[0]->is_string()) return rt.fail("attr needs a name");
  *out = Value::undefined("attribute");
  if (self.kind == Kind::kDict) {  // unlike a dot, attr never looks at a mapping's keys
    if (Builtin method = find_method(self, slots[0]->str())) *out = rt.method(self, method);
    return rt.charge();
  }
  if (!get_attribute(rt, self, slots[0]->str(), out)) return false;
  if (out->is_undefined()) *out = Value::undefined("attribute");
  return true;
}

bool filter_map(Runtime& rt, const Value& self, const Args& args, Value* out) {
  std::vector<Value> items;
  if (!iterate(rt, self, &items)) return false;
  std::vector<Value> mapped;
  mapped.reserve(items.size());
  if (args.positional.empty()) {
    Slots slots;
    if (!bind_args(rt, "map", args, {"attribute", "default"}, &slots)) return false;
    if (!slots[0].has_value()) return rt.fail("map requires a filter argument");
    for (const Value& item : items) {
      Value value;
      if (!rt.charge() || !follow(rt, *slots[0], item, &value)) return false;
      if (value.is_undefined() && slots[1].has_value() && !slots[1]->is_none()) value = *slots[1];
      mapped.push_back(std::move(value));
    }
  } else {
    if (!args.positional[0].is_string()) return rt.fail("map: the filter's name must be a string");
    const Builtin filter = find_filter(args.positional[0].str());
    if (filter == nullptr) return rt.fail({"No filter named '", args.positional[0].str().substr(0, 64), "'."});
    if (filter == filter_map) return rt.fail("map: a map of maps is not supported");
    Args rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
    for (const Value& item : items) {
      Value value;
      if (!rt.charge() || !filter(rt, item, rest, &value)) return false;
      mapped.push_back(std::move(value));
    }
  }
  *out = rt.list(std::move(mapped), Kind::kList, true);
  return true;
}

template <bool kKeep, bool kByAttribute>
bool filter_select(Runtime& rt, const Value& self, const Args& args, Value* out) {
  std::vector<Value> items, kept;
  if (!iterate(rt, self, &items)) return false;
  size_t next = 0;
  Value path;
  if (kByAttribute) {
    if (args.positional.empty()) return rt.fail("Missing parameter for attribute name");
    path = args.positional[next++];
  }
  Builtin test = nullptr;
  Args rest{{}, args.named};
  if (next < args.positional.size()) {
    const Value& name = args.positional[next++];
    test = name.is_string() ? find_test(name.str()) : nullptr;
    if (test == nullptr)
      return rt.fail(
          {"No test named '", (name.is_string() ? name.str().substr(0, 64) : std::string(type_name(name))), "'."});
    rest.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(next), args.positional.end());
  }
  for (const Value& item : items) {
    Value value = item;
    if (!rt.charge() || (kByAttribute && !follow(rt, path, item, &value))) return false;
    bool accepted = truth(value);
    if (test != nullptr) {
      Value verdict;
      if (!test(rt, value, rest, &verdict)) return false;
      accepted = truth(verdict);
    }
    if (accepted == kKeep) kept.push_back(item);
  }
  *out = rt.list(std::move(kept), Kind::kList, true);
  return true;
}

bool filter_groupby(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value> items, keys, groups;
  if (!bind_args(rt, "groupby", args, {"attribute", "default", "case_sensitive"}, &slots) || !iterate(rt, self, &items))
    return false;
  if (!slots[0].has_value()) return rt.fail("groupby needs an attribute");
  const auto key_of = [&](const Value& item, bool fold, Value* key) {
    if (!follow(rt, *slots[0], item, key)) return false;
    if (key->is_undefined() && slots[1].has_value()) *key = *slots[1];
    return !fold || fold_case(rt, flag(slots[2]), key);
  };
  for (const Value& item : items) {
    if (!rt.charge() || !key_of(item, true, &keys.emplace_back())) return false;
  }
  if (!sort_by(rt, &items, keys, false)) return false;
  std::vector<Value> group;
  Value group_key;
  const auto close = [&]() {
    Value shown;
    if (group.empty()) return true;
    if (!key_of(group.front(), false, &shown)) return false;
    groups.push_back(rt.list({shown, rt.list(std::exchange(group, {}))}, Kind::kTuple));
    return true;
  };
  for (const Value& item : items) {
    Value key;
    bool same = false;
    if (!key_of(item, true, &key) || !equal(rt, key, group_key, &same)) return false;
    if (!same && !close()) return false;
    group_key = key;
    group.push_back(item);
  }
  if (!close()) return false;
  *out = rt.list(std::move(groups));
  return true;
}

struct Entry {
  std::string_view name;
  Builtin function;
};

constexpr std::array kFilters{Entry{"attr", filter_attr},
                              Entry{"batch", filter_batch},
                              Entry{"dictsort", filter_dictsort},
                              Entry{"first", filter_first},
                              Entry{"groupby", filter_groupby},
                              Entry{"items", filter_items},
                              Entry{"join", filter_join},
                              Entry{"last", filter_last},
                              Entry{"list", filter_list},
                              Entry{"map", filter_map},
                              Entry{"max", filter_extreme<true>},
                              Entry{"min", filter_extreme<false>},
                              Entry{"reject", filter_select<false, false>},
                              Entry{"rejectattr", filter_select<false, true>},
                              Entry{"reverse", filter_reverse},
                              Entry{"select", filter_select<true, false>},
                              Entry{"selectattr", filter_select<true, true>},
                              Entry{"sort", filter_sort},
                              Entry{"sum", filter_sum},
                              Entry{"unique", filter_unique}};

}  // namespace

Builtin find_sequence_filter(std::string_view name) {
  for (const Entry& entry : kFilters) {
    if (entry.name == name) return entry.function;
  }
  return nullptr;
}

}  // namespace dsv3::jinja
