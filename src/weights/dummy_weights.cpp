// make_dummy_weights(): random numbers in the shape and dtypes of a real checkpoint. A pure function of seed, name and
// position, so ranks that read slices of one tensor agree, and nothing is stored.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>

#include "decode.h"
#include "dsv3/kernels/random.h"
#include "dsv3/weights/weight_source.h"
#include "matrix.h"
#include "shards.h"
#include "text.h"

namespace dsv3 {
namespace weights {
namespace {

constexpr size_t kDrawBytes = 16;  // of one Philox call

struct DummyTensor {
  TensorInfo info;
  uint64_t stream = 0;  ///< from the name: which random numbers are its own
  float amplitude = 0;  ///< elements are uniform in (-amplitude, amplitude) ...
  float offset = 0;     ///< ... around this
  const DummyTensor* scale = nullptr;
};

uint64_t stream_of(std::string_view name) {  // FNV-1a: stable over builds and libraries
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

/// The 16 random bytes number `index` of a tensor.
std::array<uint8_t, kDrawBytes> draw(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto words = philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                                 static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                                {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  std::array<uint8_t, kDrawBytes> bytes;
  std::memcpy(bytes.data(), words.data(), bytes.size());
  return bytes;
}

// A random byte as an e4m3 number: uniform over (-448, 448), so that every exponent occurs.
const std::array<uint8_t, 256> kUniformE4M3 = [] {
  std::array<uint8_t, 256> table{};
  for (size_t i = 0; i < table.size(); ++i) {
    table[i] = f32_to_e4m3((static_cast<float>(i) - 127.5f) * (448.0f / 127.5f));
  }
  return table;
}();

class DummyWeights : public WeightSource {
 public:
  DummyWeights(const ModelConfig& config, uint64_t seed) : seed_(seed), block_(config.weight_block) {
    const auto expected = expected_tensors(config);
    by_name_.reserve(2 * expected.size());
    for (const auto& tensor : expected) {
      if (!tensor.optional()) add(tensor, config);
    }
    for (const auto& tensor : expected) {
      if (tensor.optional()) by_name_.emplace(tensor.name, by_name_.at(tensor.shared_with));
    }
  }

  const TensorInfo* find(std::string_view name) const override {
    const auto found = by_name_.find(name);
    return found != by_name_.end() ? &found->second->info : nullptr;
  }

  int64_t total_bytes() const override { return total_bytes_; }

  Status read_raw(std::string_view name, const Slice& slice, void* out) const override {
    const DummyTensor* tensor;
    DSV3_ASSIGN(tensor, lookup(name, slice));
    auto* to = static_cast<uint8_t*>(out);
    const auto row_bytes = static_cast<size_t>(slice.cols()) * dtype_bytes(tensor->info.dtype);
    for (int64_t r = slice.row_begin; r < slice.row_end; ++r, to += row_bytes) fill_row(*tensor, r, slice, to);
    return {};
  }

  Status read_f32(std::string_view name, const Slice& slice, float* out) const override {
    const DummyTensor* tensor;
    DSV3_ASSIGN(tensor, lookup(name, slice));
    const auto cols = static_cast<size_t>(slice.cols());
    std::vector<uint8_t> row(cols * dtype_bytes(tensor->info.dtype));
    const Slice grid = scale_slice(slice, block_);
    std::vector<float> scales;
    if (tensor->scale != nullptr) {
      scales.resize(static_cast<size_t>(grid.rows() * grid.cols()));
      DSV3_TRY(read_f32(std::string(name) + std::string(kScaleSuffix), grid, scales.data()));
    }
    for (int64_t r = slice.row_begin; r < slice.row_end; ++r, out += cols) {
      fill_row(*tensor, r, slice, row.data());
      if (tensor->scale == nullptr) {
        decode(tensor->info.dtype, row.data(), cols, out);
        continue;
      }
      const float* const row_scales = scales.data() + (r / block_ - grid.row_begin) * grid.cols();
      for (int64_t c = slice.col_begin; c < slice.col_end;) {
        const int64_t end = std::min((c / block_ + 1) * block_, slice.col_end);
        const auto at = static_cast<size_t>(c - slice.col_begin);
        decode_e4m3(row.data() + at, static_cast<size_t>(end - c), row_scales[c / block_ - grid.col_begin], out + at);
        c = end;
      }
    }
    return {};
  }

 private:
  void add(const ExpectedTensor& expected, const ModelConfig& config) {
    DummyTensor tensor;
    tensor.info = {DType::kBF16, expected.shape};
    const auto columns = static_cast<float>(expected.shape.back());
    if (expected.name.ends_with("norm.weight")) {
      tensor.offset = 1.0f;
    } else if (expected.name.ends_with("e_score_correction_bias")) {
      tensor.info.dtype = DType::kF32;
      tensor.amplitude = 0.05f;
    } else if (expected.name == "model.embed_tokens.weight") {
      tensor.amplitude = std::sqrt(3.0f);  // standard deviation 1
    } else {
      tensor.amplitude = std::sqrt(3.0f / columns);  // keeps the size of its input
    }
    if (expected.quantizable && config.fp8) {
      tensor.info.dtype = DType::kF8E4M3;
      DummyTensor scale;
      scale.info = {DType::kF32, scale_shape(expected.shape, block_)};
      scale.offset = tensor.amplitude / 448.0f;
      // Blocks differ, so that a block taken for its neighbour shows; powers of two for UE8M0 checkpoints.
      scale.amplitude = config.scale_ue8m0 ? 0.0f : scale.offset * 0.25f;
      if (config.scale_ue8m0) scale.offset = std::exp2(std::round(std::log2(scale.offset)));
      tensor.scale = store(expected.name + std::string(kScaleSuffix), std::move(scale));
    }
    store(expected.name, std::move(tensor));
  }

  const DummyTensor* store(const std::string& name, DummyTensor tensor) {
    tensor.stream = stream_of(name);
    total_bytes_ += bytes_of(tensor.info);
    const DummyTensor* const stored = &tensors_.emplace_back(std::move(tensor));
    by_name_.emplace(name, stored);
    return stored;
  }

  Result<const DummyTensor*> lookup(std::string_view name, const Slice& slice) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) return Status(Code::kNotFound, "no tensor " + in_quotes(name));
    DSV3_TRY(check_slice(name, found->second->info, slice));
    return found->second;
  }

  /// One row of the slice as the file would hold it. Each element takes as many random bytes as it has itself (F32: 4,
  /// of which 24 bits are used).
  void fill_row(const DummyTensor& tensor, int64_t row, const Slice& slice, uint8_t* out) const {
    const size_t element = dtype_bytes(tensor.info.dtype);
    const auto first = static_cast<uint64_t>(row * matrix_of(tensor.info).cols + slice.col_begin);
    uint64_t at = first * element;
    const uint64_t end = at + static_cast<uint64_t>(slice.cols()) * element;
    while (at < end) {
      const auto bytes = draw(seed_, tensor.stream, at / kDrawBytes);
      for (size_t i = at % kDrawBytes; i < kDrawBytes && at < end; i += element, at += element, out += element) {
        put(tensor, bytes.data() + i, out);
      }
    }
  }

  static void put(const DummyTensor& tensor, const uint8_t* random, uint8_t* out) {
    if (tensor.info.dtype == DType::kF8E4M3) {
      *out = kUniformE4M3[*random];
    } else if (tensor.info.dtype == DType::kBF16) {
      uint16_t bits;
      std::memcpy(&bits, random, sizeof bits);
      const uint16_t value = f32_to_bf16(tensor.offset + tensor.amplitude * ((bits + 0.5f) * 0x1p-15f - 1.0f));
      std::memcpy(out, &value, sizeof value);
    } else {
      uint32_t bits;
      std::memcpy(&bits, random, sizeof bits);
      const float unit = (static_cast<float>(bits >> 8) + 0.5f) * 0x1p-23f - 1.0f;
      const float value = tensor.offset + tensor.amplitude * unit;
      std::memcpy(out, &value, sizeof value);
    }
  }

  const uint64_t seed_;
  const int64_t block_;
  std::deque<DummyTensor> tensors_;  // addresses stay
  StringMap<const DummyTensor*> by_name_;
  int64_t total_bytes_ = 0;
};

}  // namespace
}  // namespace weights

std::shared_ptr<const WeightSource> make_dummy_weights(const ModelConfig& config, uint64_t seed) {
  return std::make_shared<weights::DummyWeights>(config, seed);
}

}  // namespace dsv3
