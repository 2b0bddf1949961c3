// fp8_down at DeepSeek-V3's experts in decode; baseline fp8_grouped_gemm_stream, of which it gives the bits.
#include <algorithm>
#include <cstdio>

#include "harness.h"
#include "kernels/cuda/gemm/fp8_down.h"
#include "kernels/cuda/gemm/gemm.h"

namespace dsv3::cuda::bench {
namespace {

constexpr char kKernel[] = "fp8_down";
constexpr int64_t kN = 7168;

/// `hit` of `experts` experts with `rows` rows each, in a list for `max_tiles` tiles.
struct Shape {
  const char* name;
  int64_t k, experts, hit, max_tiles, rows;
  double peer_us;  ///< DeepGEMM (54e2261), masked, on an H100 80GB HBM3; 0: not known
};
// clang-format off
constexpr Shape kShapes[] = {
    {"TP8, batch 1", 256, 256, 8, 9, 1, 0},   {"TP8, batch 4", 256, 256, 32, 36, 1, 0}, {"TP8, batch 32", 256, 256, 163, 256, 2, 0},
    {"TP8, all hit", 256, 256, 256, 256, 1, 264}, {"TP16, batch 1", 128, 256, 8, 9, 1, 0},
    {"EP32", 2048, 8, 8, 8, 1, 46},           {"EP32", 2048, 8, 8, 8, 16, 47},          {"EP32, 1 of 8 hit", 2048, 8, 1, 8, 1, 0},
    {"EP8", 2048, 32, 32, 32, 1, 178},
};
// clang-format on

void measure(const Shape& shape, Report& report) {
  const int64_t groups = shape.k / 128, step = (shape.rows + 7) / 8 * 8, rows = shape.hit * step + 32;
  const int64_t weight_bytes = shape.experts * kN * shape.k, scale_count = shape.experts * (kN / 128) * groups;
  const int copies = copies_beyond_l2(shape.hit * kN * shape.k, std::max<int>(1, static_cast<int>(6'000'000'000 / weight_bytes)));
  const Buffer w(copies * weight_bytes, Buffer::Fill::kNormalE4m3, 1), w_scales(copies * scale_count * 4, Buffer::Fill::kScales, 2);
  const Buffer x_data(rows * shape.k, Buffer::Fill::kNormalE4m3, 3), x_scales(rows * groups * 4, Buffer::Fill::kScales, 4);
  const Buffer y_data(rows * kN * 2, Buffer::Fill::kZero);
  const Buffer list(shape.max_tiles * int64_t{sizeof(ExpertTile)}, Buffer::Fill::kZero), used(4, Buffer::Fill::kZero);
  std::vector<ExpertTile> host(static_cast<size_t>(shape.max_tiles));
  for (int64_t i = 0; i < shape.hit; ++i) {
    host[static_cast<size_t>(i)] = {static_cast<int32_t>(i * shape.experts / shape.hit), static_cast<int32_t>(i * step),
                                    static_cast<int32_t>(shape.rows), 0};
  }
  const auto count = static_cast<int32_t>(shape.hit);
  cudaMemcpy(list.as<void>(), host.data(), host.size() * sizeof(ExpertTile), cudaMemcpyHostToDevice);
  cudaMemcpy(used.as<void>(), &count, 4, cudaMemcpyHostToDevice);
  cudaDeviceSynchronize();  // streams of time_chain do not wait for these copies

  const ExpertTiles tiles{list.as<ExpertTile>(), used.as<int32_t>(), static_cast<int32_t>(shape.max_tiles), shape.rows <= 8 ? 8 : 16};
  const Fp8Rows x{x_data.as<uint8_t>(), x_scales.as<float>(), rows, shape.k, rows};
  const Bf16Matrix y{y_data.as<Bf16>(), rows, kN, kN};
  const auto weight = [&](int i) {
    const int64_t copy = i % copies;
    return Fp8Weight{w.as<uint8_t>() + copy * weight_bytes, w_scales.as<float>() + copy * scale_count, kN, shape.k, shape.experts};
  };
  Row row;
  row.kernel = kKernel;
  row.shape = std::string(shape.name) + " 7168x" + std::to_string(shape.k) + " E=" + std::to_string(shape.hit) + " m=" +
              std::to_string(shape.rows);
  const Roofs roofs;
  const auto real = static_cast<double>(shape.hit * shape.rows), of_weights = static_cast<double>(shape.hit * kN * shape.k);
  row.flops = 2.0 * real * static_cast<double>(kN * shape.k);
  row.bytes = of_weights * (1 + 4.0 / 16384) + real * (static_cast<double>(shape.k) * (1 + 4.0 / 128) + 2.0 * kN);
  row.limit_us = std::max(row.bytes / roofs.hbm_gbps * 1e-3, row.flops / roofs.fp8_tflops * 1e-6);
  row.peer = "DeepGEMM masked";
  row.peer_us = shape.peer_us;
  const int launches = std::max(copies, static_cast<int>(std::min(100.0, 1000.0 / (row.limit_us * 1.3 + 1.0)) + 1));
  const Result<Timing> ours = time_chain(launches, 5, [&](int i, Stream stream) { return fp8_down(x, weight(i), tiles, y, stream); }, 0);
  if (!ours.ok()) {
    std::fprintf(stderr, "kernel_bench: %s: %s\n", row.shape.c_str(), ours.status().message().c_str());
    return;
  }
  row.us = ours->us, row.spread = ours->spread;
  const Result<Timing> stream_kernel =
      time_chain(launches, 5, [&](int i, Stream stream) { return fp8_grouped_gemm_stream(x, weight(i), tiles, y, stream); }, 0);
  if (stream_kernel.ok()) row.baseline = "fp8_grouped_gemm_stream", row.baseline_us = stream_kernel->us;
  report.add(row);
}

}  // namespace

void bench_down(const Options& options, Report& report) {
  if (std::string(kKernel).find(options.filter) == std::string::npos) return;
  for (const Shape& shape : kShapes) measure(shape, report);
}

}  // namespace dsv3::cuda::bench
