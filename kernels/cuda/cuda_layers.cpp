// The layers' operations of the CUDA backend: from tensors and batches to launchers.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "common/cuda_status.h"
#include "cuda_ops.h"
#include "gemm/fp8_expert_sum.h"
#include "gemm/fp8_gate_up.h"
#include "gemm/gemm_choice.h"
#include "mla/absorb.h"
#include "norm/norm.h"

namespace dsv3::cuda {
namespace {

Bf16Matrix bf16(const Tensor& t, int64_t rows) {
  DSV3_CHECK(t.dtype == DType::kBF16, "not a BF16 tensor");
  return {static_cast<Bf16*>(t.data), rows, t.cols, t.stride};
}
Bf16Matrix bf16_or_none(const Tensor& t, int64_t rows) { return t.data != nullptr ? bf16(t, rows) : Bf16Matrix{}; }
/// The only product of this size in float32 (the other one is the head): its logits come by a kernel of their own.
bool is_router(const Bf16Weight& w) { return w.n >= 8 && w.n <= 1024 && w.n % 8 == 0 && w.k % 64 == 0; }
F32Matrix f32(const Tensor& t, int64_t rows) { return {t.f32(), rows, t.cols, t.stride}; }
Bf16* row_of(const Tensor& t, int64_t row) { return static_cast<Bf16*>(t.data) + row * t.stride; }

/// Rows of an activation or of the residual stream.
Status gather(const Tensor& x, const int32_t* rows_wanted, const Bf16Matrix& out, Stream stream) {
  if (x.dtype == DType::kF32) return gather_rows(f32(x, x.rows), rows_wanted, out, stream);
  return gather_rows(bf16(x, x.rows), rows_wanted, out, stream);
}

}  // namespace

void CudaOps::embed(const Batch& batch, const Tensor& table, int64_t first_id, Tensor out) {
  const int32_t* tokens = pass_->device->tokens;
  const Bf16Matrix rows = bf16(table, table.rows);
  note(out.dtype == DType::kF32 ? cuda::embed(tokens, rows, first_id, f32(out, batch.rows), stream_)
                                : cuda::embed(tokens, rows, first_id, bf16(out, batch.rows), stream_));
}

void CudaOps::add_rms_norm(int64_t rows, Tensor residual, Tensor delta, const Tensor& gain, float eps, Tensor out, Tensor quantised) {
  const Fp8Rows q = quantised.data != nullptr ? quantised_rows(quantised, rows) : Fp8Rows{};
  note(cuda::add_rms_norm(f32(residual, rows), bf16_or_none(delta, rows), gain.f32(), eps, bf16(out, rows), q, options_.ue8m0, stream_));
}

void CudaOps::rms_norm(int64_t rows, Tensor x, const Tensor& gain, float eps, Tensor out, Tensor quantised) {
  const Fp8Rows q = quantised.data != nullptr ? quantised_rows(quantised, rows) : Fp8Rows{};
  const Bf16Matrix plain = quantised.data == out.data ? Bf16Matrix{} : bf16(out, rows);
  note(cuda::rms_norm(bf16(x, rows), gain.f32(), eps, plain, q, options_.ue8m0, stream_));
}

void CudaOps::linear(int64_t rows, const Tensor& x, const Linear& weight, Tensor y) {
  const auto& w = static_cast<const CudaLinear&>(weight);
  DSV3_CHECK(x.cols == w.in && y.cols == w.out, "linear: x or y does not fit the weight");
  if (w.fp8) {
    note(fp8_gemm(quantised_rows(x, rows), w.fp8_weight, bf16(y, rows), {options_.deterministic}, stream_));
  } else {
    bf16_product(bf16(x, rows), w.bf16_weight, y.slice_rows(0, rows));
  }
}

void CudaOps::bf16_product(const Bf16Matrix& x, const Bf16Weight& w, const Tensor& y) {
  if (y.dtype == DType::kF32) {
    const F32Matrix out{y.f32(), y.rows, y.cols, y.stride};
    if (is_router(w) && (options_.deterministic || x.rows <= kRouterRows)) {
      note(router_gemm(x, w, out, stream_));
      return;
    }
    note(options_.deterministic ? simple_bf16_gemm(x, w, out, stream_) : blas_->gemm(x, w, out, stream_));
  } else {
    const Bf16Matrix out = bf16(y, y.rows);
    note(options_.deterministic ? simple_bf16_gemm(x, w, out, stream_) : blas_->gemm(x, w, out, stream_));
  }
}

void CudaOps::silu_mul(int64_t rows, const Tensor& gate_up, const Linear& next, Tensor out) {
  const bool quantised = options_.w8a8 && next.fp8;
  note(cuda::silu_mul(bf16(gate_up, rows), quantised ? Bf16Matrix{} : bf16(out, rows), quantised ? quantised_rows(out, rows) : Fp8Rows{},
                      options_.ue8m0, stream_));
}

void CudaOps::quantise(int64_t rows, Tensor x, const Linear& next) {
  if (!options_.w8a8 || !next.fp8) return;
  const auto part = [&](int64_t first, int64_t count) {
    note(cuda::quantise({row_of(x, first), count, x.cols, x.stride}, quantised_part(x, first, count), options_.ue8m0, stream_));
  };
  if (x.data != attended_.data) return part(0, rows);
  for (const auto& [first, count] : attended_.plain) part(first, count);
  attended_.data = nullptr;
}

// ---- attention -----------------------------------------------------------------------------------------------------------

void CudaOps::rope_and_cache(const Batch& batch, const AttentionShape& shape, int64_t cache_layer, Tensor q, const Tensor& kv_a,
                             const Tensor& gain, float eps) {
  const int64_t decodes = pass_->decode_rows;
  const auto part = [&](int64_t begin, int64_t count, Bf16* absorbed_q) -> RopeAndCache {
    const DeviceBatch& device = *pass_->device;
    return {.q = {row_of(q, begin), count, q.cols, q.stride},
            .absorbed_q = absorbed_q,
            .kv_a = {row_of(kv_a, begin), count, kv_a.cols, kv_a.stride},
            .latent_gain = gain.f32(),
            .eps = eps,
            .frequencies = frequencies_,
            .cos_factor = shape.rope_cos_factor,
            .positions = device.positions + begin,
            .cache_rows = device.cache_rows + begin,
            .heads = heads_,
            .pages = pages(cache_layer)};
  };
  // Few decode rows are turned by the kernel that absorbs them, a step later in attention().
  decode_turn_ = part(0, decodes, absorbed_q_);
  if (!absorbs_itself(decodes)) {
    note(cuda::rope_and_cache(decode_turn_, stream_));
    decode_turn_.kv_a.rows = 0;
  }
  note(cuda::rope_and_cache(part(decodes, batch.rows - decodes, nullptr), stream_));
}

bool CudaOps::absorbs_itself(int64_t rows) const {
  // Deterministic: the same kernels for any number of rows, so that a row's bits do not depend on it.
  return options_.deterministic || use_absorb_queries(rows, heads_);
}

void CudaOps::attention(const Batch&, const AttentionShape&, int64_t cache_layer, const KvProjection& kv_b, const Tensor& q, Tensor out) {
  const auto& weight = static_cast<const CudaKvProjection&>(kv_b);
  attended_.data = out.data;
  attended_.plain.clear();
  attend_decode(cache_layer, weight, q, out);
  if (!pass_->recomputed.empty()) attend_recomputed(cache_layer, weight, q, out);
  if (!pass_->spans.empty()) attend_expanded(cache_layer, weight, q, out);
}

void CudaOps::absorbed(MlaDecode shape, int64_t first, int64_t rows, const CudaKvProjection& kv_b, const Tensor& q, Tensor out) {
  constexpr int64_t kHeadRows = kNope + kValue;
  // Of a sequence in several groups, the later ones would read early what the first one's rows are only now cached in.
  const bool own_queries = absorbs_itself(rows);
  shape.reads_early = own_queries && limits_.num_drafts < kMaxGroupRows;
  if (own_queries) {
    note(absorb_queries({.q = row_of(q, first), .q_stride = q.stride, .kv_b = kv_b.weight, .absorbed_q = absorbed_q_, .rows = rows,
                         .heads = heads_, .turn = decode_turn_.kv_a.rows > 0 ? &decode_turn_ : nullptr},
                        stream_));
    decode_turn_.kv_a.rows = 0;
  } else {
    note(blas_->head_product({.x = row_of(q, first), .x_row = q.stride, .x_head = kQueryHead,
                              .w = kv_b.weight.data, .w_head = kHeadRows * kLatent, .w_stride = kLatent, .transposed = true,
                              .y = absorbed_q_, .y_row = int64_t{heads_} * kCacheRow, .y_head = kCacheRow,
                              .rows = rows, .heads = heads_, .n = kLatent, .k = kNope},
                             stream_));
  }
  const bool expand = options_.deterministic || use_expand_values(rows);
  DecodePieces pieces;
  if (expand && !options_.deterministic && rows <= kPieceRows) {
    note(mla_decode_pieces(shape, mla_workspace_, &pieces, stream_));
  } else {
    note(mla_decode(shape, mla_workspace_, stream_));
  }
  if (expand) {
    // BF16 as well: the output projection may be a BF16 one even where others are FP8.
    const bool quantised = quantised_.contains(out.data);
    note(expand_values({.latent = absorbed_out_, .kv_b = kv_b.weight, .out = {row_of(out, first), rows, out.cols, out.stride},
                        .quantised = quantised ? quantised_part(out, first, rows) : Fp8Rows{}, .ue8m0 = options_.ue8m0, .rows = rows,
                        .heads = heads_, .pieces = pieces},
                       stream_));
    return;
  }
  note(blas_->head_product({.x = absorbed_out_, .x_row = int64_t{heads_} * kLatent, .x_head = kLatent,
                            .w = kv_b.weight.data + kNope * kLatent, .w_head = kHeadRows * kLatent, .w_stride = kLatent,
                            .transposed = false,
                            .y = row_of(out, first), .y_row = out.stride, .y_head = kValue,
                            .rows = rows, .heads = heads_, .n = kValue, .k = kLatent},
                           stream_));
  attended_.add_plain(first, rows);  // to be quantised
}

void CudaOps::attend_decode(int64_t cache_layer, const CudaKvProjection& kv_b, const Tensor& q, Tensor out) {
  if (pass_->decode_rows > 0) absorbed(decode_shape(cache_layer), 0, pass_->decode_rows, kv_b, q, out);
}

/// Output tokens of a preempted sequence, computed again in the form that they were first computed in. Rare.
void CudaOps::attend_recomputed(int64_t cache_layer, const CudaKvProjection& kv_b, const Tensor& q, Tensor out) {
  const auto& groups = pass_->recomputed;
  const int64_t most = absorbed_rows_ / kMaxGroupRows;
  for (size_t begin = 0; begin < groups.size();) {
    // Groups follow each other without gaps inside a segment only: a part ends where the rows are no longer consecutive.
    size_t end = begin + 1;
    while (end < groups.size() && static_cast<int64_t>(end - begin) < most &&
           groups[end].row_begin == groups[end - 1].row_begin + groups[end - 1].rows) {
      ++end;
    }
    const int32_t first = groups[begin].row_begin;
    const int64_t rows = groups[end - 1].row_begin + groups[end - 1].rows - first;
    std::vector<QueryGroup> local(groups.begin() + static_cast<int64_t>(begin), groups.begin() + static_cast<int64_t>(end));
    for (auto& group : local) group.row_begin -= first;
    note(cuda_status(cudaMemcpyAsync(recomputed_groups_, local.data(), local.size() * sizeof(QueryGroup), cudaMemcpyHostToDevice, stream_),
                     "query groups"));
    // Every head's turned part behind its latent part.
    note(cuda_status(cudaMemcpy2DAsync(absorbed_q_ + kLatent, kCacheRow * 2, row_of(q, first) + kNope, kQueryHead * 2, kRope * 2,
                                       static_cast<size_t>(rows * heads_), cudaMemcpyDeviceToDevice, stream_),
                     "queries"));
    MlaDecode shape = decode_shape(cache_layer);
    shape.groups = recomputed_groups_;
    shape.num_groups = static_cast<int32_t>(local.size());
    shape.max_group_rows = kMaxGroupRows;
    note(mla_decode_schedule(shape, mla_workspace_, stream_));
    absorbed(shape, first, rows, kv_b, q, out);
    begin = end;
  }
  schedule_decode();  // of the decode rows, for the next layer
}

void CudaOps::attend_expanded(int64_t cache_layer, const CudaKvProjection& kv_b, const Tensor& q, Tensor out) {
  constexpr int64_t kHeadRows = kNope + kValue;
  const int64_t kv_stride = heads_ * kHeadRows;
  std::vector<PrefillSpan> batch;
  int32_t keys = 0;
  const auto gather = [&](int32_t slot, int32_t first, int32_t count) {
    note(gather_cache(pages(cache_layer), slots_->block_tables(), max_blocks_, slot, first, count, latent_ + int64_t{keys} * kLatent,
                      key_rope_ + int64_t{keys} * kRope, stream_));
    keys += count;
  };
  const auto attend = [&](bool merge) {
    if (batch.empty()) return;
    bf16_product({latent_, keys, kLatent, kLatent}, kv_b.weight, {expanded_, DType::kBF16, keys, kv_stride, kv_stride});
    note(mla_prefill({.q = static_cast<const Bf16*>(q.data), .q_stride = q.stride, .kv = expanded_, .kv_stride = kv_stride, .k_rope = key_rope_,
                      .out = static_cast<Bf16*>(out.data), .out_stride = out.stride, .lse = lse_, .heads = heads_,
                      .softmax_scale = softmax_scale_, .spans = batch, .merge = merge},
                     stream_));
    batch.clear();
    keys = 0;
  };
  for (size_t i = 0; i < pass_->spans.size(); ++i) {
    PrefillSpan span = pass_->spans[i];
    attended_.add_plain(span.row_begin, span.rows);
    const int32_t slot = pass_->span_slots[i];
    if (keys + span.keys > expanded_keys_) attend(false);
    if (span.keys <= expanded_keys_) {
      span.key_begin = keys;
      gather(slot, 0, span.keys);
      batch.push_back(span);
      continue;
    }
    const int32_t total = span.keys;
    for (int32_t first = 0; first < total; first += static_cast<int32_t>(expanded_keys_)) {
      span.key_begin = 0;
      span.key_start = first;
      span.keys = std::min(total - first, static_cast<int32_t>(expanded_keys_));
      gather(slot, first, span.keys);
      batch.push_back(span);
      attend(first > 0);
    }
  }
  attend(false);
}

// ---- experts -------------------------------------------------------------------------------------------------------------

// Products that must not depend on the number of rows use one kernel with one tile size.
int CudaOps::expert_tile_rows(int64_t rows, int64_t top_k, int64_t experts) const {
  return options_.deterministic ? 128 : grouped_tile_rows(rows, top_k, experts);
}

ExpertOrder CudaOps::expert_order(int64_t rows, int64_t top_k, int64_t experts) const {
  ExpertOrder order = experts_.order;
  order.capacity = std::min(experts_.capacity, expert_order_rows(rows, top_k, experts));
  order.rows = rows;
  order.top_k = top_k;
  return order;
}

ExpertHits CudaOps::expert_hits(int64_t rows, int64_t columns, int64_t experts) const {
  return {experts_.order.tiles, experts_.order.num_tiles, experts_.hit_weights, max_hits(rows, columns, experts), static_cast<int32_t>(rows)};
}

void CudaOps::route(int64_t rows, const GateShape& gate, const Tensor& logits, const Tensor& bias, Tensor ids, Tensor weights) {
  const float* const bias_data = bias.data != nullptr ? bias.f32() : nullptr;
  const int64_t columns = gate.columns(), count = gate.experts + (gate.shared_id >= 0 ? 1 : 0);
  const auto shared_id = static_cast<int32_t>(gate.shared_id);
  ordered_ = {};
  // Few rows are put in order by the same kernel, where this rank holds all the experts (or slices of all of them); with a handful no
  // row needs to move at all. Slices of TP 8, microseconds at 1 / 2 / 4 / 8 rows: 21 / 41 / 79 / 116, in order 30 / 48 / 79 / 134.
  const bool all = experts_.count == count;
  if (all && !options_.deterministic && experts_.hit_weights != nullptr && routes_to_hits(rows, gate)) {
    note(route_hits(rows, gate, logits.f32(), bias_data, pass_->device->positions, ids.i32(), weights.f32(),
                    expert_hits(rows, columns, count), stream_, shared_id));
    ordered_ = {ids.i32(), rows, count, true};
    return;
  }
  if (all && routes_and_orders_at_once(rows, gate, count)) {
    const int tile_rows = expert_tile_rows(rows, columns, count);
    note(route_and_order(rows, gate, logits.f32(), bias_data, pass_->device->positions, ids.i32(), weights.f32(), count, tile_rows,
                         expert_order(rows, columns, count), experts_.scratch, stream_, shared_id));
    ordered_ = {ids.i32(), rows, count};
    return;
  }
  note(cuda::route(rows, gate, logits.f32(), bias_data, pass_->device->positions, ids.i32(), weights.f32(), stream_, shared_id));
}

void CudaOps::experts(int64_t rows, const Tensor& x, const Tensor& x_fp8, const Experts& experts, const Tensor& ids, const Tensor& weights,
                      bool accumulate, Tensor out) {
  const auto& mine = static_cast<const CudaExperts&>(experts);
  const ExpertBuffers& b = experts_;
  const int64_t top_k = ids.cols;
  const bool ordered = ordered_.ids == ids.i32() && ordered_.rows == rows && ordered_.experts == mine.count;
  if (std::exchange(ordered_.as_hits, false)) {
    DSV3_CHECK(ordered && mine.fp8, "the experts are not those that were routed to");
    const ExpertHits hits = expert_hits(rows, top_k, mine.count);
    note(fp8_gate_up_hits(quantised_rows(x_fp8, rows), mine.fp8_gate_up, hits, b.middle, {.ue8m0 = options_.ue8m0}, stream_));
    note(fp8_expert_sum(b.middle, mine.fp8_down, hits, accumulate, bf16(out, rows), stream_));
    ordered_ = {};
    return;
  }
  const int tile_rows = expert_tile_rows(rows, top_k, mine.count);
  const ExpertOrder order = expert_order(rows, top_k, mine.count);
  if (!ordered) {
    note(order_by_expert(rows, top_k, mine.count, ids.i32(), tile_rows, order, b.scratch, stream_));
  }
  ordered_ = {};
  const ExpertTiles tiles{order.tiles, order.num_tiles, static_cast<int32_t>(expert_order_tiles(rows, top_k, mine.count, tile_rows)), tile_rows};
  if (mine.fp8) {
    const GemmOptions options{options_.deterministic};
    Fp8Rows input = b.input, middle = b.middle;  // as many rows as this step can have
    input.rows = middle.rows = order.capacity;
    note(permute_rows(quantised_rows(x_fp8, rows), order, input, stream_));
    if (!options_.deterministic && use_fused_gate_up(tile_rows, rows, top_k, mine.width)) {
      note(fp8_gate_up(input, mine.fp8_gate_up, tiles, middle, {.ue8m0 = options_.ue8m0}, stream_));
    } else {
      note(fp8_grouped_gemm(input, mine.fp8_gate_up, tiles, b.gate_up, options, stream_));
      note(silu_mul_permuted(b.gate_up, order, middle, options_.ue8m0, stream_));
    }
    note(fp8_grouped_gemm(middle, mine.fp8_down, tiles, b.output, options, stream_));
  } else {
    note(permute_rows(bf16(x, rows), order, b.input_bf16, stream_));
    note(simple_bf16_grouped_gemm(b.input_bf16, mine.bf16_gate_up, tiles, b.gate_up, stream_));
    note(silu_mul_permuted(b.gate_up, order, b.middle_bf16, stream_));
    note(simple_bf16_grouped_gemm(b.middle_bf16, mine.bf16_down, tiles, b.output, stream_));
  }
  note(combine_experts(rows, top_k, b.output, order, weights.f32(), accumulate, bf16(out, rows), stream_));
}

// ---- copies --------------------------------------------------------------------------------------------------------------

void CudaOps::gather_rows(const Tensor& x, std::span<const int32_t> rows_wanted, Tensor out) {
  note(cuda_status(cudaMemcpyAsync(wanted_rows_, rows_wanted.data(), rows_wanted.size() * 4, cudaMemcpyHostToDevice, stream_), "row list"));
  note(gather(x, wanted_rows_, bf16(out, static_cast<int64_t>(rows_wanted.size())), stream_));
}

void CudaOps::gather_logit_rows(const Batch& batch, const Tensor& x, Tensor out) {
  note(gather(x, pass_->device->logit_rows, bf16(out, batch.num_logit_rows), stream_));
}

void CudaOps::gather_source_rows(const Batch& batch, const Tensor& x, Tensor out) {
  note(gather(x, pass_->device->source_rows, bf16(out, batch.rows), stream_));
}

}  // namespace dsv3::cuda
