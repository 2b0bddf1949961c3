// A text made valid UTF-8, with the untrusted ranges moved along. Copies only where something was invalid.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/tokenizer/tokenizer.h"

namespace dsv3 {

/// Views `text` and `untrusted` where nothing had to change: they must outlive it.
class CleanText {
 public:
  /// Every maximal invalid subsequence becomes U+FFFD. A range that touches a part of one covers the whole U+FFFD.
  CleanText(std::string_view text, std::span<const ByteRange> untrusted);
  CleanText(const CleanText&) = delete;
  CleanText& operator=(const CleanText&) = delete;

  std::string_view text() const { return text_; }
  std::span<const ByteRange> untrusted() const { return untrusted_; }  ///< ascending; may overlap at a U+FFFD

 private:
  void replace(size_t valid_bytes);

  std::string_view text_;
  std::span<const ByteRange> untrusted_;
  std::string replaced_text_;
  std::vector<ByteRange> moved_ranges_;
};

}  // namespace dsv3
