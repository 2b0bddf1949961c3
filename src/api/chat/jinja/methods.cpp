// Methods of strings, lists and dicts that templates may call: those of Python that change nothing.
#include <algorithm>
#include <array>

#include "chat/jinja/ops.h"

namespace dsv3::jinja {
namespace {

using Slots = std::vector<std::optional<Value>>;

bool need_string(Runtime& rt, std::string_view function, const Value& value) {
  if (value.is_string()) return true;
  return rt.fail({function, "() needs a string, not ", type_name(value)});
}

bool strip_with(Runtime& rt, std::string_view name, const Value& self, const Args& args, bool left, bool right,
                Value* out) {
  Slots slots;
  if (!bind_args(rt, name, args, {"chars"}, &slots)) return false;
  const bool given = slots[0].has_value() && !slots[0]->is_none();
  if (given && !need_string(rt, name, *slots[0])) return false;
  const std::string_view chars = given ? std::string_view(slots[0]->str()) : std::string_view();
  if (!rt.charge(self.str().size() / 256 * (chars.size() / 16 + 1))) return false;
  const Trimmed range = trim(self.str(), left, right, given ? &chars : nullptr);
  return rt.string(self.text->slice(range.begin, range.end), out);
}

bool str_strip(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return strip_with(rt, "strip", self, args, true, true, out);
}
bool str_lstrip(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return strip_with(rt, "lstrip", self, args, true, false, out);
}
bool str_rstrip(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return strip_with(rt, "rstrip", self, args, false, true, out);
}

bool split_with(Runtime& rt, std::string_view name, const Value& self, const Args& args, bool from_right, Value* out) {
  Slots slots;
  if (!bind_args(rt, name, args, {"sep", "maxsplit"}, &slots)) return false;
  const bool given = slots[0].has_value() && !slots[0]->is_none();
  if (given && !need_string(rt, name, *slots[0])) return false;
  if (slots[1].has_value() && !slots[1]->is_integer()) return rt.fail("maxsplit must be an integer");
  std::vector<Value> pieces;
  if (!split_text(rt, self, given ? &slots[0]->str() : nullptr, slots[1].has_value() ? slots[1]->as_int() : -1,
                  from_right, &pieces))
    return false;
  *out = rt.list(std::move(pieces));
  return true;
}

bool str_split(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return split_with(rt, "split", self, args, false, out);
}
bool str_rsplit(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return split_with(rt, "rsplit", self, args, true, out);
}

bool str_splitlines(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "splitlines", args, {"keepends"}, &slots)) return false;
  std::vector<Value> lines;
  if (!rt.charge_bytes(self.str().size()) ||
      !split_lines(rt, *self.text, slots[0].has_value() && truth(*slots[0]), &lines))
    return false;
  *out = rt.list(std::move(lines));
  return true;
}

bool affix_test(Runtime& rt, std::string_view name, const Value& self, const Args& args, bool at_start, Value* out) {
  Slots slots;
  if (!bind_args(rt, name, args, {"affix"}, &slots)) return false;
  if (!slots[0].has_value()) return rt.fail({name, "() needs an argument"});
  std::vector<Value> candidates{*slots[0]};
  if (slots[0]->kind == Kind::kTuple && !iterate(rt, *slots[0], &candidates)) return false;
  bool found = false;
  for (const Value& affix : candidates) {
    if (!need_string(rt, name, affix) || !rt.charge_bytes(affix.str().size())) return false;
    const std::string_view text = self.str();
    found = found || (at_start ? text.starts_with(affix.str()) : text.ends_with(affix.str()));
  }
  *out = Value::of(found);
  return true;
}

bool str_startswith(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return affix_test(rt, "startswith", self, args, true, out);
}
bool str_endswith(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return affix_test(rt, "endswith", self, args, false, out);
}

bool remove_affix(Runtime& rt, std::string_view name, const Value& self, const Args& args, bool at_start, Value* out) {
  Slots slots;
  if (!bind_args(rt, name, args, {"affix"}, &slots)) return false;
  if (!slots[0].has_value() || !need_string(rt, name, *slots[0])) return rt.fail({name, "() needs a string"});
  const std::string_view text = self.str(), affix = slots[0]->str();
  const bool found = at_start ? text.starts_with(affix) : text.ends_with(affix);
  const size_t cut = found ? affix.size() : 0;
  return rt.string(at_start ? self.text->slice(cut, text.size()) : self.text->slice(0, text.size() - cut), out);
}

bool str_removeprefix(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return remove_affix(rt, "removeprefix", self, args, true, out);
}
bool str_removesuffix(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return remove_affix(rt, "removesuffix", self, args, false, out);
}

