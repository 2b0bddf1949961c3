// Slots on the GPU and the CPU backend's, driven side by side through random schedules: prompts in chunks, decodes with drafts
// that hit or miss, blocks that run out, slots used again. Layouts and results must be the same.
#include <algorithm>
#include <memory>

#include "dsv3/kernels/cpu/cpu_ops.h"
#include "harness.h"
#include "kernels/cuda/sampling/sampling.h"

namespace dsv3::cuda {
namespace {

using namespace testing;  // NOLINT

constexpr int32_t kSlots = 6, kContext = 330, kBlocks = 6, kDrafts = 3, kVocab = 512, kKnown = 500, kRows = 640, kLogitRows = 64;

struct Sequence {
  bool active = false;
  int32_t length = 0, prompt = 0, computed = 0;  // as the results say
  std::vector<int32_t> blocks, drafts;
  int32_t capacity() const { return static_cast<int32_t>(blocks.size()) * kCacheBlockTokens; }
  bool decoding() const { return computed + 1 == length && ready; }
  bool ready = false;  // has sampled since it began
};

class SideBySide {
 public:
  explicit SideBySide(uint32_t seed)
      : random_(seed),
        limits_{.max_slots = kSlots, .max_context_tokens = kContext, .max_blocks = kBlocks, .num_drafts = kDrafts, .vocab = kVocab,
                .known_vocab = kKnown, .max_rows = kRows, .max_logit_rows = kLogitRows, .max_top_logprobs = 20},
        memory_(static_cast<size_t>(SlotState::bytes(limits_))),
        logits_(kLogitRows * kVocab),
        cpu_(make_cpu_ops({.max_slots = kSlots, .max_rows = kRows, .max_context_tokens = kContext, .num_blocks = kSlots * kBlocks,
                           .num_drafts = kDrafts, .vocab = kVocab, .known_vocab = kKnown}, {})) {
    memory_.zero();
    auto made = SlotState::create(limits_, memory_.get());
    EXPECT_TRUE(made.ok()) << made.status().message();
    if (made.ok()) gpu_ = std::move(made).value();
    for (int32_t block = kSlots * kBlocks; block-- > 0;) free_.push_back(block);
    std::shuffle(free_.begin(), free_.end(), random_);
  }

  void step();
  int64_t accepted = 0, tokens = 0, padded = 0;

