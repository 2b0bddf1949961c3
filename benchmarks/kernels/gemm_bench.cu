// fp8_gemm at every product of DeepSeek-V3, full size and the slices of TP 8 and 16; baseline cuBLASLt with block scales.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "harness.h"
#include "kernels/cuda/gemm/blas.h"
#include "kernels/cuda/gemm/gemm.h"

namespace dsv3::cuda::bench {
namespace {

constexpr char kKernel[] = "fp8_gemm";

/// Rows, and the time of DeepGEMM (54e2261) on an H100 80GB HBM3: microseconds, or TFLOPS for prefill sizes. 0: not known.
struct Point {
  int64_t m;
  double figure;
};
struct Shape {
  const char* name;
  int64_t n, k;
  std::vector<Point> micros, tflops;
};

const std::vector<Shape>& shapes() {
  // clang-format off
  static const std::vector<Shape> list = {
      {"q_a+kv_a", 2112, 7168, {{1, 13.7}, {8, 10.5}, {16, 10.2}, {32, 10.2}, {64, 9.2}, {128, 9.9}},
       {{256, 662}, {1024, 1003}, {2048, 998}, {4096, 1343}, {8192, 1133}}},
      {"q_b", 24576, 1536, {{1, 17.1}, {8, 17.4}, {16, 17.6}, {32, 17.7}, {64, 17.1}, {128, 18.8}},
       {{256, 856}, {1024, 1243}, {2048, 1304}, {4096, 1304}, {8192, 1330}}},
      {"kv_b", 32768, 512, {{1, 8.5}, {8, 8.5}, {16, 8.5}, {32, 8.7}, {64, 8.9}, {128, 10.2}},
       {{256, 640}, {1024, 882}, {2048, 1002}, {4096, 1017}, {8192, 960}}},
      {"o", 7168, 16384, {{1, 44.0}, {8, 44.2}, {16, 44.5}, {32, 44.8}, {64, 44.6}, {128, 46.0}},
       {{256, 1040}, {1024, 1239}, {2048, 1246}, {4096, 1490}, {8192, 1485}}},
      {"expert gate+up", 4096, 7168, {{1, 16.5}, {8, 13.6}, {16, 13.2}, {32, 13.3}, {64, 13.0}, {128, 13.2}},
       {{256, 918}, {1024, 1404}, {2048, 1437}, {4096, 1452}, {8192, 1459}}},
      {"expert down", 7168, 2048, {{1, 7.9}, {8, 7.8}, {16, 7.8}, {32, 7.8}, {64, 7.5}, {128, 8.5}},
       {{256, 742}, {1024, 1015}, {2048, 1077}, {4096, 1315}, {8192, 1338}}},
      {"q_b TP8", 3072, 1536, {{1, 4.7}, {8, 4.7}, {16, 4.7}, {32, 0}, {64, 4.5}, {128, 4.5}, {1024, 9.8}, {4096, 34.5}}, {}},
      {"q_b TP16", 1536, 1536, {{1, 4.3}, {8, 4.0}, {16, 4.0}, {32, 0}, {64, 3.8}, {128, 4.1}, {1024, 6.3}, {4096, 17.3}}, {}},
      {"kv_b TP8", 4096, 512, {{1, 3.1}, {8, 3.1}, {16, 3.1}, {32, 0}, {64, 3.0}, {128, 3.2}, {1024, 7.4}, {4096, 20.0}}, {}},
      {"kv_b TP16", 2048, 512, {{1, 2.8}, {8, 2.7}, {16, 2.7}, {32, 0}, {64, 2.6}, {128, 2.8}, {1024, 4.8}, {4096, 10.9}}, {}},
      {"o TP16", 7168, 1024, {{1, 5.1}, {8, 5.1}, {16, 5.1}, {32, 0}, {64, 5.0}, {128, 5.8}, {1024, 18.3}, {4096, 54.5}}, {}},
      {"shared gate+up TP8", 512, 7168, {{1, 9.5}, {8, 9.5}, {16, 9.5}, {32, 0}, {64, 8.7}, {128, 8.7}, {1024, 10.9}, {4096, 25.4}}, {}},
      {"shared gate+up TP16", 256, 7168, {{1, 9.4}, {8, 9.4}, {16, 9.4}, {32, 0}, {64, 8.5}, {128, 8.6}, {1024, 10.7}, {4096, 16.9}}, {}},
      {"shared down TP8", 7168, 256, {{1, 2.9}, {8, 2.9}, {16, 2.9}, {32, 0}, {64, 3.0}, {128, 3.6}, {1024, 9.2}, {4096, 26.8}}, {}},
      {"shared down TP16", 7168, 128, {{1, 2.4}, {8, 2.4}, {16, 2.4}, {32, 0}, {64, 2.5}, {128, 3.0}, {1024, 8.6}, {4096, 26.2}}, {}},
      {"dense gate+up", 36864, 7168,
       {{1, 91.7}, {8, 91.8}, {16, 92.1}, {32, 0}, {64, 93.6}, {128, 97.4}, {1024, 440.4}, {4096, 1684.0}}, {}},
      {"dense down", 7168, 18432, {{1, 49.3}, {8, 48.7}, {16, 49.5}, {32, 0}, {64, 50.0}, {128, 50.8}, {1024, 275.7}, {4096, 769.3}}, {}},
      {"dense gate+up TP8", 4608, 7168,
       {{1, 16.6}, {8, 15.4}, {16, 15.0}, {32, 0}, {64, 14.6}, {128, 15.8}, {1024, 66.7}, {4096, 232.5}}, {}},
      {"dense down TP8", 7168, 2304, {{1, 8.4}, {8, 8.4}, {16, 8.4}, {32, 0}, {64, 8.2}, {128, 9.1}, {1024, 37.2}, {4096, 108.8}}, {}},
  };
  // clang-format on
  return list;
}

bool is_quick(int64_t m) { return m == 1 || m == 16 || m == 128 || m == 1024 || m == 4096; }

/// One weight in as many copies as L2 cannot hold, and what its products read and write.
class ShapeBench {
 public:
  ShapeBench(const Shape& shape, int64_t max_rows, Blas& blas)
      : shape_(shape), blas_(blas), bands_((shape.n + 127) / 128), groups_(shape.k / 128),
        padded_((groups_ + 3) / 4 * 4), copies_(copies_beyond_l2(shape.n * shape.k, 400)),
        w_(copies_ * shape.n * shape.k, Buffer::Fill::kNormalE4m3, 1), w_scales_(copies_ * bands_ * padded_ * 4, Buffer::Fill::kScales, 2),
        x_(max_rows * shape.k, Buffer::Fill::kNormalE4m3, 3), x_scales_(max_rows * groups_ * 4, Buffer::Fill::kScales, 4),
        y_(max_rows * shape.n * 2, Buffer::Fill::kZero) {}

