// A request and its sequences (one per choice), as the scheduler sees them. Plain data: the scheduler thread owns it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dsv3/engine/engine.h"
#include "prefix_hash.h"

namespace dsv3::scheduling {

struct Request;

/// One token stream. Its life: parked (a later choice, until the prompt's blocks exist) -> waiting -> running
/// -> done, with a way back from running to waiting when it is preempted.
struct Sequence {
  enum class State : uint8_t { kParked, kWaiting, kRunning, kDone };

  Request* request = nullptr;
  int32_t choice = 0;
  uint64_t seed = 0;
  State state = State::kParked;

  std::vector<int32_t> output;          ///< confirmed tokens
  std::vector<uint64_t> output_hashes;  ///< of the full blocks behind the prompt's full ones

  // Tokens that steps in flight will add: at least, at most. Zero when nothing is in flight.
  int32_t in_flight = 0, pending_min = 0, pending_max = 0;

  // While running.
  uint32_t epoch = 0;  ///< counts runs; results of an earlier run do not move the rows of this one
  int32_t slot = -1;
  bool begun = false;           ///< the executor knows the slot
  bool reserved = false;        ///< holds blocks for its worst case: is never preempted
  std::vector<int32_t> blocks;  ///< block table; the first `published_blocks` are nodes of the prefix tree
  int32_t granted_blocks = 0;   ///< how many of them the executor knows
  int32_t published_blocks = 0;
  bool publishing = false;    ///< false once an equal block was found published by somebody else
  int32_t begin_tokens = 0;   ///< SlotBegin::tokens
  int32_t cached_rows = 0;    ///< SlotBegin::cached_tokens
  int32_t planned_rows = 0;   ///< rows of begin_tokens that are cached or planned
  int32_t computed_rows = 0;  ///< rows known to be right
  uint64_t last_turn = 0;     ///< among decodes that do not fit one step

  // While waiting.
  int32_t preemptions = 0;
  int32_t bypassed = 0;        ///< sequences started past this one because it did not fit
  int32_t lacking_blocks = 0;  ///< how many it needed when it last did not fit
  uint64_t lacking_step = 0;

  bool sent_prompt_logprobs = false;
  int64_t last_token_us = 0;

  int32_t prompt_tokens() const;
  int32_t length() const { return prompt_tokens() + static_cast<int32_t>(output.size()); }
  int32_t max_length() const;  ///< prompt + max_new_tokens
  bool prefilling() const { return planned_rows < begin_tokens; }
  bool may_decode() const { return !prefilling() && length() + pending_min < max_length(); }

  /// Token ids [start, start + count): a view where they lie together, else copied into `scratch`.
  std::span<const int32_t> ids(int32_t start, int32_t count, std::vector<int32_t>* scratch) const;
  /// Chain hash of full block `index`, all of whose tokens are confirmed.
  uint64_t block_hash(int32_t index, const PrefixHasher& hasher);
};

/// Higher priority first, then first come first served, then by choice.
bool ranks_before(const Sequence& a, const Sequence& b);

struct RankOrder {
  bool operator()(const Sequence* a, const Sequence* b) const { return ranks_before(*a, *b); }
};

struct Request : std::enable_shared_from_this<Request> {
  uint64_t id = 0;         ///< grows with arrival
  GenerationRequest body;  ///< sampling.suppressed_ids holds the stop ids where min_tokens asks for it
  std::shared_ptr<GenerationSink> sink;
  int64_t submit_us = 0;
  std::string salt;                     ///< the client's; without a prefix cache one of its own
  std::vector<uint64_t> prompt_hashes;  ///< of the prompt's full blocks
  std::vector<Sequence> sequences;      ///< [n]; never resized, so pointers to them last as long as the request
  int32_t open = 0;                     ///< sequences that are not done

  bool started = false;          ///< a sequence has had a slot; the request left the queue
  bool prompt_computed = false;  ///< later choices may start
  bool first_token_seen = false;
  int32_t cached_tokens = 0;                  ///< found when it started; the same for all choices
  std::vector<SampledToken> prompt_logprobs;  ///< so far, from position prompt_logprobs_from + 1 on
  int64_t generated_tokens = 0;
  FinishReason outcome = FinishReason::kNone;  ///< the gravest of its choices

  int32_t prompt_tokens() const { return static_cast<int32_t>(body.prompt_ids.size()); }
  /// -1: none (any more); else positions behind this one still lack their logprob.
  int32_t logprobs_from() const;
};

/// Takes a checked request over. Runs on the caller's thread: hashing a long prompt takes a while.
std::shared_ptr<Request> make_request(uint64_t id, GenerationRequest body, std::shared_ptr<GenerationSink> sink,
                                      const PrefixHasher& hasher, bool prefix_cache, int64_t now_us);

}  // namespace dsv3::scheduling
