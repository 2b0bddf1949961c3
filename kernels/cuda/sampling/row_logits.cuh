// One row of logits as sampling sees it: which rules apply, the adjusted logit of an id, keys that sort logits, weights.
#pragma once

#include <cuda_runtime.h>

#include "slot_device.h"

namespace dsv3::cuda {

/// Weights are integers, so that their sums depend on no order: 1 is 2^44, and 2^18 ids cannot overflow 64 bits.
inline constexpr double kWeightOne = 0x1.0p44;
inline constexpr uint64_t kWholeRange = (uint64_t{1} << (32 + kVocabBits)) - 1;

/// What a block needs to know of its row.
struct RowJob {
  bool valid = false, adjusted = false, greedy = true, cut = false;
  int32_t extra = 0;        ///< drafts before this row count as output
  int32_t num_logprobs = -1;
  int32_t slot = 0;
  int32_t output_index = 0;
  bool suppress = false;
  SlotRules rules;
  int32_t drafts[kMaxDrafts];
  const float* logits = nullptr;
  const uint32_t* words = nullptr;
  const BiasEntry* biases = nullptr;
};

__device__ inline RowJob load_job(const SlotView& view, const ScanCall& call, int row) {
  RowJob job;
  job.logits = call.logits + row * call.stride;
  if (call.kind == ScanKind::kGiven) {
    job.valid = true;
    job.num_logprobs = call.num_top;
    return job;
  }
  if (call.kind == ScanKind::kDraft) {
    job.valid = row < view.header->total_sampling && view.draft.positions[view.draft.logit_rows[row]] >= 0;
    if (job.valid) job.slot = view.states[view.sampling_segments[row]].slot;
    return job;
  }
  const LogitInfo info = view.logit_info[row];
  if (info.segment < 0) return job;
  job.slot = view.states[info.segment].slot;
  if (job.slot < 0) return job;
  const SlotRecord& slot = view.slots[job.slot];
  job.valid = true;
  job.rules = view.rules[job.slot];
  job.num_logprobs = job.rules.num_logprobs;
  job.greedy = job.rules.temperature < 1e-6f;
  job.cut = !job.greedy && (job.rules.top_k > 0 || job.rules.top_p < 1.0f || job.rules.min_p > 0.0f);
  job.adjusted = job.rules.adjusted != 0;
  job.extra = info.row;
  job.output_index = slot.length - slot.prompt + info.row;
  job.suppress = job.output_index < job.rules.min_tokens;
  if (job.adjusted) {
    for (int d = 0; d < kMaxDrafts; ++d) job.drafts[d] = d < info.row ? slot.drafts[d] : -1;
    job.words = view.words + static_cast<int64_t>(job.slot) * view.limits.vocab;
    job.biases = view.biases + static_cast<int64_t>(job.slot) * kMaxLogitBias;
  }
  return job;
}

/// The rules of SamplingParams that change logits, in the order and the rounding of the CPU's sampler.
__device__ inline float adjust(const RowJob& job, float x, int32_t id) {
  if (!job.adjusted) return x;
  const uint32_t word = job.words[id];
  uint32_t count = word & kCountMask;
#pragma unroll
  for (int d = 0; d < kMaxDrafts; ++d) count += job.drafts[d] == id ? 1 : 0;
  if ((word & (kHasBias | kIsSuppressed | kInPrompt)) == 0 && count == 0) return x;
  if (job.rules.repetition != 1.0f && ((word & kInPrompt) != 0 || count > 0)) {
    x = x > 0 ? __fdiv_rn(x, job.rules.repetition) : __fmul_rn(x, job.rules.repetition);
  }
  if (count > 0 && (job.rules.frequency != 0.0f || job.rules.presence != 0.0f)) {
    x = __fsub_rn(x, __fadd_rn(__fmul_rn(job.rules.frequency, static_cast<float>(count)), job.rules.presence));
  }
  if ((word & kHasBias) != 0) {
    int low = 0, high = job.rules.num_bias;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (job.biases[middle].id < id) low = middle + 1;
      else high = middle;
    }
    for (; low < job.rules.num_bias && job.biases[low].id == id; ++low) x = __fadd_rn(x, job.biases[low].bias);
  }
  return job.suppress && (word & kIsSuppressed) != 0 ? -INFINITY : x;
}

/// exp(x) for x <= 0 as an integer weight.
__device__ inline uint64_t weight_of(double x) { return __double2ull_rn(exp(x) * kWeightOne); }

/// Larger logit: larger key; of equal logits the lower id has the larger key. Adding 0 makes -0 equal to 0.
__device__ inline uint64_t key_of(float x, int32_t id) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(ordered) << kVocabBits) | static_cast<uint32_t>((1 << kVocabBits) - 1 - id);
}
__device__ inline int32_t id_of(uint64_t key) { return (1 << kVocabBits) - 1 - static_cast<int32_t>(key & ((1u << kVocabBits) - 1)); }
__device__ inline float logit_of(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> kVocabBits);
  return __uint_as_float((ordered & 0x80000000u) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

/// Bins follow the order of logits: bin 0 holds the best. `scale` = 64 / temperature: a bin's weights differ by e^(1/64).
__device__ inline int bin_of(float x, float best, float scale) { return min(kBins - 1, __float2int_rz((best - x) * scale)); }

}  // namespace dsv3::cuda
