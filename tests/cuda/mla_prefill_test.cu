// Prefill attention (fast and simple) and gather_cache against float64. Everything that is not a valid row is NaN.
#include <algorithm>
#include <cstring>
#include <set>

#include "harness.h"
#include "kernels/cuda/mla/mla_prefill.cuh"

namespace dsv3::cuda::testing {
namespace {

using Spans = std::vector<PrefillSpan>;
using Prefill = Status (*)(const MlaPrefill&, Stream);

constexpr float kScale = 0.1352f;  // DeepSeek-V3's (model.md): scores of normal inputs have a deviation of about 1.9

/// One warp per row (of the span) and head: two passes over the keys in float64. out [rows, heads, 128], lse [rows, heads].
__global__ void reference_kernel(const Bf16* q, int64_t q_stride, const Bf16* kv, int64_t kv_stride, const Bf16* k_rope, double* out,
                                 double* lse, int heads, double scale, PrefillSpan span) {
  const int lane = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.y);
  const int64_t row = span.row_begin + static_cast<int64_t>(blockIdx.x);
  const Bf16* query = q + row * q_stride + head * 192;
  const auto score = [&](int64_t key) {
    double sum = 0;
    for (int c = lane; c < 192; c += 32) {
      const Bf16 k = c < 128 ? kv[key * kv_stride + head * 256 + c] : k_rope[key * 64 + c - 128];
      sum += static_cast<double>(__bfloat162float(query[c])) * static_cast<double>(__bfloat162float(k));
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    return sum * scale;
  };
  const int64_t position = span.start + static_cast<int64_t>(blockIdx.x);
  double max = -INFINITY, total = 0, values[4] = {};
  for (int64_t i = 0; i < span.keys && span.key_start + i <= position; ++i) max = fmax(max, score(span.key_begin + i));
  for (int64_t i = 0; i < span.keys && span.key_start + i <= position; ++i) {
    const double weight = exp(score(span.key_begin + i) - max);
    total += weight;
    const Bf16* value = kv + (span.key_begin + i) * kv_stride + head * 256 + 128;
    for (int c = 0; c < 4; ++c) values[c] += weight * static_cast<double>(__bfloat162float(value[lane + 32 * c]));
  }
  for (int c = 0; c < 4; ++c) out[(row * heads + head) * 128 + lane + 32 * c] = total > 0 ? values[c] / total : 0;
  if (lane == 0) lse[row * heads + head] = total > 0 ? max + log(total) : -INFINITY;
}

/// Inputs of a case on the device, the float64 answer on the host.
struct Problem {
  Problem(int heads, Spans spans, int64_t rows, int64_t keys, uint32_t seed = 1)
      : heads(heads), rows(rows), keys(keys), spans(std::move(spans)), q_stride(heads * 192 + 8), kv_stride(heads * 256 + 24),
        out_stride(heads * 128 + 16), q(static_cast<size_t>(rows * q_stride)), kv(static_cast<size_t>(keys * kv_stride)),
        k_rope(static_cast<size_t>(keys * 64)), out(static_cast<size_t>(rows * out_stride)), lse(static_cast<size_t>(rows * heads)) {
    valid_row.assign(static_cast<size_t>(rows), false);
    std::vector<bool> valid_key(static_cast<size_t>(keys), false);
    for (const auto& span : this->spans) {
      for (int i = 0; i < span.rows; ++i) valid_row[static_cast<size_t>(span.row_begin + i)] = true;
      for (int i = 0; i < span.keys; ++i) valid_key[static_cast<size_t>(span.key_begin + i)] = true;
    }
    fill(q, q_stride, heads * 192, valid_row, seed);
    fill(kv, kv_stride, heads * 256, valid_key, seed + 1);
    fill(k_rope, 64, 64, valid_key, seed + 2);
  }

