// Weights of the CUDA backend: their place in the arena, and the jobs that fill it.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "common/cuda_status.h"
#include "cuda_ops.h"

namespace dsv3::cuda {
namespace {

int64_t blocks(int64_t n) { return (n + kQuantGroup - 1) / kQuantGroup; }

/// FP8 as stored, if the products can read it so. Slices that cut scale blocks become BF16.
bool stays_fp8(const MatrixReader& reader, bool w8a8) {
  return w8a8 && reader.is_fp8() && reader.has_whole_blocks() && reader.rows() % 8 == 0;
}

}  // namespace

Result<Fp8Weight> CudaOps::load_fp8(std::span<const MatrixReader* const> readers) {
  const int64_t n = readers[0]->rows(), k = readers[0]->cols(), count = static_cast<int64_t>(readers.size());
  DSV3_ASSIGN(void* const data, arena_->take(Arena::Part::kWeights, "weight", count * n * k));
  const int64_t grid = blocks(n) * blocks(k);
  DSV3_ASSIGN(void* const scales, arena_->take(Arena::Part::kWeights, "scales", count * grid * 4));
  for (int64_t i = 0; i < count; ++i) {
    loader_->copy_fp8(*readers[static_cast<size_t>(i)], static_cast<uint8_t*>(data) + i * n * k, static_cast<float*>(scales) + i * grid);
  }
  return Fp8Weight{static_cast<uint8_t*>(data), static_cast<float*>(scales), n, k, count};
}

Result<Bf16Weight> CudaOps::load_bf16(std::span<const MatrixReader* const> readers) {
  const int64_t n = readers[0]->rows(), k = readers[0]->cols(), count = static_cast<int64_t>(readers.size());
  DSV3_ASSIGN(void* const data, arena_->take(Arena::Part::kWeights, "weight", count * n * k * 2));
  for (int64_t i = 0; i < count; ++i) {
    loader_->copy_bf16(*readers[static_cast<size_t>(i)], reinterpret_cast<Bf16*>(static_cast<char*>(data) + i * n * k * 2));
  }
  return Bf16Weight{static_cast<Bf16*>(data), n, k, count};
}

Result<Tensor> CudaOps::load_vector(const MatrixReader& reader) {
  DSV3_ASSIGN(void* const data, arena_->take(Arena::Part::kWeights, "vector", reader.rows() * reader.cols() * 4));
  loader_->copy_f32(reader, static_cast<float*>(data));
  return Tensor{data, DType::kF32, reader.rows(), reader.cols(), reader.cols()};
}

Result<Tensor> CudaOps::load_table(const MatrixReader& reader) {
  const MatrixReader* const readers[] = {&reader};
  DSV3_ASSIGN(const Bf16Weight table, load_bf16(readers));
  return Tensor{const_cast<Bf16*>(table.data), DType::kBF16, table.n, table.k, table.k};
}

Result<LinearPtr> CudaOps::load_linear(const MatrixReader& reader) {
  auto linear = std::make_unique<CudaLinear>();
  linear->in = reader.cols();
  linear->out = reader.rows();
  linear->fp8 = stays_fp8(reader, options_.w8a8);
  const MatrixReader* const readers[] = {&reader};
  if (linear->fp8) {
    DSV3_ASSIGN(linear->fp8_weight, load_fp8(readers));
  } else {
    DSV3_ASSIGN(linear->bf16_weight, load_bf16(readers));
  }
  return LinearPtr(std::move(linear));
}

Result<KvProjectionPtr> CudaOps::load_kv_projection(const MatrixReader& reader, const AttentionShape& shape) {
  if (shape.latent != kLatent || shape.rope != kRope || shape.nope != kNope || shape.v != kValue) {
    return Status(Code::kUnsupported, "the CUDA backend has attention for heads of 128 + 64 and 128 over a latent of 512; this model has " +
                                          std::to_string(shape.nope) + " + " + std::to_string(shape.rope) + " and " + std::to_string(shape.v) +
                                          " over " + std::to_string(shape.latent));
  }
  if (shape.heads > 128) return Status(Code::kUnsupported, "the CUDA backend has attention for at most 128 heads a rank");
  DSV3_TRY(alloc_attention(shape));
  auto projection = std::make_unique<CudaKvProjection>();
  const MatrixReader* const readers[] = {&reader};
  DSV3_ASSIGN(projection->weight, load_bf16(readers));
  return KvProjectionPtr(std::move(projection));
}

Result<ExpertsPtr> CudaOps::load_experts(const ExpertReaders& readers) {
  auto experts = std::make_unique<CudaExperts>();
  std::vector<const MatrixReader*> gate_up, down;
  for (const auto& reader : readers.gate_up) gate_up.push_back(reader.get());
  for (const auto& reader : readers.down) down.push_back(reader.get());
  experts->includes_shared = readers.shared_gate_up != nullptr && readers.shared_down != nullptr;
  if (experts->includes_shared) {
    gate_up.push_back(readers.shared_gate_up.get());
    down.push_back(readers.shared_down.get());
  }
  experts->count = static_cast<int64_t>(gate_up.size());
  experts->hidden = gate_up[0]->cols();
  experts->width = down[0]->cols();
  const auto fp8 = [&](const MatrixReader* reader) { return stays_fp8(*reader, options_.w8a8); };
  experts->fp8 = std::all_of(gate_up.begin(), gate_up.end(), fp8) && std::all_of(down.begin(), down.end(), fp8);
  if (experts->fp8) {
    DSV3_ASSIGN(experts->fp8_gate_up, load_fp8(gate_up));
    DSV3_ASSIGN(experts->fp8_down, load_fp8(down));
  } else {
    DSV3_ASSIGN(experts->bf16_gate_up, load_bf16(gate_up));
    DSV3_ASSIGN(experts->bf16_down, load_bf16(down));
  }
  DSV3_TRY(alloc_experts(*experts, readers.top_k + (experts->includes_shared ? 1 : 0)));
  return ExpertsPtr(std::move(experts));
}

Status CudaOps::alloc_attention(const AttentionShape& shape) {
  if (heads_ != 0) return {};
  heads_ = static_cast<int32_t>(shape.heads);
  softmax_scale_ = shape.softmax_scale;
  const int64_t decode_rows = limits_.max_slots * (1 + limits_.num_drafts);
  absorbed_rows_ = std::min(std::max<int64_t>(decode_rows, 256), std::max(limits_.max_rows, decode_rows));
  expanded_keys_ = std::min<int64_t>((limits_.max_context_tokens + 63) / 64 * 64, kMaxExpandedKeys);
  const auto step = [&](std::string_view name, int64_t bytes) { return arena_->take(Arena::Part::kStep, name, bytes); };
  DSV3_ASSIGN(void* const q, step("absorbed queries", absorbed_rows_ * heads_ * kCacheRow * 2));
  DSV3_ASSIGN(void* const out, step("absorbed outputs", absorbed_rows_ * heads_ * kLatent * 2));
  DSV3_ASSIGN(void* const latent, step("prefix latents", expanded_keys_ * kLatent * 2));
  DSV3_ASSIGN(void* const rope, step("prefix keys", expanded_keys_ * kRope * 2));
  DSV3_ASSIGN(void* const expanded, step("expanded keys and values", expanded_keys_ * heads_ * (kNope + kValue) * 2));
  DSV3_ASSIGN(void* const lse, step("log-sum-exps", limits_.max_rows * heads_ * 4));
  DSV3_ASSIGN(void* const groups, step("query groups", absorbed_rows_ * static_cast<int64_t>(sizeof(QueryGroup))));
  DSV3_ASSIGN(void* const frequencies, step("rope frequencies", kRope / 2 * 8));
  absorbed_q_ = static_cast<Bf16*>(q);
  absorbed_out_ = static_cast<Bf16*>(out);
  latent_ = static_cast<Bf16*>(latent);
  key_rope_ = static_cast<Bf16*>(rope);
  expanded_ = static_cast<Bf16*>(expanded);
  lse_ = static_cast<float*>(lse);
  recomputed_groups_ = static_cast<QueryGroup*>(groups);
  frequencies_ = static_cast<double*>(frequencies);
  DSV3_CHECK(shape.rope_frequencies.size() == kRope / 2, "a frequency for each pair of the turned part");
  DSV3_TRY(cuda_status(cudaMemcpy(frequencies_, shape.rope_frequencies.data(), kRope / 2 * sizeof(double), cudaMemcpyHostToDevice),
                       "rope frequencies"));
  // Rows of groups that hold nobody are never written: zeros, so that no NaN ever starts there.
  DSV3_TRY(cuda_status(cudaMemsetAsync(absorbed_out_, 0, static_cast<size_t>(absorbed_rows_ * heads_ * kLatent) * 2, stream_), "attention buffers"));

  mla_workspace_.bytes = mla_decode_workspace_bytes(absorbed_rows_, std::min<int64_t>(1 + limits_.num_drafts, kMaxGroupRows), heads_);
  mla_workspace_.bytes = std::max(mla_workspace_.bytes, mla_decode_workspace_bytes(absorbed_rows_ / kMaxGroupRows + 1, kMaxGroupRows, heads_));
  DSV3_ASSIGN(mla_workspace_.data, step("attention splits", mla_workspace_.bytes));
  return cuda_status(cudaMemsetAsync(mla_workspace_.data, 0, static_cast<size_t>(mla_workspace_.bytes), stream_), "attention buffers");
}

Status CudaOps::alloc_experts(const CudaExperts& experts, int64_t top_k) {
  ExpertBuffers& b = experts_;
  if (!experts.fp8) b.hit_weights = nullptr;  // the gate's kernel is chosen for all layers
  if (b.capacity != 0) return {};
  b.count = experts.count;
  b.capacity = expert_order_rows(limits_.max_rows, top_k, experts.count);
  const int64_t rows = b.capacity + 128;  // products may read a tile past the end
  const auto step = [&](std::string_view name, int64_t bytes) { return arena_->take(Arena::Part::kStep, name, bytes); };
  b.order.capacity = b.capacity;
  b.order.max_tiles = static_cast<int32_t>(expert_order_tiles(limits_.max_rows, top_k, experts.count, kExpertRowAlign));
  DSV3_ASSIGN(void* const position, step("expert order", limits_.max_rows * top_k * 4));
  DSV3_ASSIGN(void* const source, step("expert order", rows * 4));
  DSV3_ASSIGN(void* const tiles, step("expert tiles", b.order.max_tiles * static_cast<int64_t>(sizeof(ExpertTile))));
  DSV3_ASSIGN(void* const num_tiles, step("expert tiles", 4));
  DSV3_ASSIGN(void* const scratch, step("expert order", expert_order_scratch(limits_.max_rows, top_k, experts.count) * 4));
  b.order.position = static_cast<int32_t*>(position);
  b.order.source = static_cast<int32_t*>(source);
  b.order.tiles = static_cast<ExpertTile*>(tiles);
  b.order.num_tiles = static_cast<int32_t*>(num_tiles);
  b.scratch = static_cast<int32_t*>(scratch);
  const auto fp8_rows = [&](const char* name, int64_t cols, Fp8Rows* out) -> Status {
    const int64_t stride = (rows + 3) / 4 * 4;
    DSV3_ASSIGN(void* const data, step(name, rows * cols));
    DSV3_ASSIGN(void* const scales, step(name, stride * (cols / kQuantGroup) * 4));
    *out = {static_cast<uint8_t*>(data), static_cast<float*>(scales), rows, cols, stride};
    return {};
  };
  const auto bf16_rows = [&](const char* name, int64_t cols, Bf16Matrix* out) -> Status {
    DSV3_ASSIGN(void* const data, step(name, rows * cols * 2));
    *out = {static_cast<Bf16*>(data), rows, cols, cols};
    return {};
  };
  if (experts.fp8) {
    const int64_t hits = max_hits(std::min<int64_t>(limits_.max_rows, kHitRows), top_k, experts.count);
    DSV3_ASSIGN(void* const weights, step("expert hits", hits * kHitRows * 4));
    b.hit_weights = static_cast<float*>(weights);
    DSV3_TRY(fp8_rows("expert inputs", experts.hidden, &b.input));
    DSV3_TRY(fp8_rows("expert middles", experts.width, &b.middle));
  } else {
    DSV3_TRY(bf16_rows("expert inputs", experts.hidden, &b.input_bf16));
    DSV3_TRY(bf16_rows("expert middles", experts.width, &b.middle_bf16));
  }
  DSV3_TRY(bf16_rows("expert gates", 2 * experts.width, &b.gate_up));
  return bf16_rows("expert outputs", experts.hidden, &b.output);
}

Status CudaOps::finish_loading() {
  Status loaded = loader_->finish();
  loader_.reset();
  note(loaded);
  note(cuda_status(cudaStreamSynchronize(stream_), "loading"));
  return fault_;
}

}  // namespace dsv3::cuda
