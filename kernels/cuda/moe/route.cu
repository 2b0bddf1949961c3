// The gate: picks top_k experts from router logits. The rules are those of the CPU's route_row(). A team of warps a row where rows are few
// (a decode step waits for it), else one warp a row; both write the same bits. For very few rows a cluster orders them by expert at once.
#include "expert_order.cuh"
#include "gate.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kWarps = 4;  // rows of a block
constexpr int kMaxGroups = 64, kMaxTopK = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int64_t kTeamRows = 512;  // beyond, a warp a row has the better throughput
constexpr int kTeams = 2, kOrderTeamWarps = 8, kOrderThreads = kTeams * kOrderTeamWarps * 32;
constexpr unsigned kMaxCluster = 8;
static_assert(kTeams * kMaxCluster * (kTeamTopK + 1) <= kOrderThreads, "an entry a thread");

/// Scores of groups are read by several lanes at once: a step of 33 words keeps groups of 32 on different banks.
__device__ inline int padded(int e) {
  return e + e / 32;
}

__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

/// Bit g is set for each of the top_groups groups with the best scores, lowest index first on ties.
__device__ uint64_t choose_groups(const RouteParams& p, const float* choice, uint32_t* group_scores, int lane) {
  const int size = p.experts / p.groups, per_turn = 32 / p.group_lanes;
  for (int begin = 0; begin < p.groups; begin += per_turn) {
    const int group = begin + lane / p.group_lanes;
    float best = -INFINITY, second = -INFINITY;
    if (group < p.groups) {
      for (int i = lane % p.group_lanes; i < size; i += p.group_lanes) {
        const float x = choice[padded(group * size + i)];
        second = fmaxf(second, fminf(best, x));
        best = fmaxf(best, x);
      }
    }
    for (int step = p.group_lanes / 2; step > 0; step /= 2) {
      const float other_best = __shfl_xor_sync(kAll, best, step), other_second = __shfl_xor_sync(kAll, second, step);
      second = fmaxf(fminf(best, other_best), fmaxf(second, other_second));
      best = fmaxf(best, other_best);
    }
    if (group < p.groups && lane % p.group_lanes == 0) group_scores[group] = order_of(p.group_by_top2 && size > 1 ? best + second : best);
  }
  __syncwarp();
  uint32_t low = lane < p.groups ? group_scores[lane] : 0, high = lane + 32 < p.groups ? group_scores[lane + 32] : 0;
  uint64_t kept = 0;
  for (int n = 0; n < p.top_groups; ++n) {
    const uint32_t best = __reduce_max_sync(kAll, max(low, high));
    const unsigned mine = low == best ? lane : high == best ? lane + 32 : kMaxGroups;
    const unsigned group = __reduce_min_sync(kAll, mine);
    kept |= uint64_t{1} << (group % kMaxGroups);
    if (group == lane) low = 0;
    if (group == lane + 32) high = 0;
  }
  return kept;
}

