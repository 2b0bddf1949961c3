// A batch of sequences for the tests of MLA decode: shuffled pages, poison wherever nothing valid lies, and the float64
// answer.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "harness.h"
#include "kernels/cuda/mla/mla.h"
#include "late_writer.cuh"

namespace dsv3::cuda::testing {

struct MlaShape {
  int heads = 16;
  KvFormat format = KvFormat::kBf16;
  std::vector<std::pair<int, int>> groups;  ///< rows, start
  int max_group_rows = kMaxGroupRows;
  bool deterministic = false;
  float softmax_scale = 0.1f;
  uint32_t seed = 1;

  std::string name() const {
    std::string text = std::to_string(heads) + " heads, " + (format == KvFormat::kBf16 ? "bf16" : "fp8") +
                       (deterministic ? ", deterministic" : "") + ", (rows, start):";
    for (const auto& [rows, start] : groups) text += " (" + std::to_string(rows) + ", " + std::to_string(start) + ")";
    return text;
  }
};

/// Owns the buffers of one shape. Group g has rows g * max_group_rows ... of q and out; rows of no group are NaN.
class MlaBatch {
 public:
  explicit MlaBatch(const MlaShape& shape);

  const MlaDecode& params() const { return params_; }
  /// The rows of `out` that belong to groups, and nothing else was written.
  std::vector<float> output(const std::string& what) const;
  std::vector<double> reference() const;
  void poison_output() { out_->poison(); }
  /// Values of group g alone, [rows, heads, 512], as bits.
  std::vector<uint16_t> bits_of(int group) const;
  uint8_t* cached_row(int group, int position) const { return pages_->get() + cached_at(group, position); }
  /// Lets group g here read the same q and the same cached rows as group `from` of another batch.
  void copy_group(int group, const MlaBatch& other, int from);

 private:
  int64_t row_bytes() const { return params_.pages.row_bytes(); }
  /// Bytes from the pages' begin to a position's row.
  int64_t cached_at(int group, int position) const {
    const int32_t block = table_[static_cast<size_t>(host_groups_[static_cast<size_t>(group)].slot) * static_cast<size_t>(params_.max_blocks) +
                                 static_cast<size_t>(position / kCacheBlockTokens)];
    return (static_cast<int64_t>(block) * kCacheBlockTokens + position % kCacheBlockTokens) * row_bytes();
  }
  int blocks_of(int group) const {
    return (shape_.groups[group].first + shape_.groups[group].second + kCacheBlockTokens - 1) / kCacheBlockTokens;
  }

  MlaShape shape_;
  int64_t rows_ = 0;
  std::vector<int32_t> table_;
  std::vector<QueryGroup> host_groups_;
  std::unique_ptr<Guarded<Bf16>> q_, out_;
  std::unique_ptr<Guarded<uint8_t>> pages_;
  std::unique_ptr<Guarded<int32_t>> tables_;
  std::unique_ptr<Guarded<QueryGroup>> groups_;
  MlaDecode params_;
};

/// Workspace of a batch; poisoned, as nothing may depend on what it held.
struct Workspace {
  explicit Workspace(const MlaDecode& p)
      : bytes(static_cast<size_t>(mla_decode_workspace_bytes(p.num_groups, p.max_group_rows, p.heads))),
        view{bytes.get(), static_cast<int64_t>(bytes.size())} {}
  Guarded<uint8_t> bytes;
  MlaWorkspace view;
};

/// A cached row that is not there yet: NaN until a late writer puts it back.
class LateRow {
 public:
  LateRow(const MlaBatch& batch, int group, int position)
      : row_(batch.cached_row(group, position)), kept_(static_cast<size_t>(batch.params().pages.row_bytes())) {
    EXPECT_EQ(cudaMemcpy(kept_.get(), row_, kept_.size(), cudaMemcpyDeviceToDevice), cudaSuccess);
    EXPECT_EQ(cudaMemset(row_, 0xFF, kept_.size()), cudaSuccess);
  }
  Status write() const { return write_late(row_, kept_.get(), static_cast<int64_t>(kept_.size())); }