 private:
  int32_t pick(int32_t below) { return static_cast<int32_t>(random_() % static_cast<uint32_t>(below)); }
  void change_slots();
  void grant(int32_t slot, int32_t count);
  void plan();
  void sample();
  void draft();
  template <class T>
  std::vector<T> fetch(const T* from, size_t count) {
    std::vector<T> host(count);
    EXPECT_EQ(cudaMemcpy(host.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }
  int64_t cache_row(int32_t slot, int32_t position) const {
    return int64_t{seq_[slot].blocks[static_cast<size_t>(position / kCacheBlockTokens)]} * kCacheBlockTokens + position % kCacheBlockTokens;
  }
  void compare_rows(const DeviceBatch& batch, const std::vector<const BatchSegment*>& owners, const Batch& want, bool sources);

  std::mt19937 random_;
  SlotLimits limits_;
  Guarded<char> memory_;
  Guarded<float> logits_;
  std::unique_ptr<Ops> cpu_;
  std::unique_ptr<SlotState> gpu_;
  Sequence seq_[kSlots];
  std::vector<int32_t> free_;
  std::vector<StepSegment> segments_;
  Batch batch_;
  int32_t rows_ = 0, logit_rows_ = 0, groups_ = 0, sampling_ = 0;
};

void SideBySide::grant(int32_t slot, int32_t count) {
  std::vector<int32_t> blocks;
  for (; count > 0 && !free_.empty() && seq_[slot].blocks.size() + blocks.size() < kBlocks; --count) {
    blocks.push_back(free_.back());
    free_.pop_back();
  }
  if (blocks.empty()) return;
  cpu_->slot_grant(slot, blocks);
  gpu_->slot_grant(slot, blocks);
  seq_[slot].blocks.insert(seq_[slot].blocks.end(), blocks.begin(), blocks.end());
}

void SideBySide::change_slots() {
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    Sequence& s = seq_[slot];
    if (s.active && (s.computed + 2 + kDrafts > kContext || (s.ready && pick(25) == 0))) {
      cpu_->slot_end(slot);
      gpu_->slot_end(slot);
      free_.insert(free_.begin(), s.blocks.begin(), s.blocks.end());
      s = {};
    }
    if (!s.active && pick(3) != 0) {
      s.active = true;
      s.length = 2 + pick(200);
      s.prompt = pick(2) == 0 ? s.length : 1 + pick(s.length - 1);
      s.computed = pick(3) == 0 ? pick(s.prompt) : 0;
      SamplingParams p;
      p.seed = random_();
      p.temperature = pick(3) == 0 ? 0.0f : 0.8f;
      if (pick(2) == 0) p.top_p = 0.9f;
      if (pick(3) == 0) p.repetition_penalty = 1.2f;
      if (pick(3) == 0) p.frequency_penalty = 0.5f;
      if (pick(3) == 0) p.logit_bias = {{9, 4.0f}, {5, -3.0f}};
      if (pick(3) == 0) {
        p.suppressed_ids = {1, 2, 3};
        p.min_tokens = 10;
      }
      p.num_logprobs = pick(4) - 1;
      std::vector<int32_t> ids(static_cast<size_t>(s.length));
      for (auto& id : ids) id = pick(kKnown);
      cpu_->slot_begin(slot, p, ids, s.prompt, s.computed);
      gpu_->slot_begin(slot, p, ids, s.prompt, s.computed);
      grant(slot, 1);
    }
  }
}

/// Segments in the order of slots, with padding among them. Decodes may ask for more drafts than there is room or drafts for.
void SideBySide::plan() {
  segments_.clear();
  batch_ = {};
  rows_ = logit_rows_ = groups_ = sampling_ = 0;
  const auto add = [&](StepSegment s, int32_t sampled, bool absorbed) {
    s.row_begin = rows_;
    s.logit_begin = logit_rows_;
    s.group_begin = absorbed ? groups_ : -1;
    rows_ += s.rows;
    logit_rows_ += sampled;
    sampling_ += sampled > 0 ? 1 : 0;
    if (absorbed) groups_ += (s.rows + kMaxGroupRows - 1) / kMaxGroupRows;
    segments_.push_back(s);
  };
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    if (pick(5) == 0) {
      const int32_t rows = 1 + pick(4);
      add({.slot = -1, .rows = rows, .flags = kSegmentDecode | kSegmentSample}, rows, true);
    }
    Sequence& s = seq_[slot];
    if (!s.active || pick(6) == 0) continue;
    if (s.decoding()) {
      const int32_t wanted = 1 + pick(kDrafts + 1);
      if (s.capacity() < s.computed + (pick(2) == 0 ? 1 : wanted)) grant(slot, 1);
      if (s.capacity() <= s.computed) continue;
      add({.slot = slot, .rows = wanted, .flags = kSegmentDecode | kSegmentSample}, wanted, true);
      batch_.segments.push_back({.slot = slot, .rows = wanted, .decode = true, .sample = true});
      continue;
    }
    const int32_t end = s.computed < s.prompt ? s.prompt : s.length;
    const int32_t count = std::min(1 + pick(90), end - s.computed);
    while (s.capacity() < s.computed + count && !free_.empty()) grant(slot, 1);
    if (s.capacity() < s.computed + count) continue;
    const bool sample = s.computed + count == s.length, absorbed = s.computed >= s.prompt;
    add({.slot = slot, .start = s.computed, .rows = count, .flags = sample ? kSegmentSample : 0}, sample ? 1 : 0, absorbed);
    batch_.segments.push_back({.slot = slot, .start = s.computed, .rows = count,
                               .form = absorbed ? AttentionForm::kAbsorbed : AttentionForm::kExpanded, .sample = sample});
  }
}

/// owners[i]: the CPU's segment that belongs to segments_[i], or null.
void SideBySide::compare_rows(const DeviceBatch& batch, const std::vector<const BatchSegment*>& owners, const Batch& want, bool sources) {
  const auto ids = fetch(batch.tokens, kRows), positions = fetch(batch.positions, kRows), source = fetch(batch.source_rows, kRows);
  const auto cache_rows = fetch(batch.cache_rows, kRows);
  const auto groups = fetch(batch.groups, kRows);
  for (size_t i = 0; i < segments_.size(); ++i) {
    const StepSegment& s = segments_[i];
    const int32_t valid = owners[i] != nullptr ? owners[i]->rows : 0;
    for (int32_t r = 0; r < s.rows; ++r) {
      const auto row = static_cast<size_t>(s.row_begin + r);
      const bool real = r < valid;
      const size_t from = real ? static_cast<size_t>(owners[i]->row_begin + r) : 0;
      ASSERT_EQ(ids[row], real ? want.tokens[from] : -1) << "segment " << i << " row " << r;
      ASSERT_EQ(positions[row], real ? want.positions[from] : -1) << "segment " << i << " row " << r;
      ASSERT_EQ(cache_rows[row], real ? cache_row(s.slot, want.positions[from]) : -1) << "segment " << i << " row " << r;
      if (sources) ASSERT_EQ(source[row], real ? s.row_begin + r : -1) << "segment " << i << " row " << r;
      padded += real ? 0 : 1;
    }
    for (int32_t g = 0; s.group_begin >= 0 && g < (s.rows + kMaxGroupRows - 1) / kMaxGroupRows; ++g) {
      const QueryGroup& group = groups[static_cast<size_t>(s.group_begin + g)];
      const int32_t rows = std::clamp(valid - g * kMaxGroupRows, 0, kMaxGroupRows);
      ASSERT_EQ(group.rows, rows) << "segment " << i << " group " << g;
      if (rows == 0) continue;
      ASSERT_EQ(group.slot, s.slot);
      ASSERT_EQ(group.row_begin, s.row_begin + g * kMaxGroupRows);
      ASSERT_EQ(group.start, owners[i]->start + g * kMaxGroupRows);
    }
  }
  // What the graph has beyond the segments is padding.
  for (int32_t row = rows_; row < std::min(rows_ + 5, kRows); ++row) ASSERT_EQ(positions[static_cast<size_t>(row)], -1);
  for (int32_t g = groups_; g < std::min(groups_ + 3, kRows); ++g) ASSERT_EQ(groups[static_cast<size_t>(g)].rows, 0);
}

std::vector<const BatchSegment*> owners_of(const std::vector<StepSegment>& segments, const Batch& batch) {
  std::vector<const BatchSegment*> owners(segments.size());
  for (size_t i = 0; i < segments.size(); ++i) {
    for (const auto& s : batch.segments) {
      if (s.slot == segments[i].slot) owners[i] = &s;
    }
  }
  return owners;
}

void SideBySide::sample() {
  auto values = normal_values(static_cast<size_t>(kLogitRows) * kVocab, random_(), 3.0f);
  std::vector<float> packed;
  const auto owners = owners_of(segments_, batch_);
  int32_t packed_rows = 0;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const StepSegment& s = segments_[i];
    if ((s.flags & kSegmentSample) == 0) continue;
    const int32_t sampled = (s.flags & kSegmentDecode) != 0 ? s.rows : 1;
    const int32_t valid = owners[i] == nullptr ? 0 : (s.flags & kSegmentDecode) != 0 ? owners[i]->rows : 1;
    for (int32_t r = 0; r < sampled; ++r) {
      float* row = values.data() + static_cast<int64_t>(s.logit_begin + r) * kVocab;
      if (r >= valid) {
        std::fill(row, row + kVocab, NAN);  // padding may hold anything
        continue;
      }
      const auto& drafts = seq_[s.slot].drafts;
      if (static_cast<size_t>(r) < drafts.size() && pick(10) < 7) row[drafts[static_cast<size_t>(r)]] = 60.0f;
      if (pick(60) == 0) row[pick(kVocab)] = NAN;
      packed.insert(packed.end(), row, row + kVocab);
      ++packed_rows;
    }
  }
  logits_.upload(values);
  cpu_->sample(batch_, {packed.data(), DType::kF32, packed_rows, kVocab, kVocab});
  const auto sampled = cpu_->collect();
  ASSERT_TRUE(sampled.ok());
  const auto& want = *sampled;
  ASSERT_OK(gpu_->sample(static_cast<int32_t>(segments_.size()) + 1, logit_rows_ + 2, {logits_.get(), kLogitRows, kVocab, kVocab}, nullptr));
  ASSERT_OK(gpu_->end_step(nullptr));
  auto got = gpu_->collect();
  ASSERT_TRUE(got.ok()) << got.status().message();
  ASSERT_EQ(got->size(), segments_.size());
  for (size_t i = 0; i < segments_.size(); ++i) {
    const SegmentResult& result = (*got)[i];
    if (owners[i] == nullptr) {
      EXPECT_TRUE(result.tokens.empty()) << "padding segment " << i;
      continue;
    }
    const SegmentResult& wanted = want[static_cast<size_t>(owners[i] - batch_.segments.data())];
    ASSERT_EQ(result.tokens.size(), wanted.tokens.size()) << "segment " << i;
    ASSERT_EQ(result.drafts_proposed, wanted.drafts_proposed) << "segment " << i;
    ASSERT_EQ(result.drafts_accepted, wanted.drafts_accepted) << "segment " << i;
    ASSERT_EQ(result.bad_logits, wanted.bad_logits) << "segment " << i;
    for (size_t t = 0; t < wanted.tokens.size(); ++t) {
      ASSERT_EQ(result.tokens[t].id, wanted.tokens[t].id) << "segment " << i << " token " << t;
      ASSERT_NEAR(result.tokens[t].logprob, wanted.tokens[t].logprob, 1e-4) << "segment " << i << " token " << t;
      ASSERT_EQ(result.tokens[t].top.size(), wanted.tokens[t].top.size()) << "segment " << i << " token " << t;
    }
    Sequence& s = seq_[segments_[i].slot];
    s.length += static_cast<int32_t>(wanted.tokens.size());
    tokens += static_cast<int64_t>(wanted.tokens.size());
    accepted += wanted.drafts_accepted;
    const bool decode = (segments_[i].flags & kSegmentDecode) != 0;
    s.computed = owners[i]->start + (decode ? 1 + wanted.drafts_accepted : owners[i]->rows);
    if (!wanted.tokens.empty()) {
      s.ready = true;
      s.drafts.clear();
    }
  }
}

/// Every pass: the layout, then drafts from random logits on both sides.
void SideBySide::draft() {
  Batch previous, now;
  const auto num_segments = static_cast<int32_t>(segments_.size());
  for (int32_t pass = 0; pass < kDrafts; ++pass) {
    const bool skip_cpu = pass > 0 && previous.segments.empty();
    if (skip_cpu) {
      now = {};
    } else {
      cpu_->prepare_draft(batch_, pass == 0 ? nullptr : &previous, now);
    }
    if (pass == 0) {
      ASSERT_OK(gpu_->prepare_draft(0, num_segments, std::min(rows_ + 5, kRows), std::min(groups_ + 3, kRows), nullptr));
      compare_rows(gpu_->draft_batch(0), owners_of(segments_, now), now, true);
    } else {
      ASSERT_OK(gpu_->prepare_draft(pass, num_segments, sampling_, sampling_, nullptr));
    }
    const auto logit_rows = fetch(gpu_->draft_batch(pass).logit_rows, kLogitRows);
    const auto ids = fetch(gpu_->draft_batch(pass).tokens, kRows), positions = fetch(gpu_->draft_batch(pass).positions, kRows);
    const auto source = fetch(gpu_->draft_batch(pass).source_rows, kRows);
    const auto cache_rows = fetch(gpu_->draft_batch(pass).cache_rows, kRows);
    const auto groups = fetch(gpu_->draft_batch(pass).groups, kRows);
    auto values = normal_values(static_cast<size_t>(kLogitRows) * kVocab, random_(), 3.0f);
    std::vector<float> packed;
    const auto owners = owners_of(segments_, now);
    int32_t i = 0;
    for (size_t s = 0; s < segments_.size(); ++s) {
      if ((segments_[s].flags & kSegmentSample) == 0) continue;
      const BatchSegment* owner = owners[s];
      if (pass == 0) {
        ASSERT_EQ(logit_rows[static_cast<size_t>(i)], segments_[s].row_begin + (owner != nullptr ? owner->rows - 1 : 0)) << "sampling " << i;
      } else {
        const auto row = static_cast<size_t>(i);
        ASSERT_EQ(logit_rows[row], i);
        ASSERT_EQ(positions[row], owner != nullptr ? owner->start : -1) << "pass " << pass << " row " << i;
        ASSERT_EQ(ids[row], owner != nullptr ? seq_[segments_[s].slot].drafts.back() : -1) << "pass " << pass << " row " << i;
        ASSERT_EQ(source[row], owner != nullptr ? i : -1) << "pass " << pass << " row " << i;
        ASSERT_EQ(cache_rows[row], owner != nullptr ? cache_row(segments_[s].slot, owner->start) : -1) << "pass " << pass << " row " << i;
        ASSERT_EQ(groups[row].rows, owner != nullptr ? 1 : 0) << "pass " << pass << " row " << i;
        if (owner != nullptr) {
          ASSERT_EQ(groups[row].start, owner->start);
          ASSERT_EQ(groups[row].slot, segments_[s].slot);
        }
      }
      if (owner != nullptr) {
        const float* row = values.data() + static_cast<int64_t>(i) * kVocab;
        packed.insert(packed.end(), row, row + kVocab);
        seq_[segments_[s].slot].drafts.push_back(static_cast<int32_t>(std::max_element(row, row + kKnown) - row));
      }
      ++i;
    }
    logits_.upload(values);
    if (!now.segments.empty()) {
      cpu_->set_drafts(now, {packed.data(), DType::kF32, static_cast<int64_t>(now.logit_rows.size()), kVocab, kVocab});
    }
    ASSERT_OK(gpu_->set_drafts(pass, num_segments, sampling_, {logits_.get(), kLogitRows, kVocab, kVocab}, nullptr));
    std::swap(previous, now);
  }
}

void SideBySide::step() {
  change_slots();
  plan();
  if (batch_.segments.empty()) return;
  cpu_->prepare_batch(batch_);
  ASSERT_OK(gpu_->begin_step(segments_, nullptr));
  const auto num_segments = static_cast<int32_t>(segments_.size());
  // One segment, five rows, two logit rows and three groups more than there are, as a graph of the next size would ask for.
  ASSERT_OK(gpu_->prepare_main(num_segments + 1, std::min(rows_ + 5, kRows), logit_rows_ + 2, std::min(groups_ + 3, kRows), nullptr));
  compare_rows(gpu_->main_batch(), owners_of(segments_, batch_), batch_, false);
  if (::testing::Test::HasFatalFailure()) return;
  sample();
  if (::testing::Test::HasFatalFailure()) return;
  draft();
  EXPECT_TRUE(memory_.guards_intact());
}

TEST(Slots, SameAsCpu) {
  DSV3_NEEDS_GPU();
  int64_t accepted = 0, tokens = 0, padded = 0;
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    SideBySide run(seed);
    for (int step = 0; step < 120; ++step) {
      run.step();
      ASSERT_FALSE(HasFatalFailure()) << "seed " << seed << " step " << step;
    }
    accepted += run.accepted;
    tokens += run.tokens;
    padded += run.padded;
  }
  // The schedules reach what they are meant to reach.
  EXPECT_GT(accepted, 100);
  EXPECT_GT(tokens, accepted + 200);
  EXPECT_GT(padded, 100);
}

