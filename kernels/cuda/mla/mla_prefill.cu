// Prefill attention for Hopper: flash attention with widths 192 / 128. One block per SM takes (tile of 128 queries, head)
// items in the order of PrefillPlan. Warpgroup 0 loads (one thread, TMA), warpgroups 1 and 2 compute 64 query rows each:
//   S = Q K^T (wgmma, both from shared memory), softmax in registers, O += P V (P from registers, V as stored: [key][column]).
// The next S is issued before the softmax of the current one, and the two warpgroups issue their products in turns, so that
// one's softmax runs under the other's products. Keys are walked from the last visible one down: masked steps come first.
#include <cuda_bf16.h>
#include <math_constants.h>

#include <algorithm>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "../common/tensor_map.h"
#include "../common/wgmma.cuh"
#include "mla_prefill.cuh"
#include "mla_prefill_softmax.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kThreads = 384, kMathThreads = 256, kGroupThreads = 128, kMathWarps = 8;
constexpr int kStages = 2;
constexpr int kSlabBytes = kPrefillTile * 128;                    // 128 rows of 64 columns: one TMA box, rows swizzled by 128 bytes
constexpr int kKeySlabs = kQueryHead / 64, kValueSlabs = kValue / 64;
constexpr int kKeyBytes = kKeySlabs * kSlabBytes, kValueBytes = kValueSlabs * kSlabBytes;
constexpr int kSharedBytes = kKeyBytes * (1 + kStages) + kValueBytes * kStages + 256 + 1024;  // barriers, alignment
constexpr int kTurnBarrier = 1, kGroupBarrier = 3;                // named barriers, + math warpgroup

struct PrefillParams {
  CUtensorMap q, kv, k_rope;
  PrefillPlan plan;
  Bf16* out;
  float* lse;
  int64_t out_stride;
  float softmax_scale;
  int32_t items;
  bool merge;
};
static_assert(sizeof(PrefillParams) <= 4096);

/// Shared memory, on 1024 bytes.
struct Shared {
  uint8_t* q;                                 // [3 slabs][128 rows][128 bytes]
  uint8_t* k;                                 // [stage][3 slabs][128 keys][128 bytes]
  uint8_t* v;                                 // [stage][2 slabs][128 keys][128 bytes]
  uint64_t *q_full, *q_empty;
  uint64_t *k_full, *k_empty, *v_full, *v_empty;  // [stage]
};

__device__ Shared shared_layout(uint8_t* raw) {
  Shared s;
  s.q = raw + ((1024u - (shared_address(raw) & 1023u)) & 1023u);
  s.k = s.q + kKeyBytes;
  s.v = s.k + kStages * kKeyBytes;
  auto* barriers = reinterpret_cast<uint64_t*>(s.v + kStages * kValueBytes);
  s.q_full = barriers;
  s.q_empty = barriers + 1;
  s.k_full = barriers + 2;
  s.k_empty = barriers + 4;
  s.v_full = barriers + 6;
  s.v_empty = barriers + 8;
  return s;
}

/// One thread. Step t of the block (over all its items) uses stage t % 2 of K and of V. Order per item: K of the first step, Q,
/// then K of step i + 1 before V of step i, as the math warpgroups need them.
__device__ void load_tiles(const PrefillParams& p, const Shared& shared) {
  uint32_t loaded_k = 0, loaded_v = 0, loaded_q = 0;
  for (int32_t round = 0;; ++round) {
    const int32_t ordinal = prefill_ordinal(p.items, static_cast<int32_t>(gridDim.x), static_cast<int32_t>(blockIdx.x), round);
    if (ordinal < 0) break;  // only the last round has gaps
    const PrefillItem item = prefill_item(p.plan, ordinal);
    const PrefillSpan span = p.plan.spans[item.span];
    const int32_t steps = prefill_steps(span, item.tile);
    const int kv_column = item.head * (kNope + kValue);
    const auto load_k = [&](int32_t step) {
      const uint32_t stage = loaded_k % kStages, parity = (loaded_k / kStages) & 1;
      ++loaded_k;
      const int row = span.key_begin + step * kPrefillTile;
      uint8_t* to = shared.k + stage * kKeyBytes;
      barrier_wait(&shared.k_empty[stage], parity ^ 1);
      barrier_expect(&shared.k_full[stage], kKeyBytes);
      tma_load_2d(to, &p.kv, &shared.k_full[stage], kv_column, row);
      tma_load_2d(to + kSlabBytes, &p.kv, &shared.k_full[stage], kv_column + 64, row);
      tma_load_2d(to + 2 * kSlabBytes, &p.k_rope, &shared.k_full[stage], 0, row);
    };
    const auto load_v = [&](int32_t step) {
      const uint32_t stage = loaded_v % kStages, parity = (loaded_v / kStages) & 1;
      ++loaded_v;
      const int row = span.key_begin + step * kPrefillTile;
      uint8_t* to = shared.v + stage * kValueBytes;
      barrier_wait(&shared.v_empty[stage], parity ^ 1);
      barrier_expect(&shared.v_full[stage], kValueBytes);
      tma_load_2d(to, &p.kv, &shared.v_full[stage], kv_column + kNope, row);
      tma_load_2d(to + kSlabBytes, &p.kv, &shared.v_full[stage], kv_column + kNope + 64, row);
    };
    if (steps == 0) continue;
    load_k(steps - 1);
    barrier_wait(shared.q_empty, (loaded_q & 1) ^ 1);
    ++loaded_q;
    barrier_expect(shared.q_full, kKeyBytes);
    for (int slab = 0; slab < kKeySlabs; ++slab) {
      tma_load_2d(shared.q + slab * kSlabBytes, &p.q, shared.q_full, item.head * kQueryHead + 64 * slab,
                  span.row_begin + item.tile * kPrefillTile);
    }
    for (int32_t step = steps - 1; step > 0; --step) {
      load_k(step - 1);
      load_v(step);
    }
    load_v(0);
  }
}

