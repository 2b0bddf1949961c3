// Device side of the schedule: every role of the decode kernel walks the same pieces in the same order.
#pragma once

#include "mla_decode_plan.h"

namespace dsv3::cuda {

struct DecodePiece {
  QueryGroup group;
  int index;        ///< of the group
  int first, last;  ///< KV blocks [first, last) of `blocks`
  int blocks;
  int slot;  ///< -1: the whole group, written to the output
};

/// 16 bytes from L2: who reads before wait_for_previous() could find what an earlier step left in the multiprocessor's cache.
template <class T>
__device__ __forceinline__ int4 read_fresh(const T* at) {
  return __ldcg(reinterpret_cast<const int4*>(at));
}

/// Calls work(piece) for the pieces of (part, tile). kEarly: perhaps before wait_for_previous().
template <bool kEarly = false, class Work>
__device__ __forceinline__ void for_each_piece(const MlaDecode& p, const DecodeSchedule& schedule,
                                               const DecodeShape& shape, int part, int tile, Work&& work) {
  const DecodePart& mine = schedule.part[part];
  DecodeCut begin = mine.begin, end = mine.end;
  if constexpr (kEarly) {
    const int4 cuts = read_fresh(&mine.begin);
    begin = {cuts.x, cuts.y}, end = {cuts.z, cuts.w};
  }
  const bool fold = p.deterministic && schedule.fold != 0;
  int first = begin.block;
  for (int g = begin.group; g < end.group || (g == end.group && end.block > 0); ++g, first = 0) {
    DecodePiece piece;
    const QueryGroup* const at = g == begin.group ? &mine.first : p.groups + g;
    if constexpr (kEarly) {
      const int4 group = read_fresh(at);
      piece.group = {group.x, group.y, group.z, group.w};
    } else {
      piece.group = *at;
    }
    if (piece.group.rows * p.heads <= tile * kDecodeTileRows) continue;
    piece.index = g;
    piece.blocks = group_blocks(piece.group);
    const int stop = g < end.group ? piece.blocks : end.block;
    const int step = p.deterministic ? split_blocks(piece.blocks) : piece.blocks;
    for (piece.first = first; piece.first < stop; piece.first = piece.last) {
      piece.last = min(stop, (piece.first / step + 1) * step);
      if (piece.first == 0 && piece.last == piece.blocks) {
        piece.slot = -1;
      } else if (!p.deterministic) {
        piece.slot =
            2 * part + (piece.first == 0 ? 1 : 0);  // a part holds at most two: one that goes on, one that was begun
      } else {
        piece.slot = fold ? shape.slots() + part : schedule.slot_begin[g] + piece.first / step;
      }
      work(piece);
    }
  }
}

/// What normalises a row of a piece: 0 where it saw no key.
__device__ __forceinline__ float inverse_of(float sum) { return sum == 0.0f ? 0.0f : __frcp_rn(sum); }

/// One row's state of the online softmax without its output.
struct DecodeFold {
  float top = -INFINITY, sum = 0;
};
/// Joins `next` to `state`; the unnormalised output becomes output * keep + next's normalised one * add. Both users of this must
/// round alike: no contraction.
__device__ __forceinline__ void fold_row(DecodeFold& state, const DecodeFold& next, float& keep, float& add) {
  const float top = fmaxf(state.top, next.top);
  keep = exp2f(__fsub_rn(state.top, top));
  add = __fmul_rn(exp2f(__fsub_rn(next.top, top)), next.sum);
  state.sum = __fmaf_rn(state.sum, keep, add);
  state.top = top;
}
__device__ __forceinline__ float fold_value(float state, float next, float keep, float add) {
  return __fmaf_rn(next, add, __fmul_rn(state, keep));
}

}  // namespace dsv3::cuda