/// Lane l holds experts l, l + 32, ..., kSlots of them.
template <int kSlots>
__global__ __launch_bounds__(kWarps * 32) void route_kernel(const __grid_constant__ RouteParams p) {
  launch_dependents();
  __shared__ float scores[kWarps][kSlots * 32];
  __shared__ float choices[kWarps][kSlots * 33];
  __shared__ uint32_t group_scores[kWarps][kMaxGroups];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  float bias[kSlots];
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int e = s * 32 + lane;
    bias[s] = p.bias != nullptr && e < p.experts ? p.bias[e] : 0.0f;
  }
  wait_for_previous();
  if (row >= p.rows) return;  // whole warps; nothing below waits for the block
  if (p.positions != nullptr && p.positions[row] < 0) {
    for (int k = lane; k < p.columns; k += 32) {
      p.ids[row * p.columns + k] = -1;
      p.weights[row * p.columns + k] = 0.0f;
    }
    return;
  }

  float score[kSlots];
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int e = s * 32 + lane;
    score[s] = e < p.experts ? p.logits[row * p.experts + e] : -INFINITY;
  }
  if (p.sigmoid) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) score[s] = 1.0f / (1.0f + expf(-score[s]));
  } else {
    float top = -INFINITY;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) top = fmaxf(top, score[s]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, step));
    double sum = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      score[s] = expf(score[s] - top);
      if (s * 32 + lane < p.experts) sum += score[s];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) score[s] = static_cast<float>(score[s] / sum);
  }

  uint32_t order[kSlots];  // 0: taken, or no such expert
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int e = s * 32 + lane;
    const float choice = p.bias != nullptr ? score[s] + bias[s] : score[s];
    scores[warp][e] = score[s];
    choices[warp][padded(e)] = choice != choice ? -INFINITY : choice;
    order[s] = e < p.experts ? order_of(choice) : 0;
  }
  __syncwarp();
  if (p.grouped) {
    const uint64_t kept = choose_groups(p, choices[warp], group_scores[warp], lane);
    const int size = p.experts / p.groups;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int e = s * 32 + lane;
      if (e < p.experts && (kept >> (e / size) & 1) == 0) order[s] = order_of(-INFINITY);
    }
  }

  int chosen = 0;  // of lane k: the k-th expert
  for (int k = 0; k < p.top_k; ++k) {
    uint32_t best = 0;
    int at = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (order[s] > best) best = order[s], at = s * 32 + lane;
    }
    const uint32_t top = __reduce_max_sync(kAll, best);  // never 0: top_k <= experts
    const int expert = static_cast<int>(__reduce_min_sync(kAll, best == top ? static_cast<unsigned>(at) : 0xffffu));
    if (lane == k) chosen = expert;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (s * 32 + lane == expert) order[s] = 0;
    }
  }
  float weight = lane < p.top_k ? scores[warp][chosen] : 0.0f, sum = 0;
  for (int k = 0; k < p.top_k; ++k) sum += __shfl_sync(kAll, weight, k);
  if (p.normalise) weight /= sum + 1e-20f;
  if (lane < p.top_k) {
    p.ids[row * p.columns + lane] = chosen;
    p.weights[row * p.columns + lane] = weight * p.factor;
  }
  if (p.columns > p.top_k && lane == 0) {
    p.ids[row * p.columns + p.top_k] = p.shared_id;
    p.weights[row * p.columns + p.top_k] = 1.0f;
  }
}

/// Block: a row.
__global__ __launch_bounds__(kMaxTeamWarps * 32) void team_kernel(const __grid_constant__ RouteParams p) {
  launch_dependents();
  __shared__ TeamShared<kMaxTeamWarps> shared;
  const int thread = static_cast<int>(threadIdx.x);
  const float bias = p.bias != nullptr && thread < p.experts ? p.bias[thread] : 0.0f;
  wait_for_previous();
  route_by_team(p, blockIdx.x, bias, thread, static_cast<int>(blockDim.x) / 32, 1, shared);
}

/// One cluster. Each block routes up to two rows, by two teams side by side; then the first block orders all of them.
__global__ __launch_bounds__(kOrderThreads)
    void route_and_order_kernel(const __grid_constant__ RouteParams p, const __grid_constant__ OrderParams order) {
  launch_dependents();
  __shared__ TeamShared<kOrderTeamWarps> shared[kTeams];
  const int team = static_cast<int>(threadIdx.x) / (kOrderTeamWarps * 32), thread = static_cast<int>(threadIdx.x) % (kOrderTeamWarps * 32);
  const float bias = p.bias != nullptr && thread < p.experts ? p.bias[thread] : 0.0f;
  wait_for_previous();
  const int warps = team_warps(p);
  const int row = static_cast<int>(blockIdx.x + static_cast<unsigned>(team) * gridDim.x);  // so that few rows have an SM each
  if (row < p.rows && thread < warps * 32) route_by_team(p, row, bias, thread, warps, 1 + team, shared[team]);
  __syncwarp();
  cluster_arrive();  // releases the ids that this block wrote
  cluster_wait();
  if (blockIdx.x == 0) order_in_a_block<kOrderThreads, 1>(order);
}

}  // namespace

RouteParams route_params(int64_t rows, const GateShape& gate, const float* logits, const float* bias, const int32_t* positions, int32_t* ids,
                      float* weights, int32_t shared_id) {
  const bool grouped = gate.grouped && gate.groups > 1, normalise = gate.normalise && gate.top_k > 1;
  int group_lanes = 1;
  while (grouped && group_lanes * 2 * gate.groups <= 32) group_lanes *= 2;
  RouteParams p{};
  p.logits = logits, p.bias = bias, p.positions = positions, p.ids = ids, p.weights = weights, p.rows = rows;
  p.experts = static_cast<int32_t>(gate.experts), p.top_k = static_cast<int32_t>(gate.top_k);
  p.groups = static_cast<int32_t>(gate.groups), p.top_groups = static_cast<int32_t>(gate.top_groups);
  p.columns = p.top_k + (shared_id >= 0 ? 1 : 0), p.shared_id = shared_id;
  p.group_lanes = group_lanes, p.factor = normalise && !gate.scale_when_normalised ? 1.0f : gate.scale;
  p.sigmoid = gate.sigmoid, p.group_by_top2 = gate.group_by_top2, p.grouped = grouped, p.normalise = normalise;
  return p;
}

