// How fp8_gate_up() and fp8_expert_sum() are cut: pure functions of the shape.
#include "fp8_expert_sum.h"
#include "fp8_gate_up.h"
#include "gemm_choice.h"

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

int gate_up_cols(int64_t items, int splits) {
  return splits <= 4 && items * splits <= kSms ? 64 : 128;  // a cluster of 8 is the largest
}

// Enough blocks for two on each multiprocessor: 7168 columns are 112 tiles of 64.
int expert_sum_splits(int64_t n) {
  constexpr int64_t kBlocks = 224;
  const int64_t tiles = (n + 63) / 64;
  return tiles * 8 <= kBlocks ? 8 : tiles * 4 <= kBlocks ? 4 : 2;
}

}  // namespace dsv3::cuda
