// The pieces that parts of MLA decode left of a group, read by whoever joins them: mla_decode_merge.cu, or the product that
// takes their sum (expand.cu).
#pragma once

#include "../common/ptx.cuh"
#include "../norm/rows.cuh"
#include "mla_decode_work.cuh"

namespace dsv3::cuda {

/// One query row (head `query % heads` of row `query / heads` of its group) of a group whose pieces several parts left.
struct MergeRow {
  const DecodeScratch& scratch;
  int begin, count;
  bool deterministic;
  int first, step;  ///< row of piece 0 in the scratch, rows of a slot

  __device__ MergeRow(const DecodeScratch& s, const DecodeShape& shape, const DecodeMerge& merge, bool in_order,
                      int query)
      : scratch(s),
        begin(merge.begin),
        count(merge.count),
        deterministic(in_order),
        step(shape.tiles * kDecodeTileRows) {
    first = (deterministic ? begin : 2 * begin + 1) * step + query;
  }
  /// As for_each_piece() numbers the slots: one after the other, or 2 part (+ 1 for the group's first piece).
  __device__ int at(int k) const { return first + (deterministic || k == 0 ? k : 2 * k - 1) * step; }
  /// A part without a block left its slot alone.
  __device__ bool exists(int k) const {
    if (deterministic) return true;
    const int4 part = read_fresh(&scratch.schedule->part[begin + k]);
    return part.x != part.z || part.y != part.w;
  }
  __device__ float2 stats(int k) const { return scratch.stats[at(k)]; }
  /// Eight latents from `column` on.
  __device__ uint4 values(int k, int column) const {
    return *reinterpret_cast<const uint4*>(scratch.output + static_cast<int64_t>(at(k)) * kLatent + column);
  }
};

/// Eight values of a piece, taken apart.
__device__ __forceinline__ void unpack_f16(const uint4& raw, float (&v)[8]) {
  const __half2* const pairs = reinterpret_cast<const __half2*>(&raw);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = __half22float2(pairs[i]);
    v[2 * i] = two.x, v[2 * i + 1] = two.y;
  }
}
/// sum += weight * the eight values of a piece.
__device__ __forceinline__ void add_piece(float (&sum)[8], float weight, const uint4& raw) {
  float v[8];
  unpack_f16(raw, v);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = fmaf(weight, v[i], sum[i]);
}

/// Joins the pieces of all groups that the schedule lists, for one head and `kWidth` of the 512 latents from `column` on, by all
/// kWarps warps of a block: teams of warps take a row each, side by side. For few rows. Not for deterministic mode: pieces are summed by
/// strands. find() reads the schedule only, which is older than the kernel that leaves the pieces.
template <int kWarps, int kWidth>
class SliceMerge {
 public:
  struct Shared {
    int merges;
    DecodeMerge merge[kPieceRows];
    float weights[kWarps][kMaxDecodeParts];
    alignas(16) float sums[kWarps][kWidth];
  };

  /// By all threads: has a barrier of the block. One warp reads for the others, as many blocks do the same.
  __device__ SliceMerge(const DecodePieces& pieces, int heads, int head, int column, Shared& shared)
      : pieces_(pieces), heads_(heads), head_(head), column_(column), shared_(shared) {
    if (threadIdx.x < 32) {
      const int merges = min(__ldcg(&schedule().merges), kPieceRows), m = threadIdx.x;
      if (m == 0) shared.merges = merges;
      if (m < kPieceRows) {
        const int4 merge = read_fresh(&schedule().merge[m]);
        shared.merge[m] = m < merges ? DecodeMerge{merge.x, merge.y, merge.z, merge.w} : DecodeMerge{0, 0, 0, 0};
      }
    }
    __syncthreads();
    for (int m = 0; m < shared.merges; ++m) rows_ += shared.merge[m].rows;
    while (team_warps_ > 1 && team_warps_ * rows_ > kWarps) team_warps_ /= 2;
    find(0);
  }

  /// store(row, i, values): eight neighbouring latents, column + 8 i, of the batch's row, normalised. Where there are any, the block's
  /// copies (cp.async) have come before, and it ends with a barrier of the block.
  template <class Store>
  __device__ void run(Store&& store) {
    const int teams = kWarps / team_warps_;
    for (int begin = 0; begin < rows_; begin += teams) {
      if (begin > 0) find(begin);
      join(store);
    }
  }

