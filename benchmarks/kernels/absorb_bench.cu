// The head products around decode attention, over kv_b in HBM, against cuBLASLt's batched products (and the quantisation behind them). Rows
// `variant=...` (kernel name absorb_variants, only with a --filter) compare widths of slices (queries), rows of a block (values).
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "harness.h"
#include "kernels/cuda/gemm/blas.h"
#include "kernels/cuda/mla/absorb.h"
#include "kernels/cuda/norm/norm.h"

namespace dsv3::cuda::bench {
namespace {

constexpr int64_t kWeightRows = kNope + kValue;

struct Inputs {
  Inputs(int heads, int64_t rows)
      : heads(heads),
        rows(rows),
        copies(copies_beyond_l2(heads * kWeightRows * kLatent * 2, 128)),
        weights(heads * kWeightRows * kLatent * 2 * copies, Buffer::Fill::kNormalBf16, 1),
        q(rows * heads * kQueryHead * 2, Buffer::Fill::kNormalBf16, 2),
        absorbed_q(rows * heads * kCacheRow * 2, Buffer::Fill::kZero),
        latent(rows * heads * kLatent * 2, Buffer::Fill::kNormalBf16, 3),
        out(rows * heads * kValue * 2, Buffer::Fill::kZero),
        fp8(rows * heads * kValue, Buffer::Fill::kZero),
        scales((rows + 3) / 4 * 4 * heads * 4, Buffer::Fill::kZero) {}
  Bf16Weight weight(int i) const {
    return {weights.as<Bf16>() + i % copies * heads * kWeightRows * kLatent, heads * kWeightRows, kLatent, 1};
  }
  Bf16Matrix plain() const { return {out.as<Bf16>(), rows, int64_t{heads} * kValue, int64_t{heads} * kValue}; }
  Fp8Rows quantised() const { return {fp8.as<uint8_t>(), scales.as<float>(), rows, int64_t{heads} * kValue, (rows + 3) / 4 * 4}; }
  AbsorbQueries queries(int i, int width) const {
    return {.q = q.as<Bf16>(), .q_stride = int64_t{heads} * kQueryHead, .kv_b = weight(i), .absorbed_q = absorbed_q.as<Bf16>(),
            .rows = rows, .heads = heads, .width = width};
  }
  ExpandValues values(int i, int tokens) const {
    return {.latent = latent.as<Bf16>(), .kv_b = weight(i), .out = plain(), .quantised = quantised(), .rows = rows, .heads = heads,
            .tokens = tokens};
  }
  HeadProduct queries_product(int i) const {
    return {.x = q.as<Bf16>(), .x_row = int64_t{heads} * kQueryHead, .x_head = kQueryHead,
            .w = weight(i).data, .w_head = kWeightRows * kLatent, .w_stride = kLatent, .transposed = true,
            .y = absorbed_q.as<Bf16>(), .y_row = int64_t{heads} * kCacheRow, .y_head = kCacheRow,
            .rows = rows, .heads = heads, .n = kLatent, .k = kNope};
  }
  HeadProduct values_product(int i) const {
    return {.x = latent.as<Bf16>(), .x_row = int64_t{heads} * kLatent, .x_head = kLatent,
            .w = weight(i).data + kNope * kLatent, .w_head = kWeightRows * kLatent, .w_stride = kLatent, .transposed = false,
            .y = out.as<Bf16>(), .y_row = int64_t{heads} * kValue, .y_head = kValue,
            .rows = rows, .heads = heads, .n = kValue, .k = kLatent};
  }

  int heads;
  int64_t rows;
  int copies;
  Buffer weights, q, absorbed_q, latent, out, fp8, scales;
};

class Absorb {
 public:
  Absorb(const Options& options, Report& report)
      : options_(options), report_(report), workspace_(Blas::kWorkspaceBytes, Buffer::Fill::kZero) {
    auto blas = Blas::create(workspace_.as<void>());
    if (blas.ok()) blas_ = std::move(blas).value();
  }

