// Experts of few rows as hits: gate and up, and the weighted sum of outputs. Baseline: the launches for rows in order by expert,
// from the copy of the rows to the weighted sum.
#include <algorithm>
#include <cstdio>
#include <random>

#include "harness.h"
#include "kernels/cuda/gemm/fp8_expert_sum.h"
#include "kernels/cuda/gemm/fp8_gate_up.h"
#include "kernels/cuda/gemm/gemm.h"
#include "kernels/cuda/gemm/gemm_choice.h"
#include "kernels/cuda/moe/moe.h"

namespace dsv3::cuda::bench {
namespace {

constexpr char kKernel[] = "expert_hits";
constexpr int64_t kHidden = 7168, kExperts = 257, kTopK = 9;  // the shared expert is one of them

struct Shape {
  const char* name;
  int64_t width, rows;
};
constexpr Shape kShapes[] = {
    {"TP8", 256, 1},  {"TP8", 256, 2},  {"TP8", 256, 4},  {"TP8", 256, 8},
    {"TP16", 128, 1}, {"TP16", 128, 8}, {"whole", 2048, 1}, {"whole", 2048, 4},
};

/// Each row's experts: kTopK - 1 at random, and the last one.
std::vector<int32_t> random_ids(int64_t rows) {
  std::mt19937 random(7);
  std::vector<int32_t> ids;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<int32_t> row;
    while (row.size() < kTopK - 1) {
      const auto id = static_cast<int32_t>(random() % (kExperts - 1));
      if (std::find(row.begin(), row.end(), id) == row.end()) row.push_back(id);
    }
    row.push_back(kExperts - 1);
    ids.insert(ids.end(), row.begin(), row.end());
  }
  return ids;
}

void measure(const Shape& shape, Report& report) {
  const int64_t rows = shape.rows, width = shape.width, entries = rows * kTopK;
  const std::vector<int32_t> ids = random_ids(rows);
  std::vector<int32_t> hit = ids;
  std::sort(hit.begin(), hit.end());
  hit.erase(std::unique(hit.begin(), hit.end()), hit.end());
  const int32_t most = max_hits(rows, kTopK, kExperts);
  std::vector<ExpertTile> tiles(static_cast<size_t>(most));
  std::vector<float> hit_weights(static_cast<size_t>(most * kHitRows));
  for (size_t h = 0; h < hit.size(); ++h) {
    tiles[h] = {hit[h], static_cast<int32_t>(h) * kHitRows, static_cast<int32_t>(rows), 0};
    for (int64_t i = 0; i < entries; ++i)
      if (ids[static_cast<size_t>(i)] == hit[h]) hit_weights[h * kHitRows + static_cast<size_t>(i / kTopK)] = 0.3f;
  }

  const double weight_bytes = static_cast<double>(hit.size()) * 3 * static_cast<double>(width * kHidden) * (1 + 4.0 / 16384);
  const int copies = copies_beyond_l2(static_cast<int64_t>(weight_bytes), std::max<int>(1, static_cast<int>(24'000'000'000 / (kExperts * 3 * width * kHidden))));
  const int64_t capacity = expert_order_rows(rows, kTopK, kExperts), padded = capacity + 128;
  const Buffer up(copies * kExperts * 2 * width * kHidden, Buffer::Fill::kNormalE4m3, 1), down(copies * kExperts * width * kHidden, Buffer::Fill::kNormalE4m3, 2);
  const Buffer up_scales(copies * kExperts * 2 * width / 128 * (kHidden / 128) * 4, Buffer::Fill::kScales, 3);
  const Buffer down_scales(copies * kExperts * width / 128 * (kHidden / 128) * 4, Buffer::Fill::kScales, 4);
  const Buffer x(8 * kHidden, Buffer::Fill::kNormalE4m3, 5), x_scales(8 * (kHidden / 128) * 4, Buffer::Fill::kScales, 6);
  const Buffer moved(padded * kHidden, Buffer::Fill::kZero), moved_scales(padded * (kHidden / 128) * 4, Buffer::Fill::kZero);
  const Buffer middle(padded * width, Buffer::Fill::kNormalE4m3, 7), middle_scales(padded * (width / 128) * 4, Buffer::Fill::kScales, 8);
  const Buffer gate_up(padded * 2 * width * 2, Buffer::Fill::kZero), each(padded * kHidden * 2, Buffer::Fill::kZero), y(rows * kHidden * 2, Buffer::Fill::kZero);
  const Buffer list(tiles), list_weights(hit_weights), count(std::vector<int32_t>{static_cast<int32_t>(hit.size())});
  const Buffer ids_device(ids), weights(std::vector<float>(static_cast<size_t>(entries), 0.3f));

  const int tile_rows = grouped_tile_rows(rows, kTopK, kExperts);
  ExpertOrder order;
  order.capacity = capacity, order.max_tiles = static_cast<int32_t>(expert_order_tiles(rows, kTopK, kExperts, tile_rows));
  order.rows = rows, order.top_k = kTopK;
  const Buffer position(entries * 4, Buffer::Fill::kZero), source(capacity * 4, Buffer::Fill::kZero), num_tiles(4, Buffer::Fill::kZero);
  const Buffer order_tiles(order.max_tiles * static_cast<int64_t>(sizeof(ExpertTile)), Buffer::Fill::kZero);
  const Buffer scratch(expert_order_scratch(rows, kTopK, kExperts) * 4, Buffer::Fill::kZero);
  order.position = position.as<int32_t>(), order.source = source.as<int32_t>(), order.tiles = order_tiles.as<ExpertTile>();
  order.num_tiles = num_tiles.as<int32_t>();
  if (!order_by_expert(rows, kTopK, kExperts, ids_device.as<int32_t>(), tile_rows, order, scratch.as<int32_t>(), nullptr).ok()) return;
  cudaDeviceSynchronize();

  const Fp8Rows input{x.as<uint8_t>(), x_scales.as<float>(), rows, kHidden, 8};
  const Fp8Rows in_order{moved.as<uint8_t>(), moved_scales.as<float>(), padded, kHidden, padded};
  const Fp8Rows mid{middle.as<uint8_t>(), middle_scales.as<float>(), padded, width, padded};
  const Bf16Matrix gates{gate_up.as<Bf16>(), padded, 2 * width, 2 * width}, outputs{each.as<Bf16>(), padded, kHidden, kHidden}, out{y.as<Bf16>(), rows, kHidden, kHidden};
  const auto weight = [&](const Buffer& data, const Buffer& scales, int i, int64_t n, int64_t k) {
    const int64_t copy = i % copies;
    return Fp8Weight{data.as<uint8_t>() + copy * kExperts * n * k, scales.as<float>() + copy * kExperts * n / 128 * (k / 128), n, k, kExperts};
  };
  const auto as_hits = [&](int i, Stream stream) -> Status {
    const ExpertHits hits{list.as<ExpertTile>(), count.as<int32_t>(), list_weights.as<float>(), most, static_cast<int32_t>(rows)};
    DSV3_TRY(fp8_gate_up_hits(input, weight(up, up_scales, i, 2 * width, kHidden), hits, mid, {}, stream));
    return fp8_expert_sum(mid, weight(down, down_scales, i, kHidden, width), hits, false, out, stream);
  };
  const auto by_order = [&](int i, Stream stream) -> Status {
    const ExpertTiles of{order.tiles, order.num_tiles, order.max_tiles, tile_rows};
    const Fp8Weight first = weight(up, up_scales, i, 2 * width, kHidden);
    DSV3_TRY(permute_rows(input, order, in_order, stream));
    if (use_fused_gate_up(tile_rows, rows, kTopK, width)) {
      DSV3_TRY(fp8_gate_up(in_order, first, of, mid, {}, stream));
    } else {
      DSV3_TRY(fp8_grouped_gemm(in_order, first, of, gates, {}, stream));
      DSV3_TRY(silu_mul_permuted(gates, order, mid, false, stream));
    }
    DSV3_TRY(fp8_grouped_gemm(mid, weight(down, down_scales, i, kHidden, width), of, outputs, {}, stream));
    return combine_experts(rows, kTopK, outputs, order, weights.as<float>(), false, out, stream);
  };

  const Roofs roofs;
  Row row;
  row.kernel = kKernel;
  row.shape = std::string(shape.name) + " width " + std::to_string(width) + ", " + std::to_string(rows) + " rows, " + std::to_string(hit.size()) + " hits";
  row.flops = 6.0 * static_cast<double>(entries * width * kHidden);
  row.bytes = weight_bytes + static_cast<double>(rows * kHidden) * 3;
  row.limit_us = std::max(row.bytes / roofs.hbm_gbps * 1e-3, row.flops / roofs.fp8_tflops * 1e-6);
  const int launches = std::max(copies, static_cast<int>(std::min(60.0, 1000.0 / (row.limit_us * 1.5)) + 1));
  const Result<Timing> ours = time_chain(launches, 5, as_hits), other = time_chain(launches, 5, by_order);
  if (!ours.ok() || !other.ok()) {
    std::fprintf(stderr, "kernel_bench: %s: %s %s\n", row.shape.c_str(), ours.status().message().c_str(), other.status().message().c_str());
    return;
  }
  row.us = ours->us, row.spread = ours->spread;
  row.baseline = "in order by expert", row.baseline_us = other->us;
  report.add(row);
}

}  // namespace

void bench_expert_hits(const Options& options, Report& report) {
  if (std::string(kKernel).find(options.filter) == std::string::npos) return;
  for (const Shape& shape : kShapes) measure(shape, report);
}

}  // namespace dsv3::cuda::bench
