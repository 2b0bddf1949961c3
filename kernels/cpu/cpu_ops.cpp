// The CPU backend. One thread calls it; loops over rows and columns are spread over its ForkJoin pool.
#include "dsv3/kernels/cpu/cpu_ops.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>

#include "attention.h"
#include "dsv3/base/thread_pool.h"
#include "dsv3/kernels/cpu/quantize.h"
#include "gemm.h"
#include "moe.h"
#include "sampler.h"
#include "slots.h"

namespace dsv3 {
namespace cpu {
namespace {

constexpr int64_t kQuantGroup = 128;

class CpuLinear final : public Linear {
 public:
  PackedMatrix matrix;
};

Result<AlignedFloats> read_all(const MatrixReader& reader) {
  AlignedFloats data(static_cast<size_t>(reader.rows() * reader.cols()));
  DSV3_TRY(reader.read_f32(data.data()));
  return data;
}

struct Unmap {
  size_t bytes = 0;
  void operator()(float* p) const { ::munmap(p, bytes); }
};
using MappedFloats = std::unique_ptr<float, Unmap>;

/// Zeros on pages of their own: those that no sequence has used yet cost nothing.
MappedFloats map_zeros(size_t count) {
  const size_t bytes = count * sizeof(float);
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  DSV3_CHECK(p != MAP_FAILED, "no address space for the KV cache that the plan promised");
  return MappedFloats(static_cast<float*>(p), Unmap{bytes});
}

class CpuOps final : public Ops {
 public:
  CpuOps(const OpsLimits& limits, const CpuOpsOptions& options)
      : limits_(limits), options_(options), pool_(options.num_threads), slots_(limits.max_slots, limits.block_tokens) {
    const auto numbers = static_cast<size_t>(limits.cache_layers * limits.num_blocks * limits.block_tokens) *
                         static_cast<size_t>(limits.cache_row);
    cache_ = map_zeros(std::max<size_t>(numbers, 1));
  }

  bool fp8_inputs() const override { return options_.w8a8; }

  Tensor alloc(std::string_view, int64_t rows, int64_t cols, BufferKind kind) override {
    static_assert(sizeof(float) == sizeof(int32_t));
    buffers_.emplace_back(static_cast<size_t>(rows * cols));
    return {buffers_.back().data(), kind == BufferKind::kInt ? DType::kI32 : DType::kF32, rows, cols, cols};
  }

  Result<Tensor> load_vector(const MatrixReader& reader) override { return load_table(reader); }

  Result<Tensor> load_table(const MatrixReader& reader) override {
    DSV3_ASSIGN(auto data, read_all(reader));
    buffers_.push_back(std::move(data));
    return Tensor{buffers_.back().data(), DType::kF32, reader.rows(), reader.cols(), reader.cols()};
  }

  Result<LinearPtr> load_linear(const MatrixReader& reader) override {
    DSV3_ASSIGN(const auto data, read_all(reader));
    auto linear = std::make_unique<CpuLinear>();
    linear->in = reader.cols();
    linear->out = reader.rows();
    linear->fp8 = reader.is_fp8();
    linear->matrix = PackedMatrix(data.data(), reader.rows(), reader.cols(), reader.cols());
    return LinearPtr(std::move(linear));
  }

  Result<KvProjectionPtr> load_kv_projection(const MatrixReader& reader, const AttentionShape& shape) override {
    DSV3_ASSIGN(const auto data, read_all(reader));
    return KvProjectionPtr(std::make_unique<CpuKvProjection>(data.data(), shape));
  }

  Result<ExpertsPtr> load_experts(const ExpertReaders& readers) override {
    const auto &gate_up = readers.gate_up, &down = readers.down;
    auto experts = std::make_unique<CpuExperts>();
    for (size_t e = 0; e < gate_up.size(); ++e) {
      DSV3_ASSIGN(const auto gate_up_data, read_all(*gate_up[e]));
      DSV3_ASSIGN(const auto down_data, read_all(*down[e]));
      experts->experts.push_back(
          {PackedMatrix(gate_up_data.data(), gate_up[e]->rows(), gate_up[e]->cols(), gate_up[e]->cols()),
           PackedMatrix(down_data.data(), down[e]->rows(), down[e]->cols(), down[e]->cols())});
      experts->rounded_inputs = options_.w8a8 && gate_up[e]->is_fp8() && down[e]->is_fp8();
    }
    experts->ue8m0 = options_.ue8m0;
    return ExpertsPtr(std::move(experts));
  }

