// fp8_gate_up at DeepSeek-V3's experts; baseline the two launches that it replaces, product and
// activation.
#include <algorithm>
#include <cstdio>

#include "harness.h"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/gemm/fp8_gate_up.h"
#include "kernels/cuda/gemm/gemm.h"
#include "kernels/cuda/norm/norm.h"

namespace dsv3::cuda::bench {
namespace {

constexpr char kKernel[] = "fp8_gate_up", kVariants[] = "gate_up_variants";
constexpr int64_t kK = 7168;

/// `hit` of `experts` experts with `rows` rows each, in a list for `max_tiles` tiles.
struct Shape {
  const char* name;
  int64_t width, experts, hit, max_tiles, rows;
  bool variants, quick;  ///< also with every split; in a short run
};
// clang-format off
constexpr Shape kShapes[] = {
    {"experts TP8, batch 1", 256, 256, 8, 9, 1, true, true},
    {"experts TP8, batch 4", 256, 256, 32, 36, 1, true, true},
    {"experts TP8, batch 32", 256, 256, 163, 256, 2, true, true},
    {"experts TP16, batch 1", 128, 256, 8, 9, 1, true, true},
    {"experts EP32, batch 1", 2048, 8, 8, 8, 1, true, true},
    {"experts EP32, 1 of 8 hit", 2048, 8, 1, 8, 1, true, true},
    {"experts EP8, all hit", 2048, 32, 32, 32, 1, false, true},
};
// clang-format on

class ShapeBench {
 public:
  explicit ShapeBench(const Shape& shape)
      : shape_(shape),
        count_(shape.experts),
        n_(2 * shape.width),
        rows_(shape.hit * ((shape.rows + 7) / 8 * 8) + 32),
        copies_(copies_beyond_l2(shape.hit * n_ * kK,
                                 std::max<int>(1, static_cast<int>(8'000'000'000 / (count_ * n_ * kK))))),
        w_(copies_ * count_ * n_ * kK, Buffer::Fill::kNormalE4m3, 1),
        w_scales_(copies_ * count_ * n_ / 128 * (kK / 128) * 4, Buffer::Fill::kScales, 2),
        x_(rows_ * kK, Buffer::Fill::kNormalE4m3, 3),
        x_scales_(rows_ * (kK / 128) * 4, Buffer::Fill::kScales, 4),
        gate_up_(rows_ * n_ * 2, Buffer::Fill::kZero),
        out_(rows_ * shape.width, Buffer::Fill::kZero),
        out_scales_(rows_ * (shape.width / 128) * 4, Buffer::Fill::kZero),
        list_(list_of(shape)),
        used_(std::vector<int32_t>{static_cast<int32_t>(shape.hit)}) {}

  void measure(int splits, Report& report) {
    const Roofs roofs;
    const auto real = static_cast<double>(shape_.hit * shape_.rows);
    const auto weights = static_cast<double>(shape_.hit * n_ * kK);
    Row row;
    row.kernel = splits == 0 ? kKernel : kVariants;
    const int chosen = gate_up_splits(kK);
    row.shape = std::string(shape_.name) + " " + std::to_string(n_) + "x7168 E=" + std::to_string(shape_.hit) +
                " m=" + std::to_string(shape_.rows) +
                (splits == 0 ? " (splits " + std::to_string(chosen) + ")" : " variant=splits" + std::to_string(splits));
    row.flops = 2.0 * real * static_cast<double>(n_ * kK);
    row.bytes = weights * (1 + 4.0 / 16384) +
                real * (kK * (1 + 4.0 / 128) + static_cast<double>(shape_.width) * (1 + 4.0 / 128));
    row.limit_us = std::max(row.bytes / roofs.hbm_gbps * 1e-3, row.flops / roofs.fp8_tflops * 1e-6);
    const int launches = std::max(copies_, static_cast<int>(std::min(100.0, 1000.0 / (row.limit_us * 1.3 + 1.0)) + 1));
    const Result<Timing> ours = time_chain(
        launches, 5, [&](int i, Stream stream) { return run(i, splits, stream); });
    if (!ours.ok()) {
      std::fprintf(stderr, "kernel_bench: %s: %s\n", row.shape.c_str(), ours.status().message().c_str());
      return;
    }
    row.us = ours->us, row.spread = ours->spread;
    if (splits == 0) {
      const Result<Timing> two = time_chain(
          launches, 5, [&](int i, Stream stream) { return run_two(i, stream); });
      if (two.ok()) row.baseline = "product, then silu_mul", row.baseline_us = two->us;
    }
    report.add(row);
  }

 private:
  static std::vector<ExpertTile> list_of(const Shape& shape) {
    std::vector<ExpertTile> tiles(static_cast<size_t>(shape.max_tiles));
    for (int64_t i = 0; i < shape.hit; ++i) {
      tiles[static_cast<size_t>(i)] = {static_cast<int32_t>(i * shape.experts / shape.hit),
                                       static_cast<int32_t>(i * ((shape.rows + 7) / 8 * 8)),
                                       static_cast<int32_t>(shape.rows), 0};
    }
    return tiles;
  }
  Fp8Weight weight(int i) const {
    const int64_t copy = i % copies_;
    return {w_.as<uint8_t>() + copy * count_ * n_ * kK, w_scales_.as<float>() + copy * count_ * n_ / 128 * (kK / 128),
            n_, kK, count_};
  }
  Fp8Rows x() const { return {x_.as<uint8_t>(), x_scales_.as<float>(), rows_, kK, rows_}; }
  Fp8Rows out() const {
    return {out_.as<uint8_t>(), out_scales_.as<float>(), rows_, shape_.width, rows_};
  }
  ExpertTiles tiles() const {
    return {list_.as<ExpertTile>(), used_.as<int32_t>(), static_cast<int32_t>(shape_.max_tiles), 8};
  }
  Status run(int i, int splits, Stream stream) {
    const GateUpOptions options{.splits = splits};
    return fp8_gate_up(x(), weight(i), tiles(), out(), options, stream);
  }
  /// The activation looks at every row of the tiles, as silu_mul_permuted() does.
  Status run_two(int i, Stream stream) {
    const Bf16Matrix y{gate_up_.as<Bf16>(), x().rows, n_, n_};
    const Status product = fp8_grouped_gemm(x(), weight(i), tiles(), y, {}, stream);
    return product.ok() ? silu_mul(y, {}, out(), false, stream) : product;
  }

  const Shape& shape_;
  int64_t count_, n_, rows_;
  int copies_;
  Buffer w_, w_scales_, x_, x_scales_, gate_up_, out_, out_scales_, list_, used_;
};

}  // namespace

void bench_gate_up(const Options& options, Report& report) {
  const auto wants = [&](const char* kernel) { return std::string(kernel).find(options.filter) != std::string::npos; };
  if (!wants(kKernel) && !wants(kVariants)) return;
  for (const Shape& shape : kShapes) {
    if ((options.quick && !shape.quick) || (!wants(kKernel) && !shape.variants)) continue;
    ShapeBench bench(shape);
    if (wants(kKernel)) bench.measure(0, report);
    for (int splits = 1; splits <= kGateUpMaxSplits && shape.variants && wants(kVariants); splits *= 2)
      bench.measure(splits, report);
  }
}

}  // namespace dsv3::cuda::bench
