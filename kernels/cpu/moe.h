// Mixture of experts on the CPU: the router, and the routed experts grouped by the rows that chose them.
#pragma once

#include <vector>

#include "dsv3/base/thread_pool.h"
#include "dsv3/kernels/ops.h"
#include "gemm.h"

namespace dsv3::cpu {

class CpuExperts final : public Experts {
 public:
  struct Expert {
    PackedMatrix gate_up;  ///< [2 * width, hidden]
    PackedMatrix down;     ///< [hidden, width]
  };
  std::vector<Expert> experts;
  bool rounded_inputs = false;  ///< w8a8 and fp8 weights: both products read e4m3 activations
  bool ue8m0 = false;
};

/// Chooses experts for one row (model.md 6.1 and 6.3). logits [experts]; bias [experts] or null; ids and weights [top_k].
void route_row(const GateShape& gate, const float* logits, const float* bias, int32_t* ids, float* weights);

/// out[r] += sum over k, in order, of weights[r][k] * expert ids[r][k](x[r]).
void run_experts(ForkJoin& pool, int64_t rows, const Tensor& x, const CpuExperts& experts, const Tensor& ids,
                 const Tensor& weights, Tensor out, AlignedFloats& scratch);

}  // namespace dsv3::cpu