 private:
  uint8_t* row_;
  Guarded<uint8_t> kept_;
};

__device__ inline double value_of(const KvPages& pages, int64_t row, int col) {
  const auto* bytes =
      static_cast<const uint8_t*>(pages.data) + row * (pages.format == KvFormat::kBf16 ? kCacheRow * 2 : 656);
  if (pages.format == KvFormat::kBf16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(bytes)[col]);
  if (col >= kLatent) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(bytes + 528)[col - kLatent]);
  return static_cast<double>(static_cast<float>(reinterpret_cast<const __nv_fp8_e4m3*>(bytes)[col])) *
         static_cast<double>(reinterpret_cast<const float*>(bytes + 512)[col / 128]);
}
__device__ inline int64_t row_of(const MlaDecode& p, const QueryGroup& group, int token) {
  return static_cast<int64_t>(
             p.block_tables[static_cast<int64_t>(group.slot) * p.max_blocks + token / kCacheBlockTokens]) *
             kCacheBlockTokens +
         token % kCacheBlockTokens;
}

/// Values to cut rows from, in every format at once: converting millions of them one by one takes seconds.
struct ValuePool {
  explicit ValuePool(uint32_t seed) : bf16(1 << 18), e4m3(1 << 18) {
    const std::vector<float> values = normal_values(bf16.size(), seed);
    for (size_t i = 0; i < values.size(); ++i) {
      bf16[i] = f32_to_bf16(values[i]);
      e4m3[i] = __nv_fp8_e4m3(values[i] * 16.0f).__x;
    }
  }
  std::vector<uint16_t> bf16;
  std::vector<uint8_t> e4m3;
};

inline void fill_row(uint8_t* row, KvFormat format, const ValuePool& pool, size_t at, float scale) {
  if (format == KvFormat::kBf16) {
    std::copy_n(reinterpret_cast<const uint8_t*>(pool.bf16.data() + at), kCacheRow * 2, row);
    return;
  }
  std::copy_n(pool.e4m3.data() + at, kLatent, row);
  for (int i = 0; i < 4; ++i)
    reinterpret_cast<float*>(row + kLatent)[i] = scale / 16.0f * static_cast<float>(1 + i) * 0.4f;
  std::copy_n(reinterpret_cast<const uint8_t*>(pool.bf16.data() + at), kRope * 2, row + kLatent + 16);
}

/// softmax(scale q k) v in float64; scores [query][max_keys] lie in `scratch`.
static __global__ void mla_reference_scores(MlaDecode p, double* scratch,
                                            int max_keys) {  // grid (key runs, heads * max rows, groups)
  const QueryGroup group = p.groups[blockIdx.z];
  const int row = static_cast<int>(blockIdx.y) / p.heads, head = static_cast<int>(blockIdx.y) % p.heads;
  const int key = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= group.rows || key > group.start + row) return;
  const int64_t query = static_cast<int64_t>(group.row_begin + row) * p.heads + head;
  const int64_t at = row_of(p, group, key);
  double dot = 0;
  for (int i = 0; i < kCacheRow; ++i)
    dot += static_cast<double>(__bfloat162float(p.q[query * kCacheRow + i])) * value_of(p.pages, at, i);
  scratch[query * max_keys + key] = dot * static_cast<double>(p.softmax_scale);
}

static __global__ void mla_reference_output(MlaDecode p, const double* scratch, int max_keys,
                                            double* out) {  // grid (heads * max rows, groups)
  const QueryGroup group = p.groups[blockIdx.y];
  const int row = static_cast<int>(blockIdx.x) / p.heads, head = static_cast<int>(blockIdx.x) % p.heads;
  if (row >= group.rows) return;
  const int64_t query = static_cast<int64_t>(group.row_begin + row) * p.heads + head;
  const int keys = group.start + row + 1;
  double top = -1e300;
  for (int t = 0; t < keys; ++t) top = fmax(top, scratch[query * max_keys + t]);
  double sum = 0, value = 0;
  for (int t = 0; t < keys; ++t) {
    const double weight = exp(scratch[query * max_keys + t] - top);
    sum += weight;
    value += weight * value_of(p.pages, row_of(p, group, t), static_cast<int>(threadIdx.x));
  }
  out[query * kLatent + threadIdx.x] = value / sum;
}

