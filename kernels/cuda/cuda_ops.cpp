// Start, buffers, slots, steps and graphs of the CUDA backend. Layers are in cuda_layers.cpp, weights in cuda_weights.cpp.
#include "cuda_ops.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <string>

#include "common/cuda_status.h"
#include "dsv3/base/clock.h"

namespace dsv3 {
namespace cuda {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

Result<std::unique_ptr<Ops>> CudaOps::create(const OpsLimits& limits, const CudaOpsOptions& options) {
  DSV3_TRY(open_cuda_device(options.device).status());
  std::unique_ptr<CudaOps> ops(new CudaOps(limits, options));
  DSV3_TRY(ops->open());
  return std::unique_ptr<Ops>(std::move(ops));
}

CudaOps::~CudaOps() {
  loader_.reset();
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (auto& [batch, graph] : graphs_) cudaGraphExecDestroy(graph);
  for (const auto& times : times_) {
    if (times.begin != nullptr) cudaEventDestroy(times.begin);
    if (times.end != nullptr) cudaEventDestroy(times.end);
  }
  slots_.reset();
  blas_.reset();
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Status CudaOps::open() {
  DSV3_TRY(cuda_status(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"));
  for (auto& times : times_) {
    DSV3_TRY(cuda_status(cudaEventCreate(&times.begin), "cudaEventCreate"));
    DSV3_TRY(cuda_status(cudaEventCreate(&times.end), "cudaEventCreate"));
  }
  DSV3_ASSIGN(arena_, Arena::create(options_.memory));
  loader_ = std::make_unique<WeightLoader>(options_.device, options_.loader_threads);
  const auto step = [&](std::string_view name, int64_t bytes) { return arena_->take(Arena::Part::kStep, name, bytes); };

  const int64_t rows = limits_.max_rows;
  max_blocks_ = static_cast<int32_t>((limits_.max_context_tokens + limits_.num_drafts + limits_.block_tokens) / limits_.block_tokens + 1);
  const SlotLimits slots{.max_slots = static_cast<int32_t>(limits_.max_slots),
                         .max_context_tokens = static_cast<int32_t>(limits_.max_context_tokens),
                         .max_blocks = max_blocks_,
                         .num_drafts = static_cast<int32_t>(limits_.num_drafts),
                         .vocab = static_cast<int32_t>(limits_.vocab),
                         .known_vocab = static_cast<int32_t>(limits_.known_vocab),
                         .max_rows = static_cast<int32_t>(rows),
                         .max_logit_rows = static_cast<int32_t>(std::min(limits_.max_slots * (1 + limits_.num_drafts), rows))};
  const int64_t slot_bytes = SlotState::bytes(slots);
  DSV3_ASSIGN(void* const slot_memory, step("slots", slot_bytes));
  DSV3_TRY(cuda_status(cudaMemsetAsync(slot_memory, 0, static_cast<size_t>(slot_bytes), stream_), "clearing slots"));
  DSV3_TRY(cuda_status(cudaStreamSynchronize(stream_), "clearing slots"));
  DSV3_ASSIGN(slots_, SlotState::create(slots, slot_memory));

  DSV3_ASSIGN(void* const blas_workspace, step("cuBLAS workspace", Blas::kWorkspaceBytes));
  DSV3_ASSIGN(blas_, Blas::create(blas_workspace));
  DSV3_ASSIGN(void* const wanted, step("row lists", rows * 4));
  wanted_rows_ = static_cast<int32_t*>(wanted);

  DSV3_CHECK(limits_.cache_row == kCacheRow && limits_.block_tokens == kCacheBlockTokens, "cache rows of 576 in blocks of 64");
  const KvPages page{.format = options_.fp8_cache ? KvFormat::kFp8 : KvFormat::kBf16};
  cache_layer_bytes_ = limits_.num_blocks * limits_.block_tokens * page.row_bytes();
  const int64_t cache_bytes = limits_.cache_layers * cache_layer_bytes_;
  DSV3_ASSIGN(void* const cache, arena_->take(Arena::Part::kCache, "KV cache", cache_bytes));
  DSV3_TRY(cuda_status(cudaMemsetAsync(cache, 0, static_cast<size_t>(cache_bytes), stream_), "clearing the KV cache"));
  cache_ = static_cast<char*>(cache);
  return {};
}

template <class T>
T* CudaOps::take(Arena::Part part, std::string_view name, int64_t count) {
  auto memory = arena_->take(part, name, count * static_cast<int64_t>(sizeof(T)));
  note(memory.status());
  return memory.ok() ? static_cast<T*>(*memory) : nullptr;
}

Tensor CudaOps::alloc(std::string_view name, int64_t rows, int64_t cols, BufferKind kind) {
  Tensor t{nullptr, DType::kBF16, rows, cols, cols};
  if (kind != BufferKind::kActivation) {  // residuals: float32, read by norms and copies only, so without an FP8 form
    t.dtype = kind == BufferKind::kInt ? DType::kI32 : DType::kF32;
    t.data = take<float>(Arena::Part::kStep, name, rows * cols);
    return t;
  }
  t.data = take<Bf16>(Arena::Part::kStep, name, rows * cols);
  if (options_.w8a8 && cols % kQuantGroup == 0 && t.data != nullptr) {
    Quantised q;
    q.rows = round_up(rows, 4);
    q.data = take<uint8_t>(Arena::Part::kStep, name, rows * cols);
    q.scales = take<float>(Arena::Part::kStep, name, q.rows * (cols / kQuantGroup));
    quantised_.emplace(t.data, q);
  }
  return t;
}

Fp8Rows CudaOps::quantised_part(const Tensor& x, int64_t first, int64_t rows) const {
  const auto found = quantised_.find(x.data);
  DSV3_CHECK(found != quantised_.end(), "an FP8 product of a buffer without FP8 form");
  return {found->second.data + first * x.cols, found->second.scales + first, rows, x.cols, found->second.rows};
}

KvPages CudaOps::pages(int64_t cache_layer) const {
  return {cache_ + cache_layer * cache_layer_bytes_, options_.fp8_cache ? KvFormat::kFp8 : KvFormat::kBf16, limits_.num_blocks};
}

DeviceStats CudaOps::device_stats() const {
  // By the driver's own count, so that an allocation inside a library would show as well. Asked once a second: it takes a while.
  constexpr int64_t kPeriodUs = 1'000'000;
  if (const int64_t now = now_us(); ready_ && now - memory_checked_us_ >= kPeriodUs) {
    size_t free_bytes = 0, total_bytes = 0;
    memory_checked_us_ = now;
    if (cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess && static_cast<int64_t>(free_bytes) < least_free_) {
      least_free_ = static_cast<int64_t>(free_bytes);
      ++allocations_after_ready_;
    }
  }
  return {.bytes_in_use = arena_->total_bytes(), .allocations_after_ready = allocations_after_ready_, .graph_steps = graph_steps_,
          .eager_steps = eager_steps_, .busy_us = busy_us_, .gap_us = gap_us_, .timed_steps = graph_steps_ + eager_steps_, .gaps = gaps_};
}

Status CudaOps::set_ready() {
  DSV3_TRY(fault_);
  DSV3_TRY(cuda_status(cudaStreamSynchronize(stream_), "warm-up"));
  size_t free_bytes = 0, total_bytes = 0;
  DSV3_TRY(cuda_status(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  least_free_ = static_cast<int64_t>(free_bytes);
  graph_steps_ = eager_steps_ = gaps_ = 0;
  busy_us_ = gap_us_ = 0;
  ready_ = true;
  return {};
}

// ---- steps ---------------------------------------------------------------------------------------------------------------

void CudaOps::prepare_batch(Batch& batch) {
  const auto num_rows = static_cast<int32_t>(1 + limits_.num_drafts);
  const auto decodes = static_cast<int32_t>(std::count_if(batch.segments.begin(), batch.segments.end(), [](const auto& s) { return s.decode; }));
  const bool only_decodes = static_cast<size_t>(decodes) == batch.segments.size();
  graph_batch_ = 0;
  nobody_ = std::all_of(batch.segments.begin(), batch.segments.end(), [](const auto& s) { return s.slot < 0; });
  if (only_decodes) {
    for (const int32_t size : options_.graph_batches) {
      if (size >= decodes && size * num_rows <= limits_.max_rows && (graph_batch_ == 0 || size < graph_batch_)) graph_batch_ = size;
    }
  }
  Pass& pass = main_;
  pass = Pass{.device = &slots_->main_batch()};
  pass.max_group_rows = std::min(num_rows, kMaxGroupRows);
  const int32_t groups_each = (num_rows + kMaxGroupRows - 1) / kMaxGroupRows;
  segments_.clear();
  std::vector<StepSegment> gaps;
  int32_t decode = 0, prompt_row = (graph_batch_ > 0 ? graph_batch_ : decodes) * num_rows;
  pass.decode_rows = prompt_row;
  const auto add_decode = [&](int32_t slot, int32_t rows) {
    StepSegment segment{.slot = slot, .rows = rows, .row_begin = decode * num_rows, .flags = kSegmentDecode | kSegmentSample,
                        .logit_begin = pass.logit_rows, .group_begin = decode * groups_each};
    segments_.push_back(segment);
    // A decode always has the same number of rows, so that one graph serves all; what a plan does not want is nobody's.
    gaps.push_back({.slot = -1, .rows = num_rows - rows, .row_begin = segment.row_begin + rows, .group_begin = -1});
    pass.logit_rows += num_rows;
    ++decode;
  };
  for (auto& segment : batch.segments) {
    if (segment.decode) {
      segment.row_begin = decode * num_rows;
      add_decode(segment.slot, std::min(segment.rows, num_rows));
      continue;
    }
    segment.row_begin = prompt_row;
    segments_.push_back({.slot = segment.slot, .start = segment.start, .rows = segment.rows, .row_begin = prompt_row,
                         .flags = segment.sample ? kSegmentSample : 0, .logit_begin = pass.logit_rows, .group_begin = -1});
    if (segment.sample) ++pass.logit_rows;
    if (segment.form == AttentionForm::kExpanded) {
      pass.spans.push_back({.row_begin = prompt_row, .rows = segment.rows, .start = segment.start, .key_begin = 0,
                            .keys = segment.start + segment.rows, .key_start = 0});
      pass.span_slots.push_back(segment.slot);
    } else {
      for (int32_t r = 0; r < segment.rows; r += kMaxGroupRows) {
        pass.recomputed.push_back({segment.slot, prompt_row + r, std::min(kMaxGroupRows, segment.rows - r), segment.start + r});
      }
    }
    prompt_row += segment.rows;
  }
  num_results_ = segments_.size();
  while (decode < graph_batch_) add_decode(-1, num_rows);
  if (num_rows > 1) segments_.insert(segments_.end(), gaps.begin(), gaps.end());
  pass.rows = prompt_row;
  pass.num_groups = decode * groups_each;
  pass.num_segments = static_cast<int32_t>(segments_.size());
  batch.rows = pass.rows;
  batch.num_logit_rows = pass.logit_rows;
  note(slots_->begin_step(segments_, stream_));
}

void CudaOps::run(Batch&, bool once, const std::function<void()>& pass) {
  const auto body = [&] {
    note(slots_->prepare_main(main_.num_segments, main_.rows, main_.logit_rows, main_.num_groups, stream_));
    pass_ = &main_;
    schedule_decode();
    pass();
  };
  pending_results_.push_back(num_results_);
  if (!fault_.ok()) return;
  StepTimes& times = times_[static_cast<size_t>(launched_ % 3)];
  times.followed = launched_ > collected_;
  ++launched_;
  note(cuda_status(cudaEventRecord(times.begin, stream_), "step"));
  const auto found = once ? graphs_.end() : graphs_.find(graph_batch_);
  if (found != graphs_.end()) {
    note(cuda_status(cudaGraphLaunch(found->second, stream_), "decode graph"));
    ++graph_steps_;
  } else {
    body();
    ++eager_steps_;
    // A step of nobody can be repeated: it is recorded after it ran, when every kernel has been loaded.
    if (graph_batch_ > 0 && nobody_ && !once) {
      cudaGraphExec_t graph = nullptr;
      note(capture(body, &graph));
      if (fault_.ok()) graphs_.emplace(graph_batch_, graph);
    }
  }
  note(cuda_status(cudaEventRecord(times.end, stream_), "step"));
  note(slots_->end_step(stream_));
}

/// Of the step collected last.
void CudaOps::add_times() {
  const StepTimes& mine = times_[static_cast<size_t>(collected_ % 3)];
  float ms = 0;
  if (cudaEventElapsedTime(&ms, mine.begin, mine.end) == cudaSuccess) busy_us_ += 1e3 * static_cast<double>(ms);
  if (mine.followed && cudaEventElapsedTime(&ms, times_[static_cast<size_t>((collected_ + 2) % 3)].end, mine.begin) == cudaSuccess) {
    gap_us_ += 1e3 * static_cast<double>(ms);
    ++gaps_;
  }
  ++collected_;
}

Status CudaOps::capture(const std::function<void()>& body, cudaGraphExec_t* graph) {
  DSV3_TRY(cuda_status(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "capture of a decode step"));
  body();
  cudaGraph_t recorded = nullptr;
  const Status ended = cuda_status(cudaStreamEndCapture(stream_, &recorded), "capture of a decode step");
  if (!fault_.ok() || !ended.ok()) {
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    return fault_.ok() ? ended : fault_;
  }
  Status status = cuda_status(cudaGraphInstantiate(graph, recorded, 0), "decode graph");
  cudaGraphDestroy(recorded);
  if (status.ok()) status = cuda_status(cudaGraphUpload(*graph, stream_), "decode graph");
  return status;
}

MlaDecode CudaOps::decode_shape(int64_t cache_layer) const {
  return {.q = absorbed_q_, .out = absorbed_out_, .heads = heads_, .softmax_scale = softmax_scale_, .pages = pages(cache_layer),
          .block_tables = slots_->block_tables(), .max_blocks = max_blocks_, .groups = pass_->device->groups,
          .num_groups = pass_->num_groups, .max_group_rows = pass_->max_group_rows, .deterministic = options_.deterministic};
}

/// Once a pass: lengths are the same in every layer.
void CudaOps::schedule_decode() {
  if (pass_->num_groups > 0) note(mla_decode_schedule(decode_shape(0), mla_workspace_, stream_));
}

void CudaOps::prepare_draft(const Batch& main, const Batch* previous, Batch& draft) {
  draft = Batch{};
  const int32_t index = previous == nullptr ? 0 : draft_.draft_pass + 1;
  const auto samples = static_cast<int32_t>(std::count_if(segments_.begin(), segments_.end(), [](const auto& s) { return (s.flags & kSegmentSample) != 0; }));
  if (index == 0) {
    draft_ = main_;
    draft_.logit_rows = samples;
    draft.segments = main.segments;
  } else {
    draft_ = Pass{.rows = samples, .decode_rows = samples, .logit_rows = samples, .num_segments = main_.num_segments,
                  .num_groups = samples, .max_group_rows = 1};
  }
  draft_.draft_pass = index;
  if (draft_.rows == 0) return;
  note(slots_->prepare_draft(index, draft_.num_segments, draft_.rows, draft_.num_groups, stream_));
  draft_.device = &slots_->draft_batch(index);
  pass_ = &draft_;
  schedule_decode();
  draft.rows = draft_.rows;
  draft.num_logit_rows = draft_.logit_rows;
}

void CudaOps::sample(const Batch&, const Tensor& logits) {
  const F32Matrix rows{logits.data != nullptr ? logits.f32() : nullptr, main_.logit_rows, logits.cols, logits.stride};
  note(slots_->sample(main_.num_segments, main_.logit_rows, rows, stream_));
}

void CudaOps::set_drafts(const Batch&, const Tensor& logits) {
  note(slots_->set_drafts(draft_.draft_pass, draft_.num_segments, draft_.logit_rows, {logits.f32(), draft_.logit_rows, logits.cols, logits.stride},
                          stream_));
}

Result<std::vector<SegmentResult>> CudaOps::collect() {
  DSV3_CHECK(!pending_results_.empty(), "collect() without a step");
  const size_t wanted = pending_results_.front();
  pending_results_.erase(pending_results_.begin());
  if (!fault_.ok()) return fault_;
  auto results = slots_->collect();
  if (!results.ok()) {
    note(results.status());
    return fault_;
  }
  add_times();
  results->resize(wanted);  // what follows are paddings
  return results;
}

bool CudaOps::ready() {
  if (!fault_.ok()) return true;
  const auto ready = slots_->ready();
  return !ready.ok() || *ready;
}

std::vector<SampledToken> CudaOps::logprobs_of(int64_t rows, const Tensor& logits, std::span<const int32_t> ids, int32_t num_top) {
  auto tokens = slots_->logprobs_of({logits.f32(), rows, logits.cols, logits.stride}, ids, num_top, stream_);
  note(tokens.status());
  return tokens.ok() ? std::move(*tokens) : std::vector<SampledToken>(ids.size());
}

Status CudaOps::read_back(int64_t rows, const Tensor& x, float* out) {
  DSV3_TRY(fault_);
  const size_t element = dtype_bytes(x.dtype);
  std::vector<char> raw(static_cast<size_t>(rows * x.cols) * element);
  DSV3_TRY(cuda_status(cudaStreamSynchronize(stream_), "read_back"));
  DSV3_TRY(cuda_status(cudaMemcpy2D(raw.data(), static_cast<size_t>(x.cols) * element, x.data, static_cast<size_t>(x.stride) * element,
                                    static_cast<size_t>(x.cols) * element, static_cast<size_t>(rows), cudaMemcpyDeviceToHost),
                       "read_back"));
  for (int64_t i = 0; i < rows * x.cols; ++i) {
    out[i] = x.dtype == DType::kBF16 ? bf16_to_f32(reinterpret_cast<const uint16_t*>(raw.data())[i]) : reinterpret_cast<const float*>(raw.data())[i];
  }
  return {};
}

}  // namespace cuda

Result<std::unique_ptr<Ops>> make_cuda_ops(const OpsLimits& limits, const CudaOpsOptions& options) {
  return cuda::CudaOps::create(limits, options);
}

}  // namespace dsv3
