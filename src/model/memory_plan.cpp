// Memory by part of one rank. Slices are counted for the fullest rank; a rank keeps the scale of every 128 x 128 block
// that its slice touches, so slices need not fall on blocks.
#include "dsv3/model/memory_plan.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

namespace dsv3 {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kMiB = int64_t{1} << 20;
constexpr double kDefaultCudaFraction = 0.95;   // the rest is the driver's
constexpr double kDefaultCpuFraction = 0.90;    // the machine does other things too
constexpr int64_t kDefaultCpuCacheBytes = 2 * kGiB;
constexpr int64_t kCudaGraphBytes = 512 * kMiB;
constexpr int64_t kNcclBytes = 512 * kMiB;
constexpr int64_t kExpandedTokens = 8192;  // cached prefix rows that prefill expands to keys and values at a time
constexpr int64_t kMultiprocessors = 132;  // decode attention keeps pieces of 64 query rows for each
constexpr int64_t kSlotBytes = 64 << 10;   // sampling rules and lists of one slot
constexpr int64_t kWorkspaceBytes = 160 * kMiB;  // 32 MiB of the BLAS library, row lists, and a reserve

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class Split { kNone, kRows, kCols };
enum class Kind { kQuantizable, kWide, kFloat32 };  // kWide: BF16 in the file, never FP8

/// Bytes in memory of the fullest of `parts` slices of a [rows, cols] matrix.
class Sizer {
 public:
  Sizer(const ModelConfig& config, Backend backend, bool fp8) : config_(config), backend_(backend), fp8_(config.fp8 && fp8) {}

  int64_t bytes(int64_t rows, int64_t cols, Kind kind, Split split = Split::kNone, int64_t parts = 1) const {
    if (split == Split::kCols) return sliced(cols, rows, kind, parts);
    return sliced(rows, cols, kind, split == Split::kRows ? parts : 1);
  }
  /// Norms and biases: float32 in memory.
  int64_t vector(int64_t size) const { return bytes(size, 1, Kind::kFloat32); }

 private:
  // Blocks are square, so cutting columns counts like cutting rows of the transpose.
  int64_t sliced(int64_t cut, int64_t whole, Kind kind, int64_t parts) const {
    if (backend_ == Backend::kCpu || kind == Kind::kFloat32) return ceil_div(cut, parts) * whole * 4;
    if (kind == Kind::kWide || !fp8_) return ceil_div(cut, parts) * whole * 2;
    const int64_t block = config_.weight_block;
    int64_t most = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = cut * part / parts, end = cut * (part + 1) / parts;
      const int64_t blocks = end > begin ? ceil_div(end, block) - begin / block : 0;
      most = std::max(most, (end - begin) * whole + blocks * ceil_div(whole, block) * 4);
    }
    return most;
  }

  const ModelConfig& config_;
  Backend backend_;
  bool fp8_;
};

struct LayerBytes {
  int64_t attention = 0, dense_mlp = 0, routed = 0, shared = 0, small = 0;  // small: norms, router, its bias
};

int64_t mlp_bytes(const Sizer& sizer, int64_t hidden, int64_t width, int64_t parts) {
  // A GPU reads FP8 in whole scale blocks only; other widths become BF16.
  const Kind kind = parts == 1 && width % 128 != 0 ? Kind::kWide : Kind::kQuantizable;
  return 2 * sizer.bytes(width, hidden, kind, Split::kRows, parts) + sizer.bytes(hidden, width, kind, Split::kCols, parts);
}