Status check_gate(const char* name, const GateShape& gate, const float* logits, const int32_t* ids, const float* weights) {
  if (gate.experts < 1 || gate.experts > 1024) return wrong(name, std::to_string(gate.experts) + " experts, allowed 1 to 1024");
  if (gate.top_k < 1 || gate.top_k > kMaxTopK || gate.top_k > gate.experts) return wrong(name, "top_k is " + std::to_string(gate.top_k));
  const bool grouped = gate.grouped && gate.groups > 1;
  if (grouped && (gate.groups > kMaxGroups || gate.experts % gate.groups != 0 || gate.top_groups < 1 || gate.top_groups > gate.groups)) {
    return wrong(name, std::to_string(gate.groups) + " groups, " + std::to_string(gate.top_groups) + " of them wanted");
  }
  if (logits == nullptr || ids == nullptr || weights == nullptr) return wrong(name, "a buffer is null");
  return {};
}

Status route(int64_t rows, const GateShape& gate, const float* logits, const float* bias, const int32_t* positions, int32_t* ids,
             float* weights, Stream stream, int32_t shared_id) {
  if (rows == 0) return {};
  DSV3_TRY(check_gate("route", gate, logits, ids, weights));
  const RouteParams p = route_params(rows, gate, logits, bias, positions, ids, weights, shared_id);
  if (rows <= kTeamRows && team_can_route(p)) {
    const LaunchShape team{dim3(static_cast<unsigned>(rows)), dim3(static_cast<unsigned>(team_warps(p) * 32))};
    return launch("route", team_kernel, team, stream, p);
  }
  const LaunchShape shape{dim3(static_cast<unsigned>((rows + kWarps - 1) / kWarps)), dim3(kWarps * 32)};
  if (gate.experts <= 256) return launch("route", route_kernel<8>, shape, stream, p);
  if (gate.experts <= 384) return launch("route", route_kernel<12>, shape, stream, p);
  return launch("route", route_kernel<32>, shape, stream, p);
}

bool routes_and_orders_at_once(int64_t rows, const GateShape& gate, int64_t experts) {
  const RouteParams p = route_params(rows, gate, nullptr, nullptr, nullptr, nullptr, nullptr, -1);
  return rows > 0 && rows <= kTeams * kMaxCluster && experts <= kOrderThreads && team_can_route(p) && team_warps(p) <= kOrderTeamWarps;
}

Status route_and_order(int64_t rows, const GateShape& gate, const float* logits, const float* bias, const int32_t* positions, int32_t* ids,
                       float* weights, int64_t experts, int tile_rows, const ExpertOrder& order, int32_t* scratch, Stream stream,
                       int32_t shared_id) {
  constexpr const char* kName = "route_and_order";
  const int64_t columns = gate.top_k + (shared_id >= 0 ? 1 : 0);
  if (!routes_and_orders_at_once(rows, gate, experts)) {
    DSV3_TRY(route(rows, gate, logits, bias, positions, ids, weights, stream, shared_id));
    return order_by_expert(rows, columns, experts, ids, tile_rows, order, scratch, stream);
  }
  DSV3_TRY(check_gate(kName, gate, logits, ids, weights));
  OrderParams o{};
  DSV3_TRY(check_order(kName, rows, columns, experts, ids, tile_rows, order, &o));
  const RouteParams p = route_params(rows, gate, logits, bias, positions, ids, weights, shared_id);
  unsigned blocks = 1;
  while (blocks < rows && blocks < kMaxCluster) blocks *= 2;
  const LaunchShape shape{dim3(blocks), dim3(kOrderThreads), order_shared_bytes(experts, kOrderThreads), blocks};
  return launch(kName, route_and_order_kernel, shape, stream, p, o);
}

}  // namespace dsv3::cuda
