// open_checkpoint(): every tensor that the config calls for, checked against the shards' headers, read from mapped
// files by any number of threads.
#include <algorithm>
#include <cstring>
#include <deque>

#include "decode.h"
#include "dsv3/base/log.h"
#include "dsv3/weights/load_meter.h"
#include "dsv3/weights/weight_source.h"
#include "matrix.h"
#include "shards.h"
#include "text.h"

namespace dsv3 {
namespace weights {
namespace {

Status bad(std::string message) {
  return {Code::kBadModelFile, std::move(message)};
}

struct StoredTensor {
  TensorInfo info;
  std::shared_ptr<MappedFile> file;
  uint64_t data_at = 0;                 ///< bytes from the beginning of the file
  const StoredTensor* scale = nullptr;  ///< of an F8_E4M3 weight
};

/// One copy out of a mapping. Plain data only: it may be left in the middle by a fault.
struct CopyJob {
  const uint8_t* source;  // first element of the slice
  size_t row_stride_bytes, rows, row_elements, element_bytes;
  uint8_t* raw_out;  // either this
  float* out;        // or this
  DType dtype;
  // F8_E4M3 only: the scales under the slice, and where in the first blocks the slice begins.
  const float* scales;
  size_t scale_stride, first_row, first_col, block;
};

void copy_raw(void* context) {
  const CopyJob& job = *static_cast<const CopyJob*>(context);
  const size_t row_bytes = job.row_elements * job.element_bytes;
  if (row_bytes == job.row_stride_bytes) {
    std::memcpy(job.raw_out, job.source, job.rows * row_bytes);
    return;
  }
  for (size_t r = 0; r < job.rows; ++r) {
    std::memcpy(job.raw_out + r * row_bytes, job.source + r * job.row_stride_bytes, row_bytes);
  }
}

void copy_f32(void* context) {
  const CopyJob& job = *static_cast<const CopyJob*>(context);
  for (size_t r = 0; r < job.rows; ++r) {
    const uint8_t* const source = job.source + r * job.row_stride_bytes;
    float* const out = job.out + r * job.row_elements;
    if (job.scales == nullptr) {
      decode(job.dtype, source, job.row_elements, out);
      continue;
    }
    const float* const scales = job.scales + (job.first_row + r) / job.block * job.scale_stride;
    for (size_t c = 0; c < job.row_elements;) {
      const size_t in_grid = job.first_col + c;
      const size_t n = std::min(job.block - in_grid % job.block, job.row_elements - c);
      decode_e4m3(source + c, n, scales[in_grid / job.block], out + c);
      c += n;
    }
  }
}

class Checkpoint : public WeightSource {
 public:
  Checkpoint(int64_t block, std::shared_ptr<LoadMeter> meter) : block_(block), meter_(std::move(meter)) {}

  const StoredTensor* add(const std::string& name, StoredTensor tensor) {
    total_bytes_ += bytes_of(tensor.info);
    const StoredTensor* const stored = &tensors_.emplace_back(std::move(tensor));
    by_name_.emplace(name, stored);
    return stored;
  }
  void alias(const std::string& name, const std::string& of) { by_name_.emplace(name, by_name_.at(of)); }

  const TensorInfo* find(std::string_view name) const override {
    const StoredTensor* const tensor = stored(name);
    return tensor != nullptr ? &tensor->info : nullptr;
  }

  int64_t total_bytes() const override { return total_bytes_; }

  Status read_raw(std::string_view name, const Slice& slice, void* out) const override {
    const StoredTensor* tensor;
    DSV3_ASSIGN(tensor, lookup(name, slice));
    return run(*tensor, slice, copy_raw, nullptr, static_cast<uint8_t*>(out));
  }

  Status read_f32(std::string_view name, const Slice& slice, float* out) const override {
    const StoredTensor* tensor;
    DSV3_ASSIGN(tensor, lookup(name, slice));
    if (!is_float(tensor->info.dtype)) {
      return {Code::kInvalidArgument, "tensor " + in_quotes(name) + " of dtype " +
                                          std::string(dtype_name(tensor->info.dtype)) + " cannot be read as float32"};
    }
    if (tensor->scale == nullptr || slice.rows() == 0 || slice.cols() == 0) {
      return run(*tensor, slice, copy_f32, out, nullptr);
    }
    const Slice grid = scale_slice(slice, block_);
    std::vector<float> scales(static_cast<size_t>(grid.rows() * grid.cols()));
    DSV3_TRY(run(*tensor->scale, grid, copy_f32, scales.data(), nullptr));
    DSV3_TRY(check_scales(name, grid, scales.data()));
    return run(*tensor, slice, copy_f32, out, nullptr, scales.data());
  }

