// The rounding that FP8 activations go through, done in place on float32 (model.md 8.2).
#pragma once

#include <cstdint>

namespace dsv3::cpu {

/// Rounds x[0, n) to e4m3 per group of `group` channels: s = max(amax, 1e-4) / 448 (to a power of two, rounded up, if
/// `ue8m0`), x = e4m3(x / s) * s. The last group may be short.
void round_to_fp8(float* x, int64_t n, int64_t group, bool ue8m0);

}  // namespace dsv3::cpu
