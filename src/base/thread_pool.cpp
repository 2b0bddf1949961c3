#include "dsv3/base/thread_pool.h"

#include <pthread.h>

#include "dsv3/base/clock.h"

namespace dsv3 {
namespace {
constexpr int64_t kLookOutUs = 50;  // how long a fork-join helper looks out for work before it sleeps
}

void set_thread_name(const std::string& name) { pthread_setname_np(pthread_self(), name.substr(0, 15).c_str()); }

TaskPool::TaskPool(int num_threads, const std::string& name) {
  for (int i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this, name, i] {
      set_thread_name(name + "-" + std::to_string(i));
      work();
    });
  }
}

TaskPool::~TaskPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void TaskPool::post(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void TaskPool::work() {
  while (true) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

void Strand::post(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    if (running_) return;
    running_ = true;
  }
  pool_.post([self = shared_from_this()] { self->drain(); });
}

void Strand::drain() {
  while (true) {
    std::function<void()> task;
    {
      std::lock_guard lock(mutex_);
      if (tasks_.empty()) {
        running_ = false;
        return;
      }
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

ForkJoin::ForkJoin(int num_threads) {
  for (int i = 1; i < num_threads; ++i) {
    threads_.emplace_back([this, i] {
      set_thread_name("fork-" + std::to_string(i));
      work();
    });
  }
}

ForkJoin::~ForkJoin() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ForkJoin::run(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 0) return;
  if (n == 1 || threads_.empty()) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    body_ = &body;
    end_ = n;
    next_.store(0, std::memory_order_relaxed);
    ++generation_;
  }
  wake_.notify_all();
  for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n;) body(i);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return active_ == 0; });
  body_ = nullptr;  // a helper that wakes up late finds nothing to do
}

void ForkJoin::work() {
  uint64_t seen = 0;
  while (true) {
    const int64_t give_up_us = now_us() + kLookOutUs;
    while (generation_.load(std::memory_order_relaxed) == seen && now_us() < give_up_us) std::this_thread::yield();
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
    if (stopping_) return;
    seen = generation_;
    if (body_ == nullptr) continue;
    const auto* body = body_;
    const int64_t n = end_;
    ++active_;
    lock.unlock();
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n;) (*body)(i);
    lock.lock();
    if (--active_ == 0) done_.notify_one();
  }
}

}  // namespace dsv3
