// Where each part of a SlotState lies in device memory. Pure host functions.
#pragma once

#include "slot_device.h"

namespace dsv3::cuda {

struct SlotMemory {
  SlotView view;
  int64_t bytes = 0;
  int64_t payload_ints = 0;             ///< of one upload
  RowResult* given_results = nullptr;   ///< [max_logit_rows] of logprobs_of
  TopEntry* given_tops = nullptr;       ///< [max_logit_rows, max_top_logprobs]
};

Status check_limits(const SlotLimits& limits);
/// `base` on 256 bytes; null to learn `bytes`.
SlotMemory lay_out(const SlotLimits& limits, char* base);
/// True if logits of a slot with these rules differ from the raw ones, so that its words are in use.
bool uses_words(const SamplingParams& sampling);

}  // namespace dsv3::cuda
