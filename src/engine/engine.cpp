// The engine's thread: takes requests from an inbox, asks the scheduler for steps, feeds the executor, hands updates
// to sinks. Everything that decides anything is in the scheduler.
#include "dsv3/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "admission.h"
#include "dsv3/base/clock.h"
#include "dsv3/base/log.h"
#include "dsv3/base/thread_pool.h"
#include "scheduler.h"

namespace dsv3 {
namespace {

using scheduling::Request;

/// What a caller asks of the scheduler thread.
struct Command {
  enum class Kind { kAdd, kCancel, kCancelAll, kFlush };
  Kind kind = Kind::kAdd;
  std::shared_ptr<Request> request = {};            // kAdd
  uint64_t id = 0;                                  // kCancel
  int32_t choice = -1;                              // kCancel
  std::shared_ptr<std::promise<Status>> done = {};  // kFlush
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(const EngineConfig& config, std::unique_ptr<Executor> executor, EngineObserver* observer)
      : config_(config),
        executor_(std::move(executor)),
        limits_(executor_->limits()),
        hasher_(scheduling::HashKey::random(), limits_.block_tokens),
        scheduler_(config, limits_, hasher_, observer) {
    scheduler_.fill_stats(&stats_);
    thread_ = std::thread([this] { run(); });
  }

  ~EngineImpl() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  Result<uint64_t> submit(GenerationRequest request, std::shared_ptr<GenerationSink> sink) override;
  void cancel(uint64_t request, int32_t choice) override {
    post({.kind = Command::Kind::kCancel, .id = request, .choice = choice});
  }
  void cancel_all() override { post({.kind = Command::Kind::kCancelAll}); }
  bool drain(int64_t timeout_us) override;
  Status flush_cache() override;
  EngineStats stats() const override;
  Status health() const override;
  const ExecutorLimits& limits() const override { return limits_; }

 private:
  Status check_room(const GenerationRequest& request) const;
  Status refuse(Status why);
  void post(Command command);

  // Scheduler thread.
  void run();
  bool serve_once();
  bool take_commands();
  void apply(Command command);
  void answer_flush(std::promise<Status>& answer);
  void advance();
  void hand_out();
  void fail(const Status& why);
  void shut_down();

  const EngineConfig config_;
  const std::unique_ptr<Executor> executor_;  // scheduler thread, after construction
  const ExecutorLimits limits_;
  const scheduling::PrefixHasher hasher_;
  scheduling::Scheduler scheduler_;  // scheduler thread, after construction
  std::deque<Command> commands_;     // scheduler thread: taken from the inbox
  bool broken_ = false;              // scheduler thread: the executor must not be called any more

  // Steady time at which the thread last finished a step or found work; 0 while it sleeps.
  std::atomic<int64_t> busy_since_us_{0};

  mutable std::mutex mutex_;  // guards all that follows; never held while calling out
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::deque<Command> inbox_;
  EngineStats stats_;                 // with the queue's counts, which include the inbox
  int64_t open_requests_ = 0;         // admitted and not over
  int64_t undelivered_requests_ = 0;  // the same, or over with updates still to be handed out
  uint64_t next_id_ = 1;
  bool draining_ = false;
  bool stopping_ = false;
  bool closed_ = false;  // nobody reads the inbox any more
  Status failed_;        // not ok: for ever

