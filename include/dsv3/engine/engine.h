// The engine: a queue, a scheduler and a block manager on one thread, in front of an Executor. Callers on any thread
// submit requests and get tokens through a sink; nothing here knows about text or HTTP.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/kernels/sampling.h"
#include "dsv3/model/step_plan.h"

namespace dsv3 {

/// Validated by api against the ranges of api.md; the engine checks again what could break a promise of its own.
struct GenerationRequest {
  std::vector<int32_t> prompt_ids;   ///< not empty
  int32_t n = 1;                     ///< choices; they share the prompt's blocks. Choice i draws with derive_seed(seed, i)
  SamplingParams sampling;           ///< seed is replaced when `seed` is absent
  std::optional<uint64_t> seed;      ///< absent: a fresh random seed
  int64_t max_new_tokens = 1;        ///< >= 0; 0 only fills the prefix cache
  std::vector<int32_t> stop_ids;     ///< end the sequence; the id counts as generated and is reported as `matched_id`
  std::string cache_salt;            ///< prefix blocks are shared only between equal salts
  int32_t priority = 0;              ///< higher first; equal priorities first come first served
  int32_t prompt_logprobs_from = -1; ///< >= 0: report logprobs of prompt tokens at positions > this
  int64_t deadline_us = 0;           ///< now_us() clock; 0: none
};

uint64_t derive_seed(uint64_t seed, int32_t choice);  ///< choice 0 keeps the seed

enum class FinishReason { kNone, kStop, kLength, kAbort, kError };

/// News of one choice.
struct TokenUpdate {
  int32_t choice = 0;
  std::vector<SampledToken> tokens;           ///< new ones, oldest first; includes a matched stop id
  std::vector<SampledToken> prompt_logprobs;  ///< once, with or before the first tokens
  FinishReason finish = FinishReason::kNone;  ///< set on the choice's last update
  int32_t matched_id = -1;                    ///< the stop id, with kStop
  int32_t cached_tokens = 0;                  ///< prompt tokens found in the prefix cache; set from the first update on
  int32_t drafts_proposed = 0, drafts_accepted = 0;  ///< in this update
  Status error;                               ///< with kError and kAbort: why
};

/// Gets a request's updates. Called from the scheduler thread: must return at once and must not call the engine.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  virtual void on_update(TokenUpdate update) = 0;
};

/// Called from the scheduler thread with measurements; server turns them into Prometheus metrics.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void on_queue_time(double) {}        ///< seconds from submit to first step
  virtual void on_first_token(double) {}       ///< seconds from submit
  virtual void on_inter_token(double) {}       ///< seconds since the choice's previous token
  virtual void on_request_done(double, FinishReason, int64_t, int64_t) {}  ///< e2e seconds, prompt, generated tokens
  virtual void on_step(double, int32_t, int32_t) {}  ///< seconds, prefill rows, decode rows
};

struct EngineConfig {
  int32_t max_running_requests = 256;      ///< sequences with a slot; at most ExecutorLimits::max_slots
  int32_t max_queued_requests = 1024;      ///< waiting requests; one more is kOverloaded
  int64_t max_queued_tokens = 4'000'000;   ///< their prompt tokens together
  int32_t chunked_prefill_tokens = 2048;   ///< prefill rows of one step at most
  bool prefix_cache = true;
  int32_t num_drafts = 0;                  ///< speculation; at most ExecutorLimits::num_drafts
  int32_t lookahead = 0;                   ///< 1: plan a step while the one before runs
  int64_t step_timeout_us = 30'000'000;    ///< a step older than this makes health() fail
};

/// A consistent snapshot; counters only grow.
struct EngineStats {
  int32_t running = 0, queued = 0;         ///< sequences with a slot; requests waiting
  int64_t queued_tokens = 0;
  int32_t blocks_total = 0, blocks_used = 0, blocks_cached = 0, blocks_free = 0;  ///< used + cached + free = total
  int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;
  int64_t requests_finished = 0, requests_aborted = 0, requests_rejected = 0, requests_failed = 0;
  int64_t preemptions = 0, steps = 0;
  int64_t drafts = 0, drafts_proposed = 0, drafts_accepted = 0;  ///< verify rounds, tokens proposed, accepted
  std::vector<int64_t> drafts_accepted_at;  ///< per draft position
  DeviceStats device;                       ///< zeros on CPUs
};

class Engine {
 public:
  /// Starts the scheduler thread. `observer` may be null and must outlive the engine.
  static Result<std::unique_ptr<Engine>> create(const EngineConfig& config, std::unique_ptr<Executor> executor,
                                                EngineObserver* observer = nullptr);
  virtual ~Engine() = default;  ///< aborts what still runs and joins the thread

  /// Admits a request or says why not: kContextLength / kInvalidArgument when it could never run (its worst case of
  /// prompt + max_new_tokens does not fit the cache), kOverloaded when the queue is full, kUnavailable when draining.
  /// All updates go to `sink`; each choice ends with exactly one update that has `finish` set.
  virtual Result<uint64_t> submit(GenerationRequest request, std::shared_ptr<GenerationSink> sink) = 0;

  /// Ends one choice, or all with choice -1, as kAbort. Unknown or finished: no effect. Blocks are free one step later.
  virtual void cancel(uint64_t request, int32_t choice = -1) = 0;
  virtual void cancel_all() = 0;

  /// Refuses new requests from now on; returns true once nothing runs or waits, false when `timeout_us` passed first.
  virtual bool drain(int64_t timeout_us) = 0;

  /// Drops every cached block that no sequence uses. kUnavailable while requests run.
  virtual Status flush_cache() = 0;

  virtual EngineStats stats() const = 0;
  virtual Status health() const = 0;  ///< ok: a request would be served. kDeviceLost once the executor failed
  virtual const ExecutorLimits& limits() const = 0;
};

}  // namespace dsv3
