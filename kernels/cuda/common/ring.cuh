// Walking a ring of stages in shared memory whose barriers are full[stage] and empty[stage].
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace dsv3::cuda {

/// Position in the ring: the stage and how often the ring has been gone round (its low bit is the full barrier's
/// parity; the producer waits on empty with the other one, which lets the first round pass).
template <int kStages>
struct Cursor {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Calls add(std::integral_constant<int, steps>, first) until `stages` stages are done: kDepth steps at a time, whose
/// products are under way together, then the rest one by one.
template <int kDepth, class Add>
__device__ __forceinline__ void add_in_steps(int stages, Add&& add) {
  int i = 0;
  for (; i + kDepth <= stages; i += kDepth) add(std::integral_constant<int, kDepth>{}, i);
  if constexpr (kDepth > 1) {
    for (; i < stages; ++i) add(std::integral_constant<int, 1>{}, i);
  }
}

}  // namespace dsv3::cuda
