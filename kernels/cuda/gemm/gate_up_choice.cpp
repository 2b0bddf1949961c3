// How fp8_gate_up() is cut: a pure function of the shape.
#include "fp8_gate_up.h"

namespace dsv3::cuda {

// Measured on an H100, microseconds with 1 / 2 / 4 / 8 splits: 512x7168, 8 tiles 23.8 / 17.5 / 16.9 / 17.5; 32 tiles 51.8 / 51.9 / 47.3 /
// 49.3; 163 tiles 224 / 206 / 203 / 207; 4096x7168, 1 tile 28.8 / 18.4 / 14.9 / 15.2; 8 tiles 96.7 / 96.5 / 83.8 / 86.3; 256x7168, 8 tiles
// 22.5 / 14.1 / 10.3 / 10.5. Four everywhere, as long as a block has three stages of 128 columns.
int gate_up_splits(int64_t k) {
  constexpr int64_t kLeastStages = 3;
  int splits = 4;
  while (splits > 1 && k / 128 / splits < kLeastStages) splits /= 2;
  return splits;
}

}  // namespace dsv3::cuda
