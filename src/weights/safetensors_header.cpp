#include "safetensors_header.h"

#include <algorithm>

#include "json_cursor.h"
#include "text.h"

namespace dsv3::weights {
namespace {

constexpr size_t kMaxMetadataEntries = 65536;
constexpr size_t kMinEntryBytes = 48;  // of the shortest legal entry, "":{"dtype":"","shape":[],"data_offsets":[0,0]}

struct Format {
  std::string_view name;
  int bits;
};
// Every dtype of the format; which of them we can read is parse_dtype()'s business.
constexpr Format kFormats[] = {
    {"F8_E4M3", 8}, {"BF16", 16},   {"F32", 32},    {"F16", 16},    {"I64", 64},        {"I32", 32},
    {"I8", 8},      {"U8", 8},      {"BOOL", 8},    {"F64", 64},    {"U64", 64},        {"U32", 32},
    {"U16", 16},    {"I16", 16},    {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"C64", 64},        {"F8_E4M3FNUZ", 8},
    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"E8M0", 8},    {"F8_E5M2FNUZ", 8},
};

/// 0 if the name is unknown.
int bits_of(std::string_view dtype) {
  for (const auto& format : kFormats) {
    if (format.name == dtype) return format.bits;
  }
  return 0;
}

Status bad(std::string message) {
  return {Code::kBadModelFile, std::move(message)};
}

}  // namespace

Result<size_t> safetensors_header_bytes(std::string_view first, uint64_t file_bytes) {
  if (file_bytes < kLengthBytes || first.size() < kLengthBytes) {
    return bad("file of " + std::to_string(file_bytes) + " bytes: too short for a safetensors header");
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= static_cast<uint64_t>(static_cast<unsigned char>(first[i])) << (8 * i);
  }
  if (length > kMaxHeaderBytes) {
    return bad("header of " + std::to_string(length) + " bytes, allowed " + std::to_string(kMaxHeaderBytes) +
               " (is this a safetensors file?)");
  }
  if (length > file_bytes - kLengthBytes) {
    return bad("header of " + std::to_string(length) + " bytes in a file of " + std::to_string(file_bytes) +
               " bytes: the file is cut off or no safetensors file");
  }
  if (length < 2) return bad("header of " + std::to_string(length) + " bytes: too short for JSON");
  return static_cast<size_t>(length);
}

/// Fills one SafetensorsHeader. The text inside is changed while it is read (escapes), never after.
class HeaderParser {
 public:
  HeaderParser(std::string text, uint64_t data_bytes) : data_bytes_(data_bytes) { header_.text_ = std::move(text); }

  Result<SafetensorsHeader> run() {
    if (header_.text_.empty() || header_.text_[0] != '{') return bad("header does not begin with '{'");
    if (!valid_utf8(header_.text_)) return bad("header is not UTF-8");
    // Virtual memory only: pages that no entry reaches are never touched.
    header_.entries_.reserve(header_.text_.size() / kMinEntryBytes + 1);
    DSV3_TRY(parse_top());
    DSV3_TRY(check_tiling());
    DSV3_TRY(index_names());
    return std::move(header_);
  }

 private:
  using Entry = SafetensorsHeader::Entry;

  Status syntax(std::string_view tensor = {}) const {
    const std::string where = tensor.data() == nullptr ? "header" : "tensor " + in_quotes(tensor);
    return bad(where + ": " + cursor_.error() + " at byte " + std::to_string(cursor_.at()) + " of the header");
  }

  uint32_t position(std::string_view inside) const {
    return static_cast<uint32_t>(inside.data() - header_.text_.data());
  }

  Status parse_top() {
    if (!cursor_.expect('{', "'{' was expected")) return syntax();
    bool seen_metadata = false;
    bool more = !cursor_.take('}');
    while (more) {
      std::string_view name;
      if (!cursor_.string(&name) || !cursor_.expect(':', "':' was expected")) return syntax();
      if (name == "__metadata__") {
        if (seen_metadata) return bad("duplicate name \"__metadata__\"");
        seen_metadata = true;
        DSV3_TRY(parse_metadata());
      } else {
        DSV3_TRY(parse_tensor(name));
      }
      more = cursor_.take(',');
      if (!more && !cursor_.expect('}', "',' or '}' was expected")) return syntax();
    }
    cursor_.skip_space();
    if (cursor_.at_end()) return {};
    cursor_.fail("text after the header");
    return syntax();
  }

