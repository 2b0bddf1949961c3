// The CUDA backend of Ops: one stream, one arena, launchers in order. This class lays batches out, owns buffers and graphs, and
// calls the kernels of gemm, mla, moe, norm and sampling; it computes nothing on the host. Runs on its rank's thread only.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "arena.h"
#include "common/types.h"
#include "dsv3/kernels/cuda/cuda_ops.h"
#include "gemm/blas.h"
#include "gemm/gemm.h"
#include "mla/mla.h"
#include "moe/moe.h"
#include "norm/norm.h"
#include "sampling/sampling.h"
#include "weight_loader.h"

namespace dsv3::cuda {

/// FP8 with block scales, or BF16.
class CudaLinear final : public Linear {
 public:
  Fp8Weight fp8_weight;    ///< data null: BF16
  Bf16Weight bf16_weight;
};

/// kv_b_proj in BF16 [heads * 256, 512]: expands latents for prompts; per head its two halves move queries into the latent space
/// and outputs out of it (model.md 4.3). One copy serves all three.
class CudaKvProjection final : public KvProjection {
 public:
  Bf16Weight weight;
};

class CudaExperts final : public Experts {
 public:
  int64_t count = 0, width = 0, hidden = 0;
  bool fp8 = false;
  Fp8Weight fp8_gate_up, fp8_down;
  Bf16Weight bf16_gate_up, bf16_down;
};

/// Cached rows that a prompt expands to keys and values at a time; longer contexts are attended in parts.
inline constexpr int64_t kMaxExpandedKeys = 8192;

class CudaOps final : public Ops {
 public:
  static Result<std::unique_ptr<Ops>> create(const OpsLimits& limits, const CudaOpsOptions& options);
  ~CudaOps() override;

  bool fp8_inputs() const override { return options_.w8a8; }
  DeviceStats device_stats() const override;

  Tensor alloc(std::string_view name, int64_t rows, int64_t cols, BufferKind kind) override;
  Result<Tensor> load_vector(const MatrixReader& reader) override;
  Result<Tensor> load_table(const MatrixReader& reader) override;
  Result<LinearPtr> load_linear(const MatrixReader& reader) override;
  Result<KvProjectionPtr> load_kv_projection(const MatrixReader& reader, const AttentionShape& shape) override;
  Result<ExpertsPtr> load_experts(const ExpertReaders& readers) override;
  Status finish_loading() override;
  bool wants_warm_up() const override { return true; }
  Status set_ready() override;
  std::vector<int32_t> warm_up_batches() const override { return options_.graph_batches; }

  void slot_begin(int32_t slot, const SamplingParams& sampling, std::span<const int32_t> tokens, int32_t prompt_tokens,
                  int32_t cached_tokens) override {
    slots_->slot_begin(slot, sampling, tokens, prompt_tokens, cached_tokens);
  }
  void slot_grant(int32_t slot, std::span<const int32_t> blocks) override { slots_->slot_grant(slot, blocks); }
  void slot_end(int32_t slot) override { slots_->slot_end(slot); }

  void prepare_batch(Batch& batch) override;
  void run(Batch& batch, bool once, const std::function<void()>& pass) override;
  void prepare_draft(const Batch& main, const Batch* previous, Batch& draft) override;

  void embed(const Batch& batch, const Tensor& table, int64_t first_id, Tensor out) override;
  void add_rms_norm(int64_t rows, Tensor residual, Tensor delta, const Tensor& gain, float eps, Tensor out, Tensor quantised) override;
  void rms_norm(int64_t rows, Tensor x, const Tensor& gain, float eps, Tensor out, Tensor quantised) override;
  void linear(int64_t rows, const Tensor& x, const Linear& weight, Tensor y) override;
  void silu_mul(int64_t rows, const Tensor& gate_up, const Linear& next, Tensor out) override;
  void quantise(int64_t rows, Tensor x, const Linear& next) override;
  void rope_and_cache(const Batch& batch, const AttentionShape& shape, int64_t cache_layer, Tensor q, const Tensor& kv_a,
                      const Tensor& gain, float eps) override;
  void attention(const Batch& batch, const AttentionShape& shape, int64_t cache_layer, const KvProjection& kv_b, const Tensor& q,
                 Tensor out) override;
  void route(int64_t rows, const GateShape& gate, const Tensor& logits, const Tensor& bias, Tensor ids, Tensor weights) override;
  void experts(int64_t rows, const Tensor& x, const Tensor& x_fp8, const Experts& experts, const Tensor& ids, const Tensor& weights,
               bool accumulate, Tensor out) override;
  void gather_rows(const Tensor& x, std::span<const int32_t> rows_wanted, Tensor out) override;
  void gather_logit_rows(const Batch& batch, const Tensor& x, Tensor out) override;
  void gather_source_rows(const Batch& batch, const Tensor& x, Tensor out) override;

