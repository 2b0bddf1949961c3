// A random life of a scheduler: limits, settings, requests, arrivals, cancels, all from one seed. Runs it in virtual
// time against FakeExecutor and says what went wrong.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "admission.h"
#include "scheduler.h"
#include "support/collecting_sink.h"
#include "support/fake_executor.h"

namespace dsv3::testing {

struct ScheduleReport {
  std::vector<std::string> failures;
  int64_t sequences = 0, steps = 0, preemptions = 0, cached_tokens = 0, tokens = 0, drafts_accepted = 0;
  int64_t stopped = 0, full_length = 0, aborted = 0, failed = 0, refused = 0;
  int32_t most_begins = 0;
};

class RandomSchedule {
 public:
  explicit RandomSchedule(uint64_t seed) : random_(seed) { draw_limits(), draw_requests(); }

  ScheduleReport run() {
    scheduling::Scheduler scheduler(config_, options_.limits, hasher(), nullptr);
    FakeExecutor executor(options_);
    size_t next = 0;
    // Far beyond what any schedule needs: only a scheduler that stands still gets there.
    constexpr int64_t kMaxTurns = 50'000;
    for (int64_t turn = 0;; ++turn) {
      const int64_t now = turn * kTurnUs;
      if (turn == kMaxTurns) {
        fail("no end after " + std::to_string(turn) + " turns");
        break;
      }
      while (next < clients_.size() && clients_[next].arrival <= turn) arrive(&clients_[next++], &scheduler, now);
      for (Client& client : clients_) {
        if (client.cancel_at != turn || client.id == 0) continue;
        scheduler.cancel(client.id, client.cancel_choice, now);
      }
      scheduler.expire(now);
      StepPlan plan;
      while (scheduler.steps_in_flight() <= config_.lookahead && scheduler.make_plan(&plan, now)) {
        if (!executor.submit(std::move(plan)).ok()) fail("submit");
      }
      hand_out(&scheduler);
      if (pick(0, 7) == 0) check_books(scheduler);
      if (scheduler.steps_in_flight() > 0) {
        auto result = executor.wait();
        const Status status = result.ok() ? scheduler.complete(std::move(*result), now) : result.status();
        if (!status.ok()) {
          fail(status.message());
          break;
        }
      } else if (!scheduler.has_work() && next == clients_.size()) {
        break;
      }
    }
    hand_out(&scheduler);
    check_end(scheduler, executor);
    for (const Client& client : clients_) check_client(client, executor);
    for (const auto& violation : executor.violations()) fail(violation);
    return report_;
  }

 private:
  static constexpr int64_t kTurnUs = 1000;

  struct Client {
    GenerationRequest request;
    std::shared_ptr<CollectingSink> sink = std::make_shared<CollectingSink>();
    int64_t arrival = 0;
    int64_t cancel_at = -1;
    int32_t cancel_choice = -1;
    uint64_t id = 0;  // 0: refused, or not there yet
  };

  int32_t pick(int32_t low, int32_t high) { return std::uniform_int_distribution<int32_t>(low, high)(random_); }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(random_); }
  void fail(const std::string& what) { report_.failures.push_back(what); }

  void draw_limits() {
    ExecutorLimits& limits = options_.limits;
    limits.block_tokens = 1 << pick(1, 3);
    limits.max_context_tokens = pick(8, 160);
    limits.num_blocks = pick(2, 60);
    limits.max_slots = pick(1, 10);
    limits.max_step_tokens = pick(2, 80);
    limits.num_drafts = pick(0, 3);
    const int32_t vocab_sizes[] = {3, 40, 1000};
    limits.vocab_size = vocab_sizes[pick(0, 2)];
    options_.key = random_();
    options_.acceptance = pick(0, 10) / 10.0;
    options_.fault_rate = chance(0.1) ? 0.02 : 0.0;
    config_.max_running_requests = pick(1, limits.max_slots);
    config_.chunked_prefill_tokens = pick(1, 90);
    config_.prefix_cache = chance(0.8);
    config_.num_drafts = pick(0, limits.num_drafts);
    config_.lookahead = pick(0, 1);
    options_.max_in_flight = 1 + config_.lookahead;
    // Most schedules squeeze: slots beyond what the blocks can serve force preemption.
    hash_mask_ = chance(0.3) ? 0xff : ~uint64_t{0};
  }

  scheduling::PrefixHasher hasher() const { return {{11, 22}, options_.limits.block_tokens, hash_mask_}; }

