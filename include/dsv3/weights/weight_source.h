// Where weights come from: a checkpoint's safetensors shards, or seeded random numbers. Read-only and thread safe:
// every rank reads its own slices at the same time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/tensor/dtype.h"
#include "dsv3/weights/model_config.h"

namespace dsv3 {

struct TensorInfo {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

/// Rows [row_begin, row_end) x columns [col_begin, col_end) of a matrix; a vector is one row.
struct Slice {
  int64_t row_begin = 0, row_end = 0, col_begin = 0, col_end = 0;
  int64_t rows() const { return row_end - row_begin; }
  int64_t cols() const { return col_end - col_begin; }
};

class LoadMeter;

/// Bytes read so far; called from loader threads, rarely enough to print.
struct LoadProgress {
  int64_t bytes_done = 0, bytes_total = 0;
  double bytes_per_second = 0, eta_seconds = 0;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  /// nullptr if there is no such tensor. Knows the tensors that the config calls for, and the scales of FP8 ones; of
  /// a checkpoint's other tensors nothing. An absent `optional` tensor is answered with the main model's.
  virtual const TensorInfo* find(std::string_view name) const = 0;

  /// Copies a slice as float32, row-major into out[rows * cols]. F8_E4M3 is multiplied by its block scales
  /// (`weight_scale_inv`: W[i][j] = fp8(i,j) * S[i/128][j/128]); BF16, F16, F32 are converted.
  virtual Status read_f32(std::string_view name, const Slice& slice, float* out) const = 0;

  /// Copies a slice in the file's own dtype, row-major, rows packed. Reads of a checkpoint whose
  /// files shrink or change meanwhile fail with kBadModelFile; `out` is then undefined.
  virtual Status read_raw(std::string_view name, const Slice& slice, void* out) const = 0;

  /// Bytes of all tensors that the config calls for, scales included, in the dtypes they are stored in.
  virtual int64_t total_bytes() const = 0;
};

/// Opens a model folder: the index (or the single model.safetensors), all shard headers, and checks every tensor
/// that `config` calls for: a missing one, a wrong shape or an unusable dtype is named with what was expected.
/// MTP tensors may be absent: `has_mtp` (may be null) says whether they are all there; some of them is a fault.
/// Shards must lie in the folder, or, if it is a snapshot of a hub cache, in that cache's blobs. `meter` (may be null)
/// is ticked by every read.
Result<std::shared_ptr<const WeightSource>> open_checkpoint(const std::string& model_dir, const ModelConfig& config,
                                                            bool* has_mtp, std::shared_ptr<LoadMeter> meter = nullptr);

/// `--load-format dummy`: seeded random weights of any config, no files. Scaled so that activations stay finite. An
/// element depends on seed, tensor name and position only, never on the slice read.
std::shared_ptr<const WeightSource> make_dummy_weights(const ModelConfig& config, uint64_t seed);

/// A tensor that a config calls for. `quantizable`: F8_E4M3 with block scales is allowed.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool quantizable = false;
  bool mtp = false;
  std::string shared_with;  ///< not empty: the tensor may be absent, as it is a copy of this one
  bool optional() const { return !shared_with.empty(); }
};
/// In the order of the layers; layer num_hidden_layers + i is the i-th MTP module.
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

}  // namespace dsv3
