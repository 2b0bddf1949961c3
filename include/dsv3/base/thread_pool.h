// Threads that sleep when idle: a task pool for requests, and a fork-join pool for loops over tensors.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace dsv3 {

/// Names the calling thread for debuggers and `top -H` (15 characters at most).
void set_thread_name(const std::string& name);

/// Runs posted tasks on a fixed number of threads, first come first served. Destruction runs what is queued.
class TaskPool {
 public:
  TaskPool(int num_threads, const std::string& name);
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  void post(std::function<void()> task);

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_
  bool stopping_ = false;                    // guarded by mutex_
  std::vector<std::thread> threads_;
};

/// Runs the tasks posted to it one after the other, in order, on a TaskPool's threads: a private queue without
/// a private thread. Must be owned by a shared_ptr; queued tasks keep it alive.
class Strand : public std::enable_shared_from_this<Strand> {
 public:
  explicit Strand(TaskPool& pool) : pool_(pool) {}
  void post(std::function<void()> task);

 private:
  void drain();

  TaskPool& pool_;
  std::mutex mutex_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_
  bool running_ = false;                     // guarded by mutex_
};

/// Fork-join over [0, n): the caller works too. Which thread runs an index never changes a result, as bodies
/// write disjoint outputs. One caller at a time. Helpers look out for more work for some 50 us before they sleep:
/// loops over layers come in quick succession, and waking a thread costs more than most of them.
class ForkJoin {
 public:
  explicit ForkJoin(int num_threads);
  ~ForkJoin();
  ForkJoin(const ForkJoin&) = delete;
  ForkJoin& operator=(const ForkJoin&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  /// Calls body(i) once for each i in [0, n); returns when all are done.
  void run(int64_t n, const std::function<void(int64_t)>& body);

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  const std::function<void(int64_t)>* body_ = nullptr;  // guarded by mutex_ for publication
  int64_t end_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> generation_{0};  // written under mutex_
  int active_ = 0;           // guarded by mutex_; helpers inside the current generation
  bool stopping_ = false;    // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace dsv3