  /// Valid rows normal, everything else (rows of nobody, columns of the padding) stays NaN. Values come from a table, because
  /// drawing tens of millions one by one takes longer than the kernels.
  static void fill(Guarded<Bf16>& buffer, int64_t stride, int64_t cols, const std::vector<bool>& valid, uint32_t seed) {
    static const std::vector<Bf16> table = to_bf16(normal_values(65521, 7));
    std::vector<Bf16> host(buffer.size(), __ushort_as_bfloat16(0xFFFF));
    uint64_t state = seed * 7919u;
    for (size_t row = 0; row < valid.size(); ++row) {
      if (!valid[row]) continue;
      for (int64_t c = 0; c < cols; ++c) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        host[row * static_cast<size_t>(stride) + static_cast<size_t>(c)] = table[(state >> 33) % table.size()];
      }
    }
    buffer.upload(host);
  }

  MlaPrefill args() const {
    MlaPrefill p;
    p.q = q.get();
    p.q_stride = q_stride;
    p.kv = kv.get();
    p.kv_stride = kv_stride;
    p.k_rope = k_rope.get();
    p.out = out.get();
    p.out_stride = out_stride;
    p.lse = lse.get();
    p.heads = heads;
    p.softmax_scale = kScale;
    p.spans = spans;
    return p;
  }

  /// Compares what is in `out` and `lse` with the reference over `whole` (default: the spans themselves).
  void check(const std::string& name, double all = 3e-3, double worst = 6e-3, const Spans* whole = nullptr) {
    SCOPED_TRACE(name);
    double *want_out = nullptr, *want_lse = nullptr;
    const size_t values = static_cast<size_t>(rows) * static_cast<size_t>(heads);
    ASSERT_EQ(cudaMalloc(&want_out, values * 128 * sizeof(double)), cudaSuccess);
    ASSERT_EQ(cudaMalloc(&want_lse, values * sizeof(double)), cudaSuccess);
    ASSERT_EQ(cudaMemset(want_out, 0, values * 128 * sizeof(double)), cudaSuccess);  // rows of no span are copied, too
    ASSERT_EQ(cudaMemset(want_lse, 0, values * sizeof(double)), cudaSuccess);
    for (const auto& span : whole != nullptr ? *whole : spans) {
      if (span.rows == 0) continue;
      reference_kernel<<<dim3(static_cast<unsigned>(span.rows), static_cast<unsigned>(heads)), 32>>>(
          q.get(), q_stride, kv.get(), kv_stride, k_rope.get(), want_out, want_lse, heads, kScale, span);
    }
    expect_synced();
    std::vector<double> want(values * 128), lse_want(values);
    cudaMemcpy(want.data(), want_out, want.size() * sizeof(double), cudaMemcpyDeviceToHost);
    cudaMemcpy(lse_want.data(), want_lse, lse_want.size() * sizeof(double), cudaMemcpyDeviceToHost);
    cudaFree(want_out);
    cudaFree(want_lse);

    const auto raw = out.download();
    const auto lse_got = lse.download();
    std::vector<float> got_rows;
    std::vector<double> want_rows;
    int64_t stray = 0, wrong_lse = 0;
    std::string first_wrong_lse;
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      for (size_t c = 0; c < static_cast<size_t>(out_stride); ++c) {
        const Bf16 value = raw[row * static_cast<size_t>(out_stride) + c];
        if (valid_row[row] && c < static_cast<size_t>(heads) * 128) {
          got_rows.push_back(from_bf16(value));
          want_rows.push_back(want[row * static_cast<size_t>(heads) * 128 + c]);
        } else if (__bfloat16_as_ushort(value) != 0xFFFF) {
          ++stray;
        }
      }
      for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
        const size_t at = row * static_cast<size_t>(heads) + h;
        const bool good = !valid_row[row] ? std::isnan(lse_got[at])
                          : std::isinf(lse_want[at]) ? lse_got[at] == -INFINITY
                                                     : std::abs(lse_got[at] - lse_want[at]) < 1e-3;
        if (!good && ++wrong_lse == 1) {
          first_wrong_lse = "row " + std::to_string(row) + " head " + std::to_string(h) + ": " + std::to_string(lse_got[at]) +
                            ", want " + std::to_string(lse_want[at]);
        }
      }
    }
    EXPECT_EQ(stray, 0) << "elements written outside of the spans";
    EXPECT_EQ(wrong_lse, 0) << first_wrong_lse;
    const Error error = relative_l2(got_rows, want_rows, 128);
    // P and the output are rounded to BF16: 2^-9 relative at most each, about 1.6e-3 together in the mean.
    EXPECT_LT(error.all, all) << "worst (valid row, head) " << error.worst;
    EXPECT_LT(error.worst_row, worst) << "valid row " << error.worst / heads << " head " << error.worst % heads;
    EXPECT_TRUE(out.guards_intact());
    EXPECT_TRUE(lse.guards_intact());
  }

  int heads;
  int64_t rows, keys;
  Spans spans;
  int64_t q_stride, kv_stride, out_stride;
  Guarded<Bf16> q, kv, k_rope, out;
  Guarded<float> lse;
  std::vector<bool> valid_row;
};