  void slot_begin(int32_t slot, const SamplingParams& sampling, std::span<const int32_t> tokens, int32_t prompt_tokens,
                  int32_t cached_tokens) override {
    slots_.begin(slot, sampling, tokens, prompt_tokens, cached_tokens);
  }
  void slot_grant(int32_t slot, std::span<const int32_t> blocks) override {
    auto& mine = slots_.at(slot).blocks;
    for (int32_t block : blocks) {
      DSV3_CHECK(block >= 0 && block < limits_.num_blocks, "granted block out of range");
      mine.push_back(block);
    }
  }
  void slot_end(int32_t slot) override { slots_.end(slot); }

  void prepare_batch(Batch& batch) override {
    slots_.prepare_batch(batch);
    rotation_ready_ = false;
  }
  void run(Batch&, bool, const std::function<void()>& pass) override { pass(); }
  void prepare_draft(const Batch& main, const Batch* previous, Batch& draft) override {
    slots_.prepare_draft(main, previous, draft);
    rotation_ready_ = false;
  }

  void embed(const Batch& batch, const Tensor& table, int64_t first_id, Tensor out) override {
    for (int64_t r = 0; r < batch.rows; ++r) {
      const int64_t id = batch.tokens[static_cast<size_t>(r)] - first_id;
      const auto bytes = static_cast<size_t>(table.cols) * sizeof(float);
      if (id >= 0 && id < table.rows) {
        std::memcpy(out.f32(r), table.f32(id), bytes);
      } else {
        std::memset(out.f32(r), 0, bytes);
      }
    }
  }

  void add_rms_norm(int64_t rows, Tensor residual, Tensor delta, const Tensor& gain, float eps, Tensor out,
                    Tensor quantised) override {
    if (delta.data != nullptr) {
      for_rows(rows, [&](int64_t r) { simd().axpy(1.0f, delta.f32(r), residual.f32(r), residual.cols); });
    }
    rms_norm(rows, residual, gain, eps, out, quantised);
  }

  void rms_norm(int64_t rows, Tensor x, const Tensor& gain, float eps, Tensor out, Tensor quantised) override {
    const int64_t cols = x.cols;
    for_rows(rows, [&](int64_t r) {
      normalise(x.f32(r), gain.f32(), eps, out.f32(r), cols);
      if (quantised.data == nullptr) return;
      if (quantised.data != out.data) std::memcpy(quantised.f32(r), out.f32(r), static_cast<size_t>(cols) * sizeof(float));
      round_to_fp8(quantised.f32(r), cols, kQuantGroup, options_.ue8m0);
    });
  }

  void linear(int64_t rows, const Tensor& x, const Linear& weight, Tensor y) override {
    DSV3_CHECK(x.cols == weight.in && y.cols == weight.out, "linear: x or y does not fit the weight");
    gemm(pool_, rows, x.f32(), x.stride, static_cast<const CpuLinear&>(weight).matrix, y.f32(), y.stride);
  }

  void silu_mul(int64_t rows, const Tensor& gate_up, const Linear& next, Tensor out) override {
    const int64_t width = gate_up.cols / 2;
    for_rows(rows,
             [&](int64_t r) { simd().silu_mul(gate_up.f32(r), gate_up.f32(r) + width, out.f32(r), width); });
    quantise(rows, out, next);
  }

  void quantise(int64_t rows, Tensor x, const Linear& next) override {
    if (!options_.w8a8 || !next.fp8) return;
    for_rows(rows, [&](int64_t r) { round_to_fp8(x.f32(r), x.cols, kQuantGroup, options_.ue8m0); });
  }

  void rope_and_cache(const Batch& batch, const AttentionShape& shape, int64_t cache_layer, Tensor q,
                      const Tensor& kv_a, const Tensor& gain, float eps) override {
    const int64_t half = shape.rope / 2;
    if (!rotation_ready_) compute_rotation(batch, shape);
    for (const auto& segment : batch.segments) {
      const auto& blocks = slots_.at(segment.slot).blocks;
      for_rows(segment.rows, [&](int64_t i) {
        const int64_t r = segment.row_begin + i;
        const float* turn = rotation_.data() + r * shape.rope;
        for (int64_t h = 0; h < shape.heads; ++h) {
          rotate(q.f32(r) + h * (shape.nope + shape.rope) + shape.nope, turn, half);
        }
        const int64_t position = batch.positions[static_cast<size_t>(r)];
        float* row = cache_row(cache_layer, blocks[static_cast<size_t>(position / limits_.block_tokens)],
                               position % limits_.block_tokens);
        normalise(kv_a.f32(r), gain.f32(), eps, row, shape.latent);
        std::memcpy(row + shape.latent, kv_a.f32(r) + shape.latent, static_cast<size_t>(shape.rope) * sizeof(float));
        rotate(row + shape.latent, turn, half);
      });
    }
  }

