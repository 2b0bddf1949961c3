// The operations that the model is written in. One implementation per backend: CpuOps is the reference; a CUDA one
// fills in the same calls. One Ops belongs to one rank and is used by that rank's thread only.
//
// Activations travel in the backend's own precision (float32 on the CPU, BF16 on GPUs), the residual stream in float32. Every
// call takes the first `rows` rows that the batch says; buffers are allocated once, before the first step, for the largest
// step. A backend may only enqueue the work of a step: what a step decided comes out of collect().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/kernels/sampling.h"
#include "dsv3/tensor/tensor.h"

namespace dsv3 {

/// Reads one weight matrix [rows, cols], already cut to this rank's slice. Row-major.
class MatrixReader {
 public:
  virtual ~MatrixReader() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t cols() const = 0;
  virtual bool is_fp8() const = 0;                     ///< stored as e4m3 with block scales
  virtual Status read_f32(float* out) const = 0;       ///< dequantised, packed rows

  /// True if the slice is whole 128 x 128 blocks (but at its far edges), so that data and scales can be taken as stored.
  virtual bool has_whole_blocks() const = 0;
  /// Rows [begin, end) as stored, packed. Only of fp8 matrices.
  virtual Status read_fp8(int64_t begin, int64_t end, uint8_t* out) const = 0;
  /// All scales [ceil(rows / 128), ceil(cols / 128)]. Only with whole blocks.
  virtual Status read_scales(float* out) const = 0;
  /// Rows [begin, end) as BF16, packed; whatever is stored is rounded once.
  virtual Status read_bf16(int64_t begin, int64_t end, uint16_t* out) const = 0;
  /// A reader of the same slice, for loading on another thread. Lives no longer than the source of the weights.
  virtual std::unique_ptr<MatrixReader> clone() const = 0;
};

/// A linear layer's weight, prepared by a backend: y[T, out] = x[T, in] W^T.
class Linear {
 public:
  virtual ~Linear() = default;
  int64_t in = 0, out = 0;
  bool fp8 = false;  ///< in w8a8 mode the input is rounded to e4m3 per token and 128 channels
};
using LinearPtr = std::unique_ptr<Linear>;

/// kv_b_proj of this rank's heads, in the forms that attention needs (model.md 4.2, 4.3).
class KvProjection {
 public:
  virtual ~KvProjection() = default;
};
using KvProjectionPtr = std::unique_ptr<KvProjection>;

/// The experts that this rank holds (all of them, in slices, under tensor parallelism).
class Experts {
 public:
  virtual ~Experts() = default;
  /// The shared expert is one of them, the last: every row goes to it with weight 1 (GateShape::shared_id).
  bool includes_shared = false;
};
using ExpertsPtr = std::unique_ptr<Experts>;

/// What load_experts() reads. gate_up[e] is [2 * width, hidden] (gate rows first), down[e] is [hidden, width].
struct ExpertReaders {
  std::vector<std::unique_ptr<MatrixReader>> gate_up, down;
  std::unique_ptr<MatrixReader> shared_gate_up, shared_down;  ///< of the same shape, or null
  int64_t top_k = 0;                                          ///< routed experts of a row
};

/// Sizes of one rank's attention.
struct AttentionShape {
  int64_t heads = 0;  ///< of this rank
  int64_t nope = 0, rope = 0, v = 0, latent = 0;
  float softmax_scale = 0;
  float rope_cos_factor = 1;
  std::vector<double> rope_frequencies;  ///< rope / 2, radians per position
};

struct GateShape {
  int64_t experts = 0, top_k = 0, groups = 1, top_groups = 1;
  bool sigmoid = true;          ///< else softmax
  bool group_by_top2 = true;    ///< group score = sum of its two best (noaux_tc); else its best
  bool grouped = true;          ///< false: no group step
  bool normalise = true;
  bool scale_when_normalised = true;  ///< V3 multiplies by `scale` always, V2 only when it does not normalise
  float scale = 1;
  int64_t shared_id = -1;  ///< >= 0: ids and weights have one more column, this id with weight 1
  int64_t columns() const { return top_k + (shared_id >= 0 ? 1 : 0); }
};

/// How a batch's rows of one sequence attend. Results differ only in rounding.
enum class AttentionForm {
  kExpanded,  ///< K and V per head, from cached prefix and new rows (prompts)
  kAbsorbed,  ///< queries moved into the latent space (decode)
};

/// Rows of one sequence in a step.
struct BatchSegment {
  int32_t slot = 0;
  int32_t start = 0;      ///< position of the first row; for decode what the slot knows (ignored on input)
  int32_t rows = 0;       ///< decode: at most 1 + drafts; prepare_batch lowers it to what the slot has
  int32_t row_begin = 0;  ///< first row in the batch; set by prepare_batch
  AttentionForm form = AttentionForm::kAbsorbed;
  bool decode = false;
  bool sample = false;    ///< the last row's logits (decode: every row's) are sampled
};

/// The rows of one forward pass. Filled by an Ops, read by the model for sizes only: backends that keep slots on a device
/// leave the lists empty.
struct Batch {
  std::vector<BatchSegment> segments;
  int64_t rows = 0;
  int64_t num_logit_rows = 0;
  std::vector<int32_t> tokens;      ///< [rows]
  std::vector<int32_t> positions;   ///< [rows]
  std::vector<int32_t> source_rows; ///< [rows] MTP only: row of the hidden state that goes with each token
  std::vector<int32_t> logit_rows;  ///< [num_logit_rows] rows whose logits are wanted, in order of segments
};

/// What sampling did to a segment.
struct SegmentResult {
  std::vector<SampledToken> tokens;
  int32_t drafts_proposed = 0, drafts_accepted = 0;
  bool bad_logits = false;
};

/// Sizes that an Ops is built for.
struct OpsLimits {
  int64_t max_slots = 0, max_rows = 0, max_context_tokens = 0;
  int64_t num_blocks = 0, block_tokens = 64;
  int64_t cache_layers = 0;  ///< main layers, plus one per MTP layer
  int64_t cache_row = 0;     ///< numbers per token and layer: latent + rope
  int64_t num_drafts = 0;
  int64_t vocab = 0;         ///< logits per row
  int64_t known_vocab = 0;   ///< ids >= this are never sampled
};

enum class BufferKind {
  kActivation,  ///< the backend's activation dtype
  kResidual,    ///< the residual stream: float32 on GPUs, so that adding a branch rounds nothing away
  kFloat,       ///< float32: router and logits
  kInt,         ///< int32
};

/// What a device says of itself while serving.
struct DeviceStats {
  int64_t bytes_in_use = 0;
  int64_t allocations_after_ready = 0;
  int64_t graph_steps = 0, eager_steps = 0;  ///< decode steps replayed from a graph; all others
  /// Time on the device from the first kernel of a step to its last, over all steps; and between the end of a step and the
  /// beginning of the next, over those that were launched while the one before still ran.
  double busy_us = 0, gap_us = 0;
  int64_t timed_steps = 0, gaps = 0;
};

class Ops {
 public:
  virtual ~Ops() = default;