TEST(Slots, ManyLongPromptsInOneStep) {
  DSV3_NEEDS_GPU();
  const SlotLimits limits{.max_slots = 12, .max_context_tokens = 3000, .max_blocks = 47, .num_drafts = 0, .vocab = 64, .known_vocab = 64,
                          .max_rows = 64, .max_logit_rows = 16, .max_top_logprobs = 0};
  Guarded<char> memory(static_cast<size_t>(SlotState::bytes(limits)));
  memory.zero();
  auto slots = SlotState::create(limits, memory.get());
  ASSERT_TRUE(slots.ok()) << slots.status().message();
  for (int round = 0; round < 3; ++round) {
    std::vector<StepSegment> segments;
    std::mt19937 random(static_cast<uint32_t>(round));
    std::vector<int32_t> last;
    for (int32_t slot = 0; slot < 12; ++slot) {  // 36000 tokens: several uploads
      std::vector<int32_t> ids(3000), blocks(47);
      for (auto& id : ids) id = static_cast<int32_t>(random() % 64);
      for (size_t b = 0; b < blocks.size(); ++b) blocks[b] = slot * 47 + static_cast<int32_t>(b);
      (*slots)->slot_begin(slot, {}, ids, 3000, 2998);
      (*slots)->slot_grant(slot, blocks);
      last.push_back(ids[2998]);
      last.push_back(ids[2999]);
      segments.push_back({.slot = slot, .start = 2998, .rows = 2, .row_begin = 2 * slot, .group_begin = -1});
    }
    ASSERT_OK((*slots)->begin_step(segments, nullptr));
    ASSERT_OK((*slots)->prepare_main(12, 24, 0, 0, nullptr));
    ASSERT_OK((*slots)->sample(12, 0, {}, nullptr));
    ASSERT_OK((*slots)->end_step(nullptr));
    const auto results = (*slots)->collect();
    ASSERT_TRUE(results.ok());
    std::vector<int32_t> got(24);
    ASSERT_EQ(cudaMemcpy(got.data(), (*slots)->main_batch().tokens, got.size() * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(got, last);
    for (int32_t slot = 0; slot < 12; ++slot) (*slots)->slot_end(slot);
  }
  EXPECT_TRUE(memory.guards_intact());
}

/// Decode steps queued ahead of their results, replayed from one graph: the second step starts from what the first sampled.
TEST(Slots, LookaheadThroughAGraph) {
  DSV3_NEEDS_GPU();
  const SlotLimits limits{.max_slots = 3, .max_context_tokens = 128, .max_blocks = 2, .num_drafts = 0, .vocab = 64, .known_vocab = 64,
                          .max_rows = 16, .max_logit_rows = 8, .max_top_logprobs = 0};
  Guarded<char> memory(static_cast<size_t>(SlotState::bytes(limits)));
  memory.zero();
  auto made = SlotState::create(limits, memory.get());
  ASSERT_TRUE(made.ok()) << made.status().message();
  SlotState& slots = **made;
  Guarded<float> logits(normal_values(3 * 64, 5));
  const F32Matrix matrix{logits.get(), 3, 64, 64};
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  std::vector<StepSegment> segments;
  for (int32_t slot = 0; slot < 2; ++slot) {
    slots.slot_begin(slot, {.temperature = 0.9f, .seed = 77u + static_cast<uint64_t>(slot)}, std::vector<int32_t>{1, 2}, 1, 1);
    slots.slot_grant(slot, std::vector<int32_t>{2 * slot, 2 * slot + 1});
    segments.push_back({.slot = slot, .rows = 1, .row_begin = slot, .flags = kSegmentDecode | kSegmentSample, .logit_begin = slot, .group_begin = slot});
  }
  segments.push_back({.slot = -1, .rows = 1, .row_begin = 2, .flags = kSegmentDecode | kSegmentSample, .logit_begin = 2, .group_begin = 2});
  const auto body = [&] {
    EXPECT_OK(slots.prepare_main(3, 3, 3, 3, stream));
    EXPECT_OK(slots.sample(3, 3, matrix, stream));
  };
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  body();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  std::vector<int32_t> ids[2];
  int in_flight = 0;
  const auto take = [&] {
    const auto results = slots.collect();
    ASSERT_TRUE(results.ok()) << results.status().message();
    for (size_t slot = 0; slot < 2; ++slot) ids[slot].push_back((*results)[slot].tokens.at(0).id);
    --in_flight;
  };
  for (int step = 0; step < 20; ++step) {
    if (in_flight == 2) take();
    ASSERT_OK(slots.begin_step(segments, stream));
    ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    ASSERT_OK(slots.end_step(stream));
    ++in_flight;
  }
  while (in_flight > 0) take();
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  // The logits never change, so a draw differs by its output index alone: position 21 has been reached token by token.
  std::vector<int32_t> positions(3);
  ASSERT_EQ(cudaMemcpy(positions.data(), slots.main_batch().positions, 12, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(positions, (std::vector<int32_t>{20, 20, -1}));
  EXPECT_NE(ids[0], std::vector<int32_t>(20, ids[0].at(0)));
  EXPECT_TRUE(memory.guards_intact());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace dsv3::cuda