  void sample(const Batch& batch, const Tensor& logits) override;
  Result<std::vector<SegmentResult>> collect() override;
  bool ready() override;
  std::vector<SampledToken> logprobs_of(int64_t rows, const Tensor& logits, std::span<const int32_t> ids, int32_t num_top) override;
  void set_drafts(const Batch& draft, const Tensor& logits) override;
  Status read_back(int64_t rows, const Tensor& x, float* out) override;

 private:
  /// A pass as the kernels see it. Decode rows come first in the batch; prompts follow.
  struct Pass {
    const DeviceBatch* device = nullptr;
    int32_t rows = 0, decode_rows = 0, logit_rows = 0, draft_pass = -1;
    int32_t num_segments = 0;
    int32_t num_groups = 0, max_group_rows = 1;   ///< of the decode rows
    std::vector<PrefillSpan> spans;               ///< expanded segments; keys are the slot's whole context
    std::vector<int32_t> span_slots;
    std::vector<QueryGroup> recomputed;           ///< absorbed prompt segments (output recomputed after a preemption), by 4 rows
  };
  /// An activation as FP8 products read it, kept beside the BF16 one.
  struct Quantised {
    uint8_t* data = nullptr;
    float* scales = nullptr;
    int64_t rows = 0;
  };
  /// The attention's output between attention() and quantise(): expand_values() writes most decode rows in both forms, and only the
  /// others are left to quantise().
  struct Attended {
    const void* data = nullptr;
    std::vector<std::pair<int64_t, int64_t>> plain;   ///< first row, rows: BF16 only
    void add_plain(int64_t first, int64_t rows) {
      if (!plain.empty() && plain.back().first + plain.back().second == first) {
        plain.back().second += rows;
      } else {
        plain.emplace_back(first, rows);
      }
    }
  };
  struct ExpertBuffers {   // sized for the largest step
    int64_t capacity = 0, count = 0;   // rows; experts
    ExpertOrder order;
    int32_t* scratch = nullptr;
    float* hit_weights = nullptr;    // [hits of kHitRows rows][kHitRows]; w8a8
    Fp8Rows input, middle;           // w8a8
    Bf16Matrix input_bf16, middle_bf16;
    Bf16Matrix gate_up, output;
  };

  struct Ordered {   // what the last route() has put in order by expert, or (few rows) listed as hits
    const int32_t* ids = nullptr;
    int64_t rows = 0, experts = 0;
    bool as_hits = false;
  };

