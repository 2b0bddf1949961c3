// Every tile of the tensor-core FP8 products at prefill sizes: what tiles_choice.cpp should choose. Runs only when
// asked for by name (--filter tiles_variants); baseline of dense products: cuBLASLt with block scales.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "harness.h"
#include "kernels/cuda/gemm/blas.h"
#include "kernels/cuda/gemm/gemm.h"
#include "kernels/cuda/gemm/tiles_choice.h"

namespace dsv3::cuda::bench {
namespace {

constexpr char kKernel[] = "tiles_variants";
constexpr int kReplays = 3;

struct Product {
  int64_t n, k, experts;  ///< experts 1: dense
  std::vector<int64_t> rows;
};
// clang-format off
const std::vector<Product>& products() {
  static const std::vector<Product> list = {
      {2112, 7168, 1, {2048, 4096, 8192}}, {24576, 1536, 1, {2048, 4096}}, {32768, 512, 1, {2048, 4096}}, {7168, 16384, 1, {2048, 4096}},
      {4096, 7168, 1, {2048, 4096, 8192}}, {7168, 2048, 1, {2048, 4096}}, {512, 7168, 1, {2048, 4096}}, {256, 7168, 1, {2048, 4096}},
      {3072, 1536, 1, {2048, 4096}}, {1536, 1536, 1, {4096}}, {4096, 512, 1, {4096}}, {7168, 256, 1, {4096}}, {4608, 7168, 1, {4096}},
      {4096, 7168, 8, {8192}}, {4096, 7168, 32, {8192}}, {7168, 2048, 8, {8192}}, {7168, 2048, 32, {8192}},
      {4096, 7168, 256, {32768, 65536}}, {7168, 2048, 256, {32768, 65536}},
  };
  return list;
}
// clang-format on

class ProductBench {
 public:
  ProductBench(const Product& product, Blas& blas)
      : product_(product),
        blas_(blas),
        bands_((product.n + 127) / 128),
        groups_(product.k / 128),
        padded_((groups_ + 3) / 4 * 4),
        max_rows_(*std::max_element(product.rows.begin(), product.rows.end()) + 8 * product.experts),
        copies_(copies_beyond_l2(product.experts * product.n * product.k, 32)),
        w_(copies_ * product.experts * product.n * product.k, Buffer::Fill::kNormalE4m3, 1),
        w_scales_(copies_ * product.experts * bands_ * padded_ * 4, Buffer::Fill::kScales, 2),
        x_((max_rows_ + 256) * product.k, Buffer::Fill::kNormalE4m3, 3),
        x_scales_((max_rows_ + 256) * groups_ * 4, Buffer::Fill::kScales, 4),
        y_((max_rows_ + 256) * product.n * 2, Buffer::Fill::kZero) {}

  void measure(int64_t m, Report& report) const {
    const bool grouped = product_.experts > 1;
    Row row;
    row.kernel = kKernel;
    row.flops = 2.0 * static_cast<double>(m) * static_cast<double>(product_.n) * static_cast<double>(product_.k);
    row.bytes = static_cast<double>(product_.experts * product_.n * product_.k + m * product_.k + 2 * m * product_.n +
                                    4 * groups_ * (m + product_.experts * bands_));
    const Roofs roofs;
    row.limit_us = std::max(row.bytes / roofs.hbm_gbps * 1e-3, row.flops / roofs.fp8_tflops * 1e-6);
    const int launches = std::max({2, copies_, static_cast<int>(1000.0 / (row.limit_us * 1.3 + 1.0))});
    const std::string shape = std::to_string(product_.n) + "x" + std::to_string(product_.k) +
                              (grouped ? " E=" + std::to_string(product_.experts) : "") + " M=" + std::to_string(m);
    if (!grouped) {
      const Result<Timing> theirs = time_chain(
          launches, kReplays,
          [&](int i, Stream stream) {
            return blas_.fp8_block_gemm(rows(m), weight(i), weight(i).scales, y(m), stream);
          });
      if (theirs.ok()) {
        row.baseline = "cuBLASLt block-scaled";
        row.baseline_us = theirs->us;
      }
    }
    row.shape = shape;
    if (!grouped) {
      for (const TileShape& each : kTileShapes) {
        if (each.rows < 128) continue;
        add(
            row, each, "", launches,
            [&](TileShape tile, int i, Stream stream) {
              return fp8_gemm_tiles(tile, rows(m), weight(i), y(m), stream);
            },
            report);
      }
      return;
    }
    measure_lists(row, even_rows(m), launches, report);
    row.shape += " spread";
    measure_lists(row, spread_rows(m), launches, report);
  }

