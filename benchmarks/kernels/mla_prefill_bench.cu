// Prefill attention (causal, one prompt from position 0) over the shapes of docs/benchmarks.md, against FlashAttention-3's figures;
// the readable kernel as the baseline of the same run where that is bearable. And many short prompts in one launch.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "harness.h"
#include "kernels/cuda/mla/mla.h"

namespace dsv3::cuda::bench {
namespace {

struct Shape {
  int heads, tokens;
  double peer_us;
  bool quick;
};
constexpr Shape kShapes[] = {
    {128, 1024, 95, true},   {128, 2048, 308, false}, {128, 4096, 1120, true}, {128, 8192, 3951, true}, {128, 16384, 15353, false},
    {16, 1024, 29, true},    {16, 2048, 44, false},   {16, 4096, 140, true},   {16, 8192, 494, false},  {16, 16384, 1976, false},
    {8, 1024, 30, false},    {8, 2048, 40, false},    {8, 4096, 74, false},    {8, 8192, 249, false},   {8, 16384, 1129, false},
};

/// `prompts` equal prompts of `tokens` each, side by side.
struct Inputs {
  Inputs(int heads, int tokens, int prompts)
      : rows(static_cast<int64_t>(tokens) * prompts),
        q(rows * heads * kQueryHead * 2, Buffer::Fill::kNormalBf16, 1),
        kv(rows * heads * (kNope + kValue) * 2, Buffer::Fill::kNormalBf16, 2),
        k_rope(rows * kRope * 2, Buffer::Fill::kNormalBf16, 3),
        out(rows * heads * kValue * 2, Buffer::Fill::kZero),
        lse(rows * heads * 4, Buffer::Fill::kZero) {
    for (int i = 0; i < prompts; ++i) spans.push_back({i * tokens, tokens, 0, i * tokens, tokens, 0});
    args.q = q.as<Bf16>();
    args.q_stride = static_cast<int64_t>(heads) * kQueryHead;
    args.kv = kv.as<Bf16>();
    args.kv_stride = static_cast<int64_t>(heads) * (kNope + kValue);
    args.k_rope = k_rope.as<Bf16>();
    args.out = out.as<Bf16>();
    args.out_stride = static_cast<int64_t>(heads) * kValue;
    args.lse = lse.as<float>();
    args.heads = heads;
    args.softmax_scale = 0.1352f;
    args.spans = spans;
    flops = static_cast<double>(heads) * tokens * tokens * 320 * prompts;
    bytes = static_cast<double>(rows) * (heads * (kQueryHead + kNope + kValue + kValue) * 2.0 + kRope * 2 + heads * 4);
  }

  int64_t rows;
  Buffer q, kv, k_rope, out, lse;
  std::vector<PrefillSpan> spans;
  MlaPrefill args;
  double flops = 0, bytes = 0;
};

void add_row(Report& report, const std::string& shape, const Inputs& inputs, double peer_us, bool with_baseline) {
  Row row;
  row.kernel = "mla_prefill";
  row.shape = shape;
  row.flops = inputs.flops;
  row.bytes = inputs.bytes;
  row.limit_us = std::max(inputs.flops / (Roofs{}.bf16_tflops * 1e6), inputs.bytes / (Roofs{}.hbm_gbps * 1e3));
  row.peer_us = peer_us;
  row.peer = peer_us > 0 ? "FA3" : "";
  // Bursts of about 6 ms after a pause, as the peer was measured: held longer, the power cap lowers the clock.
  const int launches = std::clamp(static_cast<int>(6000.0 / std::max(row.limit_us, 10.0)), 1, 100);
  const auto timing = time_chain(launches, 7, [&](int, Stream stream) { return mla_prefill(inputs.args, stream); });
  if (!timing.ok()) {
    std::fprintf(stderr, "mla_prefill %s: %s\n", shape.c_str(), timing.status().message().c_str());
    return;
  }
  row.us = timing.value().us;
  row.spread = timing.value().spread;
  if (with_baseline) {
    const auto simple = time_chain(2, 3, [&](int, Stream stream) { return simple_mla_prefill(inputs.args, stream); });
    if (simple.ok()) {
      row.baseline = "simple kernel";
      row.baseline_us = simple.value().us;
    }
  }
  report.add(row);
}

}  // namespace

void bench_mla_prefill(const Options& options, Report& report) {
  if (std::string("mla_prefill").find(options.filter) == std::string::npos) return;
  for (const Shape& shape : kShapes) {
    if (options.quick && !shape.quick) continue;
    const Inputs inputs(shape.heads, shape.tokens, 1);
    add_row(report, std::to_string(shape.heads) + " heads, " + std::to_string(shape.tokens) + " tokens", inputs, shape.peer_us,
            shape.heads == 16 && shape.tokens == 1024);
  }
  // Chunked prefill puts several prompts into one launch: short ones no longer leave most of the GPU idle.
  const Inputs inputs(16, 1024, 8);
  add_row(report, "16 heads, 8 prompts of 1024 tokens", inputs, 0, false);
}

}  // namespace dsv3::cuda::bench
