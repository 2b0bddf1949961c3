// How MLA decode is cut into work: shapes the host fixes, and the schedule that the device writes once a step.
//
// The rows x heads query vectors of a group are packed and cut into tiles of 64. A part is a contiguous range over the
// KV blocks of all groups, one behind the other; parts have equal loads whatever the lengths. Block (tile, part) of the
// kernel walks its part for its tile; the blocks of one part run beside each other and share KV through L2.
//
// A part that holds all blocks of a group writes the group's output; a piece of a group goes to a slot of the scratch
// memory (normalised, in FP16, with the row's maximum and sum), and mla_decode_merge joins the pieces, or, of up to
// kPieceRows rows, expand_values() (absorb.h). FP16 is eight times finer than the BF16 that the joined row is rounded to, and
// half the traffic of float32. A mean of normed latents stays far below its limit: 22.7 times the largest gain of the norm. Below 2^-14
// its steps are 2^-24, a 2^-16th of a row's values where the gain is 2^-8.
//
// Deterministic: pieces are the splits of split_blocks() whoever walks them, and are joined one after the other. Where
// all splits fit into the slots, each gets its own. Else (many long sequences) groups stay whole and their block joins
// the splits as it goes ("fold"), with the same arithmetic.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "mla.h"

namespace dsv3::cuda {

inline constexpr int kDecodeTileRows = 64, kMaxDecodeGroups = 1024, kMaxDecodeParts = 256;
inline constexpr int kDecodeSlotsAPart = 4;

struct DecodeShape {
  int tiles = 1;  ///< of a group of max_group_rows rows
  int parts = 1;
  constexpr int slots() const { return kDecodeSlotsAPart * parts; }
};
inline DecodeShape decode_shape(int64_t max_group_rows, int64_t heads, int sms) {
  const int tiles = static_cast<int>((max_group_rows * heads + kDecodeTileRows - 1) / kDecodeTileRows);
  return {tiles, std::clamp(sms / tiles, 1, kMaxDecodeParts)};
}

/// Position in the row of all groups' KV blocks.
struct alignas(8) DecodeCut {
  int32_t group, block;
};
/// Pieces of a group to join. Parts [begin, begin + count) hold them; deterministic: slots [begin, begin + count).
struct alignas(16) DecodeMerge {
  int32_t row_begin, rows;  ///< of the group
  int32_t begin, count;
};
/// Part [begin, end), perhaps empty, and the group that it begins with: all that a block needs to start, in one access.
struct alignas(16) DecodePart {
  DecodeCut begin, end;
  QueryGroup first;
};
struct DecodeSchedule {
  DecodePart part[kMaxDecodeParts];
  int32_t merges, fold, most_pieces;   ///< most_pieces: largest count of a merge
  DecodeMerge merge[kMaxDecodeGroups];
  int32_t slot_begin[kMaxDecodeGroups];  ///< deterministic: slot of a group's first split
};
/// Scratch of MlaWorkspace, by address.
struct DecodeScratch {
  DecodeSchedule* schedule = nullptr;
  float2* stats = nullptr;   ///< [slots][tiles][64]: maximum (of scale * log2 e * score), sum
  __half* output = nullptr;  ///< [slots][tiles][64][512]: of each piece, normalised; 0 where a row saw no key (finite latents)
  float2* folds = nullptr;   ///< [parts][tiles][64 * 512 / 2]: what a block has folded, unnormalised; pairs in the threads' order
};
inline constexpr int kPieceRows = 8;  ///< rows up to which whoever takes the outputs can join the pieces
/// What mla_decode_pieces() leaves to whoever joins the pieces.
struct DecodePieces {
  DecodeShape shape;
  DecodeScratch scratch;  ///< schedule null: nothing to join
};
inline constexpr int64_t kDecodeScheduleBytes = (sizeof(DecodeSchedule) + 255) / 256 * 256;
inline constexpr int64_t kDecodeTilePairs = int64_t{kDecodeTileRows} * kLatent / 2;
/// Query rows of all slots.
inline int64_t decode_slot_rows(const DecodeShape& shape) {
  return int64_t{shape.slots()} * shape.tiles * kDecodeTileRows;
}
inline int64_t decode_scratch_bytes(const DecodeShape& shape) {
  constexpr int64_t kRowBytes = sizeof(float2) + kLatent * sizeof(__half), kFoldBytes = kDecodeTilePairs * sizeof(float2);
  return kDecodeScheduleBytes + decode_slot_rows(shape) * kRowBytes + int64_t{shape.parts} * shape.tiles * kFoldBytes;
}
inline DecodeScratch decode_scratch(void* data, const DecodeShape& shape) {
  char* at = static_cast<char*>(data);
  DecodeScratch scratch;
  scratch.schedule = reinterpret_cast<DecodeSchedule*>(at);
  scratch.stats = reinterpret_cast<float2*>(at + kDecodeScheduleBytes);
  scratch.output = reinterpret_cast<__half*>(scratch.stats + decode_slot_rows(shape));
  scratch.folds = reinterpret_cast<float2*>(scratch.output + decode_slot_rows(shape) * kLatent);
  return scratch;
}

/// KV blocks of a group.
__host__ __device__ inline int group_blocks(const QueryGroup& group) {
  return group.rows > 0 ? (group.start + group.rows + kCacheBlockTokens - 1) / kCacheBlockTokens : 0;
}
/// Deterministic: blocks of a split, from the group's own length alone. At most 8 splits.
__host__ __device__ inline int split_blocks(int blocks) {
  int split = 16;
  while (split * 8 < blocks) split *= 2;
  return split;
}

/// Blocks of a part that is a whole number of groups, or a whole fraction of one, where groups have `of_group` blocks.
/// At least `share`.
__host__ __device__ inline int aligned_share(int share, int of_group) {
  if (share >= of_group) return (share + of_group - 1) / of_group * of_group;
  const int fraction = of_group / share;
  return (of_group + fraction - 1) / fraction;
}

/// Joins the pieces. Launched behind the main kernel.
Status mla_decode_merge(const MlaDecode& p, const DecodeShape& shape, const DecodeScratch& scratch, Stream stream);

}  // namespace dsv3::cuda
