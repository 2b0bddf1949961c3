// sample() over full rows of float32 logits: greedy, nucleus, nucleus with penalties. Limit: every logit read once.
#include <memory>

#include "harness.h"
#include "kernels/cuda/sampling/sampling.h"

namespace dsv3::cuda::bench {
namespace {

constexpr int32_t kVocab = 129280, kKnown = 128815, kSlots = 256, kContext = 4096;

struct Rules {
  const char* name;
  SamplingParams params;
  bool words;  ///< also reads the slot's word of each id
};

std::vector<Rules> rules() {
  SamplingParams greedy, plain, nucleus, short_list, penalties, logprobs;
  greedy.temperature = 0;
  plain.temperature = 0.6f;
  nucleus.temperature = 0.6f;
  nucleus.top_p = 0.95f;
  short_list.temperature = 0.6f;
  short_list.top_k = 50;
  penalties = nucleus;
  penalties.repetition_penalty = 1.1f;
  penalties.frequency_penalty = 0.2f;
  logprobs.temperature = 0;
  logprobs.num_logprobs = 20;
  return {{"greedy", greedy, false}, {"temperature", plain, false}, {"top_p", nucleus, false}, {"top_k 50", short_list, false},
          {"top_p, penalties", penalties, true}, {"greedy, 20 logprobs", logprobs, false}};
}

/// Slots [0, batch) at the end of a short prompt; one row each.
Status begin(SlotState& slots, int32_t batch, const SamplingParams& params, Stream stream) {
  std::vector<StepSegment> segments;
  for (int32_t i = 0; i < batch; ++i) {
    SamplingParams mine = params;
    mine.seed = static_cast<uint64_t>(i) + 1;
    std::vector<int32_t> tokens(64);
    for (size_t t = 0; t < tokens.size(); ++t) tokens[t] = static_cast<int32_t>((t * 7919 + static_cast<size_t>(i)) % kKnown);
    slots.slot_begin(i, mine, tokens, 64, 63);
    slots.slot_grant(i, std::vector<int32_t>{i});
    segments.push_back({.slot = i, .start = 63, .rows = 1, .row_begin = i, .flags = kSegmentSample, .logit_begin = i, .group_begin = -1});
  }
  DSV3_TRY(slots.begin_step(segments, stream));
  return slots.prepare_main(batch, batch, batch, 0, stream);
}

}  // namespace

void bench_sampling(const Options& options, Report& report) {
  if (!options.filter.empty() && std::string("sampling").find(options.filter) == std::string::npos) return;
  const SlotLimits limits{.max_slots = kSlots, .max_context_tokens = kContext, .max_blocks = 64, .num_drafts = 1, .vocab = kVocab,
                          .known_vocab = kKnown, .max_rows = kSlots, .max_logit_rows = kSlots, .max_top_logprobs = 20};
  const Buffer memory(SlotState::bytes(limits), Buffer::Fill::kZero);
  auto slots = SlotState::create(limits, memory.as<void>());
  if (!slots.ok()) {
    std::fprintf(stderr, "sampling: %s\n", slots.status().message().c_str());
    return;
  }
  for (const int32_t batch : {1, 32, 128, 256}) {
    if (options.quick && batch == 32) continue;
    const int64_t bytes = int64_t{batch} * kVocab * 4;
    const int copies = copies_beyond_l2(bytes);
    const Buffer logits(bytes * copies, Buffer::Fill::kNormalF32);
    for (const auto& rule : rules()) {
      cudaDeviceSynchronize();
      Status status = begin(**slots, batch, rule.params, nullptr);
      if (status.ok() && cudaDeviceSynchronize() != cudaSuccess) status = Status(Code::kDeviceLost, "begin");
      Row row{.kernel = "sampling", .shape = std::string(rule.name) + ", " + std::to_string(batch) + " x " + std::to_string(kVocab)};
      row.bytes = static_cast<double>(bytes) * (rule.words ? 2 : 1);
      row.limit_us = row.bytes / (Roofs{}.hbm_gbps * 1e3);
      if (status.ok()) {
        const auto timing = time_chain(std::max(8, std::min(copies, 32)), options.quick ? 5 : 15, [&](int i, Stream stream) {
          const F32Matrix matrix{logits.as<float>() + int64_t{i % copies} * batch * kVocab, batch, kVocab, kVocab};
          return (*slots)->sample(batch, batch, matrix, stream);
        });
        if (timing.ok()) {
          row.us = timing->us;
          row.spread = timing->spread;
          report.add(row);
        }
        status = timing.status();
      }
      if (!status.ok()) std::fprintf(stderr, "sampling, %s: %s\n", row.shape.c_str(), status.message().c_str());
      for (int32_t i = 0; i < batch; ++i) (*slots)->slot_end(i);
    }
  }
}

}  // namespace dsv3::cuda::bench