inline MlaBatch::MlaBatch(const MlaShape& shape) : shape_(shape) {
  std::mt19937 generator(shape.seed);
  const int count = static_cast<int>(shape.groups.size());
  rows_ = static_cast<int64_t>(count) * shape.max_group_rows;
  int total_blocks = 0, max_blocks = 1;
  for (int g = 0; g < count; ++g) {
    total_blocks += blocks_of(g);
    max_blocks = std::max(max_blocks, blocks_of(g));
  }
  const int64_t num_blocks = total_blocks + 3;
  params_ = {.heads = shape.heads,
             .softmax_scale = shape.softmax_scale,
             .pages = {nullptr, shape.format, num_blocks},
             .max_blocks = max_blocks,
             .num_groups = count,
             .max_group_rows = shape.max_group_rows,
             .deterministic = shape.deterministic};

  std::vector<int32_t> blocks(static_cast<size_t>(num_blocks)), slots(static_cast<size_t>(count));
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), generator);
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), generator);
  table_.assign(static_cast<size_t>(count) * max_blocks, -1);
  std::vector<uint8_t> pages(static_cast<size_t>(num_blocks * kCacheBlockTokens * row_bytes()), 0xFF);
  std::vector<uint16_t> q(static_cast<size_t>(rows_ * shape.heads * kCacheRow), 0xFFFF);
  const ValuePool pool(shape.seed + 1);
  const auto some = [&] { return static_cast<size_t>(generator() % (pool.bf16.size() - kCacheRow)); };
  size_t next = 0;
  for (int g = 0; g < count; ++g) {
    const auto [rows, start] = shape.groups[g];
    host_groups_.push_back({slots[g], g * shape.max_group_rows, rows, start});
    for (int b = 0; b < blocks_of(g); ++b) table_[static_cast<size_t>(slots[g]) * max_blocks + b] = blocks[next++];
    for (int t = 0; rows > 0 && t < start + rows; ++t) {
      fill_row(pages.data() + cached_at(g, t), shape.format, pool, some(),
               0.5f + static_cast<float>(generator() % 64) / 64.0f);
    }
    for (int64_t i = 0; i < static_cast<int64_t>(rows) * shape.heads; ++i) {
      std::copy_n(pool.bf16.data() + some(), kCacheRow,
                  q.data() + (static_cast<int64_t>(g) * shape.max_group_rows * shape.heads + i) * kCacheRow);
    }
  }
  q_ = std::make_unique<Guarded<Bf16>>(q.size());
  EXPECT_EQ(cudaMemcpy(q_->get(), q.data(), q.size() * 2, cudaMemcpyHostToDevice), cudaSuccess);
  out_ = std::make_unique<Guarded<Bf16>>(static_cast<size_t>(rows_ * shape.heads * kLatent));
  pages_ = std::make_unique<Guarded<uint8_t>>(pages);
  tables_ = std::make_unique<Guarded<int32_t>>(table_);
  groups_ = std::make_unique<Guarded<QueryGroup>>(host_groups_);
  params_.q = q_->get();
  params_.out = out_->get();
  params_.pages.data = pages_->get();
  params_.block_tables = tables_->get();
  params_.groups = groups_->get();
}

inline std::vector<float> MlaBatch::output(const std::string& what) const {
  EXPECT_TRUE(out_->guards_intact()) << what << ": written outside of out; " << shape_.name();
  const std::vector<Bf16> all = out_->download();
  const size_t row_values = static_cast<size_t>(shape_.heads) * kLatent;
  std::vector<float> valid;
  for (size_t g = 0; g < shape_.groups.size(); ++g) {
    for (size_t r = 0; r < static_cast<size_t>(shape_.max_group_rows); ++r) {
      const Bf16* row = all.data() + (g * static_cast<size_t>(shape_.max_group_rows) + r) * row_values;
      if (static_cast<int>(r) < shape_.groups[g].first) {
        for (size_t i = 0; i < row_values; ++i) valid.push_back(from_bf16(row[i]));
      } else {
        for (size_t i = 0; i < row_values; ++i) {
          if (__bfloat16_as_ushort(row[i]) == 0xFFFF) continue;
          ADD_FAILURE() << what << ": row " << r << " of group " << g << " is not the group's but was written; "
                        << shape_.name();
          break;
        }
      }
    }
  }
  return valid;
}

