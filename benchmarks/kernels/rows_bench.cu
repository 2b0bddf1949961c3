// Row-wise kernels at DeepSeek-V3's sizes: norms, quantisation, activation, rotation and cache, the gate, permutation. The limit
// is bytes at the memory's rate; a node of a graph costs about 1 us whatever it does, so small shapes are judged by that.
#include <cuda_bf16.h>

#include <cstdio>
#include <string>
#include <vector>

#include "harness.h"
#include "kernels/cuda/gemm/blas.h"
#include "kernels/cuda/moe/moe.h"
#include "kernels/cuda/norm/norm.h"

namespace dsv3::cuda::bench {
namespace {

constexpr int64_t kHidden = 7168, kExperts = 256, kTopK = 8, kWidth = 2048;

/// Times launches and adds the row. `bytes`: every input read and output written once.
class Rows {
 public:
  Rows(const Options& options, Report& report) : options_(options), report_(report) {}
  bool wants(const std::string& kernel) const { return options_.filter.empty() || kernel.find(options_.filter) != std::string::npos; }
  bool quick() const { return options_.quick; }
  /// `baseline`: its name, and its launches; null: none.
  void time(const std::string& kernel, const std::string& shape, double bytes, const std::function<Status(int, Stream)>& enqueue,
            const std::string& baseline = {}, const std::function<Status(int, Stream)>& enqueue_baseline = nullptr) {
    const auto timing = time_chain(options_.quick ? 20 : 50, options_.quick ? 5 : 15, enqueue);
    if (!timing.ok()) {
      std::fprintf(stderr, "%s %s: %s\n", kernel.c_str(), shape.c_str(), timing.status().message().c_str());
      return;
    }
    Row row;
    row.kernel = kernel, row.shape = shape, row.us = (*timing).us, row.spread = (*timing).spread, row.bytes = bytes;
    row.limit_us = bytes / (Roofs{}.hbm_gbps * 1e3);
    if (enqueue_baseline) {
      const auto other = time_chain(options_.quick ? 20 : 50, options_.quick ? 5 : 15, enqueue_baseline);
      if (other.ok()) row.baseline = baseline, row.baseline_us = (*other).us;
    }
    report_.add(row);
  }