  /// True in w8a8 mode: linears with fp8 weights read rounded activations.
  virtual bool fp8_inputs() const = 0;
  /// Device bytes in use and what was allocated since set_ready(); zeros where there is no device.
  virtual DeviceStats device_stats() const { return {}; }

  // ---- before the first step -------------------------------------------------------------------------------
  /// A buffer that lives as long as the Ops. `name` appears in the memory plan.
  virtual Tensor alloc(std::string_view name, int64_t rows, int64_t cols, BufferKind kind = BufferKind::kActivation) = 0;
  virtual Result<Tensor> load_vector(const MatrixReader& reader) = 0;  ///< norms, biases; float32
  virtual Result<Tensor> load_table(const MatrixReader& reader) = 0;   ///< embedding rows
  virtual Result<LinearPtr> load_linear(const MatrixReader& reader) = 0;
  virtual Result<KvProjectionPtr> load_kv_projection(const MatrixReader& reader, const AttentionShape& shape) = 0;
  /// A backend may take the shared expert along (Experts::includes_shared); else it is loaded as an MLP.
  virtual Result<ExpertsPtr> load_experts(const ExpertReaders& readers) = 0;
  /// Waits until everything that load_*() started is in place.
  virtual Status finish_loading() { return {}; }
  /// Whether steps should run before the first request, and for which decode batch sizes (graphs are captured then).
  virtual bool wants_warm_up() const { return false; }
  virtual std::vector<int32_t> warm_up_batches() const { return {}; }
  /// From now on nothing is allocated on a device.
  virtual Status set_ready() { return {}; }

  // ---- slots -----------------------------------------------------------------------------------------------
  virtual void slot_begin(int32_t slot, const SamplingParams& sampling, std::span<const int32_t> tokens,
                          int32_t prompt_tokens, int32_t cached_tokens) = 0;
  virtual void slot_grant(int32_t slot, std::span<const int32_t> blocks) = 0;
  virtual void slot_end(int32_t slot) = 0;

  /// Lays the segments' rows out and fills in tokens and positions from the slots. Slot -1: a decode of nobody, for warm-up.
  virtual void prepare_batch(Batch& batch) = 0;
  /// Executes the step of the batch prepared last: `pass` makes the calls of its forward passes, sampling included. A pass
  /// may be recorded and replayed for later batches of the same shape unless `once` is set.
  virtual void run(Batch& batch, bool once, const std::function<void()>& pass) = 0;
  /// Rows of a draft pass, after sampling. The first (previous == nullptr): for every segment of `main` the rows whose
  /// successor token is known now; source_rows are rows of `main`. Later ones: one row per sequence, the token drafted
  /// in `previous`; source_rows count previous.logit_rows. Rows without a cache position are left out; an empty batch
  /// means that drafting is done.
  virtual void prepare_draft(const Batch& main, const Batch* previous, Batch& draft) = 0;

