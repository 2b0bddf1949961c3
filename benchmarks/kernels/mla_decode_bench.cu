// MLA decode over the shapes that the public kernels were measured at: heads of TP 1, 8 and 16, contexts of 1k to 64k,
// batches of 1 to 256. A launch is the kernel and its merge; the schedule, once a step, has rows of its own.
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "harness.h"
#include "kernels/cuda/mla/absorb.h"
#include "kernels/cuda/mla/mla.h"

namespace dsv3::cuda::bench {
namespace {

struct Shape {
  int heads, context, batch, rows;
  double peer_us;  ///< best of FlashMLA, FlashInfer and FlashAttention-3; 0: none
  KvFormat format = KvFormat::kBf16;
  bool mixed = false;  ///< lengths uniform in 512..8192 instead of `context`
  bool deterministic = false;
};

/// Best peer by context (1k, 4k, 16k, 64k) and batch (1, 8, 32, 64, 128, 256).
constexpr int kContexts[] = {1024, 4096, 16384, 65536}, kBatches[] = {1, 8, 32, 64, 128, 256};
constexpr double kPeer128[4][6] = {{12.9, 19.8, 33.9, 39.3, 74.6, 153.9},
                                   {18.2, 31.4, 76.2, 125.5, 246.9, 524.0},
                                   {33.4, 76.3, 252.1, 468.7, 982.2, 1955.7},
                                   {62.6, 247.6, 940.7, 1950.0, 3842.5, 7824.1}};
constexpr double kPeer16[4][6] = {{13.5, 14.6, 22.9, 37.2, 57.6, 110.3},
                                  {15.0, 24.9, 61.7, 112.2, 209.9, 410.1},
                                  {23.7, 62.7, 211.3, 409.3, 814.8, 1590.0},
                                  {48.5, 213.9, 813.2, 1611.3, 3208.8, 6287.7}};
constexpr double kPeer8[4][6] = {{10.2, 12.9, 22.4, 35.7, 57.3, 109.2},
                                 {14.6, 24.0, 61.0, 111.0, 209.1, 407.7},
                                 {22.9, 62.6, 210.8, 407.0, 813.2, 1587.2},
                                 {46.8, 213.6, 812.2, 1608.3, 3193.9, 6281.8}};

std::vector<Shape> shapes(bool quick) {
  std::vector<Shape> all;
  const auto table = [&](int heads, const double(&peer)[4][6]) {
    for (int c = 0; c < (quick ? 3 : 4); ++c) {
      for (int b = 0; b < 6; ++b) {
        if (quick && (kBatches[b] == 64 || kBatches[b] == 256)) continue;
        if (static_cast<int64_t>(kContexts[c]) * kBatches[b] > int64_t{1} << 22)
          continue;  // 4.8 GB of cache are enough
        all.push_back({heads, kContexts[c], kBatches[b], 1, peer[c][b]});
      }
    }
  };
  table(128, kPeer128);
  table(16, kPeer16);
  if (!quick) table(8, kPeer8);
  const double two_rows[2][3] = {{42.5, 214.8, 502.8}, {27.7, 114.9, 210.4}};
  for (int h = 0; h < 2; ++h) {
    for (int b = 0; b < 3; ++b) all.push_back({h == 0 ? 128 : 16, 4096, b == 0 ? 8 : 32 << b, 2, two_rows[h][b]});
  }
  const double mixed[2][3] = {{88, 156, 280}, {69, 121, 241}};
  for (int h = 0; h < 2; ++h) {
    for (int b = 0; b < 3; ++b) all.push_back({h == 0 ? 128 : 16, 0, 32 << b, 1, mixed[h][b], KvFormat::kBf16, true});
  }
  for (const int heads : {128, 16}) {
    for (const int batch : {1, 8, 128}) all.push_back({heads, 4096, batch, 1, 0, KvFormat::kFp8});
    for (const int batch : {1, 8, 128}) all.push_back({heads, 4096, batch, 1, 0, KvFormat::kBf16, false, true});
  }
  return all;
}

/// FP8 rows: scales and rotary part; the latents stay.
__global__ void finish_fp8_rows(uint8_t* rows, int64_t count) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= count) return;
  auto* scales = reinterpret_cast<float*>(rows + row * 656 + 512);
  auto* rope = reinterpret_cast<__nv_bfloat16*>(rows + row * 656 + 528);
  for (int i = 0; i < 4; ++i) scales[i] = 1.0f;
  for (int i = 0; i < kRope; ++i) rope[i] = __float2bfloat16(static_cast<float>((row * 31 + i * 7) % 17) / 8.0f - 1.0f);
}