 private:
  using Enqueue = std::function<Status(TileShape, int, Stream)>;

  /// Rows of each expert: all the same, or each row at a random expert.
  std::vector<int64_t> even_rows(int64_t m) const {
    return std::vector<int64_t>(static_cast<size_t>(product_.experts), m / product_.experts);
  }
  std::vector<int64_t> spread_rows(int64_t m) const {
    std::vector<int64_t> counts(static_cast<size_t>(product_.experts));
    std::mt19937 generator(7);
    for (int64_t i = 0; i < m; ++i) ++counts[generator() % counts.size()];
    return counts;
  }

  /// Lists of tiles of 64, 128 and 256 rows, each with the tiles made for it.
  void measure_lists(const Row& row, const std::vector<int64_t>& counts, int launches, Report& report) const {
    for (const int tile_rows : {64, 128, 256}) {
      std::vector<ExpertTile> list;
      int64_t begin = 0;
      for (size_t e = 0; e < counts.size(); ++e) {
        for (int64_t at = 0; at < counts[e]; at += tile_rows) {
          list.push_back({static_cast<int32_t>(e), static_cast<int32_t>(begin + at),
                          static_cast<int32_t>(std::min<int64_t>(tile_rows, counts[e] - at)), 0});
        }
        begin += (counts[e] + kExpertRowAlign - 1) / kExpertRowAlign * kExpertRowAlign;
      }
      const auto count = static_cast<int32_t>(list.size());
      const Buffer device_list(list), device_count(std::vector<int32_t>{count});
      const ExpertTiles tiles{device_list.as<ExpertTile>(), device_count.as<int32_t>(), count, tile_rows};
      const Enqueue enqueue = [&](TileShape tile, int i, Stream stream) {
        return fp8_grouped_gemm_tiles(tile, rows(begin), weight(i), tiles, y(begin), stream);
      };
      const std::string name = ",list " + std::to_string(tile_rows);
      for (const TileShape& each : kTileShapes) {
        if (each.rows == tile_rows) add(row, each, name, launches, enqueue, report);
      }
    }
  }

  void add(Row row, TileShape tile, const std::string& suffix, int launches, const Enqueue& enqueue,
           Report& report) const {
    const Result<Timing> ours = time_chain(launches, kReplays, [&](int i, Stream stream) { return enqueue(tile, i, stream); });
    row.shape += " variant=" + to_string(tile) + suffix;
    if (!ours.ok()) {
      std::fprintf(stderr, "kernel_bench: %s %s: %s\n", kKernel, row.shape.c_str(), ours.status().message().c_str());
      return;
    }
    row.us = ours->us;
    row.spread = ours->spread;
    report.add(row);
  }

  Fp8Weight weight(int i) const {
    const int64_t copy = i % copies_;
    return {w_.as<uint8_t>() + copy * product_.experts * product_.n * product_.k,
            w_scales_.as<float>() + copy * product_.experts * bands_ * padded_, product_.n, product_.k,
            product_.experts};
  }
  Fp8Rows rows(int64_t m) const { return {x_.as<uint8_t>(), x_scales_.as<float>(), m, product_.k, m}; }
  Bf16Matrix y(int64_t m) const { return {y_.as<Bf16>(), m, product_.n, product_.n}; }

  const Product& product_;
  Blas& blas_;
  int64_t bands_, groups_, padded_, max_rows_;
  int copies_;
  Buffer w_, w_scales_, x_, x_scales_, y_;
};

}  // namespace

void bench_tiles_variants(const Options& options, Report& report) {
  if (options.filter.empty() || std::string(kKernel).find(options.filter) == std::string::npos) return;
  const Buffer blas_workspace(Blas::kWorkspaceBytes, Buffer::Fill::kZero);
  auto blas = Blas::create(blas_workspace.as<void>());
  if (!blas.ok()) {
    std::fprintf(stderr, "kernel_bench: %s\n", blas.status().message().c_str());
    return;
  }
  for (const Product& product : products()) {
    const ProductBench bench(product, **blas);
    for (const int64_t m : product.rows) bench.measure(m, report);
  }
}

}  // namespace dsv3::cuda::bench
