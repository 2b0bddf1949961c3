// SlotState: collects what the host changes, uploads it in one packed copy a step, queues the kernels, fetches results.
// One thread uses it. Waits for the device only where pinned memory would be overwritten, in collect() and in logprobs_of().
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstring>
#include <deque>
#include <string>
#include <thread>
#include <utility>

#include "../common/cuda_status.h"
#include "slot_memory.h"

namespace dsv3::cuda {
namespace {

constexpr int kUploadBuffers = 3, kStepsInFlight = 2, kSpins = 4000;
constexpr auto kPollSleep = std::chrono::microseconds(20);

/// Pinned host memory.
class Pinned {
 public:
  Pinned() = default;
  Pinned(const Pinned&) = delete;
  ~Pinned() { cudaFreeHost(data_); }
  Status allocate(size_t bytes) { return cuda_status(cudaMallocHost(&data_, std::max<size_t>(bytes, 1)), "pinned memory of slots"); }
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
};

class Event {
 public:
  Event() = default;
  Event(const Event&) = delete;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Status create() { return cuda_status(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "event of slots"); }
  Status record(Stream stream) { return cuda_status(cudaEventRecord(event_, stream), "slots: record event"); }
  Status wait() { return cuda_status(cudaEventSynchronize(event_), "slots: wait for event"); }
  Result<bool> done() const {
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaErrorNotReady) return false;
    DSV3_TRY(cuda_status(error, "step"));
    return true;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// What the host changed in a slot since the last begin_step().
struct PendingUpdate {
  bool touched = false, begun = false;
  SamplingParams sampling;
  std::vector<int32_t> tokens, blocks;
  int32_t prompt_tokens = 0, cached_tokens = 0, first_block = 0;
};

struct StepInFlight {
  std::vector<StepSegment> segments;
  int32_t logit_rows = 0;
  bool tops = false;
  int buffer = 0;
};

class DeviceSlots final : public SlotState {
 public:
  DeviceSlots(const SlotLimits& limits, void* memory) : memory_(lay_out(limits, static_cast<char*>(memory))), view_(memory_.view) {
    pending_.resize(static_cast<size_t>(limits.max_slots));
    granted_.resize(static_cast<size_t>(limits.max_slots));
    num_logprobs_.resize(static_cast<size_t>(limits.max_slots), -1);
  }

  ~DeviceSlots() override {
    for (auto& upload : uploads_) {
      if (upload.used) (void)upload.event.wait();  // a copy may still read the pinned memory
    }
    for (const auto& step : in_flight_) (void)results_[static_cast<size_t>(step.buffer)].event.wait();  // or write to it
  }

  Status allocate() {
    for (auto& upload : uploads_) {
      DSV3_TRY(upload.pinned.allocate(static_cast<size_t>(view_.max_update_bytes)));
      DSV3_TRY(upload.event.create());
    }
    for (auto& result : results_) {
      DSV3_TRY(result.pinned.allocate(result_bytes()));
      DSV3_TRY(result.event.create());
    }
    DSV3_TRY(given_ids_.allocate(sizeof(int32_t) * static_cast<size_t>(view_.limits.max_logit_rows)));
    return given_results_.allocate(result_bytes());
  }