struct Case {
  Shape shape;
  std::vector<int> keys;  ///< of each sequence, with its new rows
  int64_t blocks = 0, tokens = 0;
  explicit Case(const Shape& s) : shape(s) {
    std::mt19937 generator(7);
    for (int i = 0; i < s.batch; ++i) {
      keys.push_back(s.mixed ? 512 + static_cast<int>(generator() % 7681) : s.context);
      blocks += (keys.back() + kCacheBlockTokens - 1) / kCacheBlockTokens;
      tokens += keys.back();
    }
  }
  int64_t row_bytes() const { return shape.format == KvFormat::kBf16 ? kCacheRow * 2 : 656; }
  int64_t cache_bytes() const { return blocks * kCacheBlockTokens * row_bytes(); }
  std::string name() const {
    return "heads=" + std::to_string(shape.heads) +
           " context=" + (shape.mixed ? "512..8192" : std::to_string(shape.context)) +
           " batch=" + std::to_string(shape.batch) + " rows=" + std::to_string(shape.rows) +
           (shape.format == KvFormat::kFp8 ? " fp8" : "") + (shape.deterministic ? " deterministic" : "");
  }
};

void measure(const Case& c, const Buffer& pool, Report& report) {
  const Shape& s = c.shape;
  std::mt19937 generator(5);
  const int max_blocks = (*std::max_element(c.keys.begin(), c.keys.end()) + kCacheBlockTokens - 1) / kCacheBlockTokens;
  std::vector<int32_t> ids(static_cast<size_t>(c.blocks)), table(static_cast<size_t>(s.batch) * max_blocks, -1);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), generator);
  std::vector<QueryGroup> groups;
  size_t next = 0;
  for (int g = 0; g < s.batch; ++g) {
    for (int b = 0; b * kCacheBlockTokens < c.keys[g]; ++b)
      table[static_cast<size_t>(g) * max_blocks + b] = ids[next++];
    groups.push_back({g, g * s.rows, s.rows, c.keys[g] - s.rows});
  }
  const int64_t queries = static_cast<int64_t>(s.batch) * s.rows * s.heads;
  Buffer q(queries * kCacheRow * 2, Buffer::Fill::kNormalBf16), out(queries * kLatent * 2, Buffer::Fill::kZero);
  const Buffer table_copy(table), group_copy(groups);
  const int64_t ws_bytes = mla_decode_workspace_bytes(s.batch, s.rows, s.heads);
  Buffer ws(ws_bytes, Buffer::Fill::kZero);
  MlaDecode p{.q = q.as<Bf16>(),
              .out = out.as<Bf16>(),
              .heads = s.heads,
              .softmax_scale = 0.0417f,
              .pages = {pool.as<void>(), s.format, c.blocks},
              .block_tables = table_copy.as<int32_t>(),
              .max_blocks = max_blocks,
              .groups = group_copy.as<QueryGroup>(),
              .num_groups = s.batch,
              .max_group_rows = s.rows,
              .deterministic = s.deterministic,
              // Where the server does. The merging kernel ahead starts this one early, but nothing here writes what is read.
              .reads_early = s.deterministic || use_absorb_queries(int64_t{s.batch} * s.rows, s.heads)};
  const MlaWorkspace workspace{ws.as<void>(), ws_bytes};
  const Status scheduled = mla_decode_schedule(p, workspace, nullptr);
  if (!scheduled.ok() || cudaDeviceSynchronize() != cudaSuccess) {
    std::fprintf(stderr, "mla_decode %s: %s\n", c.name().c_str(), scheduled.message().c_str());
    return;
  }
  const Roofs roofs;
  Row row;
  row.kernel = "mla_decode";
  row.shape = c.name();
  row.flops = 2.0 * s.heads * s.rows * static_cast<double>(c.tokens) * (kCacheRow + kLatent);
  row.bytes = static_cast<double>(c.tokens) * static_cast<double>(c.row_bytes()) +
              static_cast<double>(queries) * 2 * (kCacheRow + kLatent);
  row.limit_us = std::max(row.bytes / roofs.hbm_gbps / 1e3, row.flops / roofs.bf16_tflops / 1e6);
  const int copies = copies_beyond_l2(c.cache_bytes());
  const int launches = std::max(copies, std::clamp(static_cast<int>(1000.0 / row.limit_us), 1, 10));
  const auto timing = time_chain(launches, row.limit_us * launches > 500 ? 3 : 7, [&](int i, Stream stream) {
    MlaDecode turn = p;
    turn.pages.data = pool.as<uint8_t>() + (i % copies) * c.cache_bytes();
    return mla_decode(turn, workspace, stream);
  });
  if (!timing.ok()) {
    std::fprintf(stderr, "mla_decode %s: %s\n", c.name().c_str(), timing.status().message().c_str());
    return;
  }
  row.us = timing.value().us;
  row.spread = timing.value().spread;
  row.peer_us = s.peer_us;
  if (s.peer_us > 0) row.peer = s.rows > 1 ? "FlashMLA" : "best of FlashMLA, FlashInfer, FA3";
  report.add(row);
}

