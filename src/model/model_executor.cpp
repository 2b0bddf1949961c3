// The Executor over rank threads of this process: plans go to every rank, rank 0's results come back.
#include "dsv3/model/model_executor.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

#include "dsv3/base/thread_pool.h"
#include "dsv3/kernels/cpu/cpu_ops.h"
#include "rank_runner.h"

namespace dsv3 {
namespace {

/// First in, first out, between two threads. close() wakes the reader for good.
template <class T>
class Channel {
 public:
  void push(T value) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(value));
    }
    wake_.notify_one();
  }
  void close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    wake_.notify_one();
  }
  /// Nothing if there is nothing now.
  std::optional<T> try_pop() {
    std::lock_guard lock(mutex_);
    if (queue_.empty()) return std::nullopt;
    T value = std::move(queue_.front());
    queue_.pop_front();
    return value;
  }
  /// Nothing once the channel is closed and empty.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (queue_.empty()) return std::nullopt;
    T value = std::move(queue_.front());
    queue_.pop_front();
    return value;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<T> queue_;   // guarded by mutex_
  bool closed_ = false;   // guarded by mutex_
};

/// The latest numbers of the rank thread, for whoever asks.
class PublishedStats {
 public:
  void publish(const DeviceStats& stats) {
    std::lock_guard lock(mutex_);
    stats_ = stats;
  }
  DeviceStats read() const {
    std::lock_guard lock(mutex_);
    return stats_;
  }

 private:
  mutable std::mutex mutex_;
  DeviceStats stats_;  // guarded by mutex_
};

class ModelExecutor final : public Executor {
 public:
  explicit ModelExecutor(const ExecutorLimits& limits) : limits_(limits) {}

  ~ModelExecutor() override {
    for (auto& rank : ranks_) rank->plans.close();
    for (auto& rank : ranks_) {
      if (rank->thread.joinable()) rank->thread.join();
    }
  }

  Status start(const ModelConfig& config, const WeightSource& weights, const ExecutorOptions& options) {
    auto groups = make_local_groups(options.tp);
    for (int r = 0; r < options.tp; ++r) ranks_.push_back(std::make_unique<Rank>());
    for (int r = 0; r < options.tp; ++r) {
      Rank& rank = *ranks_[static_cast<size_t>(r)];
      rank.group = std::move(groups[static_cast<size_t>(r)]);
      rank.thread = std::thread([this, &rank, &config, &weights, options] {
        set_thread_name("rank-" + std::to_string(rank.group->rank()));
        rank.started.push(load(rank, config, weights, options));
        serve(rank);
      });
    }
    // All ranks are waited for before any fault is reported: they read `weights` until then.
    Status status;
    for (auto& rank : ranks_) {
      if (Status s = *rank->started.pop(); !s.ok() && status.ok()) status = s;
    }
    return status;
  }

  const ExecutorLimits& limits() const override { return limits_; }

  Status submit(StepPlan plan) override {
    const auto shared = std::make_shared<const StepPlan>(std::move(plan));
    for (auto& rank : ranks_) rank->plans.push(shared);
    return {};
  }

  Result<StepResult> wait() override { return *results_.pop(); }
  DeviceStats device_stats() const override { return device_stats_.read(); }

 private:
  struct Rank {
    std::unique_ptr<Group> group;
    std::unique_ptr<RankRunner> runner;
    Channel<std::shared_ptr<const StepPlan>> plans;
    Channel<Status> started;
    std::thread thread;
  };