LayerBytes layer_bytes(const ModelConfig& c, const Layout& layout, const Sizer& sizer, bool moe) {
  const int64_t attention_tp = layout.tp / layout.dp, expert_tp = layout.tp / layout.ep;
  const int64_t heads = c.num_attention_heads, hidden = c.hidden_size;
  LayerBytes out;
  if (c.q_lora_rank > 0) {
    out.attention += sizer.bytes(c.q_lora_rank, hidden, Kind::kQuantizable) +
                     sizer.bytes(heads * c.qk_head_dim(), c.q_lora_rank, Kind::kQuantizable, Split::kRows, attention_tp);
    out.small += sizer.vector(c.q_lora_rank);
  } else {
    out.attention += sizer.bytes(heads * c.qk_head_dim(), hidden, Kind::kQuantizable, Split::kRows, attention_tp);
  }
  // The CPU backend packs kv_b twice, for the expanded and for the absorbed form; GPUs keep one in BF16 for both.
  const int64_t kv_b = sizer.bytes(heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank, Kind::kWide, Split::kRows, attention_tp);
  out.attention += sizer.bytes(c.cache_row(), hidden, Kind::kQuantizable) + kv_b * (layout.backend == Backend::kCpu ? 2 : 1) +
                   sizer.bytes(hidden, heads * c.v_head_dim, Kind::kQuantizable, Split::kCols, attention_tp);
  out.small += sizer.vector(c.kv_lora_rank) + 2 * sizer.vector(hidden);
  if (!moe) {
    out.dense_mlp = mlp_bytes(sizer, hidden, c.intermediate_size, layout.tp);
    return out;
  }
  out.routed = ceil_div(c.n_routed_experts, layout.ep) * mlp_bytes(sizer, hidden, c.moe_intermediate_size, expert_tp);
  if (c.n_shared_experts > 0) {
    // Sliced like one expert: with whole experts per rank a token's shared expert runs where the token is.
    out.shared = mlp_bytes(sizer, hidden, c.moe_intermediate_size * c.n_shared_experts, expert_tp);
  }
  out.small += sizer.bytes(c.n_routed_experts, hidden, Kind::kWide);
  if (c.topk_method == TopkMethod::kNoauxTc) out.small += sizer.vector(c.n_routed_experts);
  return out;
}

std::vector<MemoryLine> weight_lines(const ModelConfig& c, const MemoryRequest& request) {
  const Layout& layout = request.layout;
  const Sizer sizer(c, layout.backend, request.w8a8);
  const int64_t table = sizer.bytes(c.vocab_size, c.hidden_size, Kind::kWide, Split::kRows, layout.tp);
  LayerBytes sum;
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const LayerBytes one = layer_bytes(c, layout, sizer, c.is_moe_layer(layer));
    sum.attention += one.attention;
    sum.dense_mlp += one.dense_mlp;
    sum.routed += one.routed;
    sum.shared += one.shared;
    sum.small += one.small;
  }
  sum.small += sizer.vector(c.hidden_size);
  std::vector<MemoryLine> lines = {
      {"embedding + head", "embedding_head", table * (c.tie_word_embeddings && layout.backend == Backend::kCpu ? 1 : 2)},
      {"attention", "attention", sum.attention},
      {"dense MLP", "dense_mlp", sum.dense_mlp},
      {"routed experts", "routed_experts", sum.routed},
      {"shared experts", "shared_experts", sum.shared},
      {"norms + router", "norms_router", sum.small},
  };
  if (request.mtp) {
    // One module drafts, however many the checkpoint has; its embedding and head are the main model's.
    const LayerBytes one = layer_bytes(c, layout, sizer, c.n_routed_experts > 0);
    lines.push_back({"MTP module", "mtp", one.attention + one.dense_mlp + one.routed + one.shared + one.small +
                                              3 * sizer.vector(c.hidden_size) +
                                              sizer.bytes(c.hidden_size, 2 * c.hidden_size, Kind::kWide)});
  }
  return lines;
}

int64_t cache_row_bytes(const ModelConfig& c, KvDType dtype) {
  switch (dtype) {
    case KvDType::kF32: return c.cache_row() * 4;
    case KvDType::kBF16: return c.cache_row() * 2;
    case KvDType::kFp8: return c.kv_lora_rank + ceil_div(c.kv_lora_rank, 128) * 4 + c.qk_rope_head_dim * 2;
  }
  return 0;
}