  void draw_requests() {
    const ExecutorLimits& limits = options_.limits;
    std::vector<std::vector<int32_t>> stems(static_cast<size_t>(pick(1, 3)));
    for (auto& stem : stems) {
      for (int32_t i = 0; i < 100; ++i) stem.push_back(pick(0, limits.vocab_size - 1));
    }
    const int32_t pool = limits.num_blocks * limits.block_tokens;
    const int32_t room = std::min(limits.max_context_tokens, pool);
    const int32_t count = pick(1, 14), spread = pick(0, 60);
    clients_.resize(static_cast<size_t>(count));
    for (Client& client : clients_) {
      GenerationRequest& request = client.request;
      const int32_t total = std::max(1, pick(1, chance(0.1) ? room + 8 : room));
      const int32_t prompt = std::max(1, pick(total / 4, total));
      const auto& stem = stems[static_cast<size_t>(pick(0, static_cast<int32_t>(stems.size()) - 1))];
      const int32_t common = std::min({prompt, pick(0, 100), 100});
      request.prompt_ids.assign(stem.begin(), stem.begin() + common);
      while (static_cast<int32_t>(request.prompt_ids.size()) < prompt) {
        request.prompt_ids.push_back(pick(0, limits.vocab_size - 1));
      }
      request.max_new_tokens = chance(0.1) ? 0 : total - prompt;
      request.n = chance(0.25) ? pick(2, 5) : 1;
      request.seed = random_();
      request.sampling.temperature = chance(0.5) ? 0.0f : 1.0f;
      request.sampling.num_logprobs = chance(0.2) ? pick(0, 2) : -1;
      if (chance(0.2)) request.prompt_logprobs_from = pick(0, prompt);
      for (int32_t i = pick(0, 3); i > 0; --i) request.stop_ids.push_back(pick(0, limits.vocab_size - 1));
      if (chance(0.3) && limits.vocab_size > 3) request.sampling.min_tokens = pick(0, 20);
      if (chance(0.3)) request.cache_salt = chance(0.5) ? "a" : "b";
      if (chance(0.3)) request.priority = pick(-1, 1);
      client.arrival = pick(0, spread);
      if (chance(0.1)) request.deadline_us = (client.arrival + pick(0, 60)) * kTurnUs + 1;
      if (chance(0.2)) {
        client.cancel_at = client.arrival + pick(0, 60);
        client.cancel_choice = chance(0.4) ? pick(0, request.n) : -1;
      }
    }
    std::stable_sort(clients_.begin(), clients_.end(),
                     [](const Client& a, const Client& b) { return a.arrival < b.arrival; });
  }

  void arrive(Client* client, scheduling::Scheduler* scheduler, int64_t now) {
    if (!scheduling::check_request(client->request, options_.limits).ok()) {
      const int64_t total = static_cast<int64_t>(client->request.prompt_ids.size()) + client->request.max_new_tokens;
      const int64_t pool = int64_t{options_.limits.num_blocks} * options_.limits.block_tokens;
      if (total <= std::min<int64_t>(pool, options_.limits.max_context_tokens)) fail("a request that fits was refused");
      ++report_.refused;
      return;
    }
    client->id = ++last_id_;
    scheduler->add(
        scheduling::make_request(client->id, client->request, client->sink, hasher(), config_.prefix_cache, now));
  }

  void hand_out(scheduling::Scheduler* scheduler) {
    for (auto& delivery : scheduler->take_deliveries()) delivery.sink->on_update(std::move(delivery.update));
    const auto departures = scheduler->take_departures();
    left_queue_ += departures.left_queue;
    ended_ += departures.ended;
  }

  void check_books(const scheduling::Scheduler& scheduler) {
    if (const Status books = scheduler.check_books(); !books.ok()) fail(books.message());
  }

  void check_end(const scheduling::Scheduler& scheduler, const FakeExecutor&) {
    check_books(scheduler);
    EngineStats stats;
    scheduler.fill_stats(&stats);
    if (stats.blocks_used != 0 || stats.running != 0) fail("blocks or slots are held when nothing runs");
    if (stats.blocks_used + stats.blocks_cached + stats.blocks_free != stats.blocks_total) fail("blocks do not add up");
    if (!config_.prefix_cache && stats.blocks_cached != 0) fail("blocks cached without a prefix cache");
    const auto admitted = static_cast<int64_t>(last_id_);
    if (left_queue_ != admitted || ended_ != admitted) fail("the queue's accounts do not balance");
    if (stats.requests_finished + stats.requests_aborted + stats.requests_failed != admitted) {
      fail("requests are counted other than once");
    }
    report_.steps = stats.steps;
    report_.preemptions = stats.preemptions;
    report_.cached_tokens = stats.cached_tokens;
    report_.tokens = stats.generated_tokens;
    report_.drafts_accepted = stats.drafts_accepted;
  }

