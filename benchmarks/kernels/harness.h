// How kernels are timed: launches chained in one CUDA graph over rotating copies of what should come from HBM, random data,
// median of several replays. One JSON line a row, and a table at the end.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <vector>

#include "dsv3/base/status.h"
#include "kernels/cuda/common/types.h"

namespace dsv3::cuda::bench {

/// Roofs measured on an H100 80GB HBM3 (bursts; see docs/benchmarks.md).
struct Roofs {
  double hbm_gbps = 3100, fp8_tflops = 1740, bf16_tflops = 870;
};

struct Timing {
  double us = 0;      ///< median over replays, per launch
  double spread = 0;  ///< (max - min) / median
};
/// `enqueue(i, stream)` launches the i-th of `launches` (the caller rotates its buffers by i). Captured into one graph, replayed
/// `replays` times after a warm-up and a pause: a short burst runs at the full clock, where the power limit leaves less to long work.
Result<Timing> time_chain(int launches, int replays, const std::function<Status(int, Stream)>& enqueue);

struct Row {
  std::string kernel, shape;
  double us = 0;
  double flops = 0, bytes = 0;      ///< of one launch: 2 m n k; every input read and output written once
  double limit_us = 0;              ///< the larger of bytes / HBM and flops / tensor core
  std::string baseline;             ///< who, in the same run; empty: none
  double baseline_us = 0;
  double peer_us = 0;               ///< best public kernel on an H100 (reference figures), 0: none
  std::string peer;
  double spread = 0;
};

/// Collects rows, appends them to a file as JSON lines (gpu, date, commit, kernel, shape, us, tflops, gbps, limit_us, baseline,
/// baseline_us, ...), prints the table.
class Report {
 public:
  /// `path` may be empty. `commit` as git names it.
  Report(std::string path, std::string commit);
  void add(const Row& row);
  void print_table() const;

 private:
  std::string path_, commit_, gpu_, date_;
  std::vector<Row> rows_;
};

/// Device memory filled with seeded random bits of a kind, or with a copy of `values`; freed at exit of the owner.
class Buffer {
 public:
  enum class Fill { kZero, kNormalBf16, kNormalE4m3, kScales, kNormalF32 };
  Buffer(int64_t bytes, Fill fill, uint32_t seed = 1);
  template <class T>
  explicit Buffer(const std::vector<T>& values) : Buffer(static_cast<int64_t>(values.size() * sizeof(T)), Fill::kZero) {
    copy(values.data(), values.size() * sizeof(T));
  }
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  template <class T>
  T* as() const { return static_cast<T*>(data_); }

 private:
  void copy(const void* from, size_t bytes);
  void* data_ = nullptr;
};

/// How many copies of something of `bytes` make >= 320 MB, so that none is still in L2 when its turn comes; at most `most`.
int copies_beyond_l2(int64_t bytes, int most = 64);

/// Each benchmark file adds its rows. `filter`: only kernels whose name contains it (empty: all). `quick`: fewer shapes.
struct Options {
  std::string filter;
  bool quick = false;
};
void bench_gemm(const Options& options, Report& report);          // gemm_bench.cu
void bench_gemm_variants(const Options& options, Report& report);  // gemm_variants_bench.cu: only when the filter names it
void bench_grouped_gemm(const Options& options, Report& report);  // grouped_gemm_bench.cu
void bench_tiles_variants(const Options& options, Report& report);  // tiles_variants_bench.cu: every tile and main loop
void bench_gate_up(const Options& options, Report& report);       // gate_up_bench.cu
void bench_expert_hits(const Options& options, Report& report);   // expert_hits_bench.cu
void bench_mla_decode(const Options& options, Report& report);    // mla_decode_bench.cu
void bench_mla_prefill(const Options& options, Report& report);   // mla_prefill_bench.cu
void bench_rows(const Options& options, Report& report);          // rows_bench.cu: norms, gate, permutation, rope
void bench_sampling(const Options& options, Report& report);      // sampling_bench.cu
void bench_absorb(const Options& options, Report& report);        // absorb_bench.cu: head products of decode

}  // namespace dsv3::cuda::bench