/// What the CPU backend allocates for its largest step, at most: Transformer's buffers and the scratch of its operations.
std::vector<MemoryLine> cpu_step_lines(const ModelConfig& c, const MemoryRequest& request, int64_t rows) {
  constexpr int64_t kTileTokens = 256;  // keys and values that one head's task expands at a time
  const int64_t tp = request.layout.tp, hidden = c.hidden_size, heads = c.num_attention_heads / tp;
  const int64_t width = ceil_div(std::max(c.intermediate_size, c.n_shared_experts * c.moe_intermediate_size), tp);
  const int64_t expert_width = ceil_div(c.moe_intermediate_size, tp), top_k = c.n_routed_experts > 0 ? c.num_experts_per_tok : 0;
  const int64_t buffers = rows * (5 * hidden + 2 * c.q_lora_rank + c.cache_row() + heads * (c.qk_head_dim() + c.v_head_dim) +
                                  3 * width + c.n_routed_experts + 2 * top_k + (request.mtp ? 5 * hidden : 0) + c.qk_rope_head_dim);
  const int64_t expanded = heads * (rows * c.v_head_dim + kTileTokens * (c.qk_head_dim() + c.v_head_dim));
  const int64_t absorbed = rows * heads * (c.cache_row() + c.kv_lora_rank);
  const int64_t experts = rows * top_k * (3 * hidden + 3 * expert_width);
  const int64_t logit_rows = std::min(request.max_slots * (1 + request.num_drafts), rows);
  const int64_t logits = logit_rows * (hidden + ceil_div(c.vocab_size, tp) + (tp > 1 ? c.vocab_size : 0)) + c.vocab_size;
  return {{"activations", "activations", (buffers + std::max(expanded, absorbed) + experts) * 4},
          {"logits + sampling", "logits", (logits + request.max_slots * request.context_tokens) * 4}};
}

/// An activation buffer of the CUDA backend: BF16, and in w8a8 mode an FP8 form with a scale per 128 columns.
int64_t activation_bytes(int64_t rows, int64_t cols, bool w8a8) {
  const int64_t fp8 = w8a8 && cols % 128 == 0 ? rows * cols + ceil_div(rows, 4) * 4 * (cols / 128) * 4 : 0;
  return rows * cols * 2 + fp8;
}

/// What the CUDA backend allocates for its largest step: Transformer's buffers, then what attention, experts and sampling
/// need (kernels/cuda/cuda_weights.cpp, cuda_ops.cpp). tests/cuda holds the two against each other.
std::vector<MemoryLine> cuda_step_lines(const ModelConfig& c, const MemoryRequest& r, int64_t rows) {
  const Layout& layout = r.layout;
  const int64_t hidden = c.hidden_size, heads = c.num_attention_heads / (layout.tp / layout.dp), drafts = r.num_drafts;
  const int64_t shared_width = c.n_shared_experts * c.moe_intermediate_size;
  int64_t width = ceil_div(std::max(c.intermediate_size, shared_width), layout.tp);
  if (r.w8a8) width = ceil_div(width, 128) * 128;
  const int64_t logit_rows = std::min(r.max_slots * (1 + drafts), rows);
  int64_t buffers = 0;
  const auto add = [&](int64_t count, int64_t cols) { buffers += activation_bytes(count, cols, r.w8a8); };
  buffers += rows * hidden * 4 * (r.mtp ? 2 : 1);                // residual and draft_residual: float32, no FP8 form
  for (int i = 0; i < (r.w8a8 ? 4 : 3); ++i) add(rows, hidden);  // normed (twice), delta, hidden
  add(rows, c.q_lora_rank + c.cache_row());
  add(rows, c.q_lora_rank);
  add(rows, heads * c.qk_head_dim());
  add(rows, heads * c.v_head_dim);
  add(rows, 2 * width);
  add(rows, width);
  for (int i = 0; r.mtp && i < 2; ++i) add(rows, hidden);  // draft_hidden, draft_source
  if (r.mtp) add(rows, 2 * hidden);
  add(logit_rows, hidden);

  const int64_t absorbed = std::min(std::max(r.max_slots * (1 + drafts), int64_t{256}), std::max(rows, r.max_slots * (1 + drafts)));
  const int64_t keys = std::min(ceil_div(r.context_tokens, 64) * 64, kExpandedTokens);
  const int64_t latent = c.kv_lora_rank;
  const int64_t attention = absorbed * heads * (c.cache_row() + latent) * 2 + keys * c.cache_row() * 2 +
                            keys * heads * (c.qk_nope_head_dim + c.v_head_dim) * 2 + rows * heads * 4 +
                            kMultiprocessors * 64 * (4 * (latent * 2 + 8) + latent * 4) + absorbed * 256;

  int64_t experts = 0;
  if (c.n_routed_experts > 0) {
    const int64_t local = ceil_div(c.n_routed_experts, layout.ep), w = ceil_div(c.moe_intermediate_size, layout.tp / layout.ep);
    // The shared expert is one more, for every row.
    const int64_t choices = rows * (c.num_experts_per_tok + 1), permuted = choices + (local + 1) * 8 + 256;
    // Experts that are not whole scale blocks, or come in BF16, have BF16 buffers.
    const bool fp8_experts = r.w8a8 && c.fp8 && hidden % 128 == 0 && w % 128 == 0;
    experts = permuted * (fp8_experts ? hidden + w + (hidden + w) / 32 + 8 : 2 * (hidden + w)) + permuted * 2 * (2 * w + hidden) +
              rows * c.n_routed_experts * 4 + choices * 24 + local * 1024;
  }
  const int64_t logits = logit_rows * c.vocab_size * 4 * (layout.tp > 1 ? 2 : 1);
  // Tokens, counts for penalties, block tables, lists of biases; and the sampler's scratch.
  const int64_t blocks = ceil_div(r.context_tokens + drafts, kBlockTokens) + 4;
  const int64_t slots = r.max_slots * ((r.context_tokens + drafts + 64) * 4 + c.vocab_size * 4 + blocks * 4 + kSlotBytes) +
                        logit_rows * c.vocab_size * 8 + rows * 256;
  std::vector<MemoryLine> lines = {
      {"activations", "activations", buffers},
      {"attention", "attention_buffers", attention},
      {"experts", "expert_buffers", experts},
      {"logits + sampling", "logits", logits + slots},
      {"workspace", "workspace", kWorkspaceBytes},
      {"CUDA context", "cuda_context", kCudaContextBytes},
      {"CUDA graphs", "cuda_graphs", kCudaGraphBytes},
  };
  if (layout.tp > 1) lines.push_back({"NCCL", "nccl", kNcclBytes});
  if (layout.ep > 1) {  // dispatch in FP8 with scales, combine in BF16, to and from at most top-k ranks a token
    const int64_t row = hidden + ceil_div(hidden, 128) * 4 + hidden * 2;
    lines.push_back({"expert exchange", "expert_exchange", 2 * rows * c.num_experts_per_tok * row});
  }
  return lines;
}

