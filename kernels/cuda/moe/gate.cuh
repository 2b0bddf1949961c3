// The gate on one row by a team of warps, one thread an expert: for few rows, where latency is all. Same results as route_kernel.
#pragma once

#include "../common/ptx.cuh"
#include "moe.h"

namespace dsv3::cuda {

struct RouteParams {
  const float* logits;       // [rows, experts]
  const float* bias;         // [experts] or null
  const int32_t* positions;  // or null
  int32_t* ids;              // [rows, columns]
  float* weights;            // [rows, columns]
  int64_t rows;
  int32_t experts, top_k, groups, top_groups;
  int32_t columns;      // top_k, or top_k + 1 with a shared expert
  int32_t shared_id;    // or -1
  int32_t group_lanes;  // lanes that look at one group: a power of two, groups * group_lanes <= 32 (or 1)
  float factor;
  bool sigmoid, group_by_top2, grouped, normalise;
};

/// An unsigned number in the order of x; ties of +0 and -0 are ties, NaN counts as minus infinity. Never 0: that is "taken".
__device__ inline uint32_t order_of(float x) {
  if (x != x) x = -INFINITY;
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float value_of(uint32_t order) { return __uint_as_float(order ^ ((order >> 31) != 0 ? 0x80000000u : 0xffffffffu)); }

inline constexpr int kTeamTopK = 8;  ///< at most so many experts of one warp can be chosen
inline constexpr int kMaxTeamWarps = 32;

/// True where a team can do the gate: groups, if any, are whole warps.
inline bool team_can_route(const RouteParams& p) {
  return p.sigmoid && p.top_k <= kTeamTopK && p.experts <= kMaxTeamWarps * 32 && (!p.grouped || p.experts == p.groups * 32);
}
__host__ __device__ inline int team_warps(const RouteParams& p) { return (p.experts + 31) / 32; }

template <int kWarps>
struct TeamShared {
  alignas(16) uint32_t orders[kWarps * 32];
  uint32_t group_scores[kWarps];
  uint32_t best[kWarps * kTeamTopK];  // the 8 best of each warp, in order
  float score[kWarps * kTeamTopK];
  int32_t expert[kWarps * kTeamTopK];
  int32_t chosen[kTeamTopK];
  float chosen_score[kTeamTopK];
};

/// The launchers' parameters, and what they demand of a gate.
RouteParams route_params(int64_t rows, const GateShape& gate, const float* logits, const float* bias, const int32_t* positions,
                         int32_t* ids, float* weights, int32_t shared_id);
Status check_gate(const char* name, const GateShape& gate, const float* logits, const int32_t* ids, const float* weights);

/// What the thread of column `thread` has written of its row, or id -1 where there is no such column.
struct RouteChoice {
  int32_t id = -1;
  float weight = 0.0f;
};

/// Routes a row by `warps` warps, of which this is thread `thread`; `barrier` is theirs. After wait_for_previous(). `bias`: of the thread's expert.
template <int kWarps>
__device__ inline RouteChoice route_by_team(const RouteParams& p, int64_t row, float bias, int thread, int warps, int barrier,
                                     TeamShared<kWarps>& s) {
  const int lane = thread % 32, warp = thread / 32;
  const float x = thread < p.experts ? p.logits[row * p.experts + thread] : 0.0f;
  int32_t* ids = p.ids + row * p.columns;
  float* weights = p.weights + row * p.columns;
  if (p.positions != nullptr && p.positions[row] < 0) {  // padding; the whole team agrees
    if (thread < p.columns) ids[thread] = -1, weights[thread] = 0.0f;
    return {};
  }
  const float score = 1.0f / (1.0f + expf(-x));
  uint32_t order = thread < p.experts ? order_of(p.bias != nullptr ? score + bias : score) : 0;
  s.orders[thread] = order;
  if (p.grouped) {  // a group is a warp
    constexpr unsigned kAll = 0xffffffffu;
    const uint32_t best = __reduce_max_sync(kAll, order);
    uint32_t group = best;
    if (p.group_by_top2) {
      const unsigned holders = __ballot_sync(kAll, order == best);
      const uint32_t other = __reduce_max_sync(kAll, order == best ? 0 : order);
      group = order_of(value_of(best) + value_of(__popc(holders) > 1 ? best : other));
    }
    if (lane == 0) s.group_scores[warp] = group;
  }
  __syncwarp();
  int rank = 0;  // in the warp; of equals the lower index comes first
  const uint4* orders = reinterpret_cast<const uint4*>(s.orders + warp * 32);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const uint4 four = orders[j];
    const uint32_t other[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) rank += other[i] > order || (other[i] == order && 4 * j + i < lane) ? 1 : 0;
  }
  named_barrier_sync(barrier, warps * 32);
  if (p.grouped) {
    const uint32_t mine = s.group_scores[warp], other = lane < warps ? s.group_scores[lane] : 0;
    const unsigned before = __ballot_sync(0xffffffffu, other > mine || (other == mine && lane < warp));
    if (__popc(before) >= p.top_groups) order = order_of(-INFINITY), rank = lane;
  }
  if (rank < kTeamTopK) {
    const int at = warp * kTeamTopK + rank;
    s.best[at] = order, s.score[at] = score, s.expert[at] = thread;
  }
  named_barrier_sync(barrier, warps * 32);
  // Four threads rank one of the warps * 8 candidates. Equal ones lie in the order of their experts.
  const int candidate = thread / 4, part = thread % 4;
  const uint32_t mine = s.best[candidate];
  int place = 0;
#pragma unroll 8
  for (int i = part; i < warps * kTeamTopK; i += 4) {
    const uint32_t other = s.best[i];
    place += other > mine || (other == mine && i < candidate) ? 1 : 0;
  }
  place += __shfl_xor_sync(0xffffffffu, place, 1);
  place += __shfl_xor_sync(0xffffffffu, place, 2);
  if (part == 0 && place < p.top_k) s.chosen[place] = s.expert[candidate], s.chosen_score[place] = s.score[candidate];
  named_barrier_sync(barrier, warps * 32);
  RouteChoice choice;
  if (thread < p.top_k) {
    float weight = s.chosen_score[thread];
    if (p.normalise) {
      float sum = 0;
#pragma unroll
      for (int k = 0; k < kTeamTopK; ++k) {
        if (k < p.top_k) sum += s.chosen_score[k];
      }
      weight /= sum + 1e-20f;
    }
    choice = {s.chosen[thread], weight * p.factor};
  } else if (thread < p.columns) {
    choice = {p.shared_id, 1.0f};
  }
  if (thread < p.columns) ids[thread] = choice.id, weights[thread] = choice.weight;
  return choice;
}

}  // namespace dsv3::cuda