void measure_schedule(int batch, bool deterministic, Report& report) {
  std::vector<QueryGroup> groups;
  for (int g = 0; g < batch; ++g) groups.push_back({g, g, 1, 100 + g * 37 % 8000});
  const Buffer group_copy(groups);
  const int64_t ws_bytes = mla_decode_workspace_bytes(batch, 1, 16);
  Buffer ws(ws_bytes, Buffer::Fill::kZero), any(1024, Buffer::Fill::kZero);
  const MlaDecode p{.q = any.as<Bf16>(),
                    .out = any.as<Bf16>(),
                    .heads = 16,
                    .softmax_scale = 1,
                    .pages = {any.as<void>(), KvFormat::kBf16, 1},
                    .block_tables = any.as<int32_t>(),
                    .max_blocks = 1,
                    .groups = group_copy.as<QueryGroup>(),
                    .num_groups = batch,
                    .deterministic = deterministic};
  const auto timing = time_chain(20, 7, [&](int, Stream stream) {
    return mla_decode_schedule(p, {ws.as<void>(), ws_bytes}, stream);
  });
  if (!timing.ok()) {
    std::fprintf(stderr, "mla_decode_schedule: %s\n", timing.status().message().c_str());
    return;
  }
  Row row;
  row.kernel = "mla_decode_schedule";
  row.shape = "batch=" + std::to_string(batch) + (deterministic ? " deterministic" : "");
  row.us = timing.value().us;
  row.spread = timing.value().spread;
  if (!deterministic && batch <= 256) {
    row.peer_us = 13;  // FlashMLA's, 13 to 43 us
    row.peer = "FlashMLA";
  }
  report.add(row);
}

}  // namespace

void bench_mla_decode(const Options& options, Report& report) {
  const auto wanted = [&](const std::string& kernel) {
    return options.filter.empty() || kernel.find(options.filter) != std::string::npos;
  };
  if (wanted("mla_decode_schedule")) {
    for (const int batch : {1, 32, 256, 1024}) measure_schedule(batch, false, report);
    measure_schedule(256, true, report);
  }
  if (!wanted("mla_decode")) return;
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    std::vector<Case> cases;
    int64_t pool_bytes = 0;
    for (const Shape& shape : shapes(options.quick)) {
      if (shape.format != format) continue;
      cases.emplace_back(shape);
      pool_bytes = std::max(pool_bytes, cases.back().cache_bytes() * copies_beyond_l2(cases.back().cache_bytes()));
    }
    const bool fp8 = format == KvFormat::kFp8;
    const Buffer pool(pool_bytes, fp8 ? Buffer::Fill::kNormalE4m3 : Buffer::Fill::kNormalBf16);
    if (fp8) {
      const int64_t rows = pool_bytes / 656;
      finish_fp8_rows<<<static_cast<unsigned>((rows + 255) / 256), 256>>>(pool.as<uint8_t>(), rows);
    }
    for (const Case& c : cases) measure(c, pool, report);
  }
}

}  // namespace dsv3::cuda::bench