 private:
  const StoredTensor* stored(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found != by_name_.end() ? found->second : nullptr;
  }

  Result<const StoredTensor*> lookup(std::string_view name, const Slice& slice) const {
    const StoredTensor* const tensor = stored(name);
    if (tensor == nullptr) return Status(Code::kNotFound, "no tensor " + in_quotes(name));
    DSV3_TRY(check_slice(name, tensor->info, slice));
    return tensor;
  }

  Status run(const StoredTensor& tensor, const Slice& slice, void (*body)(void*), float* out, uint8_t* raw_out,
             const float* scales = nullptr) const {
    if (slice.rows() == 0 || slice.cols() == 0) return {};
    constexpr uint64_t kReadAheadBytes = 256 << 10;  // below this the kernel's own read-ahead does as well
    const size_t element = dtype_bytes(tensor.info.dtype);
    const auto stride = static_cast<size_t>(matrix_of(tensor.info).cols) * element;
    const uint64_t rows_at = tensor.data_at + static_cast<uint64_t>(slice.row_begin) * stride;
    const auto block = static_cast<size_t>(block_);
    CopyJob job{.source = tensor.file->data() + rows_at + static_cast<size_t>(slice.col_begin) * element,
                .row_stride_bytes = stride,
                .rows = static_cast<size_t>(slice.rows()),
                .row_elements = static_cast<size_t>(slice.cols()),
                .element_bytes = element,
                .raw_out = raw_out,
                .out = out,
                .dtype = tensor.info.dtype,
                .scales = scales,
                .scale_stride = scales != nullptr ? static_cast<size_t>(scale_slice(slice, block_).cols()) : 0,
                .first_row = static_cast<size_t>(slice.row_begin) % block,
                .first_col = static_cast<size_t>(slice.col_begin) % block,
                .block = block};
    const uint64_t span = static_cast<uint64_t>(slice.rows()) * stride;
    if (span >= kReadAheadBytes) tensor.file->will_need(rows_at, span);
    DSV3_TRY(tensor.file->guarded_read(body, &job));
    if (meter_ != nullptr) meter_->add(slice.rows() * slice.cols() * static_cast<int64_t>(element));
    return {};
  }

  const int64_t block_;
  const std::shared_ptr<LoadMeter> meter_;
  std::deque<StoredTensor> tensors_;  // addresses stay
  StringMap<const StoredTensor*> by_name_;
  int64_t total_bytes_ = 0;
};

/// Builds a Checkpoint out of the shards, tensor by tensor.
class Opener {
 public:
  Opener(const std::string& model_dir, const ModelConfig& config, ShardSet shards, std::shared_ptr<LoadMeter> meter)
      : model_dir_(model_dir),
        config_(config),
        expected_(expected_tensors(config)),
        shards_(std::move(shards)),
        checkpoint_(std::make_shared<Checkpoint>(config.weight_block, std::move(meter))) {}

  Result<std::shared_ptr<const WeightSource>> run(bool* has_mtp) {
    const auto stored = [&](const ExpectedTensor& tensor) { return shards_.contains(tensor.name); };
    *has_mtp = std::any_of(expected_.begin(), expected_.end(), [&](const auto& t) { return t.mtp && stored(t); });
    DSV3_TRY(check_presence(*has_mtp));
    std::vector<const ExpectedTensor*> shared;
    for (const auto& tensor : expected_) {
      if (tensor.mtp && !*has_mtp) continue;
      // A tied head is the embedding, whatever the file says.
      if (tensor.optional() && (!tensor.mtp || !stored(tensor))) {
        shared.push_back(&tensor);
      } else {
        DSV3_TRY(add(tensor));
      }
    }
    for (const auto* tensor : shared) checkpoint_->alias(tensor->name, tensor->shared_with);
    warn_of_ignored();
    return std::shared_ptr<const WeightSource>(checkpoint_);
  }

