// MLA on the CPU, over the paged latent cache, in both forms (model.md 4.2, 4.3). Softmax is computed online over tiles
// that start at absolute positions, so a row's result does not depend on how its sequence was cut into chunks or on
// what else is in the batch.
#pragma once

#include <span>
#include <vector>

#include "dsv3/base/thread_pool.h"
#include "dsv3/kernels/ops.h"
#include "gemm.h"

namespace dsv3::cpu {

/// kv_b_proj of `heads` heads, packed for both forms.
class CpuKvProjection final : public KvProjection {
 public:
  /// w [heads * (nope + v), latent], head-major: nope rows of K, then v rows of V.
  CpuKvProjection(const float* w, const AttentionShape& shape);

  PackedMatrix expand;               ///< as it is: latent -> K and V of all heads
  std::vector<PackedMatrix> absorb;  ///< per head [latent, nope]: q_nope -> latent query
  std::vector<PackedMatrix> value;   ///< per head [v, latent]: latent output -> head output
};

/// One layer's rows: block b, position p inside it: data + (b * block_tokens + p) * row.
struct CacheView {
  const float* data = nullptr;
  int64_t row = 0;  ///< latent + rope
  int64_t block_tokens = 64;
  const float* at(int32_t block) const { return data + static_cast<int64_t>(block) * block_tokens * row; }
};

/// A run of query rows of one sequence.
struct AttentionSpan {
  const float* q = nullptr;  ///< [rows, heads * (nope + rope)], turned
  float* out = nullptr;      ///< [rows, heads * v]
  int64_t rows = 0;
  int64_t start = 0;  ///< position of the first row; row r sees positions <= start + r
  std::span<const int32_t> blocks;
};

void attention_expanded(ForkJoin& pool, const AttentionShape& shape, const CpuKvProjection& kv_b,
                        const CacheView& cache, std::span<const AttentionSpan> spans);

/// `q` of all spans must lie in one matrix of row stride heads * (nope + rope), `out` likewise. scratch is reused.
void attention_absorbed(ForkJoin& pool, const AttentionShape& shape, const CpuKvProjection& kv_b,
                        const CacheView& cache, std::span<const AttentionSpan> spans, AlignedFloats& scratch);

}  // namespace dsv3::cpu