  // ---- layers ----------------------------------------------------------------------------------------------
  /// out[rows, hidden] = table[token - first_id], zeros for ids of other ranks.
  virtual void embed(const Batch& batch, const Tensor& table, int64_t first_id, Tensor out) = 0;
  /// residual += delta (unless delta.data is null); out = gain * residual / rms(residual). Sums in float32, in a fixed
  /// order. If `quantised` has data it gets `out` as an FP8 linear reads it in w8a8 mode.
  virtual void add_rms_norm(int64_t rows, Tensor residual, Tensor delta, const Tensor& gain, float eps, Tensor out,
                            Tensor quantised) = 0;
  /// The same without a residual, on `cols` columns of x. `quantised` may be `out`: then only that form is wanted.
  virtual void rms_norm(int64_t rows, Tensor x, const Tensor& gain, float eps, Tensor out, Tensor quantised) = 0;
  virtual void linear(int64_t rows, const Tensor& x, const Linear& weight, Tensor y) = 0;
  /// out[rows, width] = silu(gate_up[:, :width]) * gate_up[:, width:], rounded for an FP8 `next` in w8a8 mode.
  virtual void silu_mul(int64_t rows, const Tensor& gate_up, const Linear& next, Tensor out) = 0;
  /// Rounds x in place, if `next` has fp8 weights and the mode is w8a8.
  virtual void quantise(int64_t rows, Tensor x, const Linear& next) = 0;
  /// Normalises the latent, turns k_pe and every head's q_pe by their positions, and writes latent and k_pe to the
  /// cache rows of the batch. q [rows, heads * (nope + rope)] is changed in place; kv_a [rows, latent + rope].
  virtual void rope_and_cache(const Batch& batch, const AttentionShape& shape, int64_t cache_layer, Tensor q,
                              const Tensor& kv_a, const Tensor& gain, float eps) = 0;
  /// out[rows, heads * v]: causal attention of every row over its sequence's cached rows, own row included.
  virtual void attention(const Batch& batch, const AttentionShape& shape, int64_t cache_layer,
                         const KvProjection& kv_b, const Tensor& q, Tensor out) = 0;
  /// Router (model.md 6.1, 6.3): ids int32 and weights, both [rows, gate.columns()], from logits [rows, experts].
  virtual void route(int64_t rows, const GateShape& gate, const Tensor& logits, const Tensor& bias, Tensor ids,
                     Tensor weights) = 0;
  /// out[rows, hidden] = (what was there, if `accumulate`) + sum over k of weights[k] * expert ids[k](x), added in float32 in
  /// order of k. Experts with fp8 weights read x_fp8 in w8a8 mode.
  virtual void experts(int64_t rows, const Tensor& x, const Tensor& x_fp8, const Experts& experts, const Tensor& ids,
                       const Tensor& weights, bool accumulate, Tensor out) = 0;
  /// out[i] = x[rows_wanted[i]].
  virtual void gather_rows(const Tensor& x, std::span<const int32_t> rows_wanted, Tensor out) = 0;
  /// The same with the batch's logit_rows, and with its source_rows.
  virtual void gather_logit_rows(const Batch& batch, const Tensor& x, Tensor out) = 0;
  virtual void gather_source_rows(const Batch& batch, const Tensor& x, Tensor out) = 0;

  // ---- output ----------------------------------------------------------------------------------------------
  /// Samples every segment with `sample` set from logits [batch.logit_rows, vocab] (rows in that order), verifies
  /// drafts, and advances the slots.
  virtual void sample(const Batch& batch, const Tensor& logits) = 0;
  /// What sample() decided in the oldest step not collected yet, one result per segment. Blocks until that step has ended.
  /// At most two steps may be under way. kDeviceLost: nothing will ever work again.
  virtual Result<std::vector<SegmentResult>> collect() = 0;
  /// True if collect() would not block.
  virtual bool ready() { return true; }
  /// Logprobs of given tokens: row i of logits, token ids[i].
  virtual std::vector<SampledToken> logprobs_of(int64_t rows, const Tensor& logits, std::span<const int32_t> ids,
                                                int32_t num_top) = 0;
  /// Takes the most likely token of each logits row as the next draft of its segment's slot.
  virtual void set_drafts(const Batch& draft, const Tensor& logits) = 0;
  /// The first rows of a float32 or activation tensor as float32 on the host, packed. Waits for what was enqueued. For tests.
  virtual Status read_back(int64_t rows, const Tensor& x, float* out) = 0;
};

}  // namespace dsv3