inline std::vector<double> MlaBatch::reference() const {
  int max_keys = 1;
  for (const auto& [rows, start] : shape_.groups) max_keys = std::max(max_keys, rows + start);
  const size_t queries = static_cast<size_t>(rows_) * shape_.heads;
  double *scratch = nullptr, *out = nullptr;
  EXPECT_EQ(cudaMalloc(&scratch, queries * max_keys * sizeof(double)), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&out, queries * kLatent * sizeof(double)), cudaSuccess);
  EXPECT_EQ(cudaMemset(out, 0, queries * kLatent * sizeof(double)), cudaSuccess);  // rows of nobody are copied along
  const unsigned row_heads = static_cast<unsigned>(shape_.heads * shape_.max_group_rows),
                 count = static_cast<unsigned>(shape_.groups.size());
  mla_reference_scores<<<dim3((max_keys + 127) / 128, row_heads, count), 128>>>(params_, scratch, max_keys);
  mla_reference_output<<<dim3(row_heads, count), kLatent>>>(params_, scratch, max_keys, out);
  std::vector<double> all(queries * kLatent), valid;
  EXPECT_EQ(cudaMemcpy(all.data(), out, all.size() * sizeof(double), cudaMemcpyDeviceToHost), cudaSuccess);
  cudaFree(scratch);
  cudaFree(out);
  for (size_t g = 0; g < shape_.groups.size(); ++g) {
    const size_t row_values = static_cast<size_t>(shape_.heads) * kLatent,
                 begin = g * static_cast<size_t>(shape_.max_group_rows) * row_values;
    valid.insert(valid.end(), all.begin() + static_cast<int64_t>(begin),
                 all.begin() + static_cast<int64_t>(begin + static_cast<size_t>(shape_.groups[g].first) * row_values));
  }
  return valid;
}

inline std::vector<uint16_t> MlaBatch::bits_of(int group) const {
  const size_t values = static_cast<size_t>(shape_.groups[group].first) * shape_.heads * kLatent;
  std::vector<uint16_t> bits(values);
  EXPECT_EQ(cudaMemcpy(bits.data(),
                       out_->get() + static_cast<int64_t>(group) * shape_.max_group_rows * shape_.heads * kLatent,
                       values * 2, cudaMemcpyDeviceToHost),
            cudaSuccess);
  return bits;
}

inline void MlaBatch::copy_group(int group, const MlaBatch& other, int from) {
  ASSERT_EQ(shape_.groups[group], other.shape_.groups[from]);
  const size_t q_values = static_cast<size_t>(shape_.groups[group].first) * shape_.heads * kCacheRow;
  const int64_t stride = static_cast<int64_t>(shape_.heads) * kCacheRow;
  EXPECT_EQ(
      cudaMemcpy(q_->get() + group * shape_.max_group_rows * stride,
                 other.q_->get() + from * other.shape_.max_group_rows * stride, q_values * 2, cudaMemcpyDeviceToDevice),
      cudaSuccess);
  const int64_t bytes = kCacheBlockTokens * row_bytes();
  for (int b = 0; b < blocks_of(group); ++b) {
    const int64_t to = table_[static_cast<size_t>(host_groups_[group].slot) * params_.max_blocks + b];
    const int64_t at = other.table_[static_cast<size_t>(other.host_groups_[from].slot) * other.params_.max_blocks + b];
    EXPECT_EQ(cudaMemcpy(pages_->get() + to * bytes, other.pages_->get() + at * bytes, static_cast<size_t>(bytes),
                         cudaMemcpyDeviceToDevice),
              cudaSuccess);
  }
}

}  // namespace dsv3::cuda::testing
