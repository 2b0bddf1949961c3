// The gate of few rows with the list of experts that they hit (ExpertHits), in one cluster: a row a block; then the first
// block collects what the others chose.
#include "../common/inbox.cuh"
#include "../norm/rows.cuh"
#include "gate.cuh"

namespace dsv3::cuda {
namespace {

constexpr char kName[] = "route_hits";
constexpr int kTeamWarps = 8, kThreads = kTeamWarps * 32;  // a thread an expert
constexpr int kColumns = kTeamTopK + 1;                    // with the shared expert
constexpr int kEntries = kHitRows * kColumns;
constexpr int kWords = (kThreads + 1 + 31) / 32;           // a bit an expert
static_assert(kEntries <= kThreads);

struct HitsShared {
  alignas(16) float4 inbox[kHitRows][kColumns];  // the first block's: (id's bits, weight, -, -) of each row's choices
  alignas(8) uint64_t inbox_full;
  uint32_t hit[kWords];
  float weights[kEntries * kHitRows];
};

/// By the first block: thread i has (id, weight) of row i / columns, or id -1. Lowest expert first.
__device__ void collect(const RouteParams& p, const ExpertHits& hits, int32_t id, float weight, int row, HitsShared& s) {
  const int thread = threadIdx.x;
  if (id >= 0) atomicOr(&s.hit[id / 32], 1u << (id % 32));
  __syncthreads();
  int before = 0, all = 0;  // hits before the thread's expert; all of them
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const uint32_t word = s.hit[w];
    all += __popc(word);
    if (id >= 0) before += __popc(w < id / 32 ? word : w == id / 32 ? word & ((1u << (id % 32)) - 1) : 0);
  }
  if (id >= 0) {
    s.weights[before * kHitRows + row] = weight;
    hits.tiles[before] = {id, before * kHitRows, static_cast<int32_t>(p.rows), 0};  // the same from every row that goes there
  }
  __syncthreads();
  for (int i = thread; i < all * kHitRows; i += kThreads) hits.weights[i] = s.weights[i];
  if (thread == 0) *hits.count = all;
}

__global__ __launch_bounds__(kThreads) void route_hits_kernel(const __grid_constant__ RouteParams p, const __grid_constant__ ExpertHits hits) {
  launch_dependents();
  __shared__ TeamShared<kTeamWarps> team;
  __shared__ HitsShared shared;
  const int thread = threadIdx.x, row = blockIdx.x, warps = team_warps(p);
  const float bias = p.bias != nullptr && thread < p.experts ? p.bias[thread] : 0.0f;
  for (int i = thread; i < kEntries * kHitRows; i += kThreads) shared.weights[i] = 0.0f;
  if (thread < kWords) shared.hit[thread] = 0;
  if (gridDim.x > 1) {
    open_inbox(&shared.inbox_full, row == 0 ? static_cast<int>(p.rows - 1) * kColumns * static_cast<int>(sizeof(float4)) : 0);
  }
  __syncthreads();
  wait_for_previous(p);
  RouteChoice choice;
  if (row < p.rows && thread < warps * 32) choice = route_by_team(p, row, bias, thread, warps, 1, team);
  if (gridDim.x == 1) {  // the thread of a column has its choice already
    collect(p, hits, choice.id, choice.weight, 0, shared);
    return;
  }
  const float4 mine{__int_as_float(choice.id), choice.weight, 0, 0};
  __syncwarp();
  cluster_wait();  // the inbox is open
  if (row > 0) {
    if (row < p.rows && thread < kColumns) {
      store_cluster_async(cluster_address(&shared.inbox[row][thread], 0), mine, cluster_address(&shared.inbox_full, 0));
    }
    return;
  }
  if (thread < kColumns) shared.inbox[0][thread] = mine;
  if (thread < 32) barrier_wait(&shared.inbox_full, 0);
  __syncthreads();
  const int from = thread / kColumns;
  float4 entry{__int_as_float(-1), 0, 0, 0};
  if (from < p.rows) entry = shared.inbox[from][thread % kColumns];
  collect(p, hits, __float_as_int(entry.x), entry.y, from, shared);
}

}  // namespace

bool routes_to_hits(int64_t rows, const GateShape& gate) {
  const RouteParams p = route_params(rows, gate, nullptr, nullptr, nullptr, nullptr, nullptr, -1);
  return rows > 0 && rows <= kHitRows && team_can_route(p) && team_warps(p) <= kTeamWarps;
}

Status route_hits(int64_t rows, const GateShape& gate, const float* logits, const float* bias, const int32_t* positions, int32_t* ids,
                  float* weights, const ExpertHits& hits, Stream stream, int32_t shared_id) {
  if (!routes_to_hits(rows, gate)) return wrong(kName, std::to_string(rows) + " rows, or a gate that needs another kernel");
  DSV3_TRY(check_gate(kName, gate, logits, ids, weights));
  const RouteParams p = route_params(rows, gate, logits, bias, positions, ids, weights, shared_id);
  if (shared_id >= 0 && shared_id != p.experts) return wrong(kName, "the shared expert is not the one behind the others");
  if (hits.tiles == nullptr || hits.count == nullptr || hits.weights == nullptr || hits.rows != rows ||
      hits.max_hits < max_hits(rows, p.columns, p.experts + (shared_id >= 0 ? 1 : 0))) {
    return wrong(kName, "a list of " + std::to_string(hits.max_hits) + " hits for " + std::to_string(hits.rows) + " rows is null or short");
  }
  unsigned blocks = 1;
  while (blocks < rows) blocks *= 2;
  return launch(kName, route_hits_kernel, {dim3(blocks), dim3(kThreads), 0, blocks}, stream, p, hits);
}

}  // namespace dsv3::cuda