  void attention(const Batch& batch, const AttentionShape& shape, int64_t cache_layer, const KvProjection& kv_b,
                 const Tensor& q, Tensor out) override {
    std::vector<AttentionSpan> expanded, absorbed;
    for (const auto& segment : batch.segments) {
      const AttentionSpan span{q.f32(segment.row_begin), out.f32(segment.row_begin), segment.rows, segment.start,
                               slots_.at(segment.slot).blocks};
      (segment.form == AttentionForm::kExpanded ? expanded : absorbed).push_back(span);
    }
    const CacheView cache{cache_row(cache_layer, 0, 0), limits_.cache_row, limits_.block_tokens};
    const auto& weights = static_cast<const CpuKvProjection&>(kv_b);
    attention_expanded(pool_, shape, weights, cache, expanded);
    attention_absorbed(pool_, shape, weights, cache, absorbed, attention_scratch_);
  }

  void route(int64_t rows, const GateShape& gate, const Tensor& logits, const Tensor& bias, Tensor ids,
             Tensor weights) override {
    for_rows(rows, [&](int64_t r) {
      route_row(gate, logits.f32(r), bias.data != nullptr ? bias.f32() : nullptr, ids.i32(r), weights.f32(r));
    });
  }

  void experts(int64_t rows, const Tensor& x, const Tensor& x_fp8, const Experts& experts, const Tensor& ids,
               const Tensor& weights, bool accumulate, Tensor out) override {
    const auto& mine = static_cast<const CpuExperts&>(experts);
    if (!accumulate) {
      for (int64_t r = 0; r < rows; ++r) std::memset(out.f32(r), 0, static_cast<size_t>(out.cols) * sizeof(float));
    }
    run_experts(pool_, rows, mine.rounded_inputs ? x_fp8 : x, mine, ids, weights, out, experts_scratch_);
  }

  void gather_rows(const Tensor& x, std::span<const int32_t> rows_wanted, Tensor out) override {
    for (size_t i = 0; i < rows_wanted.size(); ++i) {
      std::memmove(out.f32(static_cast<int64_t>(i)), x.f32(rows_wanted[i]),
                   static_cast<size_t>(x.cols) * sizeof(float));
    }
  }

  void gather_logit_rows(const Batch& batch, const Tensor& x, Tensor out) override { gather_rows(x, batch.logit_rows, out); }
  void gather_source_rows(const Batch& batch, const Tensor& x, Tensor out) override { gather_rows(x, batch.source_rows, out); }


  void sample(const Batch& batch, const Tensor& logits) override;
  Result<std::vector<SegmentResult>> collect() override {
    DSV3_CHECK(!sampled_.empty(), "collect() without a step");
    auto results = std::move(sampled_.front());
    sampled_.pop_front();
    return results;
  }
  std::vector<SampledToken> logprobs_of(int64_t rows, const Tensor& logits, std::span<const int32_t> ids,
                                        int32_t num_top) override {
    std::vector<SampledToken> result;
    for (int64_t r = 0; r < rows; ++r) {
      result.push_back(logprob_of(row_of(logits, r), ids[static_cast<size_t>(r)], num_top));
    }
    return result;
  }

  void set_drafts(const Batch& draft, const Tensor& logits) override {
    int64_t row = 0;
    for (const auto& segment : draft.segments) {
      if (!segment.sample) continue;
      const auto values = row_of(logits, row++).first(static_cast<size_t>(limits_.known_vocab));
      const auto best = std::max_element(values.begin(), values.end());
      slots_.at(segment.slot).drafts.push_back(static_cast<int32_t>(best - values.begin()));
    }
  }

  Status read_back(int64_t rows, const Tensor& x, float* out) override {
    for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * x.cols, x.f32(r), static_cast<size_t>(x.cols) * sizeof(float));
    return {};
  }

 private:
  /// body(r) for each row, on all threads where there are enough rows to pay for waking them.
  template <class Body>
  void for_rows(int64_t rows, Body&& body) {
    cpu::for_rows(pool_, rows, body);
  }