void run(const std::string& name, Prefill kernel, int heads, const Spans& spans, int64_t rows, int64_t keys) {
  Problem problem(heads, spans, rows, keys);
  ASSERT_OK(kernel(problem.args(), nullptr));
  expect_synced();
  problem.check(name);
}

/// One span whose keys are exactly the positions up to its last row, in the middle of buffers of NaN.
void run_one(Prefill kernel, int heads, int rows, int start) {
  const Spans spans = {{5, rows, start, 3, start + rows, 0}};
  run("rows " + std::to_string(rows) + " start " + std::to_string(start) + " heads " + std::to_string(heads), kernel, heads, spans,
      rows + 9, start + rows + 7);
}

/// Three sequences side by side, with and without prefix, NaN between them; the last one sees no key in its first rows.
Spans mixed_spans() {
  return {{2, 70, 0, 1, 70, 0}, {80, 130, 200, 75, 330, 0}, {210, 1, 17, 410, 18, 0}, {213, 40, 90, 430, 25, 100}};
}

/// Keys of one sequence in three parts: later parts merge with earlier ones, in the order given.
void run_merge(Prefill kernel, const std::vector<int>& order) {
  const Spans whole = {{1, 200, 150, 2, 350, 0}};
  const Spans parts = {{1, 200, 150, 2, 100, 0}, {1, 200, 150, 102, 130, 100}, {1, 200, 150, 232, 120, 230}};
  Problem problem(4, whole, 203, 355);
  bool merge = false;
  std::string name = "parts";
  for (const int part : order) {
    MlaPrefill p = problem.args();
    p.spans = {&parts[static_cast<size_t>(part)], 1};
    p.merge = merge;
    ASSERT_OK(kernel(p, nullptr));
    merge = true;
    name += " ";
    name += std::to_string(part);
  }
  expect_synced();
  problem.check(name, 5e-3, 1e-2, &whole);  // three roundings of the output
}

TEST(CudaMlaPrefill, SimpleMatchesFloat64) {
  DSV3_NEEDS_GPU();
  for (const auto& [rows, start] : std::vector<std::pair<int, int>>{{1, 0}, {7, 0}, {65, 0}, {1, 50}, {30, 100}}) {
    run_one(simple_mla_prefill, 3, rows, start);
  }
  run("mixed", simple_mla_prefill, 2, mixed_spans(), 260, 460);
  run_merge(simple_mla_prefill, {0, 1, 2});
  run_merge(simple_mla_prefill, {2, 1, 0});
}

TEST(CudaMlaPrefill, OneSpanOfManyLengths) {
  DSV3_NEEDS_GPU();
  for (const int rows : {1, 7, 64, 127, 128, 129, 300}) run_one(mla_prefill, 2, rows, 0);
}

TEST(CudaMlaPrefill, SpanBehindItsPrefix) {
  DSV3_NEEDS_GPU();
  const std::vector<std::pair<int, int>> cases = {{1, 1}, {1, 127}, {1, 128}, {64, 64}, {100, 29}, {128, 128}, {130, 333}, {257, 64}};
  for (const auto& [rows, start] : cases) {
    run_one(mla_prefill, 2, rows, start);
  }
}

