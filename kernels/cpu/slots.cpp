#include "slots.h"

#include <algorithm>

namespace dsv3::cpu {

Slot& SlotTable::at(int32_t slot) {
  DSV3_CHECK(slot >= 0 && static_cast<size_t>(slot) < slots_.size(), "slot out of range");
  return slots_[static_cast<size_t>(slot)];
}

const Slot& SlotTable::at(int32_t slot) const { return const_cast<SlotTable*>(this)->at(slot); }

void SlotTable::begin(int32_t slot, const SamplingParams& sampling, std::span<const int32_t> tokens,
                      int32_t prompt_tokens, int32_t cached_tokens) {
  Slot& s = at(slot);
  DSV3_CHECK(!s.active, "slot begun twice");
  s = Slot{};
  s.active = true;
  s.sampling = sampling;
  s.tokens.assign(tokens.begin(), tokens.end());
  s.prompt_tokens = prompt_tokens;
  s.computed = cached_tokens;
}

void SlotTable::end(int32_t slot) {
  DSV3_CHECK(at(slot).active, "slot ended twice");
  at(slot) = Slot{};
}

void SlotTable::prepare_batch(Batch& batch) const {
  batch.rows = 0;
  batch.tokens.clear();
  batch.positions.clear();
  batch.source_rows.clear();
  batch.logit_rows.clear();
  for (auto& segment : batch.segments) {
    const Slot& slot = at(segment.slot);
    DSV3_CHECK(slot.active, "batch with an idle slot");
    if (segment.decode) {
      segment.start = slot.computed;
      DSV3_CHECK(static_cast<size_t>(slot.computed) + 1 == slot.tokens.size(), "decode of a slot that is not ready");
      const int64_t room = capacity(slot) - slot.computed;
      segment.rows = static_cast<int32_t>(
          std::min<int64_t>({segment.rows, 1 + static_cast<int64_t>(slot.drafts.size()), room}));
    }
    DSV3_CHECK(segment.rows > 0 && segment.start + segment.rows <= capacity(slot), "rows without granted blocks");
    segment.row_begin = static_cast<int32_t>(batch.rows);
    for (int32_t r = 0; r < segment.rows; ++r) {
      const auto position = static_cast<size_t>(segment.start + r);
      DSV3_CHECK(position < slot.tokens.size() + slot.drafts.size(), "row past the known tokens");
      batch.tokens.push_back(position < slot.tokens.size() ? slot.tokens[position]
                                                           : slot.drafts[position - slot.tokens.size()]);
      batch.positions.push_back(static_cast<int32_t>(position));
      if (segment.sample && (segment.decode || r == segment.rows - 1)) {
        batch.logit_rows.push_back(static_cast<int32_t>(batch.rows) + r);
      }
    }
    batch.rows += segment.rows;
  }
  batch.num_logit_rows = static_cast<int64_t>(batch.logit_rows.size());
}

void SlotTable::prepare_draft(const Batch& main, const Batch* previous, Batch& draft) const {
  draft = Batch{};
  int32_t source = 0;  // in previous.logit_rows
  for (const auto& from : previous != nullptr ? previous->segments : main.segments) {
    const Slot& slot = at(from.slot);
    BatchSegment segment = from;
    segment.row_begin = static_cast<int32_t>(draft.rows);
    segment.decode = false;
    if (previous == nullptr) {
      // Entry p of the MTP cache belongs to hidden p and token p + 1 (model.md 7.3).
      segment.rows = static_cast<int32_t>(std::min<int64_t>(
          {from.rows, static_cast<int64_t>(slot.tokens.size()) - 1 - from.start, slot.computed - from.start}));
      for (int32_t r = 0; r < segment.rows; ++r) {
        draft.tokens.push_back(slot.tokens[static_cast<size_t>(from.start + r + 1)]);
        draft.positions.push_back(from.start + r);
        draft.source_rows.push_back(from.row_begin + r);
      }
    } else {
      if (!from.sample) continue;
      const int32_t source_row = source++;
      segment.start = from.start + from.rows;
      segment.rows = 1;
      segment.form = AttentionForm::kAbsorbed;
      if (segment.start >= capacity(slot)) continue;
      draft.tokens.push_back(slot.drafts.back());
      draft.positions.push_back(segment.start);
      draft.source_rows.push_back(source_row);
    }
    if (segment.rows <= 0) continue;
    draft.rows += segment.rows;
    if (segment.sample) draft.logit_rows.push_back(static_cast<int32_t>(draft.rows) - 1);
    draft.segments.push_back(segment);
  }
  draft.num_logit_rows = static_cast<int64_t>(draft.logit_rows.size());
}

}  // namespace dsv3::cpu
