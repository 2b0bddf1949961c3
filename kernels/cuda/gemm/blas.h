// cuBLASLt behind our structs: BF16 products of the model, and the baselines of benchmarks.
#pragma once

#include <memory>

#include "../common/types.h"
#include "dsv3/base/status.h"
#include "gemm.h"

namespace dsv3::cuda {

/// One handle with a workspace of its own memory (given, never allocated here). The kernel of a product is chosen for its number
/// of rows rounded up to a power of two (blas_bucket()): a server that has run one size of each bucket has loaded every
/// kernel that it will use, and keeps a bounded number of plans.
int64_t blas_bucket(int64_t rows);

class Blas {
 public:
  static constexpr int64_t kWorkspaceBytes = 32 << 20;

  /// `workspace`: kWorkspaceBytes of device memory on 256 bytes.
  static Result<std::unique_ptr<Blas>> create(void* workspace);
  virtual ~Blas() = default;

  virtual Status gemm(const Bf16Matrix& x, const Bf16Weight& w, const Bf16Matrix& y, Stream stream) = 0;
  virtual Status gemm(const Bf16Matrix& x, const Bf16Weight& w, const F32Matrix& y, Stream stream) = 0;
  virtual Status head_product(const HeadProduct& p, Stream stream) = 0;
  /// Baseline: block-scaled FP8 (weights BLK128x128, activations VEC128). scales of W padded to 4 columns as cuBLASLt wants
  /// them: w_scales [ceil(n/128)][pad4(k/128)]. kUnsupported where cuBLASLt has no kernel (m = 1).
  virtual Status fp8_block_gemm(const Fp8Rows& x, const Fp8Weight& w, const float* w_scales_padded, const Bf16Matrix& y, Stream stream) = 0;
};

}  // namespace dsv3::cuda