  std::span<const float> row_of(const Tensor& logits, int64_t row) const {
    return {logits.f32(row), static_cast<size_t>(limits_.vocab)};
  }

  float* cache_row(int64_t layer, int64_t block, int64_t row) const {
    return cache_.get() + ((layer * limits_.num_blocks + block) * limits_.block_tokens + row) * limits_.cache_row;
  }

  static void normalise(const float* x, const float* gain, float eps, float* out, int64_t n) {
    const float inverse = 1.0f / std::sqrt(simd().sum_squares(x, n) / static_cast<float>(n) + eps);
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * inverse * gain[i];
  }


  /// cos and sin of every row's position, interleaved, once for all layers of a batch.
  void compute_rotation(const Batch& batch, const AttentionShape& shape) {
    rotation_.resize(static_cast<size_t>(batch.rows * shape.rope));
    for_rows(batch.rows, [&](int64_t r) {
      float* turn = rotation_.data() + r * shape.rope;
      const double position = batch.positions[static_cast<size_t>(r)];
      for (int64_t i = 0; i < shape.rope / 2; ++i) {
        const double angle = position * shape.rope_frequencies[static_cast<size_t>(i)];
        turn[2 * i] = static_cast<float>(std::cos(angle)) * shape.rope_cos_factor;
        turn[2 * i + 1] = static_cast<float>(std::sin(angle)) * shape.rope_cos_factor;
      }
    });
    rotation_ready_ = true;
  }

  /// Interleaved pairs (model.md 5.1).
  static void rotate(float* x, const float* turn, int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1], c = turn[2 * i], s = turn[2 * i + 1];
      x[2 * i] = a * c - b * s;
      x[2 * i + 1] = a * s + b * c;
    }
  }

  OpsLimits limits_;
  CpuOpsOptions options_;
  ForkJoin pool_;
  SlotTable slots_;
  MappedFloats cache_;                         // [cache_layers][num_blocks][block_tokens][cache_row]
  std::deque<AlignedFloats> buffers_;          // deque: tensors point into the vectors
  AlignedFloats attention_scratch_, experts_scratch_;
  std::vector<float> sample_scratch_;
  std::deque<std::vector<SegmentResult>> sampled_;  // steps not collected yet
  std::vector<float> rotation_;  // [rows][rope] of the batch that was prepared last
  bool rotation_ready_ = false;
};

void CpuOps::sample(const Batch& batch, const Tensor& logits) {
  std::vector<SegmentResult>& results = sampled_.emplace_back();
  int64_t row = 0;
  for (const auto& segment : batch.segments) {
    SegmentResult& result = results.emplace_back();
    Slot& slot = slots_.at(segment.slot);
    if (!segment.sample) {
      slot.computed = segment.start + segment.rows;
      continue;
    }
    const int64_t first_row = row;
    row += segment.decode ? segment.rows : 1;
    const int32_t proposed = static_cast<int32_t>(row - first_row) - 1;
    const std::vector<int32_t> drafts(slot.drafts.begin(), slot.drafts.begin() + proposed);
    slot.drafts.clear();
    result.drafts_proposed = proposed;
    for (int64_t r = first_row; r < row; ++r) {
      const auto values = row_of(logits, r);
      result.bad_logits = result.bad_logits || !all_finite(values);
      const std::span<const int32_t> tokens = slot.tokens;
      const auto prompt = static_cast<size_t>(slot.prompt_tokens);
      // With bad logits any token will do: the sequence fails, its slot only has to stay consistent.
      SampledToken token = result.bad_logits ? SampledToken{}
                                             : sample_token(values, limits_.known_vocab, slot.sampling,
                                                            {tokens.first(prompt), tokens.subspan(prompt)}, sample_scratch_);
      slot.tokens.push_back(token.id);
      result.tokens.push_back(std::move(token));
      // A draft is right exactly when it is what sampling chose from the true distribution: the output never
      // depends on drafts, and a draft is accepted with the probability that the model gives it.
      const auto next = static_cast<size_t>(r - first_row);
      if (next >= drafts.size() || drafts[next] != slot.tokens.back()) break;
      ++result.drafts_accepted;
    }
    slot.computed = segment.decode ? segment.start + 1 + result.drafts_accepted : segment.start + segment.rows;
  }
}

}  // namespace
}  // namespace cpu

std::unique_ptr<Ops> make_cpu_ops(const OpsLimits& limits, const CpuOpsOptions& options) {
  return std::make_unique<cpu::CpuOps>(limits, options);
}

}  // namespace dsv3