TEST(CudaMlaPrefill, HeadsOfEveryRank) {
  DSV3_NEEDS_GPU();
  for (const int heads : {1, 3, 8, 16, 128}) run_one(mla_prefill, heads, 150, 20);
}

TEST(CudaMlaPrefill, SeveralSpansBetweenNans) {
  DSV3_NEEDS_GPU();
  run("mixed", mla_prefill, 2, mixed_spans(), 260, 460);
  Spans many;  // more than one launch holds
  int row = 0, key = 0;
  for (int i = 0; i < 70; ++i) {
    const int rows = i % 5 == 4 ? 0 : 1 + (i * 37) % 90, start = (i * 13) % 50;
    many.push_back({row, rows, start, key, start + rows, 0});
    row += rows + i % 3;
    key += start + rows + i % 2;
  }
  run("70 spans", mla_prefill, 1, many, row + 1, key + 1);
}

TEST(CudaMlaPrefill, NothingVisible) {
  DSV3_NEEDS_GPU();
  // Keys lie behind the queries: 0 and -inf. One span with no keys at all.
  run("future keys", mla_prefill, 2, {{0, 140, 0, 0, 50, 500}, {140, 10, 5, 50, 0, 0}}, 150, 60);
  // Merge: the earlier result stands, bit by bit.
  Problem problem(2, {{0, 140, 0, 0, 140, 0}}, 140, 140);
  ASSERT_OK(mla_prefill(problem.args(), nullptr));
  const auto before = from_bf16(problem.out.download());
  const auto lse_before = problem.lse.download();
  const Spans future = {{0, 140, 0, 0, 100, 1000}};
  MlaPrefill p = problem.args();
  p.spans = future;
  p.merge = true;
  ASSERT_OK(mla_prefill(p, nullptr));
  expect_synced();
  const auto after = from_bf16(problem.out.download());
  for (size_t i = 0; i < before.size(); ++i) ASSERT_TRUE(before[i] == after[i] || (std::isnan(before[i]) && std::isnan(after[i]))) << i;
  EXPECT_EQ(problem.lse.download(), lse_before);
  p.spans = {};
  ASSERT_OK(mla_prefill(p, nullptr));
}

TEST(CudaMlaPrefill, PartsMerge) {
  DSV3_NEEDS_GPU();
  run_merge(mla_prefill, {0, 1, 2});
  run_merge(mla_prefill, {2, 1, 0});  // the first part leaves rows with -inf
  run_merge(mla_prefill, {1, 2, 0});
}

TEST(CudaMlaPrefill, NoLseWanted) {
  DSV3_NEEDS_GPU();
  Problem problem(2, {{0, 130, 0, 0, 130, 0}}, 130, 130);
  MlaPrefill p = problem.args();
  p.lse = nullptr;
  ASSERT_OK(mla_prefill(p, nullptr));
  ASSERT_OK(simple_mla_prefill(p, nullptr));
  expect_synced();
  for (const float lse : problem.lse.download()) ASSERT_TRUE(std::isnan(lse));
}

TEST(CudaMlaPrefill, LargeLongSpan) {
  DSV3_NEEDS_GPU();
  run("2000 x 2000", mla_prefill, 4, {{0, 2000, 0, 0, 2000, 0}}, 2000, 2000);
  run("1000 after 3001", mla_prefill, 3, {{0, 1000, 3001, 0, 4001, 0}}, 1000, 4001);
  // Every block takes several items, groups of heads alternate.
  run("many items", mla_prefill, 40, {{0, 1300, 0, 0, 1300, 0}, {1301, 700, 100, 1307, 800, 0}}, 2001, 2110);
}

TEST(CudaMlaPrefill, LargeRunsRepeatTheirBits) {
  DSV3_NEEDS_GPU();
  Problem problem(40, {{0, 900, 77, 0, 977, 0}}, 900, 977);
  ASSERT_OK(mla_prefill(problem.args(), nullptr));
  expect_synced();
  const auto first = from_bf16(problem.out.download());
  for (int i = 0; i < 5; ++i) {
    problem.out.poison();
    ASSERT_OK(mla_prefill(problem.args(), nullptr));
    ASSERT_OK(mla_prefill(problem.args(), nullptr));  // overlaps with the one before
    expect_synced();
    const auto again = from_bf16(problem.out.download());
    for (size_t j = 0; j < first.size(); ++j) ASSERT_TRUE(first[j] == again[j] || (std::isnan(first[j]) && std::isnan(again[j]))) << j;
  }
}