 private:
  Status check_presence(bool has_mtp) const {
    const ExpectedTensor* first = nullptr;
    size_t missing = 0;
    for (const auto& tensor : expected_) {
      if (tensor.optional() || (tensor.mtp && !has_mtp) || shards_.contains(tensor.name)) continue;
      if (missing++ == 0) first = &tensor;
    }
    if (missing == 0) return {};
    std::string message =
        "tensor " + in_quotes(first->name) + " of shape " + shape_text(first->shape) + " is missing in " + model_dir_;
    if (missing > 1) message += ", and " + std::to_string(missing - 1) + " more";
    if (first->mtp) message += "; the tensors of an MTP module must be there all or none";
    return bad(message);
  }

  Status add(const ExpectedTensor& expected) {
    DSV3_ASSIGN(StoredTensor tensor, take(expected.name, expected.shape, expected.quantizable, "BF16, F16 or F32"));
    if (tensor.info.dtype == DType::kF8E4M3) {
      const std::string scale_name = expected.name + std::string(kScaleSuffix);
      if (!shards_.contains(scale_name)) {
        return bad("tensor " + in_quotes(expected.name) + " is F8_E4M3, but its scales " + in_quotes(scale_name) +
                   " of shape " + shape_text(scale_shape(expected.shape, config_.weight_block)) + " are missing");
      }
      DSV3_ASSIGN(StoredTensor scale,
                  take(scale_name, scale_shape(expected.shape, config_.weight_block), false, "F32 or BF16"));
      tensor.scale = checkpoint_->add(scale_name, std::move(scale));
    }
    checkpoint_->add(expected.name, std::move(tensor));
    return {};
  }

  Result<StoredTensor> take(const std::string& name, const std::vector<int64_t>& shape, bool quantizable,
                            const std::string& plain_dtypes) {
    DSV3_ASSIGN(const auto found, shards_.locate(name));
    const std::string where = "tensor " + in_quotes(name) + " in " + found.file->name() + ": ";
    if (found.tensor.shape != shape) {
      return bad(where + "shape " + shape_text(found.tensor.shape) + ", config.json calls for " + shape_text(shape));
    }
    const auto dtype = found.tensor.dtype;
    const bool usable = dtype && is_float(*dtype) && (*dtype != DType::kF8E4M3 || quantizable);
    if (!usable || (*dtype == DType::kF16 && plain_dtypes.find("F16,") == std::string::npos)) {
      return bad(where + "dtype " + std::string(found.tensor.dtype_text) + ", usable are " +
                 (quantizable ? "F8_E4M3 with scales, " : "") + plain_dtypes);
    }
    return StoredTensor{{*dtype, shape}, found.file, found.data_at, nullptr};
  }

  void warn_of_ignored() const {
    int64_t ignored = 0;
    const std::string* example = nullptr;
    for (const auto& [name, shard] : shards_.names()) {
      if (checkpoint_->find(name) != nullptr) continue;
      ++ignored;
      if (example == nullptr || name < *example) example = &name;
    }
    if (ignored == 0) return;
    log_event(LogLevel::kWarn, "weights_ignored",
              {{"model_path", model_dir_}, {"tensors", ignored}, {"first", *example}});
  }

  const std::string& model_dir_;
  const ModelConfig& config_;
  const std::vector<ExpectedTensor> expected_;
  ShardSet shards_;
  const std::shared_ptr<Checkpoint> checkpoint_;
};

}  // namespace
}  // namespace weights

Result<std::shared_ptr<const WeightSource>> open_checkpoint(const std::string& model_dir, const ModelConfig& config,
                                                            bool* has_mtp, std::shared_ptr<LoadMeter> meter) {
  DSV3_ASSIGN(auto shards, weights::ShardSet::open(model_dir));
  bool mtp = false;
  auto source = weights::Opener(model_dir, config, std::move(shards), meter).run(&mtp);
  if (!source.ok()) return source.status();
  if (has_mtp != nullptr) *has_mtp = mtp;
  if (meter != nullptr) meter->set_total_if_unset((*source)->total_bytes());
  return source;
}

}  // namespace dsv3
