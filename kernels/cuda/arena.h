// A rank's device memory: one allocation, cut into three parts of planned size, each handed out from its beginning. Nothing is
// ever given back.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "dsv3/base/status.h"
#include "dsv3/kernels/cuda/cuda_ops.h"

namespace dsv3::cuda {

class Arena {
 public:
  enum class Part { kWeights, kCache, kStep };

  /// kOutOfMemory: says how much is free and how much was missing.
  static Result<std::unique_ptr<Arena>> create(const CudaMemory& planned);
  ~Arena();
  Arena(const Arena&) = delete;

  /// `bytes` on 256 bytes. kInternal if the part's plan is exceeded: the plan was wrong.
  Result<void*> take(Part part, std::string_view name, int64_t bytes);
  int64_t used(Part part) const { return used_[static_cast<int>(part)]; }
  int64_t total_bytes() const { return planned_.total(); }

 private:
  Arena(const CudaMemory& planned, char* base) : planned_(planned), base_(base) {}

  CudaMemory planned_;
  char* base_;
  int64_t used_[3] = {0, 0, 0};
};

}  // namespace dsv3::cuda