TEST(CudaMlaPrefill, RefusesWhatCannotBe) {
  Spans spans = {{0, 1, 0, 0, 1, 0}};
  MlaPrefill p;
  p.spans = spans;
  EXPECT_FALSE(mla_prefill(p, nullptr).ok());
  EXPECT_FALSE(simple_mla_prefill(p, nullptr).ok());
  const auto code = [](Status status) { return status.code(); };
  EXPECT_EQ(code(gather_cache({}, nullptr, 1, 0, 0, 65, nullptr, nullptr, nullptr)), Code::kInternal);
}

// ---- the plan: no GPU needed ---------------------------------------------------------------------------------------------

TEST(CudaMlaPrefillPlan, EveryItemOnceAndBalanced) {
  const std::vector<std::pair<int, Spans>> cases = {
      {128, {{0, 4096, 0, 0, 4096, 0}}}, {16, {{0, 1024, 0, 0, 1024, 0}}}, {7, mixed_spans()}, {16, {{0, 4096, 0, 0, 4096, 0}}},
      {128, {{0, 8192, 0, 0, 8192, 0}}}, {8, {{0, 16384, 0, 0, 16384, 0}}}, {1, {{0, 1, 0, 0, 1, 0}}}};
  for (const auto& [heads, spans] : cases) {
    PrefillPlanner planner(spans, heads);
    PrefillPlan plan;
    std::set<std::vector<int>> seen;
    size_t expected = 0;
    for (const auto& span : spans) expected += static_cast<size_t>((span.rows + 127) / 128 * heads);
    while (planner.next(plan)) {
      const int items = plan.num_tiles * plan.heads, blocks = std::min(132, items);
      std::vector<int64_t> load(static_cast<size_t>(blocks));
      int64_t total = 0, longest = 0;
      for (int round = 0; round * blocks < items; ++round) {
        for (int block = 0; block < blocks; ++block) {
          const int ordinal = prefill_ordinal(items, blocks, block, round);
          if (ordinal < 0) continue;
          const PrefillItem item = prefill_item(plan, ordinal);
          ASSERT_LT(item.head, heads);
          EXPECT_TRUE(seen.insert({plan.spans[item.span].row_begin, item.tile, item.head}).second);
          const int steps = prefill_steps(plan.spans[item.span], item.tile);
          load[static_cast<size_t>(block)] += steps;
          total += steps;
          longest = std::max<int64_t>(longest, steps);
        }
      }
      const double most = static_cast<double>(*std::max_element(load.begin(), load.end()));
      const double ideal = std::max(static_cast<double>(total) / blocks, static_cast<double>(longest));
      EXPECT_LE(most, ideal * 1.05 + 2) << heads << " heads, " << spans[0].rows << " rows, " << plan.groups << " groups";
    }
    EXPECT_EQ(seen.size(), expected);
  }
}

TEST(CudaMlaPrefillPlan, ManyAndLongSpansTakeSeveralLaunches) {
  Spans spans(100, PrefillSpan{0, 130, 0, 0, 130, 0});
  spans.push_back({0, 200000, 7, 0, 200007, 0});
  spans.push_back({});
  PrefillPlanner planner(spans, 2);
  PrefillPlan plan;
  int launches = 0, tiles = 0;
  while (planner.next(plan)) {
    ++launches;
    tiles += plan.num_tiles;
    EXPECT_LE(plan.num_tiles, kPrefillTiles);
  }
  EXPECT_EQ(launches, 3);
  EXPECT_EQ(tiles, 200 + (200000 + 127) / 128);
}