  void run(int heads, int64_t rows) {
    const Inputs inputs(heads, rows);
    const std::string shape = "heads=" + std::to_string(heads) + " rows=" + std::to_string(rows);
    const auto r = static_cast<double>(rows), h = static_cast<double>(heads);
    const double weights = h * kNope * kLatent * 2, flops = 2 * r * h * kNope * kLatent;
    const double query_bytes = weights + r * h * (kNope + kLatent) * 2, value_bytes = weights + r * h * (kLatent * 2 + kValue * 3 + 4);
    if (wants("absorb")) {
      add(inputs, "absorb", "queries " + shape, query_bytes, flops,
          [&](int i, Stream s) { return absorb_queries(inputs.queries(i, 0), s); }, "cuBLASLt",
          [&](int i, Stream s) { return blas_->head_product(inputs.queries_product(i), s); });
      add(inputs, "absorb", "values " + shape, value_bytes, flops, [&](int i, Stream s) { return expand_values(inputs.values(i, 0), s); },
          "cuBLASLt + quantise", [&](int i, Stream s) -> Status {
            DSV3_TRY(blas_->head_product(inputs.values_product(i), s));
            return quantise(inputs.plain(), inputs.quantised(), false, s);
          });
    }
    if (options_.filter.empty() || !wants("absorb_variants")) return;
    for (const int width : {64, 128}) {
      add(inputs, "absorb_variants", "queries " + shape + " variant=" + std::to_string(width), query_bytes, flops,
          [&](int i, Stream s) { return absorb_queries(inputs.queries(i, width), s); }, "", {});
    }
    for (const int tokens : {16, 32, 64}) {
      add(inputs, "absorb_variants", "values " + shape + " variant=" + std::to_string(tokens), value_bytes, flops,
          [&](int i, Stream s) { return expand_values(inputs.values(i, tokens), s); }, "", {});
    }
  }
  bool wants(const std::string& kernel) const { return kernel.find(options_.filter) != std::string::npos; }

 private:
  using Enqueue = std::function<Status(int, Stream)>;
  void add(const Inputs& inputs, const std::string& kernel, const std::string& shape, double bytes, double flops, const Enqueue& enqueue,
           const std::string& baseline, const Enqueue& other) {
    // A product reads half of kv_b: every copy once, or what a graph reads would fit in L2.
    const int launches = std::max(40, inputs.copies), replays = options_.quick ? 5 : 11;
    const auto timing = time_chain(launches, replays, enqueue);
    if (!timing.ok()) {
      std::fprintf(stderr, "%s %s: %s\n", kernel.c_str(), shape.c_str(), timing.status().message().c_str());
      return;
    }
    Row row;
    row.kernel = kernel, row.shape = shape, row.us = timing.value().us, row.spread = timing.value().spread, row.flops = flops,
    row.bytes = bytes;
    row.limit_us = std::max(flops / (Roofs{}.bf16_tflops * 1e6), bytes / (Roofs{}.hbm_gbps * 1e3));
    if (other && blas_ != nullptr) {
      const auto theirs = time_chain(launches, replays, other);
      if (theirs.ok()) {
        row.baseline = baseline;
        row.baseline_us = theirs.value().us;
      }
    }
    report_.add(row);
  }

  const Options& options_;
  Report& report_;
  Buffer workspace_;
  std::unique_ptr<Blas> blas_;
};

}  // namespace

void bench_absorb(const Options& options, Report& report) {
  if (std::string("absorb_variants").find(options.filter) == std::string::npos) return;
  Absorb absorb(options, report);
  for (const int heads : {128, 16, 8}) {
    for (const int64_t rows : {1, 16, 32, 64, 128, 256}) {
      if (options.quick && (rows == 64 || (heads == 8 && rows > 1))) continue;
      absorb.run(heads, rows);
    }
  }
}

}  // namespace dsv3::cuda::bench
