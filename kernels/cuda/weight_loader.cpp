#include "weight_loader.h"

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "common/cuda_status.h"
#include "dsv3/base/thread_pool.h"

namespace dsv3::cuda {
namespace {

constexpr int64_t kStageBytes = 8 << 20;  // two of them a thread: one is filled while the other is copied

}  // namespace

/// One thread's pinned memory and stream.
class WeightLoader::Staging {
 public:
  ~Staging() {
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (auto& half : halves_) {
      if (half.copied != nullptr) cudaEventDestroy(half.copied);
      if (half.memory != nullptr) cudaFreeHost(half.memory);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  Status open() {
    DSV3_TRY(cuda_status(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream of a loader thread"));
    for (auto& half : halves_) {
      DSV3_TRY(cuda_status(cudaHostAlloc(&half.memory, kStageBytes, cudaHostAllocDefault), "pinned staging"));
      DSV3_TRY(cuda_status(cudaEventCreateWithFlags(&half.copied, cudaEventDisableTiming), "event of a loader thread"));
    }
    return {};
  }

  /// Rows [0, rows) in as many pieces as it takes: fill(begin, end, memory), then to + begin * row_bytes.
  Status copy_rows(int64_t rows, int64_t row_bytes, void* to, const std::function<Status(int64_t, int64_t, void*)>& fill) {
    const int64_t most = std::max<int64_t>(kStageBytes / row_bytes, 1);
    if (row_bytes > kStageBytes) return {Code::kUnsupported, "a weight with rows of more than 8 MiB"};
    for (int64_t begin = 0; begin < rows; begin += most) {
      const int64_t end = std::min(begin + most, rows);
      Half& half = halves_[next_];
      next_ ^= 1;
      DSV3_TRY(cuda_status(cudaEventSynchronize(half.copied), "copy of weights"));
      DSV3_TRY(fill(begin, end, half.memory));
      const auto bytes = static_cast<size_t>((end - begin) * row_bytes);
      DSV3_TRY(cuda_status(cudaMemcpyAsync(static_cast<char*>(to) + begin * row_bytes, half.memory, bytes, cudaMemcpyHostToDevice, stream_),
                           "copy of weights"));
      DSV3_TRY(cuda_status(cudaEventRecord(half.copied, stream_), "copy of weights"));
    }
    return {};
  }

  Status finish() { return cuda_status(cudaStreamSynchronize(stream_), "copy of weights"); }

 private:
  struct Half {
    void* memory = nullptr;
    cudaEvent_t copied = nullptr;
  };
  cudaStream_t stream_ = nullptr;
  Half halves_[2];
  int next_ = 0;
};

WeightLoader::WeightLoader(int device, int threads) : device_(device) {
  for (int i = 0; i < std::max(threads, 1); ++i) threads_.emplace_back([this] { work(); });
}

WeightLoader::~WeightLoader() {
  {
    std::lock_guard lock(mutex_);
    if (fault_.ok()) fault_ = Status(Code::kCancelled, "loading was given up");  // what is still queued is skipped
  }
  static_cast<void>(finish());
}

void WeightLoader::add(Job job) {
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void WeightLoader::copy_fp8(const MatrixReader& reader, uint8_t* to, float* scales) {
  add([source = std::shared_ptr<MatrixReader>(reader.clone()), to, scales](Staging& staging) -> Status {
    DSV3_TRY(staging.copy_rows(source->rows(), source->cols(), to, [&](int64_t begin, int64_t end, void* memory) {
      return source->read_fp8(begin, end, static_cast<uint8_t*>(memory));
    }));
    const auto blocks = [](int64_t n) { return (n + kQuantGroup - 1) / kQuantGroup; };
    const int64_t bytes = blocks(source->rows()) * blocks(source->cols()) * 4;
    return staging.copy_rows(1, bytes, scales, [&](int64_t, int64_t, void* memory) { return source->read_scales(static_cast<float*>(memory)); });
  });
}

void WeightLoader::copy_bf16(const MatrixReader& reader, Bf16* to) {
  add([source = std::shared_ptr<MatrixReader>(reader.clone()), to](Staging& staging) {
    return staging.copy_rows(source->rows(), source->cols() * 2, to, [&](int64_t begin, int64_t end, void* memory) {
      return source->read_bf16(begin, end, static_cast<uint16_t*>(memory));
    });
  });
}

void WeightLoader::copy_f32(const MatrixReader& reader, float* to) {
  add([source = std::shared_ptr<MatrixReader>(reader.clone()), to](Staging& staging) {
    return staging.copy_rows(1, source->rows() * source->cols() * 4, to,
                             [&](int64_t, int64_t, void* memory) { return source->read_f32(static_cast<float*>(memory)); });
  });
}

void WeightLoader::work() {
  set_thread_name("loader");
  Staging staging;
  Status status = cuda_status(cudaSetDevice(device_), "device of a loader thread");
  if (status.ok()) status = staging.open();
  for (;;) {
    std::unique_lock lock(mutex_);
    if (!status.ok() && fault_.ok()) fault_ = status;
    wake_.wait(lock, [this] { return closed_ || !jobs_.empty(); });
    if (jobs_.empty()) break;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    const bool skip = !fault_.ok();
    lock.unlock();
    if (!skip) status = job(staging);
  }
  if (status.ok()) status = staging.finish();
  std::lock_guard lock(mutex_);
  if (!status.ok() && fault_.ok()) fault_ = status;
}

Status WeightLoader::finish() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  return fault_;
}

}  // namespace dsv3::cuda
