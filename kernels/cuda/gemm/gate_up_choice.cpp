// How fp8_gate_up() is cut: pure functions of shapes.
#include <algorithm>

#include "fp8_gate_up.h"

namespace dsv3::cuda {
namespace {

constexpr double kHbmBytesPerUs = 3.1e6;    // of the GPU
constexpr double kBlockBytesPerUs = 35e3;   // of one block: at most 96 KiB in flight, refilled 32 KiB at a time
constexpr double kWaveUs = 0.5, kSplitUs = 0.7;  // start and end of a wave; the cluster's barriers and remote reads
constexpr int64_t kLeastStages = 3;         // of 128 columns, for each split

}  // namespace

double predict_gate_up_us(int64_t tiles, int64_t width, int64_t k, int sms, int splits) {
  const int64_t blocks = tiles * (width / 128) * splits, wave = 2 * static_cast<int64_t>(std::max(sms, 1));
  const double block_bytes = 256.0 * static_cast<double>(k) / splits;
  const int64_t full = blocks / wave, rest = blocks % wave;
  double us = static_cast<double>(full * wave) * block_bytes / kHbmBytesPerUs;
  if (rest > 0) us += std::max(static_cast<double>(rest) * block_bytes / kHbmBytesPerUs, block_bytes / kBlockBytesPerUs);
  return us + static_cast<double>(full + (rest > 0 ? 1 : 0)) * (kWaveUs + (splits > 1 ? kSplitUs : 0.0));
}

int gate_up_splits(int64_t tiles, int64_t width, int64_t k, int sms) {
  int best = 1;
  for (int splits = 2; splits <= 8 && k / 128 / splits >= kLeastStages; splits *= 2) {
    if (predict_gate_up_us(tiles, width, k, sms, splits) < predict_gate_up_us(tiles, width, k, sms, best)) best = splits;
  }
  return best;
}

}  // namespace dsv3::cuda
