#include "char_class.h"

#include <algorithm>
#include <array>

namespace dsv3 {
namespace {

constexpr uint32_t kCodePoints = 0x110000;
constexpr uint32_t kPageSize = 256;
using Page = std::array<uint8_t, kPageSize>;

// Writes one class over a page; `next` walks the ranges as the pages ascend.
void paint(std::span<const CodePointRange> ranges, size_t& next, uint32_t base, CharClass kind, Page& page) {
  while (next < ranges.size() && ranges[next].last < base) ++next;
  for (size_t i = next; i < ranges.size() && ranges[i].first < base + kPageSize; ++i) {
    const uint32_t first = std::max(ranges[i].first, base);
    const uint32_t last = std::min(ranges[i].last, base + kPageSize - 1);
    std::fill(page.begin() + (first - base), page.begin() + (last - base) + 1, static_cast<uint8_t>(kind));
  }
}

}  // namespace

CharClasses::CharClasses() {
  size_t letter = 0;
  size_t number = 0;
  size_t punctuation = 0;
  size_t space = 0;
  pages_.reserve(kCodePoints / kPageSize);
  for (uint32_t base = 0; base < kCodePoints; base += kPageSize) {
    Page page{};
    paint(letter_or_mark_ranges(), letter, base, CharClass::kLetterOrMark, page);
    paint(number_ranges(), number, base, CharClass::kNumber, page);
    paint(punctuation_or_symbol_ranges(), punctuation, base, CharClass::kPunctuationOrSymbol, page);
    paint(white_space_ranges(), space, base, CharClass::kSpace, page);
    if (base == 0) page['\r'] = page['\n'] = static_cast<uint8_t>(CharClass::kNewline);

    // Equal pages lie next to each other (CJK, Hangul, unassigned planes), so a look at the last one finds most.
    const bool same = !pages_.empty() && std::equal(page.begin(), page.end(), entries_.begin() + pages_.back());
    if (!same) entries_.insert(entries_.end(), page.begin(), page.end());
    pages_.push_back(static_cast<uint32_t>(entries_.size() - kPageSize));
  }
}

}  // namespace dsv3
