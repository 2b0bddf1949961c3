// fp8_grouped_gemm at DeepSeek-V3's experts: whole, EP 8 and 32, TP 8 and 16; few rows for each expert (decode) and many (prefill).
#include <algorithm>
#include <cstdio>
#include <random>

#include "harness.h"
#include "kernels/cuda/gemm/gemm.h"

namespace dsv3::cuda::bench {
namespace {

constexpr char kKernel[] = "fp8_grouped_gemm";
constexpr int64_t kTopK = 8;

/// `rows`: of each expert that has any (decode), or of all together (prefill). Time of DeepGEMM (54e2261) on an H100 80GB HBM3:
/// masked for decode, contiguous for prefill. 0: not known.
struct Point {
  int64_t rows;
  double peer_us;
};
struct Shape {
  int64_t n, k, experts;
  int64_t hit;  ///< experts that have rows, spread evenly
  std::vector<Point> decode, prefill;
  std::vector<int64_t> spread{};  ///< rows of all together (prefill), each at a random expert
};

const std::vector<Shape>& shapes() {
  // clang-format off
  static const std::vector<Shape> list = {
      {4096, 7168, 8, 8, {{1, 85}, {4, 85}, {16, 85}, {64, 85}, {128, 88}, {256, 112}},
       {{4096, 199}, {8192, 356}, {16384, 692}, {32768, 1363}, {65536, 2724}}},
      {4096, 7168, 32, 32, {{1, 332}, {4, 331}, {16, 331}, {64, 330}, {128, 347}, {256, 419}},
       {{4096, 395}, {8192, 454}, {16384, 752}, {32768, 1400}, {65536, 2770}}},
      {4096, 7168, 256, 256, {{1, 2765}, {4, 2756}, {16, 2759}, {64, 2750}, {128, 2874}, {256, 3295}},
       {{32768, 3410}, {65536, 3553}}, {32768}},
      {4096, 7168, 256, 64, {{1, 0}}, {}},
      {7168, 2048, 8, 8, {{1, 46}, {4, 47}, {16, 47}, {64, 47}, {128, 55}, {256, 62}},
       {{4096, 107}, {8192, 191}, {16384, 366}, {32768, 726}, {65536, 1443}}},
      {7168, 2048, 32, 32, {{1, 178}, {4, 179}, {16, 178}, {64, 178}, {128, 189}, {256, 232}},
       {{4096, 204}, {8192, 245}, {16384, 393}, {32768, 742}, {65536, 1441}}},
      {7168, 2048, 256, 256, {{1, 1377}, {4, 1375}, {16, 1374}, {64, 1376}, {128, 1464}, {256, 1902}},
       {{32768, 1618}, {65536, 1887}}, {32768}},
      {7168, 2048, 256, 64, {{1, 0}}, {}},
      {512, 7168, 256, 256, {{1, 367}, {4, 366}, {16, 369}, {64, 366}, {128, 417}, {256, 643}}, {{32768, 479}, {65536, 569}}},
      {512, 7168, 256, 8, {{1, 0}}, {}},
      {7168, 256, 256, 256, {{1, 264}, {4, 265}, {16, 265}, {64, 264}, {128, 361}, {256, 506}}, {{32768, 366}, {65536, 520}}},
      {7168, 256, 256, 8, {{1, 0}}, {}},
      {256, 7168, 256, 256, {{1, 206}, {4, 205}, {16, 205}, {64, 205}, {128, 247}, {256, 348}}, {}},
      {7168, 128, 256, 256, {{1, 177}, {4, 176}, {16, 176}, {64, 176}, {128, 267}, {256, 459}}, {}},
  };
  // clang-format on
  return list;
}

bool is_quick(const Point& point, bool prefill) {
  if (prefill) return point.rows == 8192 || point.rows == 65536;
  return point.rows == 1 || point.rows == 16 || point.rows == 128;
}

/// Rows of each expert that has any: all the same, or `total` at random experts, as a router does.
std::vector<int64_t> even_rows(int64_t experts, int64_t rows) { return std::vector<int64_t>(static_cast<size_t>(experts), rows); }
std::vector<int64_t> spread_rows(int64_t experts, int64_t total) {
  std::vector<int64_t> counts(static_cast<size_t>(experts));
  std::mt19937 generator(7);
  for (int64_t i = 0; i < total; ++i) ++counts[generator() % counts.size()];
  return counts;
}

/// Tiles as the router would write them: rows[i] of the i-th expert that has any, starting on multiples of 8.
struct Tiling {
  Tiling(const Shape& shape, const std::vector<int64_t>& rows_of, int tile_rows) {
    for (int64_t i = 0; i < shape.hit; ++i) {
      const int64_t rows = rows_of[static_cast<size_t>(i)];
      for (int64_t at = 0; at < rows; at += tile_rows) {
        tiles.push_back({static_cast<int32_t>(i * shape.experts / shape.hit), static_cast<int32_t>(all_rows + at),
                         static_cast<int32_t>(std::min<int64_t>(tile_rows, rows - at)), 0});
      }
      all_rows += (rows + kExpertRowAlign - 1) / kExpertRowAlign * kExpertRowAlign;
    }
    count = static_cast<int32_t>(tiles.size());
    tiles.resize(tiles.size() + static_cast<size_t>(shape.experts - shape.hit));  // of experts without rows: part of the list, not used
  }
  std::vector<ExpertTile> tiles;
  int32_t count = 0;
  int64_t all_rows = 0;
};

/// The experts of one shape in as many copies as L2 cannot hold.
class ShapeBench {
 public:
  ShapeBench(const Shape& shape, int64_t max_rows)
      : shape_(shape), bands_((shape.n + 127) / 128), groups_(shape.k / 128), max_rows_(max_rows),
        copies_(copies_beyond_l2(shape.hit * shape.n * shape.k,
                                 std::max<int>(1, static_cast<int>(8'000'000'000 / (shape.experts * shape.n * shape.k))))),
        w_(copies_ * shape.experts * shape.n * shape.k, Buffer::Fill::kNormalE4m3, 1),
        w_scales_(copies_ * shape.experts * bands_ * groups_ * 4, Buffer::Fill::kScales, 2),
        x_(max_rows * shape.k, Buffer::Fill::kNormalE4m3, 3), x_scales_(max_rows * groups_ * 4, Buffer::Fill::kScales, 4),
        y_(max_rows * shape.n * 2, Buffer::Fill::kZero) {}

  void measure(const Point& point, bool prefill, bool spread, Report& report) {
    const int64_t rows_each = prefill ? point.rows / shape_.hit : point.rows;
    const int tile_rows = grouped_tile_rows(std::max<int64_t>(rows_each * shape_.hit / kTopK, 1), kTopK, shape_.experts);
    const Tiling tiling(shape_, spread ? spread_rows(shape_.hit, point.rows) : even_rows(shape_.hit, rows_each), tile_rows);
    const int64_t rows = (tiling.all_rows + tile_rows + 3) / 4 * 4;
    Row row;
    row.kernel = kKernel;
    row.shape = (prefill ? "prefill " : "decode ") + std::to_string(shape_.n) + "x" + std::to_string(shape_.k) +
                " E=" + std::to_string(shape_.hit) + (shape_.hit < shape_.experts ? " of " + std::to_string(shape_.experts) : "") +
                (prefill ? " rows=" : " m=") + std::to_string(point.rows) + (spread ? " spread" : "");
    if (rows > max_rows_) {
      std::fprintf(stderr, "kernel_bench: %s %s: %lld rows do not fit\n", kKernel, row.shape.c_str(), static_cast<long long>(rows));
      return;
    }
    const double real_rows = static_cast<double>(rows_each * shape_.hit), n = static_cast<double>(shape_.n),
                 k = static_cast<double>(shape_.k);
    const double hit = static_cast<double>(shape_.hit);
    row.flops = 2.0 * real_rows * n * k;
    row.bytes = hit * n * k + hit * 4.0 * static_cast<double>(bands_ * groups_) + real_rows * (k + k / 32.0 + 2.0 * n);
    const Roofs roofs;
    row.limit_us = std::max(row.bytes / roofs.hbm_gbps * 1e-3, row.flops / roofs.fp8_tflops * 1e-6);
    row.peer = prefill ? "DeepGEMM contiguous" : "DeepGEMM masked";
    row.peer_us = point.peer_us;

    const Buffer tiles(tiling.tiles), count(std::vector<int32_t>{tiling.count});
    const ExpertTiles list{tiles.as<ExpertTile>(), count.as<int32_t>(), static_cast<int32_t>(tiling.tiles.size()), tile_rows};
    const Fp8Rows x{x_.as<uint8_t>(), x_scales_.as<float>(), rows, shape_.k, rows};
    const Bf16Matrix y{y_.as<Bf16>(), rows, shape_.n, shape_.n};

    // Decode: chains long enough that their ends do not count. Many rows: short ones, before the power limit lowers the clock.
    const int chain = prefill ? 1 : std::clamp(static_cast<int>(8000.0 / row.limit_us), 1, 10);
    const int launches = std::max({copies_, chain, static_cast<int>(std::min(100.0, 1000.0 / (row.limit_us * 1.3 + 1.0)) + 1)});
    const int replays = row.limit_us > 500 ? 3 : 5;
    const Result<Timing> ours = time_chain(
        launches, replays, [&](int i, Stream stream) { return fp8_grouped_gemm(x, weight(i), list, y, GemmOptions{}, stream); });
    if (!ours.ok()) {
      std::fprintf(stderr, "kernel_bench: %s %s: %s\n", kKernel, row.shape.c_str(), ours.status().message().c_str());
      return;
    }
    row.us = ours->us;
    row.spread = ours->spread;
    if (is_quick(point, prefill)) {
      const int baseline_launches = std::max(1, std::min(launches, static_cast<int>(2000.0 / row.limit_us)));
      const Result<Timing> simple = time_chain(
          baseline_launches, 1, [&](int i, Stream stream) { return simple_fp8_grouped_gemm(x, weight(i), list, y, stream); });
      if (simple.ok()) {
        row.baseline = "simple_fp8_grouped_gemm";
        row.baseline_us = simple->us;
      } else {
        std::fprintf(stderr, "kernel_bench: simple %s: %s\n", row.shape.c_str(), simple.status().message().c_str());
      }
    }
    report.add(row);
  }

 private:
  Fp8Weight weight(int i) const {
    const int64_t copy = i % copies_;
    return {w_.as<uint8_t>() + copy * shape_.experts * shape_.n * shape_.k,
            w_scales_.as<float>() + copy * shape_.experts * bands_ * groups_, shape_.n, shape_.k, shape_.experts};
  }

  const Shape& shape_;
  int64_t bands_, groups_, max_rows_;
  int copies_;
  Buffer w_, w_scales_, x_, x_scales_, y_;
};

/// Rows that the largest of the chosen points needs, with the rows that may be read past the last tile.
int64_t rows_needed(const Shape& shape, bool quick) {
  int64_t rows = 0;
  for (const Point& point : shape.decode) {
    if (!quick || is_quick(point, false)) rows = std::max(rows, shape.hit * ((point.rows + 7) / 8 * 8));
  }
  for (const Point& point : shape.prefill) {
    if (!quick || is_quick(point, true)) rows = std::max(rows, shape.hit * ((point.rows / shape.hit + 7) / 8 * 8));
  }
  for (const int64_t all : shape.spread) rows = std::max(rows, all + 7 * shape.hit);
  return rows + 256;
}

}  // namespace

void bench_grouped_gemm(const Options& options, Report& report) {
  if (std::string(kKernel).find(options.filter) == std::string::npos) return;
  for (const Shape& shape : shapes()) {
    ShapeBench bench(shape, rows_needed(shape, options.quick));
    for (const Point& point : shape.decode) {
      if (!options.quick || is_quick(point, false)) bench.measure(point, false, false, report);
    }
    for (const Point& point : shape.prefill) {
      if (!options.quick || is_quick(point, true)) bench.measure(point, true, false, report);
    }
    for (const int64_t rows : shape.spread) bench.measure({rows, 0}, true, true, report);
  }
}

}  // namespace dsv3::cuda::bench