  /// How a choice must end, and with what: the toy model asked directly.
  void check_client(const Client& client, const FakeExecutor& executor) {
    if (client.id == 0) return;
    const GenerationRequest& request = client.request;
    for (int32_t choice = 0; choice < request.n; ++choice) {
      const Collected got = client.sink->choice(choice);
      const std::string name = "request " + std::to_string(client.id) + " choice " + std::to_string(choice) + ": ";
      ++report_.sequences;
      if (got.final_updates != 1) fail(name + std::to_string(got.final_updates) + " final updates");
      if (got.updates_after_final != 0) fail(name + "news after the end");
      SamplingParams sampling = request.sampling;
      sampling.seed = derive_seed(*request.seed, choice);
      if (sampling.min_tokens > 0) sampling.suppressed_ids = request.stop_ids;
      check_tokens(name, client, sampling, got, executor.model());
      const int32_t begins = executor.begins(sampling.seed);
      report_.most_begins = std::max(report_.most_begins, begins);
      if (begins > 1 + scheduling::Scheduler::kMaxPreemptions) fail(name + "preempted too often");
    }
  }

  void check_tokens(const std::string& name, const Client& client, const SamplingParams& sampling, const Collected& got,
                    const ToyModel& model) {
    const GenerationRequest& request = client.request;
    const Reference want = reference_output(model, request.prompt_ids, sampling, request.max_new_tokens);
    size_t length = want.tokens.size();
    int32_t matched = -1;
    for (size_t i = 0; i < length && matched < 0; ++i) {
      const int32_t id = want.tokens[i].id;
      const bool may_stop = static_cast<int32_t>(i) >= sampling.min_tokens;
      if (may_stop && std::count(request.stop_ids.begin(), request.stop_ids.end(), id) > 0)
        matched = id, length = i + 1;
    }
    for (size_t i = 0; i < got.tokens.size(); ++i) {
      if (i >= length) return fail(name + "more tokens than it may have");
      const SampledToken &a = got.tokens[i], &b = want.tokens[i];
      if (a.id != b.id || a.logprob != b.logprob || a.top != b.top) {
        return fail(name + "token " + std::to_string(i) + " is " + std::to_string(a.id) + ", not " +
                    std::to_string(b.id));
      }
    }
    const bool complete = got.finish == FinishReason::kStop || got.finish == FinishReason::kLength;
    if (complete) {
      if (got.tokens.size() != length) fail(name + "ended too early");
      if (got.finish != (matched >= 0 ? FinishReason::kStop : FinishReason::kLength)) fail(name + "wrong reason");
      if (got.matched_id != matched) fail(name + "wrong matched_id");
    }
    if (got.finish == FinishReason::kAbort) {
      if (client.cancel_at < 0 && request.deadline_us == 0) fail(name + "aborted for no reason");
      if (got.error.ok()) fail(name + "aborted without a status");
    }
    if (got.finish == FinishReason::kError && options_.fault_rate == 0) fail(name + "failed: " + got.error.message());
    check_prompt(name, request, want, got, complete || !got.tokens.empty());
    (got.finish == FinishReason::kStop     ? report_.stopped
     : got.finish == FinishReason::kLength ? report_.full_length
     : got.finish == FinishReason::kAbort  ? report_.aborted
                                           : report_.failed)++;
  }

  void check_prompt(const std::string& name, const GenerationRequest& request, const Reference& want,
                    const Collected& got, bool prompt_done) {
    const auto prompt = static_cast<int32_t>(request.prompt_ids.size());
    if (got.cached_tokens % options_.limits.block_tokens != 0 || got.cached_tokens >= prompt) {
      fail(name + "cached_tokens is " + std::to_string(got.cached_tokens));
    }
    const int32_t from = request.prompt_logprobs_from;
    if (from >= 0 && got.cached_tokens > from) fail(name + "reused rows whose logprobs were asked for");
    if (!prompt_done) return;
    const size_t expected = from < 0 ? 0 : static_cast<size_t>(std::max(0, prompt - 1 - from));
    if (got.prompt_logprobs.size() != expected) return fail(name + "wrong number of prompt logprobs");
    if (got.prompt_logprobs_updates > 1) fail(name + "prompt logprobs more than once");
    for (size_t i = 0; i < expected; ++i) {
      const SampledToken &a = got.prompt_logprobs[i], &b = want.prompt_logprobs[static_cast<size_t>(from) + i];
      if (a.id != b.id || a.logprob != b.logprob || a.top != b.top) return fail(name + "wrong prompt logprob");
    }
  }

  std::mt19937_64 random_;
  FakeExecutorOptions options_;
  EngineConfig config_;
  uint64_t hash_mask_ = ~uint64_t{0};
  std::vector<Client> clients_;  // by arrival
  uint64_t last_id_ = 0;
  int64_t left_queue_ = 0, ended_ = 0;
  ScheduleReport report_;
};

}  // namespace dsv3::testing
