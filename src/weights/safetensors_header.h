// The header of a safetensors file, proven before it is used. Parses untrusted bytes and nothing else: no files, no
// tensors' data. Stands alone so that it can be fuzzed alone.
//
// What is refused (kBadModelFile, naming the tensor): a header under 2 bytes, over 100 MB or longer than the file; text
// that is not UTF-8 or not JSON, or does not begin with '{'; duplicate names, fields or metadata keys; unknown or
// missing fields; numbers that are no plain non-negative integers below 2^63; shapes whose elements, bits or bytes
// overflow or do not fit their range; sub-byte formats that do not fill bytes; ranges that overlap, leave holes, or do
// not cover the data exactly; more than 8 dimensions; names with control characters.
//
// A dtype that we know by name but have no use for (F64, F8_E5M2, F4, ...) is checked in full. A dtype of an unknown
// name is not refused by itself, as a checkpoint may hold tensors that nobody asks for: its range takes part in the
// tiling, only the comparison of shape and bytes is left out.
//
// Cost: time O(n log n); memory: the header's bytes, which the caller hands over, and about 45 bytes a tensor, which is
// less than a tensor's shortest legal text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/tensor/dtype.h"

namespace dsv3::weights {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kLengthBytes = 8;  ///< the file begins with the header's length, little-endian
constexpr int kMaxRank = 8;

/// Length of the header in a file of `file_bytes` whose first bytes are `first` (8 of them, fewer if the file is
/// shorter).
Result<size_t> safetensors_header_bytes(std::string_view first, uint64_t file_bytes);

class SafetensorsHeader {
 public:
  struct Tensor {
    std::string_view name;
    std::string_view dtype_text;
    std::optional<DType> dtype;  ///< empty: none that we can read
    std::vector<int64_t> shape;
    uint64_t begin = 0, end = 0;  ///< bytes from the end of the header
  };

  /// `text` is the header, `data_bytes` what follows it in the file.
  static Result<SafetensorsHeader> parse(std::string text, uint64_t data_bytes);

  size_t size() const { return entries_.size(); }
  Tensor tensor(size_t index) const;  ///< in the order of the data
  std::optional<Tensor> find(std::string_view name) const;

 private:
  friend class HeaderParser;
  struct Entry {  // kept small: there may be two million
    uint64_t begin, end;
    uint32_t name_at, name_bytes;
    uint32_t shape_at;  // of the '[' in text_, already proven
    uint32_t dtype_at;
    uint8_t dtype_bytes, rank;
  };
  std::string_view name(const Entry& entry) const {
    return std::string_view(text_).substr(entry.name_at, entry.name_bytes);
  }

  std::string text_;
  std::vector<Entry> entries_;     // by begin
  std::vector<uint32_t> by_name_;  // indices of entries_
};

}  // namespace dsv3::weights
