// Collectives between threads of one process: peers read each other's memory between two barriers. Waiting sleeps.
#include <barrier>
#include <cstring>

#include "dsv3/parallel/group.h"

namespace dsv3 {
namespace {

struct Shared {
  explicit Shared(int size) : barrier(size), tensors(static_cast<size_t>(size)), sums(static_cast<size_t>(size)) {}
  std::barrier<> barrier;
  std::vector<Tensor> tensors;            // what each rank brought to the current collective
  std::vector<std::vector<float>> sums;   // rank r's share of the reduced rows
};

class LocalGroup final : public Group {
 public:
  LocalGroup(std::shared_ptr<Shared> shared, int rank) : shared_(std::move(shared)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(shared_->tensors.size()); }
  void barrier() override { shared_->barrier.arrive_and_wait(); }

  void all_reduce_sum(int64_t rows, Tensor x) override {
    if (size() == 1) return;
    shared_->tensors[static_cast<size_t>(rank_)] = x;
    barrier();
    // Each rank sums one share of the numbers, then everybody copies all shares.
    const int64_t numbers = rows * x.cols;
    const auto begin_of = [&](int rank) { return numbers * rank / size(); };
    auto& sum = shared_->sums[static_cast<size_t>(rank_)];
    sum.resize(static_cast<size_t>(begin_of(rank_ + 1) - begin_of(rank_)));
    for (int peer = 0; peer < size(); ++peer) {
      const Tensor& theirs = shared_->tensors[static_cast<size_t>(peer)];
      for_each_run(theirs, begin_of(rank_), begin_of(rank_ + 1), [&](float* run, int64_t first, int64_t count) {
        float* to = sum.data() + (first - begin_of(rank_));
        for (int64_t i = 0; i < count; ++i) to[i] = peer == 0 ? run[i] : to[i] + run[i];
      });
    }
    barrier();
    for (int peer = 0; peer < size(); ++peer) {
      const float* from = shared_->sums[static_cast<size_t>(peer)].data();
      for_each_run(x, begin_of(peer), begin_of(peer + 1), [&](float* run, int64_t first, int64_t count) {
        std::memcpy(run, from + (first - begin_of(peer)), static_cast<size_t>(count) * sizeof(float));
      });
    }
    barrier();  // nobody may overwrite its share before all have copied it
  }

  void all_gather_cols(int64_t rows, const Tensor& x, Tensor out) override {
    DSV3_CHECK(out.cols == x.cols * size(), "all_gather_cols: out does not hold every rank's columns");
    shared_->tensors[static_cast<size_t>(rank_)] = x;
    barrier();
    for (int peer = 0; peer < size(); ++peer) {
      const Tensor& theirs = shared_->tensors[static_cast<size_t>(peer)];
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(out.f32(r) + peer * x.cols, theirs.f32(r), static_cast<size_t>(x.cols) * sizeof(float));
      }
    }
    barrier();
  }

 private:
  /// Calls body(pointer, index of its first number, count) for the row pieces of numbers [begin, end) of x.
  template <class Body>
  static void for_each_run(const Tensor& x, int64_t begin, int64_t end, Body&& body) {
    while (begin < end) {
      const int64_t row = begin / x.cols, col = begin % x.cols;
      const int64_t count = std::min(x.cols - col, end - begin);
      body(x.f32(row) + col, begin, count);
      begin += count;
    }
  }

  std::shared_ptr<Shared> shared_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Group>> make_local_groups(int size) {
  auto shared = std::make_shared<Shared>(size);
  std::vector<std::unique_ptr<Group>> groups;
  for (int rank = 0; rank < size; ++rank) groups.push_back(std::make_unique<LocalGroup>(shared, rank));
  return groups;
}

}  // namespace dsv3