/// The lines that are the backend's own allocations: not the driver's.
int64_t allocated_bytes(const std::vector<MemoryLine>& lines) {
  int64_t sum = 0;
  for (const MemoryLine& line : lines) {
    if (line.key != "cuda_context" && line.key != "cuda_graphs" && line.key != "nccl") sum += line.bytes;
  }
  return sum;
}

int64_t sum_bytes(const std::vector<MemoryLine>& lines) {
  int64_t sum = 0;
  for (const MemoryLine& line : lines) sum += line.bytes;
  return sum;
}

int64_t part(double fraction, int64_t bytes) { return static_cast<int64_t>(fraction * static_cast<double>(bytes)); }

/// Bytes that everything together may take when no fraction is given.
int64_t room(const MemoryRequest& r) {
  return part(r.layout.backend == Backend::kCpu ? kDefaultCpuFraction : kDefaultCudaFraction, r.available_bytes);
}

/// Bytes that the rule leaves for the cache; may be negative.
int64_t cache_budget(const MemoryRequest& r, int64_t weights, int64_t fixed, int64_t useful_bytes, int64_t least_bytes) {
  const int64_t available = r.available_bytes, left = available - fixed;
  switch (r.rule) {
    case CacheRule::kDefault: {
      if (r.layout.backend == Backend::kCudaSm90) return room(r) - fixed;
      return std::min(room(r) - fixed, std::max(least_bytes, std::min(useful_bytes, kDefaultCpuCacheBytes)));
    }
    case CacheRule::kStaticFraction: return std::min(part(r.fraction, available) - weights, left);
    case CacheRule::kEngineFraction: return part(r.fraction, available) - fixed;
    case CacheRule::kFreeAfterWeights: return std::min(part(r.fraction, available - weights), left);
    case CacheRule::kFreeAfterLoad: return part(r.fraction, left);
  }
  return 0;
}