bool str_replace(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "replace", args, {"old", "new", "count"}, &slots)) return false;
  if (!slots[0].has_value() || !slots[1].has_value()) return rt.fail("replace() needs two strings");
  if (!need_string(rt, "replace", *slots[0]) || !need_string(rt, "replace", *slots[1])) return false;
  if (slots[2].has_value() && !slots[2]->is_integer()) return rt.fail("replace() count must be an integer");
  return replace_text(rt, *self.text, *slots[0]->text, *slots[1]->text, slots[2].has_value() ? slots[2]->as_int() : -1,
                      out);
}

template <char kMode>
bool str_case(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  return bind_args(rt, "case conversion", args, {}, &slots) && map_case(rt, *self.text, kMode, out);
}

bool str_join(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "join", args, {"iterable"}, &slots)) return false;
  if (!slots[0].has_value()) return rt.fail("join() needs an argument");
  std::vector<Value> items;
  if (!iterate(rt, *slots[0], &items)) return false;
  Writer writer(rt);
  for (size_t i = 0; i < items.size() && !writer.full(); ++i) {
    if (!items[i].is_string()) return rt.fail({"join() expected strings, found ", type_name(items[i])});
    if (i > 0) writer.write(*self.text);
    writer.write(*items[i].text);
  }
  return writer.finish(out);
}

bool find_with(Runtime& rt, std::string_view name, const Value& self, const Args& args, bool from_right, bool must,
               Value* out) {
  Slots slots;
  if (!bind_args(rt, name, args, {"sub"}, &slots)) return false;
  if (!slots[0].has_value() || !need_string(rt, name, *slots[0])) return rt.fail({name, "() needs a string"});
  const std::string& text = self.str();
  if (!rt.charge_bytes(text.size())) return false;
  const size_t at = from_right ? text.rfind(slots[0]->str()) : text.find(slots[0]->str());
  if (at == std::string::npos && must) return rt.fail("substring not found");
  *out = Value::of(at == std::string::npos ? Int{-1}
                                           : static_cast<Int>(count_chars(std::string_view(text).substr(0, at))));
  return true;
}

bool str_find(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return find_with(rt, "find", self, args, false, false, out);
}
bool str_rfind(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return find_with(rt, "rfind", self, args, true, false, out);
}
bool str_index(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return find_with(rt, "index", self, args, false, true, out);
}

bool str_count(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "count", args, {"sub"}, &slots)) return false;
  if (!slots[0].has_value() || !need_string(rt, "count", *slots[0])) return rt.fail("count() needs a string");
  const std::string &text = self.str(), &part = slots[0]->str();
  if (!rt.charge_bytes(text.size())) return false;
  Int count = 0;
  if (part.empty())
    count = static_cast<Int>(count_chars(text)) + 1;
  else
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  *out = Value::of(count);
  return true;
}

template <bool (*kTest)(char32_t), bool kNeedsCased>
bool str_all(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!bind_args(rt, "character test", args, {}, &slots) || !rt.charge_bytes(self.str().size())) return false;
  const std::string& text = self.str();
  bool any = false, all = true;
  for (size_t i = 0; i < text.size() && all;) {
    char32_t c = 0;
    i += decode_char(text, i, &c);
    if (kNeedsCased && !is_cased(c)) continue;
    any = true;
    all = kTest(c);
  }
  *out = Value::of(any && all);
  return true;
}

bool is_alnum(char32_t c) {
  return is_letter(c) || is_numeric(c);
}

bool partition_with(Runtime& rt, std::string_view name, const Value& self, const Args& args, bool from_right,
                    Value* out) {
  Slots slots;
  if (!bind_args(rt, name, args, {"sep"}, &slots)) return false;
  if (!slots[0].has_value() || !need_string(rt, name, *slots[0])) return rt.fail({name, "() needs a string"});
  const std::string &text = self.str(), &sep = slots[0]->str();
  if (sep.empty()) return rt.fail("empty separator");
  if (!rt.charge_bytes(text.size())) return false;
  const size_t at = from_right ? text.rfind(sep) : text.find(sep);
  std::vector<Value> parts(3, Value::literal(""));
  if (at == std::string::npos) {
    parts[from_right ? 2 : 0] = self;
  } else if (!rt.string(self.text->slice(0, at), &parts[0]) ||
             !rt.string(self.text->slice(at, at + sep.size()), &parts[1]) ||
             !rt.string(self.text->slice(at + sep.size(), text.size()), &parts[2])) {
    return false;
  }
  *out = rt.list(std::move(parts), Kind::kTuple);
  return true;
}

bool str_partition(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return partition_with(rt, "partition", self, args, false, out);
}
bool str_rpartition(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return partition_with(rt, "rpartition", self, args, true, out);
}

