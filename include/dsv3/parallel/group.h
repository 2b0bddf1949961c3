// Collectives among the ranks of a group. One Group object per rank; every rank makes the same calls in the same order.
#pragma once

#include <memory>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/tensor/tensor.h"

namespace dsv3 {

class Group {
 public:
  virtual ~Group() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// x[rows, cols] = sum over ranks of x, added in order of rank: the same bits on every rank and in every run.
  virtual void all_reduce_sum(int64_t rows, Tensor x) = 0;

  /// out[rows, size * x.cols]: rank r's columns at r * x.cols. x and out must not overlap.
  virtual void all_gather_cols(int64_t rows, const Tensor& x, Tensor out) = 0;

  virtual void barrier() = 0;
};

/// A group of threads in this process, over plain memory. Object i is for the thread of rank i.
std::vector<std::unique_ptr<Group>> make_local_groups(int size);

}  // namespace dsv3