/// One plan without suggestions.
MemoryPlan plan_once(const ModelConfig& c, const MemoryRequest& r) {
  MemoryPlan plan;
  plan.available_bytes = r.available_bytes;
  plan.step_tokens = r.prefill_tokens + r.max_slots * (1 + r.num_drafts);
  plan.lines = weight_lines(c, r);
  if (r.layout.backend == Backend::kCudaSm90) {
    // Tensors start on 256 bytes; a layer has about 30 of them.
    plan.lines.back().bytes += (c.num_hidden_layers + 2) * 30 * 512;
  }
  plan.weight_bytes = sum_bytes(plan.lines);
  const bool cpu = r.layout.backend == Backend::kCpu;
  const std::vector<MemoryLine> step = cpu ? cpu_step_lines(c, r, plan.step_tokens) : cuda_step_lines(c, r, plan.step_tokens);
  const int64_t fixed = plan.weight_bytes + sum_bytes(step);
  plan.step_bytes = allocated_bytes(step);

  const int64_t layers = c.num_hidden_layers + (r.mtp ? 1 : 0);
  plan.cache_bytes_per_token = layers * cache_row_bytes(c, r.kv_dtype);
  const int64_t block_bytes = plan.cache_bytes_per_token * kBlockTokens;
  const int64_t least_blocks = ceil_div(r.context_tokens + r.num_drafts, kBlockTokens);
  const int64_t least_bytes = least_blocks * block_bytes;
  int64_t budget = cache_budget(r, plan.weight_bytes, fixed, r.max_slots * least_bytes, least_bytes);
  const int64_t wanted = r.max_total_tokens / kBlockTokens * block_bytes;
  if (r.max_total_tokens > 0 && r.rule != CacheRule::kDefault) {
    budget = std::min(budget, wanted);
  } else if (r.max_total_tokens > 0) {  // a size given in tokens and nothing else: that size, or a refusal
    const int64_t most = room(r) - fixed;
    if (wanted > most) plan.short_bytes = wanted - most;
    budget = wanted;
  }
  plan.num_blocks = std::max<int64_t>(0, budget) / block_bytes;
  if (plan.num_blocks < least_blocks) plan.short_bytes = std::max(plan.short_bytes, least_bytes - budget);
  plan.fits = plan.short_bytes == 0;
  plan.cache_bytes = plan.num_blocks * block_bytes;
  plan.lines.push_back({"KV cache", "kv_cache", plan.cache_bytes});
  plan.lines.insert(plan.lines.end(), step.begin(), step.end());
  plan.total_bytes = fixed + plan.cache_bytes;
  if (plan.fits) {
    for (int64_t context = 1024;; context *= 2) {
      const int64_t tokens = std::min(context, r.context_tokens);
      plan.concurrency.push_back({tokens, plan.num_blocks / ceil_div(tokens + r.num_drafts, kBlockTokens) * r.layout.dp});
      if (tokens == r.context_tokens) break;
    }
  }
  return plan;
}

