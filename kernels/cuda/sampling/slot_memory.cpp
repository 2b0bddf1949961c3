// Device memory of SlotState, laid out part by part.
#include "slot_memory.h"

#include <algorithm>
#include <string>

namespace dsv3::cuda {

Status check_limits(const SlotLimits& limits) {
  const auto wrong = [](const char* what, int64_t value) {
    return Status(Code::kInternal, std::string("slots: ") + what + " " + std::to_string(value));
  };
  if (limits.max_slots < 1) return wrong("max_slots", limits.max_slots);
  if (limits.max_context_tokens < 1) return wrong("max_context_tokens", limits.max_context_tokens);
  if (limits.max_blocks < 1) return wrong("max_blocks", limits.max_blocks);
  if (limits.num_drafts < 0 || limits.num_drafts > kMaxDrafts) return wrong("num_drafts", limits.num_drafts);
  if (limits.vocab < 1 || limits.vocab > (1 << kVocabBits)) return wrong("vocab", limits.vocab);
  if (limits.known_vocab < 1 || limits.known_vocab > limits.vocab) return wrong("known_vocab", limits.known_vocab);
  if (limits.max_rows < 1) return wrong("max_rows", limits.max_rows);
  if (limits.max_logit_rows < 1 || limits.max_logit_rows > 65535) return wrong("max_logit_rows", limits.max_logit_rows);
  if (limits.max_top_logprobs < 0 || limits.max_top_logprobs > kMaxTopLogprobs) return wrong("max_top_logprobs", limits.max_top_logprobs);
  return {};
}

SlotMemory lay_out(const SlotLimits& limits, char* base) {
  SlotMemory memory;
  SlotView& view = memory.view;
  view.limits = limits;
  const int64_t slots = limits.max_slots, rows = limits.max_rows, logit_rows = limits.max_logit_rows;
  // A slot's blocks may hold a little more than the context: tokens sampled there are dropped by the engine, not by us.
  const int64_t positions = std::max<int64_t>(limits.max_context_tokens, int64_t{limits.max_blocks} * kCacheBlockTokens);
  view.token_stride = static_cast<int32_t>((positions + kMaxDrafts + 1 + 31) / 32 * 32);
  view.max_segments = 2 * limits.max_slots + 64;  // padding of graphs included
  view.chunks = (limits.vocab + kChunkIds - 1) / kChunkIds;
  // Two prompts of full length, or one with the longest lists; more than that goes in several uploads.
  memory.payload_ints = 2 * (int64_t{limits.max_context_tokens} + limits.max_blocks) + 2 * kMaxLogitBias + limits.vocab + 16 * slots;
  const int64_t upload = static_cast<int64_t>(sizeof(UploadHeader)) + view.max_segments * static_cast<int64_t>(sizeof(StepSegment)) +
                         slots * static_cast<int64_t>(sizeof(SlotUpdate)) + memory.payload_ints * 4;
  view.max_update_bytes = static_cast<int32_t>(upload);

  const auto take = [&]<class T>(T*& pointer, int64_t count) {
    if (base != nullptr) pointer = reinterpret_cast<T*>(base + memory.bytes);
    memory.bytes += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
  };
  take(view.header, 1);
  take(view.staging, upload);
  take(view.segments, view.max_segments);
  take(view.states, view.max_segments);
  take(view.outs, view.max_segments);
  take(view.logit_info, logit_rows);
  take(view.sampling_segments, std::max<int64_t>(logit_rows, view.max_segments));
  take(view.slots, slots);
  take(view.rules, slots);
  take(view.tokens, slots * view.token_stride);
  take(view.block_tables, slots * limits.max_blocks);
  take(view.words, slots * limits.vocab);
  take(view.biases, slots * kMaxLogitBias);
  for (DeviceBatch* batch : {&view.main, &view.draft}) {
    take(batch->tokens, rows);
    take(batch->positions, rows);
    take(batch->cache_rows, rows);
    take(batch->source_rows, rows);
    take(batch->logit_rows, logit_rows);
    take(batch->groups, rows);
  }
  take(view.parts, logit_rows * view.chunks);
  take(view.masses, logit_rows * view.chunks);
  take(view.raw_masses, logit_rows * view.chunks);
  take(view.bin_masses, logit_rows * kBins);
  take(view.bin_counts, logit_rows * kBins);
  take(view.row_results, logit_rows);
  take(view.tops, logit_rows * limits.max_top_logprobs);
  take(view.given_ids, logit_rows);
  take(memory.given_results, logit_rows);
  take(memory.given_tops, logit_rows * limits.max_top_logprobs);
  return memory;
}

bool uses_words(const SamplingParams& sampling) {
  return sampling.repetition_penalty != 1.0f || sampling.frequency_penalty != 0.0f || sampling.presence_penalty != 0.0f ||
         !sampling.logit_bias.empty() || (!sampling.suppressed_ids.empty() && sampling.min_tokens > 0);
}

}  // namespace dsv3::cuda
