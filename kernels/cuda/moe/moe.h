// Mixture of experts: the gate, the order of rows by expert, and the weighted sum (model.md 6).
#pragma once

#include "../common/types.h"
#include "dsv3/base/status.h"
#include "dsv3/kernels/ops.h"

namespace dsv3::cuda {

/// ids[r, top_k], weights[r, top_k] (packed) from router logits [rows, experts] (packed, float32). bias [experts] or null. Rules
/// and ties as the CPU's route_row(): float32, groups, lowest index first. Any number of experts <= 1024, groups <= 64,
/// top_k <= 32. `positions` [rows] or null: a row with a negative one is padding and gets ids of -1, so that it wakes no expert.
/// shared_id >= 0: ids and weights have top_k + 1 columns, the last one shared_id with weight 1 (padding: -1 and 0).
Status route(int64_t rows, const GateShape& gate, const float* logits, const float* bias, const int32_t* positions, int32_t* ids,
             float* weights, Stream stream, int32_t shared_id = -1);

/// y = x w^T in float32, for the router: w [experts, hidden], experts a multiple of 8 up to 1024, hidden a multiple of 64. A row's
/// result does not depend on the number of rows. Any number of rows, but beyond kRouterRows cuBLASLt is faster.
inline constexpr int64_t kRouterRows = 64;  // measured, microseconds at 32, 64 and 128 rows: 4.3 against 7.6, 7.3 against 7.6, 10.9 against 7.7
Status router_gemm(const Bf16Matrix& x, const Bf16Weight& w, const F32Matrix& y, Stream stream);

/// Where each (row, k) goes in the order by expert. Buffers are the caller's, for `capacity` permuted rows.
struct ExpertOrder {
  int32_t* position = nullptr;  ///< [rows * top_k] permuted row of (row, k)
  int32_t* source = nullptr;    ///< [capacity] row of the batch that lies at a permuted row; -1: padding
  ExpertTile* tiles = nullptr;  ///< [max_tiles]
  int32_t* num_tiles = nullptr; ///< [1]
  int64_t capacity = 0;         ///< >= expert_order_rows()
  int32_t max_tiles = 0;        ///< >= expert_order_tiles()
  int64_t rows = 0, top_k = 0;  ///< shape of `position`; 0: not known. Where it is, few rows are permuted from there, not from `source`.
};
/// Upper bounds for `rows` tokens: each expert's rows start on a multiple of kExpertRowAlign. The buffers of permuted rows
/// have 128 rows more, which products may read.
int64_t expert_order_rows(int64_t rows, int64_t top_k, int64_t experts);
int64_t expert_order_tiles(int64_t rows, int64_t top_k, int64_t experts, int tile_rows);

/// Sorts by expert, within an expert by (row, k): the same order every time. ids outside [0, experts) go nowhere
/// (position -1). `scratch`: int32 [expert_order_scratch(experts)].
int64_t expert_order_scratch(int64_t rows, int64_t top_k, int64_t experts);
Status order_by_expert(int64_t rows, int64_t top_k, int64_t experts, const int32_t* ids, int tile_rows, const ExpertOrder& order,
                       int32_t* scratch, Stream stream);

/// route() and order_by_expert() of its ids; one kernel where routes_and_orders_at_once(). Writes exactly what the two would. `experts` and
/// `scratch` as for order_by_expert().
bool routes_and_orders_at_once(int64_t rows, const GateShape& gate, int64_t experts);
Status route_and_order(int64_t rows, const GateShape& gate, const float* logits, const float* bias, const int32_t* positions, int32_t* ids,
                       float* weights, int64_t experts, int tile_rows, const ExpertOrder& order, int32_t* scratch, Stream stream,
                       int32_t shared_id = -1);

/// route(), and the list of the experts that the rows go to, where routes_to_hits(): few rows, a gate like DeepSeek-V3's. All experts
/// are this rank's. shared_id: -1, or the one behind the gate's. Padding rows have no weight anywhere. hits.max_hits >= max_hits().
bool routes_to_hits(int64_t rows, const GateShape& gate);
/// Upper bound of hits: columns are top_k, and one for a shared expert.
inline int32_t max_hits(int64_t rows, int64_t columns, int64_t experts) {
  return static_cast<int32_t>(rows * columns < experts ? rows * columns : experts);
}
Status route_hits(int64_t rows, const GateShape& gate, const float* logits, const float* bias, const int32_t* positions, int32_t* ids,
                  float* weights, const ExpertHits& hits, Stream stream, int32_t shared_id = -1);

/// out[p] = x[source[p]] (rows and scales) for every permuted row with a source. capacity of `order` rows are looked at.
Status permute_rows(const Fp8Rows& x, const ExpertOrder& order, const Fp8Rows& out, Stream stream);
Status permute_rows(const Bf16Matrix& x, const ExpertOrder& order, const Bf16Matrix& out, Stream stream);

/// out[p] = silu(gate_up[p, :width]) * gate_up[p, width:] for every permuted row with a source; e4m3 with scales, or BF16.
Status silu_mul_permuted(const Bf16Matrix& gate_up, const ExpertOrder& order, const Fp8Rows& out, bool ue8m0, Stream stream);
Status silu_mul_permuted(const Bf16Matrix& gate_up, const ExpertOrder& order, const Bf16Matrix& out, Stream stream);

/// out[r] (+)= sum over k, in order, of weights[r, k] * y[position[r, k]], in float32, rounded once. `accumulate`: add to what is
/// there (the shared expert's output).
Status combine_experts(int64_t rows, int64_t top_k, const Bf16Matrix& y, const ExpertOrder& order, const float* weights,
                       bool accumulate, const Bf16Matrix& out, Stream stream);

}  // namespace dsv3::cuda