/// Single changes, nearest first, each tried: those that fit are named.
std::vector<std::string> suggest(const ModelConfig& c, const MemoryRequest& request) {
  std::vector<std::string> out;
  const auto try_with = [&](const std::function<bool(MemoryRequest&)>& next, const std::function<std::string(const MemoryRequest&)>& name) {
    for (MemoryRequest r = request; next(r);) {
      if (!check_layout(c, r.layout).ok()) continue;
      if (plan_once(c, r).fits) {
        out.push_back(name(r));
        return;
      }
    }
  };
  const auto number = [](const char* flag, int64_t value) { return std::string(flag) + " " + std::to_string(value); };
  try_with([](MemoryRequest& r) { return r.context_tokens > 1024 && (r.context_tokens = std::max<int64_t>(1024, r.context_tokens / 2)) != 0; },
           [&](const MemoryRequest& r) { return number("--context-length", r.context_tokens); });
  try_with([](MemoryRequest& r) { return r.max_slots > 1 && (r.max_slots /= 2) != 0; },
           [&](const MemoryRequest& r) { return number("--max-running-requests", r.max_slots); });
  try_with([](MemoryRequest& r) { return r.prefill_tokens > 64 && (r.prefill_tokens = std::max<int64_t>(64, r.prefill_tokens / 2)) != 0; },
           [&](const MemoryRequest& r) { return number("--chunked-prefill-size", r.prefill_tokens); });
  if (request.max_total_tokens > 0) {
    MemoryRequest without = request;
    without.max_total_tokens = 0;
    if (request.rule == CacheRule::kDefault) {
      without.rule = CacheRule::kFreeAfterLoad;
      without.fraction = 0.8;
    }
    if (const MemoryPlan plan = plan_once(c, without); plan.fits) {
      out.push_back(number("--max-total-tokens", plan.cache_tokens()));
    }
  }
  if (request.rule != CacheRule::kDefault) {
    try_with([](MemoryRequest& r) { return std::exchange(r.rule, CacheRule::kDefault) != CacheRule::kDefault; },
             [](const MemoryRequest&) { return std::string("no memory fraction (the default)"); });
  }
  if (request.mtp) {
    try_with([](MemoryRequest& r) { r.num_drafts = 0; return std::exchange(r.mtp, false); },
             [](const MemoryRequest&) { return std::string("--speculative-algorithm none"); });
  }
  if (request.layout.backend == Backend::kCudaSm90) {
    if (request.kv_dtype != KvDType::kFp8) {
      try_with([](MemoryRequest& r) { return std::exchange(r.kv_dtype, KvDType::kFp8) != KvDType::kFp8; },
               [](const MemoryRequest&) { return std::string("--kv-cache-dtype fp8"); });
    }
    try_with([](MemoryRequest& r) { return (r.layout.tp *= 2) <= 1024; },
             [&](const MemoryRequest& r) { return number("--tp", r.layout.tp); });
  }
  if (out.empty()) {  // several things at once
    try_with(
        [](MemoryRequest& r) {
          if (r.context_tokens <= 1024 && r.max_slots <= 1 && r.prefill_tokens <= 64) return false;
          r.context_tokens = std::min(r.context_tokens, std::max<int64_t>(1024, r.context_tokens / 2));
          r.max_slots = std::max<int64_t>(1, r.max_slots / 2);
          r.prefill_tokens = std::min(r.prefill_tokens, std::max<int64_t>(64, r.prefill_tokens / 2));
          return true;
        },
        [&](const MemoryRequest& r) {
          return number("--context-length", r.context_tokens) + number(" --max-running-requests", r.max_slots) +
                 number(" --chunked-prefill-size", r.prefill_tokens);
        });
  }
  return out;
}

/// "1, 2, 4, 8": the values in [1, most] that `works` accepts, at most a dozen.
std::string list_values(int64_t most, const std::function<bool(int64_t)>& works) {
  std::string out;
  int shown = 0;
  for (int64_t value = 1; value <= most && shown < 12; ++value) {
    if (!works(value)) continue;
    out += (shown++ > 0 ? ", " : "") + std::to_string(value);
  }
  return out;
}

}  // namespace

ParameterCounts count_parameters(const ModelConfig& c) {
  ParameterCounts n;
  const int64_t hidden = c.hidden_size, heads = c.num_attention_heads;
  const int64_t query = c.q_lora_rank > 0 ? c.q_lora_rank * (hidden + heads * c.qk_head_dim()) : hidden * heads * c.qk_head_dim();
  const int64_t attention = query + c.cache_row() * hidden +
                            heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank + hidden * heads * c.v_head_dim;
  const int64_t expert = 3 * hidden * c.moe_intermediate_size;
  const int64_t norms = 2 * hidden + c.q_lora_rank + c.kv_lora_rank;
  const int64_t bias = c.topk_method == TopkMethod::kNoauxTc ? c.n_routed_experts : 0;
  n.embedding = c.vocab_size * hidden;
  n.head = c.tie_word_embeddings ? 0 : n.embedding;
  n.norms = hidden;
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    n.attention += attention;
    n.norms += norms;
    if (!c.is_moe_layer(layer)) {
      n.dense_mlp += 3 * hidden * c.intermediate_size;
      continue;
    }
    n.routed_experts += c.n_routed_experts * expert;
    n.shared_experts += c.n_shared_experts * expert;
    n.router += c.n_routed_experts * hidden;
    n.router_bias += bias;
  }
  const int64_t feed_forward = c.n_routed_experts > 0
                                   ? (c.n_routed_experts + c.n_shared_experts) * expert + c.n_routed_experts * hidden
                                   : 3 * hidden * c.intermediate_size;
  n.mtp = c.num_nextn_predict_layers * (attention + feed_forward + norms + 3 * hidden + 2 * hidden * hidden);
  n.mtp_bias = c.num_nextn_predict_layers * bias;
  return n;
}