/// Issues S[64, 128] = Q[64, 192] K[128, 192]^T.
__device__ inline void issue_scores(float (&s)[64], uint64_t q, uint64_t k) {
#pragma unroll
  for (int i = 0; i < kQueryHead / 16; ++i) {
    const uint64_t offset = static_cast<uint64_t>((i / 4) * (kSlabBytes >> 4) + (i % 4) * 2);  // 32 bytes a step inside a slab
    wgmma_bf16<128>(s, q + offset, k + offset, i > 0 ? 1 : 0);
  }
  wgmma_commit();
}

/// Issues O[64, 128] += P[64, 128 keys] V[128 keys, 128]. 16 keys are 2048 bytes of a slab.
__device__ inline void issue_values(float (&o)[64], const uint32_t (&weights)[8][4], uint64_t v) {
#pragma unroll
  for (int i = 0; i < 8; ++i) wgmma_bf16_rs_bt<128>(o, weights[i], v + static_cast<uint64_t>(i * (2048 >> 4)), 1);
  wgmma_commit();
}

/// Keys behind the span's last one belong to nobody and may be NaN, which a weight of 0 does not stop: their values become 0.
/// Each math warpgroup does it for itself (both write the same), then it may read the stage.
__device__ inline void clear_tail(uint8_t* v, int valid_keys, int thread, int group) {
  const int vectors = (kPrefillTile - valid_keys) * 8;
  for (int slab = 0; slab < kValueSlabs; ++slab) {
    auto* at = reinterpret_cast<uint4*>(v + slab * kSlabBytes + valid_keys * 128);
    for (int i = thread; i < vectors; i += kGroupThreads) at[i] = make_uint4(0, 0, 0, 0);
  }
  fence_async_proxy();
  named_barrier_sync(kGroupBarrier + group, kGroupThreads);
}

/// Writes (or merges) the thread's two rows. Lanes of a quad hold 2 columns of each 8; a 4 x 4 transposition of words among them
/// makes that 8 columns of every fourth block: 16-byte stores, 64 bytes side by side.
__device__ inline void store_rows(const PrefillParams& p, const PrefillSpan& span, int head, int first_row, const float (&o)[64],
                                  const Softmax& r, int lane) {
  const int quad_lane = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = r.total[half];
    total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
    total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
    const int row = first_row + 8 * half;
    const bool seen = total > 0;
    const bool write = row < span.rows && (seen || !p.merge);  // merging nothing: the earlier result stands
    const int64_t batch_row = span.row_begin + row;
    float* lse_at = p.lse + batch_row * p.plan.heads + head;
    Bf16* out = p.out + batch_row * p.out_stride + head * kValue;
    float factor = seen ? 1.0f / total : 0.0f, earlier_factor = 0;
    float lse = seen ? r.max[half] * p.softmax_scale + logf(total) : -CUDART_INF_F;
    if (p.merge && write) {
      const float earlier = *lse_at;
      const float max = fmaxf(earlier, lse);
      const float earlier_weight = expf(earlier - max), weight = expf(lse - max);
      factor *= weight / (earlier_weight + weight);
      earlier_factor = earlier_weight / (earlier_weight + weight);
      lse = max + logf(earlier_weight + weight);
    }
#pragma unroll
    for (int block = 0; block < 4; ++block) {  // 32 columns
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (4 * block + i) + 2 * half;
        float low = o[at] * factor, high = o[at + 1] * factor;
        if (earlier_factor > 0) {  // all four lanes read before any of them stores (the shuffles below)
          const __nv_bfloat162 before = *reinterpret_cast<const __nv_bfloat162*>(out + 32 * block + 8 * i + 2 * quad_lane);
          low += earlier_factor * __low2float(before);
          high += earlier_factor * __high2float(before);
        }
        w[i] = pack_bf16(low, high);
      }
      const bool odd = (quad_lane & 1) != 0, upper = (quad_lane & 2) != 0;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, odd ? w[i] : w[i + 1], 1);
        if (odd) w[i] = other;
        else w[i + 1] = other;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, upper ? w[i] : w[i + 2], 2);
        if (upper) w[i] = other;
        else w[i + 2] = other;
      }
      if (write) *reinterpret_cast<uint4*>(out + 32 * block + 8 * quad_lane) = make_uint4(w[0], w[1], w[2], w[3]);
    }
    if (write && p.lse != nullptr && quad_lane == 0) *lse_at = lse;
  }
}

