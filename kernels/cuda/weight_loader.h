// Copies weights from their source to their place on the device: several threads, each with pinned staging of its own and its
// own stream, so that reading, converting and the copy engine overlap. Every byte is read once.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/types.h"
#include "dsv3/base/status.h"
#include "dsv3/kernels/ops.h"

namespace dsv3::cuda {

class WeightLoader {
 public:
  /// Threads work on CUDA device `device`.
  WeightLoader(int device, int threads);
  ~WeightLoader();
  WeightLoader(const WeightLoader&) = delete;

  // Each call returns at once; `reader` is cloned. Rows land packed at `to`.
  void copy_fp8(const MatrixReader& reader, uint8_t* to, float* scales);
  void copy_bf16(const MatrixReader& reader, Bf16* to);
  void copy_f32(const MatrixReader& reader, float* to);
  /// Waits for everything; the first fault, if any. Ends the threads.
  Status finish();

 private:
  class Staging;
  using Job = std::function<Status(Staging&)>;

  void add(Job job);
  void work();

  const int device_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;   // guarded by mutex_, like all below
  bool closed_ = false;
  Status fault_;
  std::vector<std::thread> threads_;
};

}  // namespace dsv3::cuda