  void measure(int64_t m, double peer_us, Report& report) {
    Row row;
    row.kernel = kKernel;
    row.shape = std::string(shape_.name) + " " + std::to_string(shape_.n) + "x" + std::to_string(shape_.k) + " M=" + std::to_string(m);
    row.flops = 2.0 * static_cast<double>(m) * static_cast<double>(shape_.n) * static_cast<double>(shape_.k);
    row.bytes = static_cast<double>(shape_.n * shape_.k + m * shape_.k + 2 * m * shape_.n + 4 * groups_ * (m + bands_));
    const Roofs roofs;
    row.limit_us = std::max(row.bytes / roofs.hbm_gbps * 1e-3, row.flops / roofs.fp8_tflops * 1e-6);
    row.peer = "DeepGEMM";
    row.peer_us = peer_us;
    row.baseline = "cuBLASLt block-scaled";

    // A chain of about a millisecond at least, and not many where power would limit them.
    const int launches = std::max(copies_, static_cast<int>(std::min(200.0, 1000.0 / (row.limit_us * 1.3 + 1.0)) + 1));
    const int replays = m >= 256 ? 3 : 7;
    const Result<Timing> ours = time_chain(
        launches, replays, [&](int i, Stream stream) { return run_ours(i, m, stream); });
    if (!ours.ok()) {
      std::fprintf(stderr, "kernel_bench: %s %s: %s\n", kKernel, row.shape.c_str(), ours.status().message().c_str());
      return;
    }
    row.us = ours->us;
    row.spread = ours->spread;
    const Result<Timing> theirs = time_chain(
        launches, replays, [&](int i, Stream stream) { return run_cublas(i, m, stream); });
    if (theirs.ok()) {
      row.baseline_us = theirs->us;
    } else {
      row.baseline.clear();
      std::fprintf(stderr, "kernel_bench: cuBLASLt %s: %s\n", row.shape.c_str(), theirs.status().message().c_str());
    }
    report.add(row);
  }

 private:
  Fp8Weight weight(int i) const {
    const int64_t copy = i % copies_;
    return {w_.as<uint8_t>() + copy * shape_.n * shape_.k, w_scales_.as<float>() + copy * bands_ * padded_, shape_.n, shape_.k, 1};
  }
  Fp8Rows rows(int64_t m) const { return {x_.as<uint8_t>(), x_scales_.as<float>(), m, shape_.k, (m + 3) / 4 * 4}; }
  Status run_ours(int i, int64_t m, Stream stream) const {
    return fp8_gemm(rows(m), weight(i), {y_.as<Bf16>(), m, shape_.n, shape_.n}, GemmOptions{}, stream);
  }
  /// cuBLASLt refuses a single row: it gets eight.
  Status run_cublas(int i, int64_t m, Stream stream) const {
    const int64_t padded_rows = std::max<int64_t>(m, 8);
    const Fp8Weight w = weight(i);
    return blas_.fp8_block_gemm(rows(padded_rows), w, w.scales, {y_.as<Bf16>(), padded_rows, shape_.n, shape_.n}, stream);
  }

  const Shape& shape_;
  Blas& blas_;
  int64_t bands_, groups_, padded_;
  int copies_;
  Buffer w_, w_scales_, x_, x_scales_, y_;
};

}  // namespace

void bench_gemm(const Options& options, Report& report) {
  if (std::string(kKernel).find(options.filter) == std::string::npos) return;
  const Buffer blas_workspace(Blas::kWorkspaceBytes, Buffer::Fill::kZero);
  auto blas = Blas::create(blas_workspace.as<void>());
  if (!blas.ok()) {
    std::fprintf(stderr, "kernel_bench: %s\n", blas.status().message().c_str());
    return;
  }
  for (const Shape& shape : shapes()) {
    int64_t max_rows = 8;
    for (const auto* points : {&shape.micros, &shape.tflops}) {
      for (const Point& point : *points) {
        if (!options.quick || is_quick(point.m)) max_rows = std::max(max_rows, point.m);
      }
    }
    ShapeBench bench(shape, max_rows, **blas);
    for (const Point& point : shape.micros) {
      if (!options.quick || is_quick(point.m)) bench.measure(point.m, point.figure, report);
    }
    for (const Point& point : shape.tflops) {
      const double flops = 2.0 * static_cast<double>(point.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
      if (!options.quick || is_quick(point.m)) bench.measure(point.m, flops / point.figure * 1e-6, report);
    }
  }
}

}  // namespace dsv3::cuda::bench
