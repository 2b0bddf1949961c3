// Per-slot state of the CPU backend: tokens, block table, sampling rules, drafts. Lays out batches from it.
#pragma once

#include <span>
#include <vector>

#include "dsv3/kernels/ops.h"

namespace dsv3::cpu {

struct Slot {
  bool active = false;
  SamplingParams sampling;
  std::vector<int32_t> tokens;  ///< prompt and output; the last one has no cache row yet once decoding began
  int32_t prompt_tokens = 0;
  int32_t computed = 0;         ///< leading tokens with a row in the cache
  std::vector<int32_t> blocks;
  std::vector<int32_t> drafts;  ///< guesses for the tokens after tokens.back()

  int32_t output_tokens() const { return static_cast<int32_t>(tokens.size()) - prompt_tokens; }
};

class SlotTable {
 public:
  SlotTable(int64_t max_slots, int64_t block_tokens) : block_tokens_(block_tokens), slots_(static_cast<size_t>(max_slots)) {}

  Slot& at(int32_t slot);
  const Slot& at(int32_t slot) const;
  void begin(int32_t slot, const SamplingParams& sampling, std::span<const int32_t> tokens, int32_t prompt_tokens,
             int32_t cached_tokens);
  void end(int32_t slot);

  void prepare_batch(Batch& batch) const;
  void prepare_draft(const Batch& main, const Batch* previous, Batch& draft) const;

 private:
  int64_t capacity(const Slot& slot) const { return static_cast<int64_t>(slot.blocks.size()) * block_tokens_; }

  int64_t block_tokens_;
  std::vector<Slot> slots_;
};

}  // namespace dsv3::cpu
