// The merge rules of a byte-level BPE and their application to one piece. Immutable after build; thread safe with a
// Scratch per thread. Never recurses; near-linear in the piece.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"

namespace dsv3 {

inline constexpr int32_t kMaxTokens = 1'000'000;
inline constexpr size_t kMaxMerges = 2'000'000;

struct Merge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t merged = 0;
};

class Merges {
 public:
  static constexpr uint32_t kNoRank = 0xFFFFFFFF;

  /// Reused between pieces so that only the first long one allocates.
  struct Scratch {
    std::vector<int32_t> ids;
    std::vector<uint32_t> ranks;
    std::vector<uint32_t> next;
    std::vector<uint32_t> previous;
    std::vector<uint64_t> heap;
  };

  /// `byte_ids[b]` is the token of the single byte b; `merges` stand in the order of their rank, at most kMaxMerges,
  /// their ids in [0, kMaxTokens). kBadModelFile if two rules merge the same pair.
  static Result<Merges> build(const std::array<int32_t, 256>& byte_ids, std::span<const Merge> merges);

  /// Appends the ids of `piece`: the pair of lowest rank is merged first, the leftmost one where ranks are equal.
  /// `piece` must be shorter than 2^32 bytes.
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

  /// Rank of the rule for a pair, kNoRank if there is none.
  uint32_t rank(int32_t left, int32_t right) const;

 private:
  Merges() = default;

  uint32_t byte_pair_rank(char left, char right) const {
    return byte_pair_ranks_[size_t{static_cast<unsigned char>(left)} << 8 | static_cast<unsigned char>(right)];
  }
  bool fill(std::span<const Merge> merges, size_t& duplicate);
  void encode_short(std::string_view piece, std::vector<int32_t>& ids) const;
  void encode_long(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

  std::array<int32_t, 256> byte_ids_{};
  std::vector<uint32_t> byte_pair_ranks_;  // [65536] the first look-up of every piece, without hashing
  std::vector<int32_t> merged_ids_;        // [rank]
  std::vector<uint64_t> slots_;            // open addressing: pair (40 bits) and rank (24 bits), kEmpty where free
  uint64_t multiplier_ = 0;
  int shift_ = 0;
};

}  // namespace dsv3