  void slot_begin(int32_t slot, const SamplingParams& sampling, std::span<const int32_t> tokens, int32_t prompt_tokens,
                  int32_t cached_tokens) override {
    check(slot);
    DSV3_CHECK(tokens.size() <= static_cast<size_t>(view_.limits.max_context_tokens), "more tokens than the context has");
    PendingUpdate& update = touch(slot);
    granted_[static_cast<size_t>(slot)] = 0;
    num_logprobs_[static_cast<size_t>(slot)] = sampling.num_logprobs;
    update = {.touched = true, .begun = true, .sampling = sampling, .tokens = {tokens.begin(), tokens.end()}, .blocks = {},
              .prompt_tokens = prompt_tokens, .cached_tokens = cached_tokens, .first_block = 0};
    auto& bias = update.sampling.logit_bias;
    std::stable_sort(bias.begin(), bias.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    if (bias.size() > static_cast<size_t>(kMaxLogitBias)) refused_ = "logit_bias of " + std::to_string(bias.size()) + " entries";
    if (update.sampling.suppressed_ids.size() > static_cast<size_t>(view_.limits.vocab)) refused_ = "more suppressed ids than the vocabulary has";
  }

  void slot_grant(int32_t slot, std::span<const int32_t> blocks) override {
    check(slot);
    PendingUpdate& update = touch(slot);
    int32_t& granted = granted_[static_cast<size_t>(slot)];
    DSV3_CHECK(granted + static_cast<int32_t>(blocks.size()) <= view_.limits.max_blocks, "more blocks than a slot can hold");
    if (update.blocks.empty()) update.first_block = granted;
    update.blocks.insert(update.blocks.end(), blocks.begin(), blocks.end());
    granted += static_cast<int32_t>(blocks.size());
  }

  void slot_end(int32_t slot) override {
    check(slot);
    // Nothing for the device: no later segment names the slot before it begins again.
    PendingUpdate& update = pending_[static_cast<size_t>(slot)];
    if (update.touched) std::erase(touched_, slot);
    update = {};
    granted_[static_cast<size_t>(slot)] = 0;
  }

  Status begin_step(std::span<const StepSegment> segments, Stream stream) override {
    if (!refused_.empty()) return {Code::kUnsupported, std::exchange(refused_, {}) + ": more than a slot of the CUDA backend can hold"};
    DSV3_TRY(check_segments(segments));
    current_ = {};
    current_.segments.assign(segments.begin(), segments.end());
    for (size_t next = 0;;) {
      const size_t end = round_end(next);
      const bool last = end == touched_.size();
      DSV3_TRY(upload(std::span(touched_).subspan(next, end - next), last, stream));
      next = end;
      if (last) break;
    }
    for (const int32_t slot : touched_) pending_[static_cast<size_t>(slot)] = {};
    touched_.clear();
    return {};
  }

  Status prepare_main(int32_t num_segments, int32_t rows, int32_t logit_rows, int32_t num_groups, Stream stream) override {
    DSV3_TRY(check_sizes(num_segments, rows, logit_rows, num_groups));
    return launch_prepare_main(view_, num_segments, rows, logit_rows, num_groups, stream);
  }
  Status prepare_draft(int32_t pass, int32_t num_segments, int32_t rows, int32_t num_groups, Stream stream) override {
    DSV3_TRY(check_sizes(num_segments, rows, 0, num_groups));
    return launch_prepare_draft(view_, pass, num_segments, rows, num_groups, stream);
  }
  Status sample(int32_t num_segments, int32_t logit_rows, const F32Matrix& logits, Stream stream) override {
    DSV3_TRY(check_sizes(num_segments, 0, logit_rows, 0));
    if (logit_rows > 0) {
      DSV3_TRY(check_logits(logits, logit_rows));
      DSV3_TRY(launch_scan(view_, {ScanKind::kSample, logits.data, logits.stride, logit_rows, 0}, stream));
    }
    return launch_settle(view_, num_segments, stream);
  }
  Status set_drafts(int32_t, int32_t num_segments, int32_t logit_rows, const F32Matrix& logits, Stream stream) override {
    DSV3_TRY(check_sizes(num_segments, 0, logit_rows, 0));
    if (logit_rows == 0) return {};
    DSV3_TRY(check_logits(logits, logit_rows));
    return launch_scan(view_, {ScanKind::kDraft, logits.data, logits.stride, logit_rows, 0}, stream);
  }

  const DeviceBatch& main_batch() const override { return view_.main; }
  const DeviceBatch& draft_batch(int32_t) const override { return view_.draft; }
  const int32_t* block_tables() const override { return view_.block_tables; }

  Status end_step(Stream stream) override;
  Result<std::vector<SegmentResult>> collect() override;
  Result<bool> ready() override {
    if (in_flight_.empty()) return Status(Code::kInternal, "ready() without a step in flight");
    return results_[static_cast<size_t>(in_flight_.front().buffer)].event.done();
  }
  Result<std::vector<SampledToken>> logprobs_of(const F32Matrix& logits, std::span<const int32_t> ids, int32_t num_top,
                                                Stream stream) override;

 private:
  struct Upload {
    Pinned pinned;
    Event event;
    bool used = false;
  };
  struct ResultBuffer {
    Pinned pinned;
    Event event;
  };

  void check(int32_t slot) const { DSV3_CHECK(slot >= 0 && slot < view_.limits.max_slots, "slot out of range"); }
  PendingUpdate& touch(int32_t slot) {
    PendingUpdate& update = pending_[static_cast<size_t>(slot)];
    if (!update.touched) touched_.push_back(slot);
    update.touched = true;
    return update;
  }

  // Result buffers: outs, row results, best tokens of rows.
  size_t rows_at() const { return sizeof(SegmentOut) * static_cast<size_t>(view_.max_segments); }
  size_t tops_at() const { return rows_at() + sizeof(RowResult) * static_cast<size_t>(view_.limits.max_logit_rows); }
  size_t result_bytes() const {
    return tops_at() + sizeof(TopEntry) * static_cast<size_t>(view_.limits.max_logit_rows) * static_cast<size_t>(view_.limits.max_top_logprobs);
  }
  SampledToken token_of(const char* results, int32_t row, bool logprob) const;

  Status check_segments(std::span<const StepSegment> segments) const;
  Status check_sizes(int32_t num_segments, int32_t rows, int32_t logit_rows, int32_t num_groups) const;
  Status check_logits(const F32Matrix& logits, int32_t rows) const;
  size_t round_end(size_t first) const;
  Status upload(std::span<const int32_t> slots, bool last, Stream stream);
  void write_update(int32_t slot, SlotUpdate& out, std::vector<int32_t>& payload) const;

  SlotMemory memory_;
  SlotView view_;
  std::vector<PendingUpdate> pending_;
  std::vector<int32_t> touched_, granted_, num_logprobs_;
  std::string refused_;
  std::array<Upload, kUploadBuffers> uploads_;
  int next_upload_ = 0;
  std::array<ResultBuffer, kStepsInFlight> results_;
  int next_result_ = 0;
  StepInFlight current_;
  std::deque<StepInFlight> in_flight_;
  Pinned given_ids_, given_results_;
};

std::string out_of(const char* what, int64_t value, int64_t most) {
  return std::string("slots: ") + what + " " + std::to_string(value) + ", built for " + std::to_string(most);
}

Status DeviceSlots::check_segments(std::span<const StepSegment> segments) const {
  if (segments.size() > static_cast<size_t>(view_.max_segments)) {
    return {Code::kInternal, out_of("segments", static_cast<int64_t>(segments.size()), view_.max_segments)};
  }
  const SlotLimits& limits = view_.limits;
  for (const auto& s : segments) {
    const bool decode = (s.flags & kSegmentDecode) != 0, sample = (s.flags & kSegmentSample) != 0;
    if (s.slot < -1 || s.slot >= limits.max_slots) return {Code::kInternal, out_of("slot", s.slot, limits.max_slots)};
    if (s.rows < 0 || s.row_begin < 0 || s.row_begin + s.rows > limits.max_rows) {
      return {Code::kInternal, out_of("rows of a segment up to", s.row_begin + s.rows, limits.max_rows)};
    }
    if (decode && s.rows > 1 + kMaxDrafts) return {Code::kInternal, out_of("rows of a decode segment", s.rows, 1 + kMaxDrafts)};
    const int32_t sampled = !sample ? 0 : decode ? s.rows : 1;
    if (sample && (s.logit_begin < 0 || s.rows < 1 || s.logit_begin + sampled > limits.max_logit_rows)) {
      return {Code::kInternal, out_of("logit rows of a segment up to", s.logit_begin + sampled, limits.max_logit_rows)};
    }
    if (s.group_begin >= 0 && s.group_begin + (s.rows + kMaxGroupRows - 1) / kMaxGroupRows > limits.max_rows) {
      return {Code::kInternal, out_of("group of a segment", s.group_begin, limits.max_rows)};
    }
  }
  return {};
}

Status DeviceSlots::check_sizes(int32_t num_segments, int32_t rows, int32_t logit_rows, int32_t num_groups) const {
  if (num_segments < 0 || num_segments > view_.max_segments) return {Code::kInternal, out_of("segments", num_segments, view_.max_segments)};
  if (rows < 0 || rows > view_.limits.max_rows) return {Code::kInternal, out_of("rows", rows, view_.limits.max_rows)};
  if (logit_rows < 0 || logit_rows > view_.limits.max_logit_rows) {
    return {Code::kInternal, out_of("logit rows", logit_rows, view_.limits.max_logit_rows)};
  }
  if (num_groups < 0 || num_groups > view_.limits.max_rows) return {Code::kInternal, out_of("groups", num_groups, view_.limits.max_rows)};
  return {};
}

Status DeviceSlots::check_logits(const F32Matrix& logits, int32_t rows) const {
  if (rows > view_.limits.max_logit_rows) return {Code::kInternal, out_of("logit rows", rows, view_.limits.max_logit_rows)};
  if (logits.data == nullptr || logits.rows < rows || logits.cols != view_.limits.vocab || logits.stride < logits.cols) {
    return {Code::kInternal, "sampling: logits are " + std::to_string(logits.rows) + " x " + std::to_string(logits.cols) + ", wanted " +
                                 std::to_string(rows) + " x " + std::to_string(view_.limits.vocab)};
  }
  if (reinterpret_cast<uintptr_t>(logits.data) % 16 != 0 || logits.stride % 4 != 0) {
    return {Code::kInternal, "sampling: rows of logits must start on 16 bytes (stride " + std::to_string(logits.stride) + ")"};
  }
  return {};
}

size_t payload_ints(const PendingUpdate& update) {
  return update.tokens.size() + update.blocks.size() + 2 * update.sampling.logit_bias.size() + update.sampling.suppressed_ids.size();
}

/// How far one upload reaches: any single update fits.
size_t DeviceSlots::round_end(size_t first) const {
  size_t ints = 0, end = first;
  for (; end < touched_.size(); ++end) {
    ints += payload_ints(pending_[static_cast<size_t>(touched_[end])]);
    if (end > first && ints > static_cast<size_t>(memory_.payload_ints)) break;
  }
  return end;
}

void DeviceSlots::write_update(int32_t slot, SlotUpdate& out, std::vector<int32_t>& payload) const {
  const PendingUpdate& update = pending_[static_cast<size_t>(slot)];
  const auto at = [&] { return static_cast<int32_t>(payload.size()); };
  out.slot = slot;
  out.begun = update.begun ? 1 : 0;
  out.granted = granted_[static_cast<size_t>(slot)];
  out.first_block = update.first_block;
  out.num_blocks = static_cast<int32_t>(update.blocks.size());
  out.blocks_at = at();
  payload.insert(payload.end(), update.blocks.begin(), update.blocks.end());
  if (!update.begun) return;
  const SamplingParams& s = update.sampling;
  out.length = static_cast<int32_t>(update.tokens.size());
  out.prompt = update.prompt_tokens;
  out.computed = update.cached_tokens;
  out.tokens_at = at();
  payload.insert(payload.end(), update.tokens.begin(), update.tokens.end());
  out.bias_at = at();
  for (const auto& [id, bias] : s.logit_bias) {
    payload.push_back(id);
    payload.push_back(std::bit_cast<int32_t>(bias));
  }
  out.suppressed_at = at();
  out.num_suppressed = static_cast<int32_t>(s.suppressed_ids.size());
  payload.insert(payload.end(), s.suppressed_ids.begin(), s.suppressed_ids.end());
  SlotRules& rules = out.rules;
  rules.seed = s.seed;
  rules.temperature = s.temperature;
  rules.top_p = s.top_p;
  rules.min_p = s.min_p;
  rules.top_k = s.top_k;
  rules.repetition = s.repetition_penalty;
  rules.frequency = s.frequency_penalty;
  rules.presence = s.presence_penalty;
  rules.min_tokens = s.min_tokens;
  rules.num_logprobs = s.num_logprobs;
  rules.num_bias = static_cast<int32_t>(s.logit_bias.size());
  rules.adjusted = uses_words(s) ? 1 : 0;
}

Status DeviceSlots::upload(std::span<const int32_t> slots, bool last, Stream stream) {
  Upload& to = uploads_[static_cast<size_t>(next_upload_)];
  next_upload_ = (next_upload_ + 1) % kUploadBuffers;
  if (to.used) DSV3_TRY(to.event.wait());
  char* out = to.pinned.data();
  UploadHeader header;
  size_t at = sizeof(UploadHeader);
  if (last) {
    header.has_segments = 1;
    header.num_segments = static_cast<int32_t>(current_.segments.size());
    for (auto& s : current_.segments) {
      const bool decode = (s.flags & kSegmentDecode) != 0;
      header.total_rows = std::max(header.total_rows, s.row_begin + s.rows);
      if (s.group_begin >= 0) header.total_groups = std::max(header.total_groups, s.group_begin + (s.rows + kMaxGroupRows - 1) / kMaxGroupRows);
      if ((s.flags & kSegmentSample) == 0) continue;
      s.unused = header.total_sampling++;
      header.total_logit_rows = std::max(header.total_logit_rows, s.logit_begin + (decode ? s.rows : 1));
      if (s.slot >= 0 && num_logprobs_[static_cast<size_t>(s.slot)] > 0) current_.tops = true;
    }
    current_.logit_rows = header.total_logit_rows;
    std::memcpy(out + at, current_.segments.data(), current_.segments.size() * sizeof(StepSegment));
    at += current_.segments.size() * sizeof(StepSegment);
  }
  header.num_updates = static_cast<int32_t>(slots.size());
  header.updates_at = static_cast<int32_t>(at);
  std::vector<int32_t> payload;
  bool marks = false;
  for (const int32_t slot : slots) {
    SlotUpdate update;
    write_update(slot, update, payload);
    marks = marks || (update.begun != 0 && update.rules.adjusted != 0);
    std::memcpy(out + at, &update, sizeof(update));
    at += sizeof(update);
  }
  header.payload_at = static_cast<int32_t>(at);
  const size_t payload_bytes = payload.size() * sizeof(int32_t);
  if (at + payload_bytes > static_cast<size_t>(view_.max_update_bytes)) return {Code::kInternal, "slots: an upload larger than its buffer"};
  if (payload_bytes > 0) std::memcpy(out + at, payload.data(), payload_bytes);
  at += payload_bytes;
  std::memcpy(out, &header, sizeof(header));
  DSV3_TRY(cuda_status(cudaMemcpyAsync(view_.staging, out, at, cudaMemcpyHostToDevice, stream), "slots: upload"));
  DSV3_TRY(to.event.record(stream));
  to.used = true;
  return launch_apply(view_, header.num_updates, marks, stream);
}

Status DeviceSlots::end_step(Stream stream) {
  if (in_flight_.size() >= kStepsInFlight) return {Code::kInternal, "slots: a third step in flight"};
  current_.buffer = next_result_;
  ResultBuffer& to = results_[static_cast<size_t>(next_result_)];
  next_result_ = (next_result_ + 1) % kStepsInFlight;
  const auto fetch = [&](size_t at, const void* from, size_t bytes) {
    if (bytes == 0) return Status();
    return cuda_status(cudaMemcpyAsync(to.pinned.data() + at, from, bytes, cudaMemcpyDeviceToHost, stream), "slots: fetch results");
  };
  const auto rows = static_cast<size_t>(current_.logit_rows);
  DSV3_TRY(fetch(0, view_.outs, current_.segments.size() * sizeof(SegmentOut)));
  DSV3_TRY(fetch(rows_at(), view_.row_results, rows * sizeof(RowResult)));
  if (current_.tops) {
    DSV3_TRY(fetch(tops_at(), view_.tops, rows * static_cast<size_t>(view_.limits.max_top_logprobs) * sizeof(TopEntry)));
  }
  DSV3_TRY(to.event.record(stream));
  in_flight_.push_back(std::move(current_));
  current_ = {};
  return {};
}

SampledToken DeviceSlots::token_of(const char* results, int32_t row, bool top) const {
  RowResult result;
  std::memcpy(&result, results + rows_at() + static_cast<size_t>(row) * sizeof(RowResult), sizeof(result));
  SampledToken token{.id = result.id, .logprob = result.logprob, .top = {}};
  for (int32_t i = 0; top && i < result.num_top; ++i) {
    TopEntry entry;
    const auto index = static_cast<size_t>(row) * static_cast<size_t>(view_.limits.max_top_logprobs) + static_cast<size_t>(i);
    std::memcpy(&entry, results + tops_at() + index * sizeof(TopEntry), sizeof(entry));
    token.top.push_back({entry.id, entry.logprob});
  }
  return token;
}

Result<std::vector<SegmentResult>> DeviceSlots::collect() {
  if (in_flight_.empty()) return Status(Code::kInternal, "collect() without a step in flight");
  for (int spin = 0;; ++spin) {
    DSV3_ASSIGN(const bool done, ready());
    if (done) break;
    if (spin < kSpins) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kPollSleep);
    }
  }
  const StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  const char* from = results_[static_cast<size_t>(step.buffer)].pinned.data();
  std::vector<SegmentResult> results(step.segments.size());
  for (size_t s = 0; s < results.size(); ++s) {
    SegmentOut out;
    std::memcpy(&out, from + s * sizeof(SegmentOut), sizeof(out));
    SegmentResult& result = results[s];
    result.drafts_proposed = out.proposed;
    result.drafts_accepted = out.accepted;
    bool bad = false;
    for (int32_t t = 0; t < out.num_tokens; ++t) {
      const int32_t row = step.segments[s].logit_begin + t;
      RowResult row_result;
      std::memcpy(&row_result, from + rows_at() + static_cast<size_t>(row) * sizeof(RowResult), sizeof(row_result));
      bad = bad || row_result.bad != 0;
      result.tokens.push_back(bad ? SampledToken{} : token_of(from, row, step.tops));
    }
    result.bad_logits = bad;
  }
  return results;
}

Result<std::vector<SampledToken>> DeviceSlots::logprobs_of(const F32Matrix& logits, std::span<const int32_t> ids, int32_t num_top,
                                                           Stream stream) {
  std::vector<SampledToken> tokens;
  if (ids.empty()) return tokens;
  const auto rows = static_cast<int32_t>(ids.size());
  DSV3_TRY(check_logits(logits, rows));
  for (const int32_t id : ids) {
    if (id < 0 || id >= view_.limits.vocab) return Status(Code::kInternal, out_of("id", id, view_.limits.vocab));
  }
  if (num_top < 0 || num_top > view_.limits.max_top_logprobs) return Status(Code::kInternal, out_of("top logprobs", num_top, view_.limits.max_top_logprobs));
  std::memcpy(given_ids_.data(), ids.data(), ids.size_bytes());  // every earlier use has been waited for below
  DSV3_TRY(cuda_status(cudaMemcpyAsync(view_.given_ids, given_ids_.data(), ids.size_bytes(), cudaMemcpyHostToDevice, stream), "logprobs: ids"));
  SlotView view = view_;  // results of its own: those of the step may not have been fetched
  view.row_results = memory_.given_results;
  view.tops = memory_.given_tops;
  DSV3_TRY(launch_scan(view, {ScanKind::kGiven, logits.data, logits.stride, rows, num_top}, stream));
  DSV3_TRY(cuda_status(cudaMemcpyAsync(given_results_.data() + rows_at(), view.row_results, ids.size() * sizeof(RowResult),
                                       cudaMemcpyDeviceToHost, stream), "logprobs: fetch"));
  if (num_top > 0) {
    const size_t bytes = ids.size() * static_cast<size_t>(view_.limits.max_top_logprobs) * sizeof(TopEntry);
    DSV3_TRY(cuda_status(cudaMemcpyAsync(given_results_.data() + tops_at(), view.tops, bytes, cudaMemcpyDeviceToHost, stream), "logprobs: fetch"));
  }
  DSV3_TRY(cuda_status(cudaStreamSynchronize(stream), "logprobs"));
  for (int32_t r = 0; r < rows; ++r) tokens.push_back(token_of(given_results_.data(), r, num_top > 0));
  return tokens;
}

}  // namespace

int64_t SlotState::bytes(const SlotLimits& limits) { return lay_out(limits, nullptr).bytes; }

Result<std::unique_ptr<SlotState>> SlotState::create(const SlotLimits& limits, void* memory) {
  DSV3_TRY(check_limits(limits));
  if (memory == nullptr || reinterpret_cast<uintptr_t>(memory) % 256 != 0) return Status(Code::kInternal, "slots: memory must start on 256 bytes");
  auto slots = std::make_unique<DeviceSlots>(limits, memory);
  DSV3_TRY(slots->allocate());
  return std::unique_ptr<SlotState>(std::move(slots));
}

}  // namespace dsv3::cuda