/// Math warpgroup `group` (0, 1): rows 64 * group .. + 63 of each tile.
__device__ void compute_tiles(const PrefillParams& p, const Shared& shared, int group) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads, warp = thread / 32, lane = thread % 32;
  const float scale = p.softmax_scale * 1.44269504f;  // log2(e): weights are powers of two
  const uint64_t q_tile = wgmma_descriptor_128(shared_address(shared.q) + static_cast<uint32_t>(group) * 8192u);
  const uint64_t k_tiles = wgmma_descriptor_128(shared_address(shared.k));
  const uint64_t v_tiles = wgmma_descriptor_128(shared_address(shared.v), 1024, kSlabBytes);
  const auto release = [&](uint64_t* barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };

  float s[64] = {}, o[64];
  uint32_t weights[8][4];
  uint32_t step_count = 0, item_count = 0;  // of this block so far: stages and parities follow from them
  if (group == 1) named_barrier_arrive(kTurnBarrier, kMathThreads);  // warpgroup 0 has the first turn

  for (int32_t round = 0;; ++round) {
    const int32_t ordinal = prefill_ordinal(p.items, static_cast<int32_t>(gridDim.x), static_cast<int32_t>(blockIdx.x), round);
    if (ordinal < 0) break;
    const PrefillItem item = prefill_item(p.plan, ordinal);
    const PrefillSpan span = p.plan.spans[item.span];
    const int32_t steps = prefill_steps(span, item.tile);
    const int group_row = item.tile * kPrefillTile + group * 64, row = group_row + warp * 16 + lane / 4;
    const int visible[2] = {visible_keys(span, row), visible_keys(span, row + 8)};
    const int all_visible = visible_keys(span, group_row);  // keys that every row of the warpgroup sees
    Softmax r = {{-CUDART_INF_F, -CUDART_INF_F}, {0, 0}, {0, 0}};
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] = 0;

    if (steps > 0) {
      // First step: S alone.
      uint32_t stage = step_count % kStages, parity = (step_count / kStages) & 1;
      barrier_wait(shared.q_full, item_count & 1);
      barrier_wait(&shared.k_full[stage], parity);
      pin(s);
      wgmma_fence();
      issue_scores(s, q_tile, k_tiles + stage * (kKeyBytes >> 4));
      wgmma_wait<0>();
      pin(s);
      release(&shared.k_empty[stage]);
      if (steps == 1) release(shared.q_empty);
      if (steps * kPrefillTile > all_visible) mask_scores(s, (steps - 1) * kPrefillTile, visible, lane);
      soften(s, r, scale);
      pack_weights(weights, s);
      if (steps * kPrefillTile > span.keys) {
        barrier_wait(&shared.v_full[stage], parity);
        clear_tail(shared.v + stage * kValueBytes, span.keys - (steps - 1) * kPrefillTile, thread, group);
      }

      uint32_t next = (step_count + 1) % kStages, next_parity = ((step_count + 1) / kStages) & 1;
      if (steps > 1) barrier_wait(&shared.k_full[next], next_parity);
      for (int32_t step = steps - 2; step >= 0; --step) {  // S of this step, values of the step before
        const uint32_t v_stage = stage, v_parity = parity;
        ++step_count;
        stage = next;
        parity = next_parity;
        next = (step_count + 1) % kStages;
        next_parity = ((step_count + 1) / kStages) & 1;
        named_barrier_sync(kTurnBarrier + group, kMathThreads);
        pin(s);
        pin(o);
        pin(weights);
        wgmma_fence();
        issue_scores(s, q_tile, k_tiles + stage * (kKeyBytes >> 4));
        barrier_wait(&shared.v_full[v_stage], v_parity);
        wgmma_fence();
        issue_values(o, weights, v_tiles + v_stage * (kValueBytes >> 4));
        named_barrier_arrive(kTurnBarrier + (group ^ 1), kMathThreads);
        wgmma_wait<1>();  // S is there; the values are still under way
        pin(s);
        release(&shared.k_empty[stage]);
        if (step == 0) release(shared.q_empty);
        if ((step + 1) * kPrefillTile > all_visible) mask_scores(s, step * kPrefillTile, visible, lane);
        soften(s, r, scale);
        // Keys of the next turn. Waiting here, not at its start, ends a basic block: ptxas schedules inside of blocks, and would
        // put the wait for the values, which does not depend on the softmax, in front of it.
        pin(s);
        if (step > 0) barrier_wait(&shared.k_full[next], next_parity);
        wgmma_wait<0>();
        pin(o);
        pin(weights);
        release(&shared.v_empty[v_stage]);
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] *= r.keep[(i / 2) % 2];
        pack_weights(weights, s);
      }

      // Values of the last step.
      barrier_wait(&shared.v_full[stage], parity);
      pin(o);
      pin(weights);
      wgmma_fence();
      issue_values(o, weights, v_tiles + stage * (kValueBytes >> 4));
      wgmma_wait<0>();
      pin(o);
      release(&shared.v_empty[stage]);
      ++step_count;
      ++item_count;
    }
    store_rows(p, span, item.head, row, o, r, lane);
  }
  if (group == 0) named_barrier_sync(kTurnBarrier, kMathThreads);  // takes the turn that warpgroup 1 gave last
}