  Status parse_metadata() {
    constexpr std::string_view kName = "__metadata__";
    if (!cursor_.expect('{', "an object was expected")) return syntax(kName);
    std::vector<std::string_view> keys;
    bool more = !cursor_.take('}');
    while (more) {
      std::string_view key, value;
      if (!cursor_.string(&key) || !cursor_.expect(':', "':' was expected") || !cursor_.string(&value)) {
        return syntax(kName);
      }
      if (keys.size() == kMaxMetadataEntries) {
        return bad("__metadata__ has more than " + std::to_string(kMaxMetadataEntries) + " entries");
      }
      keys.push_back(key);
      more = cursor_.take(',');
      if (!more && !cursor_.expect('}', "',' or '}' was expected")) return syntax(kName);
    }
    std::sort(keys.begin(), keys.end());
    if (const auto twice = std::adjacent_find(keys.begin(), keys.end()); twice != keys.end()) {
      return bad("__metadata__ has the key " + in_quotes(*twice) + " twice");
    }
    return {};
  }

  Status parse_tensor(std::string_view name) {
    if (std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; })) {
      return bad("tensor " + in_quotes(name) + ": control character in the name");
    }
    if (!cursor_.expect('{', "an object was expected")) return syntax(name);
    Entry entry{};
    entry.name_at = position(name);
    entry.name_bytes = static_cast<uint32_t>(name.size());
    std::string_view dtype;
    bool has_dtype = false, has_shape = false, has_range = false;
    uint64_t elements = 1;
    bool more = !cursor_.take('}');
    while (more) {
      std::string_view field;
      if (!cursor_.string(&field) || !cursor_.expect(':', "':' was expected")) return syntax(name);
      bool* const seen = field == "dtype"          ? &has_dtype
                         : field == "shape"        ? &has_shape
                         : field == "data_offsets" ? &has_range
                                                   : nullptr;
      if (seen == nullptr) return bad("tensor " + in_quotes(name) + ": unknown field " + in_quotes(field));
      if (*seen) return bad("tensor " + in_quotes(name) + ": field " + in_quotes(field) + " twice");
      *seen = true;
      if (seen == &has_dtype) {
        if (!cursor_.string(&dtype)) return syntax(name);
        if (dtype.size() > 32) return bad("tensor " + in_quotes(name) + ": dtype " + in_quotes(dtype) + " is no dtype");
        entry.dtype_at = position(dtype);
        entry.dtype_bytes = static_cast<uint8_t>(dtype.size());
      } else if (seen == &has_shape) {
        DSV3_TRY(parse_shape(name, &entry, &elements));
      } else {
        if (!cursor_.expect('[', "two offsets were expected") || !cursor_.integer(&entry.begin) ||
            !cursor_.expect(',', "two offsets were expected") || !cursor_.integer(&entry.end) ||
            !cursor_.expect(']', "two offsets were expected")) {
          return syntax(name);
        }
      }
      more = cursor_.take(',');
      if (!more && !cursor_.expect('}', "',' or '}' was expected")) return syntax(name);
    }
    const char* const missing = !has_dtype ? "dtype" : !has_shape ? "shape" : !has_range ? "data_offsets" : nullptr;
    if (missing != nullptr) return bad("tensor " + in_quotes(name) + ": field \"" + missing + "\" is missing");
    DSV3_TRY(check_bytes(name, dtype, elements, entry));
    header_.entries_.push_back(entry);
    return {};
  }

  Status parse_shape(std::string_view name, Entry* entry, uint64_t* elements) {
    if (!cursor_.expect('[', "a shape was expected")) return syntax(name);
    entry->shape_at = static_cast<uint32_t>(cursor_.at() - 1);
    bool more = !cursor_.take(']');
    while (more) {
      uint64_t dim;
      if (!cursor_.integer(&dim)) return syntax(name);
      if (++entry->rank > kMaxRank) {
        return bad("tensor " + in_quotes(name) + ": more than " + std::to_string(kMaxRank) + " dimensions");
      }
      if (__builtin_mul_overflow(*elements, dim, elements)) {
        return bad("tensor " + in_quotes(name) + ": the number of elements overflows");
      }
      more = cursor_.take(',');
      if (!more && !cursor_.expect(']', "',' or ']' was expected")) return syntax(name);
    }
    return {};
  }

  Status check_bytes(std::string_view name, std::string_view dtype, uint64_t elements, const Entry& entry) const {
    const auto range = [&] {
      return "tensor " + in_quotes(name) + ": data_offsets [" + std::to_string(entry.begin) + ", " +
             std::to_string(entry.end) + "] ";
    };
    if (entry.begin > entry.end) return bad(range() + "end before they begin");
    if (entry.end > data_bytes_) {
      return bad(range() + "pass the end of the file, which holds " + std::to_string(data_bytes_) + " bytes of data");
    }
    const int bits_each = bits_of(dtype);
    if (bits_each == 0) return {};  // see the head of safetensors_header.h
    uint64_t bits;
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(bits_each), &bits)) {
      return bad("tensor " + in_quotes(name) + ": the number of bytes overflows");
    }
    if (bits % 8 != 0) {
      return bad("tensor " + in_quotes(name) + ": " + std::to_string(elements) + " elements of " + std::string(dtype) +
                 " do not fill whole bytes");
    }
    if (bits / 8 != entry.end - entry.begin) {
      return bad(range() + "hold " + std::to_string(entry.end - entry.begin) + " bytes, its shape and dtype " +
                 std::string(dtype) + " call for " + std::to_string(bits / 8));
    }
    return {};
  }

  Status check_tiling() {
    auto& entries = header_.entries_;
    const auto before = [](const Entry& a, const Entry& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    };
    if (!std::is_sorted(entries.begin(), entries.end(), before)) std::sort(entries.begin(), entries.end(), before);
    uint64_t covered = 0;
    const Entry* previous = nullptr;
    for (const auto& entry : entries) {
      const std::string_view name = header_.name(entry);
      if (entry.begin < covered) {
        const std::string_view other = header_.name(*previous);
        if (name == other) return bad("duplicate tensor " + in_quotes(name));
        return bad("tensor " + in_quotes(name) + " overlaps tensor " + in_quotes(other));
      }
      if (entry.begin > covered) {
        return bad("bytes " + std::to_string(covered) + " to " + std::to_string(entry.begin) + " before tensor " +
                   in_quotes(name) + " belong to no tensor");
      }
      covered = entry.end;
      previous = &entry;
    }
    if (covered != data_bytes_) {
      return bad("the tensors" +
                 (previous == nullptr ? "" : ", the last of them " + in_quotes(header_.name(*previous)) + ",") +
                 " cover " + std::to_string(covered) + " of " + std::to_string(data_bytes_) + " bytes of data");
    }
    return {};
  }

  Status index_names() {
    auto& order = header_.by_name_;
    order.resize(header_.entries_.size());
    for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto name = [&](uint32_t index) { return header_.name(header_.entries_[index]); };
    const auto before = [&](uint32_t a, uint32_t b) { return name(a) < name(b); };
    if (!std::is_sorted(order.begin(), order.end(), before)) std::sort(order.begin(), order.end(), before);
    const auto twice =
        std::adjacent_find(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return name(a) == name(b); });
    if (twice != order.end()) return bad("duplicate tensor " + in_quotes(name(*twice)));
    return {};
  }

  SafetensorsHeader header_;
  JsonCursor cursor_{header_.text_};
  const uint64_t data_bytes_;
};