 private:
  static constexpr int kVectors = kWidth / 8, kStrands = 32 / kVectors;  // of a warp
  static constexpr int kRounds = kMaxDecodeParts / 32, kAhead = 4;
  static_assert(kVectors <= 32 && kWarps <= 16);

  __device__ const DecodeSchedule& schedule() const { return *pieces_.scratch.schedule; }
  __device__ MergeRow row() const { return MergeRow(pieces_.scratch, pieces_.shape, merge_, false, row_ * heads_ + head_); }

  /// The team's row: the list's row `begin + team`.
  __device__ void find(int begin) {
    row_ = begin + static_cast<int>(threadIdx.x) / 32 / team_warps_;
    merge_ = {0, 0, 0, 0};
    for (int m = 0; m < shared_.merges; ++m) {
      if (row_ < shared_.merge[m].rows) {
        merge_ = shared_.merge[m];
        break;
      }
      row_ -= shared_.merge[m].rows;
    }
    exist_ = 0;
#pragma unroll
    for (int j = 0; j < kRounds; ++j) {
      const int k = static_cast<int>(threadIdx.x) % 32 + 32 * j;
      if (k < merge_.count && row().exists(k)) exist_ |= 1u << j;
    }
  }

  template <class Store>
  __device__ void join(Store&& store) {
    Shared& shared = shared_;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, member = warp % team_warps_;
    const MergeRow from = row();
    const int count = merge_.count;
    const int strand = member * kStrands + lane / kVectors, strands = team_warps_ * kStrands, vector = lane % kVectors;
    const auto load = [&](int k) {
      return k < count ? from.values(k, column_ + 8 * vector) : uint4{0, 0, 0, 0};  // not used where there is no piece
    };
    uint4 ahead[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) ahead[j] = load(strand + j * strands);

    // Every warp finds the weights of all pieces for itself.
    float2 stats[kRounds];
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < kRounds; ++j) {
      stats[j] = (exist_ >> j & 1) != 0 ? from.stats(lane + 32 * j) : float2{-INFINITY, 0};
      top = fmaxf(top, stats[j].x);
    }
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
#pragma unroll
    for (int j = 0; j < kRounds; ++j) {
      if (32 * j >= count) break;
      const float weight = exp2f(stats[j].x - top) * stats[j].y;  // some piece holds key 0, so top is finite
      sum += weight;
      shared.weights[warp][lane + 32 * j] = weight;
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    __syncwarp();

    float out[8] = {};
    const auto add = [&](int k, const uint4& values) {
      const float weight = k < count ? shared.weights[warp][k] : 0.0f;
      if (weight != 0.0f) add_piece(out, weight, values);  // what was not written may be NaN
    };
#pragma unroll
    for (int j = 0; j < kAhead; ++j) add(strand + j * strands, ahead[j]);
    for (int k = strand + kAhead * strands; k < count; k += strands) add(k, load(k));
#pragma unroll
    for (int step = kVectors; step < 32; step *= 2) {
#pragma unroll
      for (float& value : out) value += __shfl_xor_sync(~0u, value, step);
    }
    float* const sums = shared.sums[warp] + 8 * vector;
    if (lane < kVectors) store_vector(sums, out);
    cp_async_wait<0>();
    __syncthreads();
    if (count > 0 && member == 0 && lane < kVectors) {
      for (int w = 1; w < team_warps_; ++w) {
        float more[8];
        load_floats(sums + w * kWidth, more);
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] += more[i];
      }
      const float inverse = __frcp_rn(sum);
#pragma unroll
      for (float& value : out) value *= inverse;
      store(merge_.row_begin + row_, vector, out);
    }
    __syncthreads();  // what was stored is there, and the arrays serve the next rows
  }

  const DecodePieces& pieces_;
  int heads_, head_, column_;
  Shared& shared_;
  int rows_ = 0, team_warps_ = kWarps;  ///< rows of the list; warps of a row
  DecodeMerge merge_{};                 ///< of the team's row; count 0: none
  int row_ = 0;                         ///< in its group
  uint32_t exist_ = 0;                  ///< bit j: piece lane + 32 j was written
};

}  // namespace dsv3::cuda
