// Host side of prefill attention: checks of the arguments, and the order of tiles of the fast kernel.
#include <algorithm>
#include <functional>
#include <string>

#include "mla_prefill.cuh"

namespace dsv3::cuda {

Status check_mla_prefill(const char* name, const MlaPrefill& p) {
  const auto wrong = [&](const std::string& what) { return Status{Code::kInternal, std::string(name) + ": " + what}; };
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  if (p.heads < 1 || p.heads > 1024) return wrong("heads " + std::to_string(p.heads));
  if (p.q == nullptr || p.kv == nullptr || p.k_rope == nullptr || p.out == nullptr) return wrong("null pointer");
  if (!aligned(p.q) || !aligned(p.kv) || !aligned(p.k_rope) || !aligned(p.out)) return wrong("q, kv, k_rope, out must start on 16 bytes");
  if (p.q_stride < p.heads * kQueryHead || p.q_stride % 8 != 0) return wrong("q_stride " + std::to_string(p.q_stride));
  if (p.kv_stride < p.heads * (kNope + kValue) || p.kv_stride % 8 != 0) return wrong("kv_stride " + std::to_string(p.kv_stride));
  if (p.out_stride < p.heads * kValue || p.out_stride % 8 != 0) return wrong("out_stride " + std::to_string(p.out_stride));
  if (p.merge && p.lse == nullptr) return wrong("merge needs lse");
  if (!(p.softmax_scale > 0)) return wrong("softmax_scale must be positive");
  for (const PrefillSpan& span : p.spans) {
    if (span.row_begin < 0 || span.rows < 0 || span.start < 0 || span.key_begin < 0 || span.keys < 0 || span.key_start < 0) {
      return wrong("span of rows " + std::to_string(span.row_begin) + " + " + std::to_string(span.rows) + ", keys " +
                   std::to_string(span.key_begin) + " + " + std::to_string(span.keys) + ": negative field");
    }
  }
  return {};
}

bool PrefillPlanner::next(PrefillPlan& plan) {
  // Steps in the high half, so that sorting the words puts the longest tiles first.
  std::vector<uint32_t> order;
  order.reserve(kPrefillTiles);
  int32_t num_spans = 0;
  int64_t keys = 0;
  while (!rest_.empty() && num_spans < kPrefillSpans && static_cast<int>(order.size()) < kPrefillTiles) {
    PrefillSpan span = rest_.front();
    span.row_begin += done_rows_;
    span.start += done_rows_;
    span.rows -= done_rows_;
    const int32_t room = (kPrefillTiles - static_cast<int32_t>(order.size())) * kPrefillTile;
    if (span.rows > room) {
      span.rows = room;
      done_rows_ += room;
    } else {
      done_rows_ = 0;
      rest_ = rest_.subspan(1);
    }
    if (span.rows == 0) continue;
    for (int32_t tile = 0; tile * kPrefillTile < span.rows; ++tile) {
      const auto steps = static_cast<uint32_t>(std::min(prefill_steps(span, tile), 65535));
      order.push_back(steps << 16 | static_cast<uint32_t>(num_spans) << 10 | static_cast<uint32_t>(tile));
    }
    keys += visible_keys(span, span.rows - 1);
    plan.spans[num_spans++] = span;
  }
  if (order.empty()) return false;
  std::sort(order.begin(), order.end(), std::greater<>());
  plan.num_tiles = static_cast<int32_t>(order.size());
  for (size_t i = 0; i < order.size(); ++i) plan.tiles[i] = static_cast<uint16_t>(order[i] & 0xFFFFu);
  // Groups of heads with at most kPrefillL2Bytes of keys and values. Equal groups give the snake its balance (at most 3% over
  // the mean in all shapes that we serve; unequal ones up to 10%), so the number divides the heads where it can.
  const int64_t head_bytes = std::max<int64_t>(keys, 1) * (kNope + kValue) * 2;
  const auto fit = static_cast<int32_t>(std::clamp<int64_t>(kPrefillL2Bytes / head_bytes, 1, heads_));
  int32_t divisor = fit;
  while (heads_ % divisor != 0) --divisor;
  plan.heads = heads_;
  plan.group_heads = 2 * divisor >= fit ? divisor : fit;
  plan.groups = (heads_ + plan.group_heads - 1) / plan.group_heads;
  return true;
}

}  // namespace dsv3::cuda