Result<SafetensorsHeader> SafetensorsHeader::parse(std::string text, uint64_t data_bytes) {
  if (text.size() > kMaxHeaderBytes) return bad("header of " + std::to_string(text.size()) + " bytes");
  return HeaderParser(std::move(text), data_bytes).run();
}

SafetensorsHeader::Tensor SafetensorsHeader::tensor(size_t index) const {
  const Entry& entry = entries_[index];
  Tensor tensor;
  tensor.name = name(entry);
  tensor.dtype_text = std::string_view(text_).substr(entry.dtype_at, entry.dtype_bytes);
  if (DType dtype; parse_dtype(tensor.dtype_text, &dtype)) tensor.dtype = dtype;
  tensor.begin = entry.begin;
  tensor.end = entry.end;
  // The digits were proven when the header was parsed.
  tensor.shape.resize(entry.rank);
  size_t at = entry.shape_at;
  for (int64_t& dim : tensor.shape) {
    while (text_[at] < '0' || text_[at] > '9') ++at;
    for (; text_[at] >= '0' && text_[at] <= '9'; ++at) dim = dim * 10 + (text_[at] - '0');
  }
  return tensor;
}

std::optional<SafetensorsHeader::Tensor> SafetensorsHeader::find(std::string_view wanted) const {
  const auto found =
      std::lower_bound(by_name_.begin(), by_name_.end(), wanted,
                       [&](uint32_t index, std::string_view key) { return name(entries_[index]) < key; });
  if (found == by_name_.end() || name(entries_[*found]) != wanted) return std::nullopt;
  return tensor(*found);
}

}  // namespace dsv3::weights