 private:
  const Options& options_;
  Report& report_;
};

/// `copies` BF16 matrices one behind the other, so that launches find them outside of L2.
struct Matrices {
  Matrices(int64_t rows, int64_t cols, int copies, Buffer::Fill fill = Buffer::Fill::kNormalBf16)
      : rows(rows), cols(cols), copies(copies), buffer(rows * cols * 2 * copies, fill) {}
  Bf16Matrix at(int i) const { return {buffer.as<Bf16>() + (i % copies) * rows * cols, rows, cols, cols}; }
  int64_t rows, cols;
  int copies;
  Buffer buffer;
};
struct Fp8Matrices {
  Fp8Matrices(int64_t rows, int64_t cols)
      : rows(rows),
        cols(cols),
        stride((rows + 3) / 4 * 4),
        data(rows * cols, Buffer::Fill::kNormalE4m3),
        scales(cols / 128 * stride * 4, Buffer::Fill::kScales) {}
  Fp8Rows view() const { return {data.as<uint8_t>(), scales.as<float>(), rows, cols, stride}; }
  double bytes() const { return static_cast<double>(rows * cols) * (1 + 4.0 / 128); }
  int64_t rows, cols, stride;
  Buffer data, scales;
};

std::string shape_of(int64_t rows, int64_t cols) {
  return std::to_string(rows) + " x " + std::to_string(cols);
}

void bench_norms(Rows& rows_bench, int64_t rows) {
  const auto r = static_cast<double>(rows);
  for (const int64_t cols : {kHidden, int64_t{1536}}) {
    if (!rows_bench.wants("add_rms_norm")) break;
    // Decode finds its rows in L2, as in the model; a long prompt's do not fit.
    const int copies = rows > 512 ? copies_beyond_l2(rows * cols * 2, 4) : 1;
    const Matrices delta(rows, cols, copies), out(rows, cols, copies);
    const Buffer residual(rows * cols * 4 * copies, Buffer::Fill::kZero);
    const Fp8Matrices quantised(rows, cols);
    const Buffer gain(cols * 4, Buffer::Fill::kNormalF32);
    const double matrix = r * static_cast<double>(cols) * 2;
    // The residual is float32: 4 bytes read, 4 written; delta and out 2 each.
    rows_bench.time("add_rms_norm", shape_of(rows, cols) + " bf16+fp8", 6 * matrix + quantised.bytes(), [&](int i, Stream stream) {
      const F32Matrix x{residual.as<float>() + (i % copies) * rows * cols, rows, cols, cols};
      return add_rms_norm(x, delta.at(i), gain.as<float>(), 1e-6f, out.at(i), quantised.view(), false, stream);
    });
    rows_bench.time("rms_norm", shape_of(rows, cols) + " fp8", matrix + quantised.bytes(), [&](int i, Stream stream) {
      return rms_norm(delta.at(i), gain.as<float>(), 1e-6f, {}, quantised.view(), false, stream);
    });
  }
  for (const int64_t width : {int64_t{18432}, kWidth, int64_t{128}}) {
    if (!rows_bench.wants("silu_mul")) break;
    const Matrices x(rows, 2 * width, rows > 512 ? copies_beyond_l2(rows * width * 4, 3) : 1);
    const Fp8Matrices out(rows, width);
    rows_bench.time("silu_mul", shape_of(rows, width) + " fp8", r * static_cast<double>(width) * 4 + out.bytes(),
                    [&](int i, Stream stream) { return silu_mul(x.at(i), {}, out.view(), false, stream); });
  }
  if (rows_bench.wants("quantise")) {
    const Matrices x(rows, 16384, rows > 512 ? copies_beyond_l2(rows * 16384 * 2, 3) : 1);
    const Fp8Matrices out(rows, 16384);
    rows_bench.time("quantise", shape_of(rows, 16384), r * 16384 * 2 + out.bytes(),
                    [&](int i, Stream stream) { return quantise(x.at(i), out.view(), false, stream); });
  }
}

void bench_rope(Rows& rows_bench, int64_t rows) {
  if (!rows_bench.wants("rope_and_cache")) return;
  std::vector<int32_t> positions;
  std::vector<int64_t> cache_rows;
  for (int64_t r = 0; r < rows; ++r) {
    positions.push_back(static_cast<int32_t>(r * 37 % 8192));
    cache_rows.push_back(r);
  }
  const Buffer positions_device(positions), cache_rows_device(cache_rows);
  const Buffer gain(kLatent * 4, Buffer::Fill::kNormalF32), frequencies(32 * 8, Buffer::Fill::kZero);
  const int64_t blocks = (rows + kCacheBlockTokens - 1) / kCacheBlockTokens;
  const Buffer pages(blocks * kCacheBlockTokens * kCacheRow * 2, Buffer::Fill::kZero);
  for (const int heads : {128, 16}) {
    const Matrices q(rows, heads * kQueryHead, 1), kv(rows, kCacheRow, 1), absorbed(rows, int64_t{heads} * kCacheRow, 1);
    for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
      RopeAndCache p;
      p.q = q.at(0), p.absorbed_q = absorbed.at(0).data, p.kv_a = kv.at(0), p.latent_gain = gain.as<float>(), p.eps = 1e-6f;
      p.frequencies = frequencies.as<double>(), p.positions = positions_device.as<int32_t>(), p.cache_rows = cache_rows_device.as<int64_t>();
      p.heads = heads, p.pages = {pages.as<void>(), format, blocks};
      const double bytes =
          static_cast<double>(rows) * (heads * kRope * 2.0 * 3 + kCacheRow * 2.0 + static_cast<double>(p.pages.row_bytes()));
      rows_bench.time("rope_and_cache",
                      std::to_string(rows) + " rows, " + std::to_string(heads) + " heads, " + (format == KvFormat::kFp8 ? "fp8" : "bf16"),
                      bytes, [&](int, Stream stream) { return rope_and_cache(p, stream); });
    }
  }
}

void bench_moe(Rows& rows_bench, int64_t rows) {
  const auto r = static_cast<double>(rows);
  const double entries = r * kTopK;
  const Buffer logits(rows * kExperts * 4, Buffer::Fill::kNormalF32), bias(kExperts * 4, Buffer::Fill::kZero);
  const Buffer ids(rows * kTopK * 4, Buffer::Fill::kZero), weights(rows * kTopK * 4, Buffer::Fill::kZero);
  GateShape gate;
  gate.experts = kExperts, gate.top_k = kTopK, gate.groups = 8, gate.top_groups = 4, gate.scale = 2.5f;
  const auto route_rows = [&](int, Stream stream) {
    return route(rows, gate, logits.as<float>(), bias.as<float>(), nullptr, ids.as<int32_t>(), weights.as<float>(), stream);
  };
  if (!route_rows(0, nullptr).ok()) return;  // the ids that the rest needs
  if (rows_bench.wants("route")) rows_bench.time("route", shape_of(rows, kExperts), r * kExperts * 4 + entries * 8, route_rows);

  const int tile_rows = rows > 512 ? 128 : 16;
  ExpertOrder order;
  order.capacity = expert_order_rows(rows, kTopK, kExperts);
  order.max_tiles = static_cast<int32_t>(expert_order_tiles(rows, kTopK, kExperts, tile_rows));
  const Buffer position(rows * kTopK * 4, Buffer::Fill::kZero), source(order.capacity * 4, Buffer::Fill::kZero);
  const Buffer tiles(order.max_tiles * static_cast<int64_t>(sizeof(ExpertTile)), Buffer::Fill::kZero), count(4, Buffer::Fill::kZero);
  const Buffer scratch(expert_order_scratch(rows, kTopK, kExperts) * 4, Buffer::Fill::kZero);
  order.position = position.as<int32_t>(), order.source = source.as<int32_t>(), order.tiles = tiles.as<ExpertTile>(),
  order.num_tiles = count.as<int32_t>(), order.rows = rows, order.top_k = kTopK;
  const auto sort_rows = [&](int, Stream stream) {
    return order_by_expert(rows, kTopK, kExperts, ids.as<int32_t>(), tile_rows, order, scratch.as<int32_t>(), stream);
  };
  if (!sort_rows(0, nullptr).ok()) return;
  if (rows_bench.wants("order_by_expert")) {
    rows_bench.time("order_by_expert", shape_of(rows, kTopK), entries * 8 + static_cast<double>(order.capacity) * 4, sort_rows);
  }
  if (rows_bench.wants("route_and_order") && routes_and_orders_at_once(rows, gate, kExperts)) {
    rows_bench.time("route_and_order", shape_of(rows, kExperts), r * kExperts * 4 + entries * 16, [&](int, Stream stream) {
      return route_and_order(rows, gate, logits.as<float>(), bias.as<float>(), nullptr, ids.as<int32_t>(), weights.as<float>(), kExperts,
                             tile_rows, order, scratch.as<int32_t>(), stream);
    });
  }
  const Fp8Matrices x(rows, kHidden), permuted(order.capacity, kHidden);
  if (rows_bench.wants("permute_rows")) {
    rows_bench.time("permute_rows", shape_of(rows, kHidden) + " fp8, top 8", x.bytes() * (1 + kTopK),
                    [&](int, Stream stream) { return permute_rows(x.view(), order, permuted.view(), stream); });
  }
  if (rows_bench.wants("silu_mul_permuted")) {
    const Matrices gate_up(order.capacity, 2 * kWidth, 1);
    const Fp8Matrices active(order.capacity, kWidth);
    rows_bench.time("silu_mul_permuted", shape_of(rows, kWidth) + " fp8, top 8", entries * kWidth * (4 + 1 + 4.0 / 128),
                    [&](int, Stream stream) { return silu_mul_permuted(gate_up.at(0), order, active.view(), false, stream); });
  }
  if (rows_bench.wants("combine_experts")) {
    const Matrices y(order.capacity, kHidden, 1), out(rows, kHidden, 1, Buffer::Fill::kZero);
    rows_bench.time("combine_experts", shape_of(rows, kHidden) + ", top 8", (entries + r) * kHidden * 2, [&](int, Stream stream) {
      return combine_experts(rows, kTopK, y.at(0), order, weights.as<float>(), false, out.at(0), stream);
    });
  }
}

/// Router logits, weights from HBM. Baseline: cuBLASLt.
void bench_router(Rows& rows_bench) {
  if (!rows_bench.wants("router_gemm")) return;
  const Buffer workspace(Blas::kWorkspaceBytes, Buffer::Fill::kZero);
  const auto blas = Blas::create(workspace.as<void>());
  if (!blas.ok()) return;
  const int copies = copies_beyond_l2(kExperts * kHidden * 2, 100);
  const Matrices weights(kExperts, kHidden, copies);
  for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    if (rows_bench.quick() && rows != 1 && rows != 8 && rows != 32 && rows != 64 && rows != 128) continue;
    const Matrices x(rows, kHidden, 1);
    const Buffer y(rows * kExperts * 4, Buffer::Fill::kZero);
    const F32Matrix out{y.as<float>(), rows, kExperts, kExperts};
    const auto weight = [&](int i) { return Bf16Weight{weights.at(i).data, kExperts, kHidden, 1}; };
    const double bytes = static_cast<double>(kExperts * kHidden * 2 + rows * kHidden * 2 + rows * kExperts * 4);
    rows_bench.time(
        "router_gemm", shape_of(rows, kHidden) + " to 256 bf16", bytes,
        [&](int i, Stream stream) { return router_gemm(x.at(0), weight(i), out, stream); }, "cuBLASLt",
        [&](int i, Stream stream) { return (*blas)->gemm(x.at(0), weight(i), out, stream); });
  }
}

}  // namespace

void bench_rows(const Options& options, Report& report) {
  Rows rows_bench(options, report);
  bench_router(rows_bench);
  for (const int64_t rows : {1, 16, 32, 128, 4096}) {
    if (options.quick && rows == 32) continue;
    bench_norms(rows_bench, rows);
    bench_rope(rows_bench, rows);
    bench_moe(rows_bench, rows);
  }
}

}  // namespace dsv3::cuda::bench