  Status load(Rank& rank, const ModelConfig& config, const WeightSource& weights, const ExecutorOptions& options) {
    const bool mtp = limits_.num_drafts > 0;
    const OpsLimits sizes{.max_slots = limits_.max_slots,
                          .max_rows = limits_.max_step_tokens,
                          .max_context_tokens = limits_.max_context_tokens,
                          .num_blocks = limits_.num_blocks,
                          .block_tokens = limits_.block_tokens,
                          .cache_layers = config.num_hidden_layers + (mtp ? 1 : 0),
                          .cache_row = config.cache_row(),
                          .num_drafts = limits_.num_drafts,
                          .vocab = config.vocab_size,
                          .known_vocab = options.known_vocab > 0 ? options.known_vocab : config.vocab_size};
    std::unique_ptr<Ops> ops;
    if (options.cuda) {
      CudaOpsOptions cuda = *options.cuda;
      cuda.device += rank.group->rank();
      cuda.w8a8 = options.w8a8;
      cuda.ue8m0 = config.scale_ue8m0;
      DSV3_ASSIGN(ops, make_cuda_ops(sizes, cuda));
    } else {
      ops = make_cpu_ops(sizes, {.num_threads = std::max(1, options.num_threads / options.tp),
                                 .w8a8 = options.w8a8,
                                 .ue8m0 = config.scale_ue8m0});
    }
    const Shard shard{rank.group->rank(), rank.group->size()};
    DSV3_ASSIGN(auto loaded, load_weights(config, weights, shard, mtp, *ops));
    const int64_t logit_rows = std::min<int64_t>(int64_t{limits_.max_slots} * (1 + limits_.num_drafts),
                                                 limits_.max_step_tokens);
    auto transformer = std::make_unique<Transformer>(config, shard, std::move(loaded), options.mtp_hidden,
                                                     limits_.max_step_tokens, logit_rows, *ops, *rank.group);
    DSV3_TRY(ops->finish_loading());
    rank.runner = std::make_unique<RankRunner>(std::move(ops), std::move(transformer), limits_);
    return rank.runner->warm_up();
  }

  /// Executes plans until the channel closes. Every rank sees the same plans, so a fault of one plan stops all of them.
  /// The next plan is launched while a step still runs, so that a device goes from one to the next without waiting for the
  /// host; while there is something under way and nothing to launch, the thread polls both (a step takes milliseconds).
  void serve(Rank& rank) {
    if (rank.runner == nullptr) return;
    RankRunner& runner = *rank.runner;
    constexpr int kStepsUnderWay = 2;
    const auto answer = [&](Result<StepResult> result) {
      if (rank.group->rank() != 0) return;
      device_stats_.publish(runner.ops().device_stats());
      results_.push(std::move(result));
    };
    for (;;) {
      auto plan = runner.steps_under_way() == 0 ? rank.plans.pop() : rank.plans.try_pop();
      if (plan) {
        if (Status status = runner.launch(**plan); !status.ok()) answer(status);
      } else if (runner.steps_under_way() == 0) {
        return;  // closed
      }
      while (runner.steps_under_way() == kStepsUnderWay || (runner.steps_under_way() > 0 && runner.ready())) answer(runner.finish());
      if (runner.steps_under_way() > 0 && !plan) std::this_thread::yield();
    }
  }

  const ExecutorLimits limits_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Channel<Result<StepResult>> results_;
  PublishedStats device_stats_;
};

}  // namespace

Status check_tp(const ModelConfig& config, int tp) {
  const auto fits = [&](int64_t n) {
    return n >= 1 && config.num_attention_heads % n == 0 && config.vocab_size % n == 0 &&
           n <= config.moe_intermediate_size && n <= config.intermediate_size;
  };
  if (fits(tp)) return {};
  std::string allowed;
  for (int n = 1; n <= config.num_attention_heads; ++n) {
    if (fits(n)) allowed += (allowed.empty() ? "" : ", ") + std::to_string(n);
  }
  return {Code::kInvalidArgument,
          "--tp " + std::to_string(tp) + " does not divide " + std::to_string(config.num_attention_heads) +
              " heads and " + std::to_string(config.vocab_size) + " vocabulary rows; allowed: " + allowed,
          "tp"};
}

Result<std::unique_ptr<Executor>> make_model_executor(const ModelConfig& config,
                                                      std::shared_ptr<const WeightSource> weights,
                                                      const ExecutorOptions& options) {
  DSV3_TRY(check_tp(config, options.tp));
  const ExecutorLimits limits{.max_slots = options.max_slots,
                              .num_blocks = options.num_blocks,
                              .block_tokens = options.block_tokens,
                              .max_context_tokens = options.max_context_tokens,
                              .max_step_tokens = options.max_step_tokens,
                              .num_drafts = options.num_drafts,
                              .vocab_size = static_cast<int32_t>(config.vocab_size)};
  auto executor = std::make_unique<ModelExecutor>(limits);
  DSV3_TRY(executor->start(config, *weights, options));
  return std::unique_ptr<Executor>(std::move(executor));
}

}  // namespace dsv3