bool pad_with(Runtime& rt, std::string_view name, const Value& self, const Args& args, int side, Value* out) {
  Slots slots;
  if (!bind_args(rt, name, args, {"width", "fillchar"}, &slots)) return false;
  if (!slots[0].has_value() || !slots[0]->is_integer()) return rt.fail({name, "() needs an integer width"});
  Text fill(side == 2 ? "0" : " ");
  if (slots[1].has_value()) {
    if (!need_string(rt, name, *slots[1])) return false;
    if (count_chars(slots[1]->str()) != 1) return rt.fail("The fill character must be exactly one character long");
    fill = *slots[1]->text;
  }
  const Int width = std::min(slots[0]->as_int(), static_cast<Int>(rt.limits().max_output_bytes) + 1);
  const Int missing = std::max(width - static_cast<Int>(count_chars(self.str())), Int{0});
  if (!rt.charge(static_cast<uint64_t>(missing / 16))) return false;
  size_t skip = 0;  // zfill keeps a sign in front
  if (side == 2 && !self.str().empty() && (self.str()[0] == '-' || self.str()[0] == '+')) skip = 1;
  Int before = side == 0 ? missing / 2 + (missing & width & 1) : side > 0 ? missing : 0;
  Writer writer(rt);
  writer.write(*self.text, 0, skip);
  for (Int i = 0; i < before && !writer.full(); ++i) writer.write(fill);
  writer.write(*self.text, skip, self.text->size());
  for (Int i = before; i < missing && !writer.full(); ++i) writer.write(fill);
  return writer.finish(out);
}

bool str_center(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return pad_with(rt, "center", self, args, 0, out);
}
bool str_rjust(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return pad_with(rt, "rjust", self, args, 1, out);
}
bool str_ljust(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return pad_with(rt, "ljust", self, args, -1, out);
}
bool str_zfill(Runtime& rt, const Value& self, const Args& args, Value* out) {
  return pad_with(rt, "zfill", self, args, 2, out);
}

// '{}', '{0}', '{name}'; no conversions, no format specifications, no attribute access.
bool str_format(Runtime& rt, const Value& self, const Args& args, Value* out) {
  const std::string& format = self.str();
  Writer writer(rt);
  size_t automatic = 0;
  for (size_t i = 0; i < format.size();) {
    const size_t brace = std::min(format.find_first_of("{}", i), format.size());
    writer.write(*self.text, i, brace);
    if (brace == format.size()) break;
    if (!rt.charge()) return false;
    if (brace + 1 < format.size() && format[brace + 1] == format[brace]) {
      writer.write(*self.text, brace, brace + 1);
      i = brace + 2;
      continue;
    }
    const size_t end = format.find('}', brace);
    if (format[brace] == '}' || end == std::string::npos)
      return rt.fail({"single '", format.substr(brace, 1), "' in a format string"});
    const std::string field = format.substr(brace + 1, end - brace - 1);
    const Value* value = nullptr;
    Int index = 0;
    if (field.empty() || parse_int(field, 10, &index)) {
      const size_t at = field.empty() ? automatic++
                        : index < 0   ? args.positional.size()
                                      : static_cast<size_t>(std::min(index, Int{1000}));
      if (at < args.positional.size()) value = &args.positional[at];
    } else {
      for (const auto& [name, named] : args.named) {
        if (name == field) value = &named;
      }
    }
    if (value == nullptr) return rt.fail({"format() has no argument for '{", field.substr(0, 64), "}'"});
    if (!write_str(rt, *value, &writer)) return false;
    i = end + 1;
  }
  return writer.finish(out);
}

bool list_index(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value>* items = rt.items(self);
  if (items == nullptr || !bind_args(rt, "index", args, {"value"}, &slots)) return false;
  if (!slots[0].has_value()) return rt.fail("index() needs an argument");
  for (size_t i = 0; i < items->size(); ++i) {
    bool same = false;
    if (!equal(rt, (*items)[i], *slots[0], &same)) return false;
    if (same) return *out = Value::of(static_cast<Int>(i)), true;
  }
  return rt.fail("index(): the value is not in the list");
}

bool list_count(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  std::vector<Value>* items = rt.items(self);
  if (items == nullptr || !bind_args(rt, "count", args, {"value"}, &slots)) return false;
  if (!slots[0].has_value()) return rt.fail("count() needs an argument");
  Int count = 0;
  for (const Value& item : *items) {
    bool same = false;
    if (!equal(rt, item, *slots[0], &same)) return false;
    count += same;
  }
  *out = Value::of(count);
  return true;
}

bool list_copy(Runtime& rt, const Value& self, const Args&, Value* out) {
  std::vector<Value>* items = rt.items(self);
  if (items == nullptr || !rt.charge(items->size())) return false;
  *out = rt.list(*items);
  return true;
}

