#include "merges.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

namespace dsv3 {
namespace {

constexpr uint64_t kEmpty = ~uint64_t{0};
constexpr int kIdBits = 20;
constexpr int kRankBits = 24;
constexpr uint64_t kRankMask = (uint64_t{1} << kRankBits) - 1;
static_assert(kMaxTokens < (1 << kIdBits));
static_assert(kMaxMerges < kRankMask);

// Pairs in a file can be chosen so that they collide. A table whose probes get this long is built anew with another
// multiplier; a file that defeats them all was made to.
constexpr size_t kMaxProbes = 128;
constexpr uint64_t kMultipliers[] = {0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB,
                                     0x8EBC6AF09C88C6E3, 0x589965CC75374CC3, 0x1D8E4E27C47D124F, 0xEB44ACCAB455D165};

// Pieces up to this many bytes are merged by looking at every pair each time, which needs no heap: most words.
constexpr size_t kShortBytes = 48;

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << kIdBits | static_cast<uint64_t>(right);
}

uint64_t mix(uint64_t key, uint64_t multiplier) {
  key *= multiplier;
  return (key ^ key >> 32) * multiplier;
}

}  // namespace

Result<Merges> Merges::build(const std::array<int32_t, 256>& byte_ids, std::span<const Merge> merges) {
  Merges made;
  made.byte_ids_ = byte_ids;
  made.merged_ids_.reserve(merges.size());
  for (const Merge& merge : merges) made.merged_ids_.push_back(merge.merged);

  const size_t slots = std::bit_ceil(std::max<size_t>(16, merges.size() * 2));
  made.shift_ = 64 - std::countr_zero(slots);
  bool placed = false;
  size_t duplicate = std::numeric_limits<size_t>::max();
  for (const uint64_t multiplier : kMultipliers) {
    made.multiplier_ = multiplier;
    made.slots_.assign(slots, kEmpty);
    placed = made.fill(merges, duplicate);
    if (placed || duplicate < merges.size()) break;
  }
  if (duplicate < merges.size()) {
    return Status(Code::kBadModelFile,
                  "tokenizer.json: model.merges[" + std::to_string(duplicate) + "] merges a pair a second time");
  }
  if (!placed) return Status(Code::kBadModelFile, "tokenizer.json: model.merges has pairs that collide too often");

  made.byte_pair_ranks_.resize(256 * 256);
  for (size_t left = 0; left < 256; ++left) {
    for (size_t right = 0; right < 256; ++right) {
      made.byte_pair_ranks_[left << 8 | right] = made.rank(byte_ids[left], byte_ids[right]);
    }
  }
  return made;
}

bool Merges::fill(std::span<const Merge> merges, size_t& duplicate) {
  const size_t mask = slots_.size() - 1;
  for (size_t i = 0; i < merges.size(); ++i) {
    const uint64_t key = pair_key(merges[i].left, merges[i].right);
    size_t slot = mix(key, multiplier_) >> shift_;
    size_t probes = 0;
    for (; slots_[slot] != kEmpty; slot = (slot + 1) & mask) {
      if (slots_[slot] >> kRankBits == key) {
        duplicate = i;
        return false;
      }
      if (++probes > kMaxProbes) return false;
    }
    slots_[slot] = key << kRankBits | i;
  }
  return true;
}

uint32_t Merges::rank(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  const size_t mask = slots_.size() - 1;
  for (size_t slot = mix(key, multiplier_) >> shift_;; slot = (slot + 1) & mask) {
    const uint64_t entry = slots_[slot];
    if (entry >> kRankBits == key) return static_cast<uint32_t>(entry & kRankMask);
    if (entry == kEmpty) return kNoRank;
  }
}

void Merges::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (piece.size() <= kShortBytes) {
    encode_short(piece, ids);
  } else {
    encode_long(piece, scratch, ids);
  }
}