TEST(CudaMlaPrefillPlan, VisibleKeys) {
  const PrefillSpan span{0, 300, 100, 0, 150, 60};
  EXPECT_EQ(visible_keys(span, 0), 41);
  EXPECT_EQ(visible_keys(span, 299), 150);
  EXPECT_EQ(prefill_steps(span, 0), 2);
  EXPECT_EQ(visible_keys({0, 5, 0, 0, 10, 3}, 2), 0);
  EXPECT_EQ(visible_keys({0, 5, 0, 0, 10, 3}, 3), 1);
}

// ---- gather_cache ----------------------------------------------------------------------------------------------------------

TEST(CudaGatherCache, BothFormatsFromScatteredBlocks) {
  DSV3_NEEDS_GPU();
  const int blocks = 9, max_blocks = 4;
  const std::vector<int32_t> table = {-1, -1, -1, -1, 7, 2, 5, 0};  // slot 1 uses four blocks
  Guarded<int32_t> tables(table);
  std::mt19937 random(3);
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    KvPages pages;
    pages.format = format;
    pages.num_blocks = blocks;
    const auto row_bytes = static_cast<size_t>(pages.row_bytes());
    std::vector<uint8_t> bytes(static_cast<size_t>(blocks) * 64 * row_bytes);
    std::vector<float> latent(static_cast<size_t>(blocks) * 64 * 512), rope(static_cast<size_t>(blocks) * 64 * 64);
    for (size_t row = 0; row < static_cast<size_t>(blocks) * 64; ++row) {
      uint8_t* to = &bytes[row * row_bytes];
      const auto put = [&](size_t at, const void* from, size_t size) { std::memcpy(to + at, from, size); };
      for (size_t c = 0; c < 512; ++c) {
        if (format == KvFormat::kBf16) {
          const Bf16 value = to_bf16(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 256.0f);
          put(2 * c, &value, 2);
          latent[row * 512 + c] = from_bf16(value);
        } else {
          const float scale = 0.01f + 0.001f * static_cast<float>((row + c / 128) % 50);
          put(512 + 4 * (c / 128), &scale, 4);
          auto code = static_cast<uint8_t>(random() % 256);
          if ((code & 0x7F) == 0x7F) code ^= 1;  // not NaN
          to[c] = code;
          latent[row * 512 + c] = from_bf16(to_bf16(__half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3))) * scale));
        }
      }
      for (size_t c = 0; c < 64; ++c) {
        const Bf16 value = to_bf16(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 256.0f);
        put((format == KvFormat::kBf16 ? 1024 : 528) + 2 * c, &value, 2);
        rope[row * 64 + c] = from_bf16(value);
      }
    }
    Guarded<uint8_t> data(bytes);
    pages.data = data.get();
    for (const auto& [first, count] : std::vector<std::pair<int, int>>{{0, 1}, {0, 256}, {63, 2}, {17, 150}, {255, 1}, {5, 0}}) {
      SCOPED_TRACE(::testing::Message() << "format " << static_cast<int>(format) << " first " << first << " count " << count);
      Guarded<Bf16> got_latent(static_cast<size_t>(count) * 512), got_rope(static_cast<size_t>(count) * 64);
      ASSERT_OK(gather_cache(pages, tables.get(), max_blocks, 1, first, count, got_latent.get(), got_rope.get(), nullptr));
      expect_synced();
      const auto latents = from_bf16(got_latent.download()), ropes = from_bf16(got_rope.download());
      for (int i = 0; i < count; ++i) {
        const int position = first + i;
        const auto row = static_cast<size_t>(table[static_cast<size_t>(4 + position / 64)] * 64 + position % 64);
        const auto at = static_cast<size_t>(i);
        for (size_t c = 0; c < 512; ++c) ASSERT_EQ(latents[at * 512 + c], latent[row * 512 + c]) << position << " column " << c;
        for (size_t c = 0; c < 64; ++c) ASSERT_EQ(ropes[at * 64 + c], rope[row * 64 + c]) << position << " column " << c;
      }
      EXPECT_TRUE(got_latent.guards_intact());
      EXPECT_TRUE(got_rope.guards_intact());
    }
  }
}

}  // namespace
}  // namespace dsv3::cuda::testing