  std::thread thread_;  // last: starts when all else is there
};

// ---- callers' threads ----

Status EngineImpl::check_room(const GenerationRequest& request) const {
  if (!failed_.ok()) return failed_;
  if (draining_ || stopping_) return {Code::kUnavailable, "the server is shutting down", {}, "draining"};
  if (stats_.queued >= config_.max_queued_requests) {
    return {Code::kOverloaded, std::to_string(stats_.queued) + " requests are waiting, at most " +
                                   std::to_string(config_.max_queued_requests) + " may; try again later"};
  }
  // A prompt longer than the whole queue may wait alone: it would never be served otherwise.
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  if (stats_.queued_tokens > 0 && stats_.queued_tokens + prompt > config_.max_queued_tokens) {
    return {Code::kOverloaded, std::to_string(stats_.queued_tokens) + " prompt tokens are waiting, at most " +
                                   std::to_string(config_.max_queued_tokens) + " may; try again later"};
  }
  return {};
}

Status EngineImpl::refuse(Status why) {
  std::lock_guard lock(mutex_);
  ++stats_.requests_rejected;
  return why;
}

Result<uint64_t> EngineImpl::submit(GenerationRequest request, std::shared_ptr<GenerationSink> sink) {
  if (!sink) return refuse({Code::kInvalidArgument, "a request needs a sink"});
  if (Status status = scheduling::check_request(request, limits_); !status.ok()) return refuse(std::move(status));
  const int64_t now = now_us();
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  uint64_t id = 0;
  {
    // Room is taken before the work of hashing, so that an overloaded server refuses cheaply.
    std::lock_guard lock(mutex_);
    if (Status status = check_room(request); !status.ok()) {
      ++stats_.requests_rejected;
      return status;
    }
    id = next_id_++;
    ++stats_.queued;
    stats_.queued_tokens += prompt;
    ++open_requests_;
    ++undelivered_requests_;
  }
  Command add{.kind = Command::Kind::kAdd};
  Status status;
  try {
    add.request = scheduling::make_request(id, std::move(request), std::move(sink), hasher_, config_.prefix_cache, now);
  } catch (const std::exception& error) {
    status = {Code::kOverloaded, std::string("no memory for the request: ") + error.what()};
  }
  std::lock_guard lock(mutex_);
  if (status.ok()) status = failed_;
  if (status.ok() && closed_) status = {Code::kUnavailable, "the server is shutting down", {}, "draining"};
  if (!status.ok()) {  // all of it since the checks above
    --stats_.queued;
    stats_.queued_tokens -= prompt;
    --open_requests_;
    --undelivered_requests_;
    ++stats_.requests_rejected;
    idle_.notify_all();
    return status;
  }
  inbox_.push_back(std::move(add));
  wake_.notify_one();
  return id;
}

void EngineImpl::post(Command command) {
  std::lock_guard lock(mutex_);
  if (closed_) {
    if (command.done) command.done->set_value(Status(Code::kUnavailable, "the server is shutting down"));
    return;
  }
  inbox_.push_back(std::move(command));
  wake_.notify_one();
}

bool EngineImpl::drain(int64_t timeout_us) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  constexpr int64_t kYearUs = int64_t{365} * 24 * 3600 * 1'000'000;  // what a clock can add without overflow
  const auto idle = [this] { return undelivered_requests_ == 0; };
  return idle_.wait_for(lock, std::chrono::microseconds(std::clamp<int64_t>(timeout_us, 0, kYearUs)), idle);
}

Status EngineImpl::flush_cache() {
  Command flush{.kind = Command::Kind::kFlush};
  flush.done = std::make_shared<std::promise<Status>>();
  auto answer = flush.done->get_future();
  {
    std::lock_guard lock(mutex_);
    if (!failed_.ok()) return failed_;
    // Answered here, so that nobody waits for a step to end just to hear "busy".
    if (open_requests_ > 0) {
      return {Code::kUnavailable, "the cache can be flushed only while no request runs or waits"};
    }
  }
  post(std::move(flush));
  return answer.get();
}

EngineStats EngineImpl::stats() const {
  EngineStats stats;
  {
    std::lock_guard lock(mutex_);
    stats = stats_;
  }
  stats.device = executor_->device_stats();
  return stats;
}

Status EngineImpl::health() const {
  {
    std::lock_guard lock(mutex_);
    if (!failed_.ok()) return failed_;
    if (draining_ || stopping_) return {Code::kUnavailable, "the server is shutting down", {}, "draining"};
  }
  const int64_t since = busy_since_us_.load();
  const int64_t age = since == 0 ? 0 : now_us() - since;
  if (age <= config_.step_timeout_us) return {};
  return {Code::kUnavailable,
          "no step completed for " + std::to_string(age / 1'000'000) +
              " s (allowed: " + std::to_string(config_.step_timeout_us / 1'000'000) + " s)",
          {},
          "step_timeout"};
}

// ---- scheduler thread ----

void EngineImpl::run() {
  set_thread_name("scheduler");
  try {
    while (serve_once()) {
    }
  } catch (const std::exception& error) {
    fail({Code::kInternal, std::string("the scheduler stopped: ") + error.what()});
  }
  shut_down();
}

/// One turn: commands, next step, updates, a result. False when the engine stops.
bool EngineImpl::serve_once() {
  if (!scheduler_.has_work()) hand_out();  // before the thread may sleep: no next step will come by to do it
  if (!take_commands()) return false;
  while (!commands_.empty()) {
    Command command = std::move(commands_.front());
    commands_.pop_front();
    apply(std::move(command));
  }
  scheduler_.expire(now_us());
  advance();
  hand_out();  // only now, with the next step on its way, is there time for others
  if (scheduler_.steps_in_flight() == 0) return true;

  Result<StepResult> result = executor_->wait();
  const int64_t now = now_us();
  busy_since_us_.store(now);
  if (!result.ok()) {
    fail({Code::kDeviceLost, "a step failed: " + result.status().message()});
  } else if (Status status = scheduler_.complete(std::move(result).value(), now); !status.ok()) {
    fail(status);
  }
  return true;
}

/// Takes what is in the inbox; sleeps until there is something when no request is left. False: stop.
bool EngineImpl::take_commands() {
  std::unique_lock lock(mutex_);
  if (!scheduler_.has_work() && inbox_.empty() && !stopping_) {
#ifndef NDEBUG
    if (failed_.ok()) DSV3_CHECK(scheduler_.check_books().ok(), "no block is lost when all is done");
#endif
    // Steps in flight, if any, serve nobody any more; their results are read before the next plan.
    if (scheduler_.steps_in_flight() > 0) return true;
    busy_since_us_.store(0);
    wake_.wait(lock, [this] { return stopping_ || !inbox_.empty(); });
    busy_since_us_.store(now_us());
  }
  commands_.swap(inbox_);
  return !stopping_;
}

/// Publishes the counts first, as hand_out() does: who has its answer finds the blocks free.
void EngineImpl::answer_flush(std::promise<Status>& answer) {
  const Status status = scheduler_.flush_cache();
  {
    std::lock_guard lock(mutex_);
    scheduler_.fill_stats(&stats_);
  }
  answer.set_value(status);
}

void EngineImpl::apply(Command command) {
  switch (command.kind) {
    case Command::Kind::kAdd:
      scheduler_.add(std::move(command.request));
      break;
    case Command::Kind::kCancel:
      scheduler_.cancel(command.id, command.choice, now_us());
      break;
    case Command::Kind::kCancelAll:
      scheduler_.end_all(FinishReason::kAbort, Status(Code::kCancelled, "all requests were cancelled"), now_us());
      break;
    case Command::Kind::kFlush:
      answer_flush(*command.done);
      break;
  }
}

/// Submits plans until 1 + lookahead are under way.
void EngineImpl::advance() {
  if (broken_) {
    // What was in the inbox when the executor failed.
    scheduler_.end_all(FinishReason::kError, failed_, now_us());
    return;
  }
  StepPlan plan;
  while (scheduler_.steps_in_flight() <= config_.lookahead && scheduler_.make_plan(&plan, now_us())) {
    if (Status status = executor_->submit(std::move(plan)); !status.ok()) {
      fail({Code::kDeviceLost, "a step could not be started: " + status.message()});
      return;
    }
  }
}

/// Publishes the counts, then hands updates to sinks: who has seen its last update finds it counted and its blocks
/// free.
void EngineImpl::hand_out() {
  const auto departures = scheduler_.take_departures();
  {
    std::lock_guard lock(mutex_);
    stats_.queued -= departures.left_queue;
    stats_.queued_tokens -= departures.left_queue_tokens;
    open_requests_ -= departures.ended;
    scheduler_.fill_stats(&stats_);
  }
  for (auto& delivery : scheduler_.take_deliveries()) delivery.sink->on_update(std::move(delivery.update));
  if (departures.ended == 0) return;
  std::lock_guard lock(mutex_);
  undelivered_requests_ -= departures.ended;
  if (undelivered_requests_ == 0) idle_.notify_all();
}

/// Ends everything, for good: health() and submit() say `why` from now on.
void EngineImpl::fail(const Status& why) {
  broken_ = true;
  log_event(LogLevel::kError, "engine_failed", {{"reason", why.message()}});
  {
    std::lock_guard lock(mutex_);
    if (failed_.ok()) failed_ = why;
  }
  scheduler_.abandon_steps();
  scheduler_.end_all(FinishReason::kError, why, now_us());
  hand_out();
}

/// The last act of the thread: everybody who waits gets an answer.
void EngineImpl::shut_down() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    std::move(inbox_.begin(), inbox_.end(), std::back_inserter(commands_));
    inbox_.clear();
  }
  const Status why(Code::kUnavailable, "the server is shutting down");
  for (Command& command : commands_) {
    if (command.kind == Command::Kind::kAdd) scheduler_.add(std::move(command.request));
    if (command.kind == Command::Kind::kFlush) command.done->set_value(why);
  }
  commands_.clear();
  scheduler_.end_all(broken_ ? FinishReason::kError : FinishReason::kAbort, broken_ ? failed_ : why, now_us());
  hand_out();
  // The executor may still be computing: its steps end before it is destroyed.
  while (!broken_ && scheduler_.steps_in_flight() > 0) {
    Result<StepResult> result = executor_->wait();
    if (!result.ok() || !scheduler_.complete(std::move(result).value(), now_us()).ok()) broken_ = true;
  }
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(const EngineConfig& config, std::unique_ptr<Executor> executor,
                                               EngineObserver* observer) {
  if (!executor) return Status(Code::kInvalidArgument, "an engine needs an executor");
  DSV3_TRY(scheduling::check_config(config, executor->limits()));
  return std::unique_ptr<Engine>(std::make_unique<EngineImpl>(config, std::move(executor), observer));
}

}  // namespace dsv3