Status check_layout(const ModelConfig& c, const Layout& l) {
  const auto refuse = [](const char* flag, const std::string& message) {
    return Status(Code::kInvalidArgument, std::string(flag) + " " + message, flag);
  };
  if (l.tp < 1) return refuse("--tp", "is " + std::to_string(l.tp) + ", allowed 1 and more");
  if (l.dp < 1 || l.tp % l.dp != 0) {
    return refuse("--dp", "is " + std::to_string(l.dp) + ", but must divide --tp, which counts all ranks (" +
                              std::to_string(l.tp) + "): " + list_values(l.tp, [&](int64_t v) { return l.tp % v == 0; }));
  }
  const int64_t heads = c.num_attention_heads;
  const auto vocab_works = [&](int64_t v) { return l.backend != Backend::kCpu || c.vocab_size % v == 0; };
  if (heads % (l.tp / l.dp) != 0 || !vocab_works(l.tp)) {
    return refuse("--tp", "is " + std::to_string(l.tp) + (l.dp > 1 ? " over --dp " + std::to_string(l.dp) : "") +
                              ", but must divide the model's " + std::to_string(heads) + " heads: --tp " +
                              list_values(heads * l.dp, [&](int64_t v) {
                                return v % l.dp == 0 && heads % (v / l.dp) == 0 && vocab_works(v);
                              }));
  }
  if (l.ep < 1 || l.tp % l.ep != 0 || (l.ep > 1 && c.n_routed_experts % l.ep != 0)) {
    const auto works = [&](int64_t v) { return l.tp % v == 0 && c.n_routed_experts % v == 0; };
    return refuse("--ep", "is " + std::to_string(l.ep) + ", but must divide --tp (" + std::to_string(l.tp) + ") and the " +
                              std::to_string(c.n_routed_experts) + " routed experts: " + list_values(l.tp, works));
  }
  if (l.nnodes < 1 || l.tp % l.nnodes != 0) {
    return refuse("--nnodes", "is " + std::to_string(l.nnodes) + ", but must divide --tp (" + std::to_string(l.tp) + "): " +
                                  list_values(l.tp, [&](int64_t v) { return l.tp % v == 0; }));
  }
  const int64_t narrowest = c.n_routed_experts > 0 ? std::min(c.intermediate_size, c.moe_intermediate_size * l.ep) : c.intermediate_size;
  if (l.tp > narrowest) {
    return refuse("--tp", "is " + std::to_string(l.tp) + ", more than the narrowest MLP has columns (" + std::to_string(narrowest) + ")");
  }
  return {};
}

int64_t MemoryPlan::cache_tokens() const { return num_blocks * kBlockTokens; }

Result<MemoryPlan> plan_memory(const ModelConfig& config, const MemoryRequest& request) {
  DSV3_TRY(check_layout(config, request.layout));
  const std::array<std::pair<const char*, int64_t>, 4> least_one = {{{"--context-length", request.context_tokens},
                                                                    {"--max-running-requests", request.max_slots},
                                                                    {"--chunked-prefill-size", request.prefill_tokens},
                                                                    {"available memory", request.available_bytes}}};
  for (const auto& [flag, value] : least_one) {
    if (value < 1) {
      return Status(Code::kInvalidArgument, std::string(flag) + " is " + std::to_string(value) + ", allowed 1 and more", flag);
    }
  }
  if (request.num_drafts < 0) return Status(Code::kInvalidArgument, "number of drafts is negative");
  if (request.rule != CacheRule::kDefault && !(request.fraction > 0 && request.fraction <= 1)) {
    return Status(Code::kInvalidArgument, "the memory fraction must be above 0 and at most 1");
  }
  MemoryPlan plan = plan_once(config, request);
  if (!plan.fits) plan.suggestions = suggest(config, request);
  return plan;
}

}  // namespace dsv3
