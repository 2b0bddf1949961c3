// FP8 products of up to 1024 rows with every tile and split, to choose between them (gemm_choice.h). Only with --filter
// gemm_variants.
#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "harness.h"
#include "kernels/cuda/gemm/gemm.h"
#include "kernels/cuda/gemm/gemm_choice.h"
#include "kernels/cuda/gemm/tiles_choice.h"

namespace dsv3::cuda::bench {
namespace {

constexpr char kKernel[] = "gemm_variants";
constexpr int64_t kMostRows = kStreamMaxRows;

constexpr int64_t kRows[] = {16, 32, 64, 128, 256, 512, 1024};
/// Times of DeepGEMM (54e2261) on an H100 80GB HBM3 at kRows; 0: not known.
struct Shape {
  int64_t n, k;
  double peer_us[std::size(kRows)];
};
constexpr Shape kShapes[] = {
    {2112, 7168, {10.2, 10.2, 9.2, 9.9, 11.7, 0, 30.9}},
    {24576, 1536, {17.6, 17.7, 17.1, 18.8, 22.6, 0, 62.2}},
    {32768, 512, {8.5, 8.7, 8.9, 10.2, 13.4, 0, 39}},
    {7168, 16384, {44.5, 44.8, 44.6, 46, 57.8, 0, 194.1}},
    {4096, 7168, {13.2, 13.3, 13, 13.2, 16.4, 0, 42.8}},
    {7168, 2048, {7.8, 7.8, 7.5, 8.5, 10.1, 0, 29.6}},
    {3072, 1536, {4.7, 0, 4.5, 4.5, 0, 0, 9.8}},
    {1536, 1536, {4, 0, 3.8, 4.1, 0, 0, 6.3}},
    {4096, 512, {3.1, 0, 3, 3.2, 0, 0, 7.4}},
    {2048, 512, {2.7, 0, 2.6, 2.8, 0, 0, 4.8}},
    {7168, 1024, {5.1, 0, 5, 5.8, 0, 0, 18.3}},
    {512, 7168, {9.5, 0, 8.7, 8.7, 0, 0, 10.9}},
    {256, 7168, {9.4, 0, 8.5, 8.6, 0, 0, 10.7}},
    {7168, 256, {2.9, 0, 3, 3.6, 0, 0, 9.2}},
    {7168, 128, {2.4, 0, 2.5, 3, 0, 0, 8.6}},
    {36864, 7168, {92.1, 0, 93.6, 97.4, 0, 0, 440.4}},
    {7168, 18432, {49.5, 0, 50, 50.8, 0, 0, 275.7}},
    {4608, 7168, {15, 0, 14.6, 15.8, 0, 0, 66.7}},
    {7168, 2304, {8.4, 0, 8.2, 9.1, 0, 0, 37.2}},
};

/// Times one variant and adds its row; microseconds, 0 on failure.
double measure(Row row, const std::string& variant, int launches, const std::function<Status(int, Stream)>& enqueue,
               Report& report) {
  row.shape += " variant=" + variant;
  const Result<Timing> timing = time_chain(launches, 3, enqueue);
  if (!timing.ok()) {
    std::fprintf(stderr, "kernel_bench: %s %s: %s\n", kKernel, row.shape.c_str(), timing.status().message().c_str());
    return 0;
  }
  row.us = timing->us;
  row.spread = timing->spread;
  report.add(row);
  return row.us;
}

void print_best(const std::string& shape, const std::map<std::string, double>& times, double peer_us) {
  const auto best = std::ranges::min_element(times, {}, [](const auto& entry) { return entry.second; });
  if (best == times.end()) return;
  std::fprintf(stderr, "gemm_variants %s: best %.2f us (%s), peer %.1f us\n", shape.c_str(), best->second,
               best->first.c_str(), peer_us);
}

void bench_dense(const Shape& shape, Report& report) {
  const int64_t bands = (shape.n + 127) / 128, groups = shape.k / 128,
                copies = copies_beyond_l2(shape.n * shape.k, 200);
  const Buffer w(copies * shape.n * shape.k, Buffer::Fill::kNormalE4m3, 1),
      w_scales(bands * groups * 4, Buffer::Fill::kScales, 2);
  const Buffer x(kMostRows * shape.k, Buffer::Fill::kNormalE4m3, 3),
      x_scales(kMostRows * groups * 4, Buffer::Fill::kScales, 4);
  const Buffer y(kMostRows * shape.n * 2, Buffer::Fill::kZero);
  const auto weight = [&](int i) {
    return Fp8Weight{w.as<uint8_t>() + i % copies * shape.n * shape.k, w_scales.as<float>(), shape.n, shape.k, 1};
  };
  for (size_t r = 0; r < std::size(kRows); ++r) {
    const int64_t m = kRows[r];
    const Fp8Rows rows{x.as<uint8_t>(), x_scales.as<float>(), m, shape.k, m};
    const Bf16Matrix out{y.as<Bf16>(), m, shape.n, shape.n};
    Row row;
    row.kernel = kKernel;
    row.shape = std::to_string(shape.n) + "x" + std::to_string(shape.k) + " M=" + std::to_string(m);
    row.flops = 2.0 * static_cast<double>(m * shape.n * shape.k);
    row.bytes = static_cast<double>(shape.n * shape.k + m * shape.k + 2 * m * shape.n + 4 * groups * (m + bands));
    row.limit_us = std::max(row.bytes / Roofs{}.hbm_gbps * 1e-3, row.flops / Roofs{}.fp8_tflops * 1e-6);
    row.peer = "DeepGEMM";
    row.peer_us = shape.peer_us[r];
    const int launches =
        std::max(static_cast<int>(copies), static_cast<int>(std::min(100.0, 800.0 / (row.limit_us * 1.3 + 1.0)) + 1));
    std::map<std::string, double> times;
    const auto time = [&](const std::string& variant, const std::function<Status(int, Stream)>& enqueue) {
      if (const double us = measure(row, variant, launches, enqueue, report); us > 0) times[variant] = us;
    };
    time("chosen (" + describe(choose_gemm(m, shape.n, shape.k, false)) + ")",
         [&](int i, Stream stream) { return fp8_gemm(rows, weight(i), out, {}, stream); });
    const double least = predict_stream_us(choose_stream(m, shape.n, shape.k, false), m, shape.n, shape.k);
    for (const StreamTile& tile : kStreamTiles) {
      if (tile.tokens > stream_tokens(m) || (tile.tokens * 4 < m && tile.tokens < 64)) continue;
      for (const int splits : kStreamSplits) {
        const StreamShape variant{tile.tokens, tile.weight_rows, splits};
        if (shape.k / 128 / splits < 2) continue;
        if (predict_stream_us(variant, m, shape.n, shape.k) > 1.7 * least + 1.0) continue;  // hopeless
        time(describe(variant),
             [&](int i, Stream stream) { return fp8_gemm_stream(variant, rows, weight(i), out, stream); });
      }
    }
    for (const TileShape tile : kTileShapes) {
      if (m < 64 || tile.rows > m) continue;
      time("tiles " + to_string(tile),
           [&](int i, Stream stream) { return fp8_gemm_tiles(tile, rows, weight(i), out, stream); });
    }
    print_best(row.shape, times, row.peer_us);
  }
}

/// Experts with so many rows each, as tiles of up to as many.
void bench_experts(int64_t n, int64_t k, int64_t experts, int64_t rows_each, double peer_us, Report& report) {
  const int64_t bands = (n + 127) / 128, groups = k / 128, m = experts * rows_each;
  const int64_t copies = copies_beyond_l2(experts * n * k, 8);
  const Buffer w(copies * experts * n * k, Buffer::Fill::kNormalE4m3, 1),
      w_scales(experts * bands * groups * 4, Buffer::Fill::kScales, 2);
  const Buffer x((m + 128) * k, Buffer::Fill::kNormalE4m3, 3),
      x_scales((m + 128) * groups * 4, Buffer::Fill::kScales, 4);
  const Buffer y(m * n * 2, Buffer::Fill::kZero);
  const auto weight = [&](int i) {
    return Fp8Weight{w.as<uint8_t>() + i % copies * experts * n * k, w_scales.as<float>(), n, k, experts};
  };
  const Fp8Rows rows{x.as<uint8_t>(), x_scales.as<float>(), m + 128, k, m + 128};
  const Bf16Matrix out{y.as<Bf16>(), m + 128, n, n};
  Row row;
  row.kernel = kKernel;
  row.shape = "experts " + std::to_string(n) + "x" + std::to_string(k) + " E=" + std::to_string(experts) +
              " m=" + std::to_string(rows_each);
  row.flops = 2.0 * static_cast<double>(m * n * k);
  row.bytes = static_cast<double>(experts * n * k + m * k + 2 * m * n);
  row.limit_us = std::max(row.bytes / Roofs{}.hbm_gbps * 1e-3, row.flops / Roofs{}.fp8_tflops * 1e-6);
  row.peer = "DeepGEMM masked";
  row.peer_us = peer_us;
  std::map<std::string, double> times;
  for (const int tile_rows : {64, 128, 256}) {
    if (tile_rows > rows_each || tile_rows * 2 < rows_each) continue;
    std::vector<ExpertTile> list;
    for (int64_t begin = 0; begin < m; begin += tile_rows) {
      list.push_back({static_cast<int32_t>(begin / rows_each), static_cast<int32_t>(begin), tile_rows, 0});
    }
    const auto count = static_cast<int32_t>(list.size());
    const Buffer tiles(list), counter(std::vector<int32_t>{count});
    const ExpertTiles given{tiles.as<ExpertTile>(), counter.as<int32_t>(), count, tile_rows};
    const auto time = [&](const std::string& variant, const std::function<Status(int, Stream)>& enqueue) {
      const std::string name = variant + " for " + std::to_string(tile_rows);
      if (const double us = measure(row, name, std::max(static_cast<int>(copies), 10), enqueue, report); us > 0)
        times[name] = us;
    };
    if (tile_rows <= kStreamTileRows)
      time("stream",
           [&](int i, Stream stream) { return fp8_grouped_gemm_stream(rows, weight(i), given, out, stream); });
    for (const TileShape tile : kTileShapes) {
      if (tile.rows < tile_rows) continue;
      time("tiles " + to_string(tile),
           [&](int i, Stream stream) { return fp8_grouped_gemm_tiles(tile, rows, weight(i), given, out, stream); });
    }
  }
  print_best(row.shape, times, peer_us);
}

}  // namespace

void bench_gemm_variants(const Options& options, Report& report) {
  if (options.filter != kKernel) return;
  for (const Shape& shape : kShapes) bench_dense(shape, report);
  struct Experts {
    int64_t n, k, count;
    double peer_us[3];  // of DeepGEMM, masked, at 64, 128 and 256 rows each
  };
  constexpr Experts kExperts[] = {{4096, 7168, 8, {85, 88, 112}},        {7168, 2048, 8, {47, 55, 62}},
                                  {4096, 7168, 32, {330, 347, 419}},     {7168, 2048, 32, {178, 189, 232}},
                                  {512, 7168, 256, {366, 417, 643}},     {7168, 256, 256, {264, 361, 506}},
                                  {256, 7168, 256, {205, 247, 348}},     {7168, 128, 256, {177, 267, 459}},
                                  {4096, 7168, 256, {2750, 2874, 3295}}, {7168, 2048, 256, {1376, 1464, 1902}}};
  for (const Experts& e : kExperts) {
    for (int i = 0; i < 3; ++i) bench_experts(e.n, e.k, e.count, int64_t{64} << i, e.peer_us[i], report);
  }
}

}  // namespace dsv3::cuda::bench
