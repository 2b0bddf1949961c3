// Down product of few rows' experts and their weighted sum in one launch.
//
//   y[r] (+)= sum over hits h of middle[kHitRows h + r] Wd[h.expert]^T, rounded to BF16 once
//
// The weights of rows are in the scales of `middle` already: fp8_gate_up_hits() of the hits puts them there.
#pragma once

#include "../common/types.h"
#include "dsv3/base/status.h"

namespace dsv3::cuda {

/// middle: kHitRows rows a hit; those past hits.rows may hold anything. y: hits.rows rows. No hits: zeros. `accumulate`:
/// adds to y. The list of hits is read, and weights are requested, before the kernel ahead has ended: whoever
/// wrote the list must have ended when that kernel starts, and fp8_gate_up_hits() of the same hits sees to that.
Status fp8_expert_sum(const Fp8Rows& middle, const Fp8Weight& down, const ExpertHits& hits, bool accumulate,
                      const Bf16Matrix& y, Stream stream);

/// Blocks, a cluster, that share the products of 64 columns of y: 2, 4 or 8. Pure.
int expert_sum_splits(int64_t n);

}  // namespace dsv3::cuda