__global__ void __launch_bounds__(kThreads, 1) mla_prefill_kernel(const __grid_constant__ PrefillParams p) {
  extern __shared__ uint8_t raw[];
  launch_dependents();
  const Shared shared = shared_layout(raw);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&p.q);
    prefetch_tensor_map(&p.kv);
    prefetch_tensor_map(&p.k_rope);
    barrier_init(shared.q_full, 1);
    barrier_init(shared.q_empty, kMathWarps);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&shared.k_full[stage], 1);
      barrier_init(&shared.k_empty[stage], kMathWarps);
      barrier_init(&shared.v_full[stage], 1);
      barrier_init(&shared.v_empty[stage], kMathWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_previous();
  const int warpgroup = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / kGroupThreads, 0);  // known to be uniform
  if (warpgroup == 0) {
    shrink_registers<40>();
    if (threadIdx.x < 32 && elect_one()) load_tiles(p, shared);
  } else {
    grow_registers<232>();
    compute_tiles(p, shared, warpgroup - 1);
  }
}

}  // namespace

Status mla_prefill(const MlaPrefill& p, Stream stream) {
  if (Status status = check_mla_prefill("mla_prefill", p); !status.ok()) return status;
  // The maps end at the last row that a span names: what lies behind arrives as zeros.
  int64_t rows = 1, keys = 1;
  for (const PrefillSpan& span : p.spans) {
    rows = std::max<int64_t>(rows, static_cast<int64_t>(span.row_begin) + span.rows);
    keys = std::max<int64_t>(keys, static_cast<int64_t>(span.key_begin) + span.keys);
  }
  PrefillParams params;
  params.out = p.out;
  params.lse = p.lse;
  params.out_stride = p.out_stride;
  params.softmax_scale = p.softmax_scale;
  params.merge = p.merge;
  PrefillPlanner planner(p.spans, p.heads);
  bool first = true;
  while (planner.next(params.plan)) {
    if (first) {
      DSV3_TRY(map_bf16(p.q, rows, p.heads * kQueryHead, p.q_stride, kPrefillTile, &params.q));
      DSV3_TRY(map_bf16(p.kv, keys, p.heads * (kNope + kValue), p.kv_stride, kPrefillTile, &params.kv));
      DSV3_TRY(map_bf16(p.k_rope, keys, kRope, kRope, kPrefillTile, &params.k_rope));
      if (Status status = allow_shared_bytes("mla_prefill", mla_prefill_kernel, kSharedBytes); !status.ok()) return status;
      first = false;
    }
    params.items = params.plan.num_tiles * params.plan.heads;
    const LaunchShape shape{dim3(static_cast<unsigned>(std::min(sm_count(), params.items))), dim3(kThreads), kSharedBytes};
    if (Status status = launch("mla_prefill", mla_prefill_kernel, shape, stream, params); !status.ok()) return status;
  }
  return {};
}

}  // namespace dsv3::cuda
