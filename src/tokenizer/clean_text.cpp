#include "clean_text.h"

#include "utf8.h"

namespace dsv3 {

CleanText::CleanText(std::string_view text, std::span<const ByteRange> untrusted) : text_(text), untrusted_(untrusted) {
  const size_t valid_bytes = valid_utf8_prefix(text);
  if (valid_bytes < text.size()) replace(valid_bytes);
}

void CleanText::replace(size_t valid_bytes) {
  for (const ByteRange& range : untrusted_) {
    if (range.begin < range.end) moved_ranges_.push_back(range);
  }
  size_t next_begin = 0;  // ranges before this one have their new begin, the same for their end
  size_t next_end = 0;
  replaced_text_.reserve(text_.size() + text_.size() / 8);
  replaced_text_.assign(text_.substr(0, valid_bytes));

  // Moves the ranges' places in text_[from, to), which has just become replaced_text_[now_from, now_to).
  const auto move = [&](size_t from, size_t to, size_t now_from, size_t now_to, bool kept) {
    for (; next_begin < moved_ranges_.size() && moved_ranges_[next_begin].begin < to; ++next_begin) {
      size_t& place = moved_ranges_[next_begin].begin;
      place = kept ? now_from + (place - from) : now_from;
    }
    for (; next_end < moved_ranges_.size() && moved_ranges_[next_end].end <= to; ++next_end) {
      size_t& place = moved_ranges_[next_end].end;
      place = kept ? now_from + (place - from) : now_to;
    }
  };

  move(0, valid_bytes, 0, valid_bytes, true);
  for (size_t at = valid_bytes; at < text_.size();) {
    const Utf8Step step = utf8_step(text_, at);
    const bool kept = step.kind == Utf8Kind::kValid;
    const size_t now = replaced_text_.size();
    replaced_text_.append(kept ? text_.substr(at, step.bytes) : kReplacementCharacter);
    move(at, at + step.bytes, now, replaced_text_.size(), kept);
    at += step.bytes;
  }
  text_ = replaced_text_;
  untrusted_ = moved_ranges_;
}

}  // namespace dsv3
