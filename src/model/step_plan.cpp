#include "dsv3/model/step_plan.h"

#include <bit>

namespace dsv3 {
namespace {

// FNV-1a over 64-bit words: cheap, and any flipped field changes it. Not a defence against an attacker.
class Hasher {
 public:
  void add(uint64_t word) {
    for (int byte = 0; byte < 8; ++byte) state_ = (state_ ^ ((word >> (8 * byte)) & 0xff)) * 0x100000001b3ull;
  }
  void add(int32_t value) { add(static_cast<uint64_t>(static_cast<uint32_t>(value))); }
  void add(float value) { add(static_cast<uint64_t>(std::bit_cast<uint32_t>(value))); }
  void add(const std::vector<int32_t>& values) {
    add(static_cast<uint64_t>(values.size()));
    for (int32_t value : values) add(value);
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xcbf29ce484222325ull;
};

void add_sampling(Hasher& hasher, const SamplingParams& p) {
  for (float value : {p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.frequency_penalty, p.presence_penalty}) {
    hasher.add(value);
  }
  hasher.add(p.top_k);
  hasher.add(p.seed);
  hasher.add(static_cast<uint64_t>(p.logit_bias.size()));
  for (const auto& [id, bias] : p.logit_bias) {
    hasher.add(id);
    hasher.add(bias);
  }
  hasher.add(p.suppressed_ids);
  hasher.add(p.min_tokens);
  hasher.add(p.num_logprobs);
}

}  // namespace

uint64_t plan_hash(const StepPlan& plan) {
  Hasher hasher;
  hasher.add(plan.step);
  hasher.add(plan.ended);
  hasher.add(static_cast<uint64_t>(plan.begun.size()));
  for (const auto& begin : plan.begun) {
    hasher.add(begin.slot);
    add_sampling(hasher, begin.sampling);
    hasher.add(begin.tokens);
    hasher.add(begin.prompt_tokens);
    hasher.add(begin.cached_tokens);
  }
  hasher.add(static_cast<uint64_t>(plan.grants.size()));
  for (const auto& grant : plan.grants) {
    hasher.add(grant.slot);
    hasher.add(grant.blocks);
  }
  hasher.add(static_cast<uint64_t>(plan.prefills.size()));
  for (const auto& chunk : plan.prefills) {
    for (int32_t value : {chunk.slot, chunk.start, chunk.count, chunk.logprobs_from}) hasher.add(value);
  }
  hasher.add(static_cast<uint64_t>(plan.decodes.size()));
  for (const auto& item : plan.decodes) {
    hasher.add(item.slot);
    hasher.add(item.max_drafts);
  }
  return hasher.value();
}

}  // namespace dsv3