void Merges::encode_short(std::string_view piece, std::vector<int32_t>& ids) const {
  size_t count = piece.size();
  if (count == 0) return;
  int32_t symbols[kShortBytes];
  uint32_t ranks[kShortBytes];  // ranks[i]: of symbols[i] and symbols[i + 1]
  for (size_t i = 0; i < count; ++i) symbols[i] = byte_ids_[static_cast<unsigned char>(piece[i])];
  for (size_t i = 0; i + 1 < count; ++i) ranks[i] = byte_pair_rank(piece[i], piece[i + 1]);

  while (count > 1) {
    const uint32_t* lowest = std::min_element(ranks, ranks + count - 1);  // the first one of equals: leftmost
    if (*lowest == kNoRank) break;
    const auto at = static_cast<size_t>(lowest - ranks);
    symbols[at] = merged_ids_[*lowest];
    --count;
    std::copy(symbols + at + 2, symbols + count + 1, symbols + at + 1);
    if (at + 1 < count) {
      std::copy(ranks + at + 2, ranks + count, ranks + at + 1);
      ranks[at] = rank(symbols[at], symbols[at + 1]);
    }
    if (at > 0) ranks[at - 1] = rank(symbols[at - 1], symbols[at]);
  }
  ids.insert(ids.end(), symbols, symbols + count);
}

// A linked list of symbols and a heap of pairs by (rank, position). Only a pair that goes before both its neighbours
// waits in the heap: the first of all pairs is always such a one, and the heap stays small and in cache. A pair that
// changed leaves its old entry behind; it no longer agrees with ranks[] and is passed over. A merge adds four entries
// at most, so this is n log n.
void Merges::encode_long(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  DSV3_CHECK(piece.size() < std::numeric_limits<uint32_t>::max(), "piece too long for 32-bit positions");
  constexpr uint32_t kEnd = std::numeric_limits<uint32_t>::max();
  const auto count = static_cast<uint32_t>(piece.size());
  std::vector<int32_t>& symbols = scratch.ids;
  std::vector<uint32_t>& ranks = scratch.ranks;
  std::vector<uint32_t>& next = scratch.next;
  std::vector<uint32_t>& previous = scratch.previous;
  std::vector<uint64_t>& heap = scratch.heap;
  symbols.resize(count);
  ranks.resize(count);
  next.resize(count);
  previous.resize(count);
  heap.clear();

  // ranks[i] is that of the pair that symbols[i] begins; equal ranks go from left to right.
  const auto goes_before_neighbours = [&](uint32_t at) {
    const uint32_t rank = ranks[at];
    return rank != kNoRank && (previous[at] == kEnd || ranks[previous[at]] > rank) &&
           (next[at] == kEnd || ranks[next[at]] >= rank);
  };
  const auto entry = [&](uint32_t at) { return static_cast<uint64_t>(ranks[at]) << 32 | at; };
  const auto offer = [&](uint32_t at) {
    if (!goes_before_neighbours(at)) return;
    heap.push_back(entry(at));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  const auto set_rank = [&](uint32_t at) {
    ranks[at] = next[at] == kEnd ? kNoRank : rank(symbols[at], symbols[next[at]]);
  };

  for (uint32_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    symbols[i] = byte_ids_[static_cast<unsigned char>(piece[i])];
    ranks[i] = last ? kNoRank : byte_pair_rank(piece[i], piece[i + 1]);
    next[i] = last ? kEnd : i + 1;
    previous[i] = i == 0 ? kEnd : i - 1;
  }
  for (uint32_t i = 0; i < count; ++i) {
    if (goes_before_neighbours(i)) heap.push_back(entry(i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto at = static_cast<uint32_t>(heap.back());
    const auto rank_then = static_cast<uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (ranks[at] != rank_then) continue;

    const uint32_t gone = next[at];
    const uint32_t after = next[gone];
    const uint32_t before = previous[at];
    const uint32_t before_that = before == kEnd ? kEnd : previous[before];
    // The pairs on the far sides stay as they are, but may have waited for a pair that goes now.
    const bool after_waited = after != kEnd && ranks[gone] <= ranks[after];
    const bool before_that_waited = before_that != kEnd && ranks[before] < ranks[before_that];

    symbols[at] = merged_ids_[rank_then];
    next[at] = after;
    if (after != kEnd) previous[after] = at;
    ranks[gone] = kNoRank;
    set_rank(at);
    if (before != kEnd) set_rank(before);

    offer(at);
    if (before != kEnd) offer(before);
    if (after_waited) offer(after);
    if (before_that_waited) offer(before_that);
  }

  for (uint32_t at = 0; at != kEnd; at = next[at]) ids.push_back(symbols[at]);
}

}  // namespace dsv3
