// What SlotState keeps in device memory, and the launchers of its kernels. Plain structs: host and device agree on them.
#pragma once

#include <cstdint>

#include "sampling.h"

namespace dsv3::cuda {

inline constexpr int kMaxDrafts = 7;            ///< of a slot; a decode segment has at most 1 + kMaxDrafts rows
inline constexpr int kMaxTopLogprobs = 32;
inline constexpr int kVocabBits = 18;           ///< ids fit in so many bits
inline constexpr int kChunkIds = 4096;          ///< ids that one block of the scanning kernels reads, whatever the batch
inline constexpr int kBins = 2048;              ///< of the histogram over (best - logit) / temperature
inline constexpr int kFinishThreads = 1024;

// A slot's word for each id: how often it is in the output, and three marks.
inline constexpr uint32_t kInPrompt = 1u << 31, kHasBias = 1u << 30, kIsSuppressed = 1u << 29, kCountMask = kIsSuppressed - 1;

/// Where a sequence is. 64 bytes.
struct SlotRecord {
  int32_t length = 0;    ///< tokens known; the last one has no cache row yet once decoding began
  int32_t prompt = 0;    ///< of them, the prompt
  int32_t computed = 0;  ///< leading tokens with a row in the cache
  int32_t granted = 0;   ///< blocks
  int32_t num_drafts = 0;
  int32_t drafts[kMaxDrafts] = {};
  int32_t unused[4] = {};
};

/// SamplingParams without its lists.
struct SlotRules {
  uint64_t seed = 0;
  float temperature = 1, top_p = 1, min_p = 0;
  int32_t top_k = 0;
  float repetition = 1, frequency = 0, presence = 0;
  int32_t min_tokens = 0, num_logprobs = -1;
  int32_t num_bias = 0;
  int32_t adjusted = 0;  ///< logits differ from the raw ones: the slot's words are in use
  int32_t unused = 0;
};

struct BiasEntry {
  int32_t id = 0;
  float bias = 0;
};

/// One slot's changes. Offsets are in int32 from the start of the payload.
struct SlotUpdate {
  int32_t slot = 0, begun = 0, granted = 0;
  int32_t first_block = 0, num_blocks = 0, blocks_at = 0;  ///< new entries of the block table
  int32_t length = 0, prompt = 0, computed = 0, tokens_at = 0;
  int32_t bias_at = 0, suppressed_at = 0, num_suppressed = 0, unused = 0;
  SlotRules rules;
};

/// Start of an upload: then segments, updates, payload (each at its offset in bytes).
struct UploadHeader {
  int32_t num_segments = 0, num_updates = 0;
  int32_t has_segments = 0;  ///< 0: an early round of a step with many long prompts
  int32_t updates_at = 0, payload_at = 0;
  int32_t total_rows = 0, total_logit_rows = 0, total_groups = 0, total_sampling = 0;
  int32_t unused[7] = {};
};

/// A segment as the device laid it out.
struct SegmentState {
  int32_t slot = -1;
  int32_t start = 0, rows = 0;         ///< rows that are not padding
  int32_t draft_end = 0;               ///< position after the last row of draft pass 0; -1: no row there
};

struct LogitInfo {
  int32_t segment = -1;  ///< -1: padding
  int32_t row = 0;       ///< which of the segment's sampled rows
};

/// One chunk of one row of logits.
struct ScanPart {
  float best = 0;       ///< largest adjusted logit of known ids
  int32_t best_id = 0;  ///< lowest id that has it
  float raw_max = 0;
  int32_t bad = 0;      ///< NaN or infinity among the raw logits
};

struct RowResult {
  int32_t id = 0, bad = 0;
  float logprob = 0;
  int32_t num_top = 0;
};
struct SegmentOut {
  int32_t num_tokens = 0, proposed = 0, accepted = 0, bad = 0;
};
struct TopEntry {
  int32_t id = 0;
  float logprob = 0;
};

/// All device memory of a SlotState.
struct SlotView {
  SlotLimits limits;
  int32_t token_stride = 0, max_segments = 0, chunks = 0, max_update_bytes = 0;
  UploadHeader* header = nullptr;        ///< of the current step
  char* staging = nullptr;               ///< [max_update_bytes]
  StepSegment* segments = nullptr;       ///< [max_segments]; `unused` holds the index among sampling segments
  SegmentState* states = nullptr;        ///< [max_segments]
  LogitInfo* logit_info = nullptr;       ///< [max_logit_rows]
  int32_t* sampling_segments = nullptr;  ///< [max_logit_rows] segment of the i-th sampling one
  SlotRecord* slots = nullptr;           ///< [max_slots]
  SlotRules* rules = nullptr;            ///< [max_slots]
  int32_t* tokens = nullptr;             ///< [max_slots, token_stride]
  int32_t* block_tables = nullptr;       ///< [max_slots, max_blocks]
  uint32_t* words = nullptr;             ///< [max_slots, vocab]
  BiasEntry* biases = nullptr;           ///< [max_slots, kMaxLogitBias], by id
  DeviceBatch main, draft;
  ScanPart* parts = nullptr;             ///< [max_logit_rows, chunks]
  uint64_t* masses = nullptr;            ///< [max_logit_rows, chunks] adjusted, tempered
  uint64_t* raw_masses = nullptr;        ///< [max_logit_rows, chunks]
  uint64_t* bin_masses = nullptr;        ///< [max_logit_rows, kBins]
  uint32_t* bin_counts = nullptr;        ///< [max_logit_rows, kBins]
  RowResult* row_results = nullptr;      ///< [max_logit_rows]
  SegmentOut* outs = nullptr;            ///< [max_segments]
  TopEntry* tops = nullptr;              ///< [max_logit_rows, max_top_logprobs]
  int32_t* given_ids = nullptr;          ///< [max_logit_rows] logprobs_of
};

/// What the scanning kernels are asked to do.
enum class ScanKind { kSample, kDraft, kGiven };
struct ScanCall {
  ScanKind kind = ScanKind::kSample;
  const float* logits = nullptr;  ///< [rows, vocab], 16-byte aligned, stride a multiple of 4
  int64_t stride = 0;
  int32_t rows = 0;
  int32_t num_top = 0;            ///< kGiven
};

Status launch_apply(const SlotView& view, int32_t num_updates, bool marks, Stream stream);
Status launch_prepare_main(const SlotView& view, int32_t num_segments, int32_t rows, int32_t logit_rows, int32_t num_groups, Stream stream);
Status launch_prepare_draft(const SlotView& view, int32_t pass, int32_t num_segments, int32_t rows, int32_t num_groups, Stream stream);
/// Fills row_results (and tops) for kSample and kGiven; for kDraft appends drafts.
Status launch_scan(const SlotView& view, const ScanCall& call, Stream stream);
/// After launch_scan(kSample): verifies, advances the slots, fills outs.
Status launch_settle(const SlotView& view, int32_t num_segments, Stream stream);

}  // namespace dsv3::cuda