  CudaOps(const OpsLimits& limits, const CudaOpsOptions& options) : limits_(limits), options_(options) {}
  Status open();
  void note(const Status& status) {
    if (!status.ok() && fault_.ok()) fault_ = status;
  }
  template <class T>
  T* take(Arena::Part part, std::string_view name, int64_t count);
  Fp8Rows quantised_rows(const Tensor& x, int64_t rows) const { return quantised_part(x, 0, rows); }
  /// The FP8 form of rows [first, first + rows) of a whole buffer.
  Fp8Rows quantised_part(const Tensor& x, int64_t first, int64_t rows) const;
  Result<Fp8Weight> load_fp8(std::span<const MatrixReader* const> readers);
  Result<Bf16Weight> load_bf16(std::span<const MatrixReader* const> readers);
  Status alloc_attention(const AttentionShape& shape);
  Status alloc_experts(const CudaExperts& experts, int64_t top_k);
  KvPages pages(int64_t cache_layer) const;
  void bf16_product(const Bf16Matrix& x, const Bf16Weight& w, const Tensor& y);
  int expert_tile_rows(int64_t rows, int64_t top_k, int64_t experts) const;
  ExpertOrder expert_order(int64_t rows, int64_t top_k, int64_t experts) const;
  ExpertHits expert_hits(int64_t rows, int64_t columns, int64_t experts) const;
  void schedule_decode();
  bool absorbs_itself(int64_t rows) const;
  void attend_decode(int64_t cache_layer, const CudaKvProjection& kv_b, const Tensor& q, Tensor out);
  void attend_recomputed(int64_t cache_layer, const CudaKvProjection& kv_b, const Tensor& q, Tensor out);
  void attend_expanded(int64_t cache_layer, const CudaKvProjection& kv_b, const Tensor& q, Tensor out);
  /// Absorbed attention of rows [first, first + rows) of q and out, whose turned key parts lie in absorbed_q_ already, or are
  /// put there on the way (decode_turn_).
  void absorbed(MlaDecode shape, int64_t first, int64_t rows, const CudaKvProjection& kv_b, const Tensor& q, Tensor out);
  MlaDecode decode_shape(int64_t cache_layer) const;
  void add_times();
  Status capture(const std::function<void()>& body, cudaGraphExec_t* graph);

  const OpsLimits limits_;
  const CudaOpsOptions options_;
  Status fault_;   // the first one; sticky
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<WeightLoader> loader_;
  std::unique_ptr<Blas> blas_;
  std::unique_ptr<SlotState> slots_;
  MlaWorkspace mla_workspace_;
  std::unordered_map<const void*, Quantised> quantised_;   // by the BF16 buffer's address
  Attended attended_;
  RopeAndCache decode_turn_;   // of the decode rows, between rope_and_cache() and attention(); no rows: done
  char* cache_ = nullptr;
  int64_t cache_layer_bytes_ = 0;
  int32_t max_blocks_ = 0;   // of one slot

  // Attention buffers; D = absorbed rows at a time, K = expanded keys at a time, h = heads.
  int64_t absorbed_rows_ = 0, expanded_keys_ = 0;
  int32_t heads_ = 0;
  float softmax_scale_ = 0;
  Bf16 *absorbed_q_ = nullptr, *absorbed_out_ = nullptr;  // [D, h, 576], [D, h, 512]
  Bf16 *latent_ = nullptr, *key_rope_ = nullptr, *expanded_ = nullptr;  // [K, 512], [K, 64], [K, h, 256]
  float* lse_ = nullptr;                                  // [rows, h]
  double* frequencies_ = nullptr;                         // [32]
  QueryGroup* recomputed_groups_ = nullptr;               // [D]
  int32_t* wanted_rows_ = nullptr;                        // [max_rows] gather_rows() of a host list
  ExpertBuffers experts_;
  Ordered ordered_;

  Pass main_, draft_;
  const Pass* pass_ = nullptr;     // the one that layers work on
  int32_t graph_batch_ = 0;        // of the batch prepared last: a size to be captured, or 0
  bool nobody_ = false;            // all its slots are -1
  std::vector<StepSegment> segments_;
  size_t num_results_ = 0;         // of the batch prepared last
  std::vector<size_t> pending_results_;  // oldest first
  std::map<int32_t, cudaGraphExec_t> graphs_;  // by padded batch
  /// Device time of the steps under way: when the kernels of a step began and ended.
  struct StepTimes {
    cudaEvent_t begin = nullptr, end = nullptr;
    bool followed = false;   // launched while the step before still ran
  };
  std::array<StepTimes, 3> times_;   // two steps under way, and the end of the one before
  int64_t launched_ = 0, collected_ = 0;
  double busy_us_ = 0, gap_us_ = 0;
  int64_t gaps_ = 0;
  bool ready_ = false;
  // The device's free memory at its lowest since set_ready(), and how often it went lower.
  mutable int64_t least_free_ = 0, allocations_after_ready_ = 0, memory_checked_us_ = 0;
  int64_t graph_steps_ = 0, eager_steps_ = 0;
};

}  // namespace dsv3::cuda