bool dict_get(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  if (!args.named.empty()) return rt.fail("dict.get() takes no keyword arguments");
  if (!bind_args(rt, "get", args, {"key", "default"}, &slots)) return false;
  if (!slots[0].has_value()) return rt.fail("get() needs a key");
  *out = slots[1].has_value() ? *slots[1] : Value::none();
  if (slots[0]->is_string()) {
    if (const Value* found = rt.find(self, slots[0]->str())) *out = *found;
    return !rt.failed();
  }
  DictObject* dict = rt.entries(self);
  if (dict == nullptr) return false;
  for (auto& [key, value] : dict->entries) {
    bool same = false;
    if (!equal(rt, key, *slots[0], &same)) return false;
    if (same) *out = value;
  }
  return true;
}

template <int kWhat>  // 0 keys, 1 values, 2 pairs
bool dict_list(Runtime& rt, const Value& self, const Args& args, Value* out) {
  Slots slots;
  DictObject* dict = rt.entries(self);
  if (dict == nullptr || !bind_args(rt, "dict method", args, {}, &slots) || !rt.charge(dict->entries.size()))
    return false;
  std::vector<Value> items;
  items.reserve(dict->entries.size());
  for (const auto& [key, value] : dict->entries) {
    items.push_back(kWhat == 0 ? key : kWhat == 1 ? value : rt.list({key, value}, Kind::kTuple));
  }
  *out = rt.list(std::move(items));
  return true;
}

bool dict_copy(Runtime& rt, const Value& self, const Args&, Value* out) {
  DictObject* dict = rt.entries(self);
  if (dict == nullptr || !rt.charge(dict->entries.size())) return false;
  *out = rt.dict();
  for (const auto& [key, value] : dict->entries) {
    if (!rt.set(*out, key, value)) return false;
  }
  return true;
}

struct Entry {
  std::string_view name;
  Builtin function;
};

constexpr std::array kStringMethods{Entry{"strip", str_strip},
                                    Entry{"lstrip", str_lstrip},
                                    Entry{"rstrip", str_rstrip},
                                    Entry{"split", str_split},
                                    Entry{"rsplit", str_rsplit},
                                    Entry{"splitlines", str_splitlines},
                                    Entry{"startswith", str_startswith},
                                    Entry{"endswith", str_endswith},
                                    Entry{"removeprefix", str_removeprefix},
                                    Entry{"removesuffix", str_removesuffix},
                                    Entry{"replace", str_replace},
                                    Entry{"upper", str_case<'u'>},
                                    Entry{"lower", str_case<'l'>},
                                    Entry{"casefold", str_case<'l'>},
                                    Entry{"title", str_case<'t'>},
                                    Entry{"capitalize", str_case<'c'>},
                                    Entry{"join", str_join},
                                    Entry{"find", str_find},
                                    Entry{"rfind", str_rfind},
                                    Entry{"index", str_index},
                                    Entry{"count", str_count},
                                    Entry{"isdigit", str_all<is_decimal_digit, false>},
                                    Entry{"isdecimal", str_all<is_decimal_digit, false>},
                                    Entry{"isnumeric", str_all<is_numeric, false>},
                                    Entry{"isalpha", str_all<is_letter, false>},
                                    Entry{"isalnum", str_all<is_alnum, false>},
                                    Entry{"isspace", str_all<is_space, false>},
                                    Entry{"isupper", str_all<is_upper, true>},
                                    Entry{"islower", str_all<is_lower, true>},
                                    Entry{"partition", str_partition},
                                    Entry{"rpartition", str_rpartition},
                                    Entry{"center", str_center},
                                    Entry{"rjust", str_rjust},
                                    Entry{"ljust", str_ljust},
                                    Entry{"zfill", str_zfill},
                                    Entry{"format", str_format}};
constexpr std::array kListMethods{Entry{"index", list_index}, Entry{"count", list_count}};
constexpr std::array kDictMethods{Entry{"get", dict_get}, Entry{"items", dict_list<2>}, Entry{"keys", dict_list<0>},
                                  Entry{"values", dict_list<1>}, Entry{"copy", dict_copy}};

}  // namespace

Builtin find_method(const Value& object, std::string_view name) {
  const auto in = [name](const auto& table) -> Builtin {
    for (const Entry& entry : table) {
      if (entry.name == name) return entry.function;
    }
    return nullptr;
  };
  switch (object.kind) {
    case Kind::kString:
      return in(kStringMethods);
    case Kind::kList:
      return object.list->lazy ? nullptr : name == "copy" ? list_copy : in(kListMethods);
    case Kind::kTuple:
      return in(kListMethods);
    case Kind::kDict:
      return in(kDictMethods);
    default:
      return nullptr;
  }
}

}  // namespace dsv3::jinja
