// Streaming FP8 products (few rows, and tiles of experts) against float64; the choice of kernels.
#include <algorithm>
#include <string>

#include "fp8_case.cuh"
#include "kernels/cuda/gemm/gemm.h"
#include "kernels/cuda/gemm/gemm_choice.h"
#include "late_writer.cuh"

namespace dsv3::cuda::testing {
namespace {

// BF16 rounding alone is 1.7e-3; tensor-core sums promoted every 128 of K add 1.2e-4.
constexpr double kAll = 2.5e-3, kWorstRow = 4e-3;

constexpr int64_t kRowCounts[] = {1, 2, 7, 8, 9, 16, 33, 64, 100, 128, 129, 300};
constexpr int64_t kMostRows = 300;

/// With the tile and the splits that would be chosen.
Status stream_gemm(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, bool deterministic = false) {
  return fp8_gemm_stream(choose_stream(x.rows, w.n, w.k, deterministic), x, w, y, nullptr);
}

TEST(GemmChoice, WhatLeavesL2First) {
  EXPECT_TRUE(evicts_first(int64_t{4608} * 7168));    // dense gate and up of one of 8 ranks
  EXPECT_FALSE(evicts_first(int64_t{7168} * 16384));  // o in full size
  EXPECT_TRUE(tiles_evict_first(int64_t{4608} * 7168));
  EXPECT_FALSE(tiles_evict_first(int64_t{2112} * 7168));
  EXPECT_FALSE(tiles_evict_first(int64_t{7168} * 16384));
  const auto experts = [](int64_t n, int64_t k, int64_t count, int max_tiles, int64_t rows) {
    return experts_evict_first({nullptr, nullptr, max_tiles, 128}, {nullptr, nullptr, n, k, count}, rows);
  };
  EXPECT_TRUE(experts(4096, 7168, 8, 8, 1024));
  EXPECT_FALSE(experts(4096, 7168, 8, 16, 1024));   // weights are read twice
  EXPECT_FALSE(experts(7168, 2048, 32, 32, 2048));  // 33 MB of activations
}

TEST(GemmChoice, ShapesOfTheModel) {
  struct Case {
    int64_t n, k;
    int splits;  // in deterministic mode
  };
  const Case cases[] = {{2112, 7168, 4},  {24576, 1536, 1}, {32768, 512, 1}, {7168, 16384, 1}, {4096, 7168, 2},
                        {7168, 2048, 1},  {3072, 1536, 3},  {1536, 1536, 4}, {4096, 512, 1},   {2048, 512, 1},
                        {7168, 1024, 1},  {512, 7168, 8},   {256, 7168, 8},  {7168, 256, 1},   {7168, 128, 1},
                        {36864, 7168, 1}, {7168, 18432, 1}, {4608, 7168, 2}, {7168, 2304, 1}};
  for (const Case& c : cases) {
    for (const int64_t m : {1, 8, 16, 32, 33, 64, 65, 128, 129, 1024}) {
      SCOPED_TRACE(std::to_string(c.n) + " x " + std::to_string(c.k) + ", m " + std::to_string(m));
      for (const bool deterministic : {false, true}) {
        const StreamShape shape = choose_stream(m, c.n, c.k, deterministic);
        SCOPED_TRACE(describe(shape));
        EXPECT_LE(shape.tokens, stream_tokens(m));
        if (deterministic) {
          EXPECT_EQ(shape.splits, c.splits);
          EXPECT_LE(predict_stream_us(shape, m, c.n, c.k),
                    predict_stream_us({stream_tokens(m), 64, c.splits}, m, c.n, c.k));
        }
        if (deterministic && m <= 32) {
          EXPECT_EQ(shape.tokens, stream_tokens(m));
        }
        EXPECT_LE(shape.splits, c.k / 128);
        EXPECT_NE(std::ranges::find(kStreamSplits, shape.splits), kStreamSplits.end());
        EXPECT_NE(std::ranges::find(kStreamTiles, StreamTile{shape.tokens, shape.weight_rows}), kStreamTiles.end());
        if (m <= 32 || deterministic) {
          EXPECT_EQ(choose_gemm(m, c.n, c.k, deterministic).kernel, GemmKernel::kStream);
        }
      }
    }
  }
  EXPECT_EQ(describe(choose_gemm(8, 2112, 7168, false)), "stream: 8 tokens x 64 rows, 6 splits");
  EXPECT_EQ(choose_gemm(kStreamMaxRows + 1, 2112, 7168, false).kernel, GemmKernel::kTiles);
  EXPECT_EQ(choose_gemm(2 * kStreamMaxRows + 1, 512, 7168, true).launches, 3);
  EXPECT_EQ(describe(StreamShape{128, 64, 2}), "128 tokens x 64 rows, 2 splits");
}

TEST(GemmChoice, RowsOfATile) {
  for (const auto& [rows, want] : {std::pair{1, 8},
                                   {32, 8},
                                   {128, 8},
                                   {256, 16},
                                   {512, 32},
                                   {1024, 64},
                                   {3072, 128},
                                   {4096, 256},
                                   {6400, 256},
                                   {6432, 128},
                                   {8192, 128},
                                   {32768, 128},
                                   {65536, 256},
                                   {100000, 256}}) {
    EXPECT_EQ(grouped_tile_rows(rows, 8, 256), want) << rows << " rows";
  }
  for (const auto& [m, want] : {std::pair{1, 8}, {8, 8}, {9, 16}, {33, 64}, {65, 128}, {128, 128}})
    EXPECT_EQ(stream_tokens(m), want) << m;
}

/// Measured best, for the products measured and for those near them.
TEST(GemmChoice, MeasuredProducts) {
  struct Case {
    int64_t m, n, k;
    const char* want;
  };
  const Case cases[] = {{16, 3072, 1536, "stream: 16 tokens x 64 rows, 3 splits"},
                        {1, 3072, 1536, "stream: 8 tokens x 64 rows, 3 splits"},
                        {8, 4096, 7168, "stream: 8 tokens x 64 rows, 3 splits"},
                        {9, 4096, 7168, "stream: 16 tokens x 64 rows, 3 splits"},
                        {16, 7168, 16384, "stream: 16 tokens x 64 rows, 2 splits"},
                        {64, 512, 7168, "stream: 32 tokens x 64 rows, 8 splits"},
                        {256, 512, 7168, "stream: 64 tokens x 64 rows, 6 splits"},
                        {512, 512, 7168, "tiles: 64x32 alone"},
                        {32, 4608, 7168, "stream: 32 tokens x 64 rows, 2 splits"},
                        {64, 4608, 7168, "tiles: 64x48 alone"},
                        {65, 4608, 7168, "tiles: 128x48 alone"},
                        {128, 7168, 2304, "tiles: 128x64 alone"},
                        {64, 24576, 1536, "tiles: 64x128"},
                        {33, 32768, 512, "tiles: 64x128 alone"},
                        {32, 32768, 512, "stream: 32 tokens x 64 rows, 1 split"},
                        {1024, 36864, 7168, "tiles: 256x128"}};
  for (const Case& c : cases)
    EXPECT_EQ(describe(choose_gemm(c.m, c.n, c.k, false)), c.want) << c.m << " rows, " << c.n << " x " << c.k;
}

TEST(GemmChoice, Experts) {
  const auto choose = [](int tile_rows, int max_tiles, int64_t n, int64_t k, int64_t experts, bool deterministic) {
    const GroupedChoice choice =
        choose_grouped_gemm({nullptr, nullptr, max_tiles, tile_rows}, {nullptr, nullptr, n, k, experts}, deterministic);
    return choice.kernel == GemmKernel::kStream ? std::string("stream") : to_string(choice.tile);
  };
  EXPECT_EQ(choose(32, 32, 7168, 2048, 32, false), "stream");
  EXPECT_EQ(choose(64, 32, 4096, 7168, 32, false), "64x128 alone");
  EXPECT_EQ(choose(64, 8, 7168, 2048, 8, false), "64x64 alone");
  EXPECT_EQ(choose(64, 8, 7168, 2048, 8, true), "stream");
  EXPECT_EQ(choose(128, 8, 4096, 7168, 8, false), "128x128");
  EXPECT_EQ(choose(128, 257, 512, 7168, 257, false), "128x128 alone");  // near 256 experts
  EXPECT_EQ(choose(128, 32, 4096, 7168, 32, false), "128x128 alone");
  EXPECT_EQ(choose(128, 64, 4096, 7168, 32, false), "128x192");  // two tiles an expert: prompts
  EXPECT_EQ(choose(128, 64, 4096, 7168, 32, true), "stream");
  EXPECT_EQ(choose(64, 60, 2816, 2048, 64, false), "64x128");  // nothing near was measured
  EXPECT_EQ(choose(128, 60, 2816, 2048, 64, false), "128x128");
  for (const bool deterministic : {false, true})
    EXPECT_EQ(choose(256, 27, 4096, 7168, 17, deterministic), "256x128");  // no other takes such lists
  EXPECT_TRUE(use_fused_gate_up(8, 2, 9, 256));
  EXPECT_FALSE(use_fused_gate_up(8, 3, 9, 256));
  EXPECT_FALSE(use_fused_gate_up(16, 1, 9, 256));
  EXPECT_FALSE(use_fused_gate_up(8, 1, 8, 192));
}

/// All counts of rows against float64, and bit by bit against the product of most rows. y's rows have eight columns
/// more.
void check_dense(int64_t n, int64_t k) {
  SCOPED_TRACE("n " + std::to_string(n) + ", k " + std::to_string(k));
  const RandomWeight w(n, k, 11);
  const RandomRows x(kMostRows, k, 22);
  const std::vector<double> want = product_f64(x.rows, w.weight, kMostRows);
  const int64_t stride = n + 8;
  std::vector<Bf16> all;
  for (int i = static_cast<int>(std::size(kRowCounts)) - 1; i >= 0; --i) {
    const int64_t m = kRowCounts[i];
    SCOPED_TRACE("m " + std::to_string(m));
    // Activations of its own: the rows behind the last are NaN.
    const RandomRows some(m, k, 22);
    for (int64_t g = 0; g < k / 128; ++g) {
      ASSERT_EQ(cudaMemcpy(some.scales.get() + g * some.rows.scale_stride, x.scales.get() + g * x.rows.scale_stride,
                           m * 4, cudaMemcpyDeviceToDevice),
                cudaSuccess);
    }
    for (const bool deterministic : {true, false}) {
      // Few rows, or splits that are the same anyway: one run says it all.
      if (!deterministic && choose_stream(m, n, k, true) == choose_stream(m, n, k, false)) continue;
      SCOPED_TRACE(describe(choose_stream(m, n, k, deterministic)));
      Guarded<Bf16> y(m * stride);
      ASSERT_OK(stream_gemm(some.rows, w.weight, {y.get(), m, n, stride}, deterministic));
      expect_synced();
      EXPECT_TRUE(y.guards_intact());
      const std::vector<Bf16> raw = y.download();
      std::vector<Bf16> got;
      for (int64_t r = 0; r < m; ++r) {
        got.insert(got.end(), raw.begin() + r * stride, raw.begin() + r * stride + n);
        for (int64_t c = n; c < stride; ++c)
          ASSERT_TRUE(is_poison(raw[r * stride + c])) << "row " << r << ", column " << c;
      }
      const Error error = relative_l2(from_bf16(got), std::vector<double>(want.begin(), want.begin() + m * n), n);
      EXPECT_LT(error.all, kAll);
      EXPECT_LT(error.worst_row, kWorstRow) << "row " << error.worst;
      if (!deterministic) continue;
      if (all.empty()) all = got;
      EXPECT_TRUE(same_bits(got, all, got.size())) << "a row's bits depend on the batch";
    }
  }
}

TEST(Fp8Stream, MatchesFloat64AndBitsDoNotDependOnTheBatch) {
  DSV3_NEEDS_GPU();
  for (const auto& [n, k] : {std::pair{96, 128}, {64, 256}, {72, 1152}, {256, 512}, {576, 1536}, {200, 3072}})
    check_dense(n, k);
}

TEST(Fp8Stream, LargeShapes) {
  DSV3_NEEDS_GPU();
  for (const int64_t n : {2112, 576, 7168, 512, 256, 4096, 96}) {
    for (const int64_t k : {128, 256, 512, 7168}) check_dense(n, k);
  }
  check_dense(32768, 512);
  check_dense(512, 18432);
}

/// Every tile with every number of splits, against float64; the same splits give the same bits whatever the tile.
void check_every_tile(int64_t n, int64_t k, const std::vector<int64_t>& row_counts = {5, 64, 77, 128, 200}) {
  const RandomWeight w(n, k, 31);
  for (const int64_t m : row_counts) {
    const RandomRows x(m, k, 32);
    const std::vector<double> want = product_f64(x.rows, w.weight, m);
    for (const int splits : kStreamSplits) {
      if (splits > k / 128) continue;
      std::vector<Bf16> first;
      for (const StreamTile& tile : kStreamTiles) {
        const StreamShape shape{tile.tokens, tile.weight_rows, splits};
        SCOPED_TRACE("m " + std::to_string(m) + ", n " + std::to_string(n) + ", k " + std::to_string(k) + ": " +
                     describe(shape));
        Guarded<Bf16> y(m * n);
        ASSERT_OK(fp8_gemm_stream(shape, x.rows, w.weight, {y.get(), m, n, n}, nullptr));
        expect_synced();
        EXPECT_TRUE(y.guards_intact());
        const std::vector<Bf16> got = y.download();
        const Error error = relative_l2(from_bf16(got), want, n);
        EXPECT_LT(error.all, kAll);
        EXPECT_LT(error.worst_row, kWorstRow) << "row " << error.worst;
        if (first.empty()) first = got;
        EXPECT_TRUE(same_bits(got, first, got.size())) << "a row's bits depend on the tile";
      }
    }
  }
}

TEST(Fp8Stream, EachTileOnce) {  // short enough for every sanitizer
  DSV3_NEEDS_GPU();
  check_every_tile(72, 1152, {77});
}

TEST(Fp8Stream, EveryTileAndSplit) {
  DSV3_NEEDS_GPU();
  // One tile, a ragged one; 8 blocks of K and uneven shares, one block of K.
  for (const auto& [n, k] : {std::pair{64, 1024}, {200, 1152}, {384, 128}}) check_every_tile(n, k);
}

TEST(Fp8Stream, LargeEveryTileAndSplit) {
  DSV3_NEEDS_GPU();
  for (const auto& [n, k] : {std::pair{2112, 7168}, {4096, 2048}, {640, 3072}}) check_every_tile(n, k);
}

TEST(Fp8Stream, NoRows) {
  DSV3_NEEDS_GPU();
  const RandomWeight w(64, 128, 1);
  EXPECT_OK(fp8_gemm_stream({8, 64, 1}, {nullptr, nullptr, 0, 128, 0}, w.weight, {nullptr, 0, 64, 64}, nullptr));
}

TEST(Fp8Stream, SaysWhatIsWrong) {
  Fp8Rows x{reinterpret_cast<uint8_t*>(1024), reinterpret_cast<float*>(1024), 4, 100, 4};
  const Fp8Weight w{reinterpret_cast<const uint8_t*>(1024), reinterpret_cast<const float*>(1024), 64, 100, 1};
  const Bf16Matrix y{reinterpret_cast<Bf16*>(1024), 4, 64, 64};
  const Status status = fp8_gemm_stream({8, 64, 1}, x, w, y, nullptr);
  EXPECT_EQ(status.code(), Code::kInternal);
  EXPECT_NE(status.message().find("multiple of 128"), std::string::npos) << status.message();
  const Fp8Rows good{x.data, x.scales, 4, 1024, 4};
  const Fp8Weight wide{w.data, w.scales, 64, 1024, 1};
  for (const StreamShape& shape : {StreamShape{24, 64, 1}, {64, 32, 1}, {64, 64, 5}}) {
    EXPECT_EQ(fp8_gemm_stream(shape, good, wide, y, nullptr).code(), Code::kInternal) << describe(shape);
  }
}

/// Launches that overlap (programmatic dependent launch), split and not, give the same bits every time.
TEST(Fp8Stream, FiftyLaunchesBackToBack) {
  DSV3_NEEDS_GPU();
  const RandomWeight split(256, 3072, 1), whole(3072, 256, 2);
  const RandomRows a(16, 3072, 3), b(16, 256, 4);
  std::vector<Bf16> first_a, first_b;
  for (int round = 0; round < 2; ++round) {
    Guarded<Bf16> y_a(16 * 256), y_b(16 * 3072);
    for (int i = 0; i < (round == 0 ? 1 : 50); ++i) {
      ASSERT_OK(stream_gemm(a.rows, split.weight, {y_a.get(), 16, 256, 256}));
      ASSERT_OK(stream_gemm(b.rows, whole.weight, {y_b.get(), 16, 3072, 3072}));
    }
    expect_synced();
    if (round == 0) {
      first_a = y_a.download(), first_b = y_b.download();
    } else {
      EXPECT_TRUE(same_bits(first_a, y_a.download(), first_a.size()));
      EXPECT_TRUE(same_bits(first_b, y_b.download(), first_b.size()));
    }
  }
}

// ---- experts
// -----------------------------------------------------------------------------------------------------------

/// Rows of experts in the permuted order, cut into tiles; experts begin on multiples of 8.
struct Plan {
  std::vector<ExpertTile> tiles;
  std::vector<int> expert_of_row;  // -1: in no tile
  Plan(const std::vector<int>& rows_of_expert, int tile_rows) {
    for (size_t e = 0; e < rows_of_expert.size(); ++e) {
      const int begin = static_cast<int>(expert_of_row.size()), rows = rows_of_expert[e];
      for (int r = 0; r < rows; r += tile_rows)
        tiles.push_back({static_cast<int32_t>(e), begin + r, std::min(tile_rows, rows - r), 0});
      expert_of_row.resize(begin + rows, static_cast<int>(e));
      while (expert_of_row.size() % kExpertRowAlign != 0) expert_of_row.push_back(-1);
    }
  }
};

std::vector<Bf16> check_grouped(int64_t n, int64_t k, const std::vector<int>& rows_of_expert, int tile_rows) {
  SCOPED_TRACE("n " + std::to_string(n) + ", k " + std::to_string(k) + ", tile_rows " + std::to_string(tile_rows));
  const Plan plan(rows_of_expert, tile_rows);
  const int64_t rows = static_cast<int64_t>(plan.expert_of_row.size()), stride = n + 8;
  const RandomWeight w(n, k, 5, static_cast<int64_t>(rows_of_expert.size()));
  const RandomRows x(rows, k, 6, tile_rows - 1);
  const Guarded<int> experts(plan.expert_of_row);
  const std::vector<double> want = product_f64(x.rows, w.weight, rows, experts.get());
  // Entries behind the count are poison: experts and rows of -1.
  const int max_tiles = static_cast<int>(plan.tiles.size()) + 5;
  Guarded<ExpertTile> list(max_tiles);
  EXPECT_EQ(cudaMemcpy(list.get(), plan.tiles.data(), plan.tiles.size() * sizeof(ExpertTile), cudaMemcpyHostToDevice),
            cudaSuccess);
  const Guarded<int32_t> count(std::vector<int32_t>{static_cast<int32_t>(plan.tiles.size())});
  Guarded<Bf16> y(rows * stride);
  const ExpertTiles tiles{list.get(), count.get(), max_tiles, tile_rows};
  EXPECT_OK(fp8_grouped_gemm_stream(x.rows, w.weight, tiles, {y.get(), rows, n, stride}, nullptr));
  expect_synced();
  EXPECT_TRUE(y.guards_intact());
  const std::vector<Bf16> raw = y.download();
  std::vector<Bf16> got;
  std::vector<double> some;
  for (int64_t r = 0; r < rows; ++r) {
    const bool used = plan.expert_of_row[r] >= 0;
    for (int64_t c = used ? n : 0; c < stride; ++c) {
      if (is_poison(raw[r * stride + c])) continue;
      ADD_FAILURE() << "row " << r << ", column " << c << " was written";
      return {};
    }
    if (!used) continue;
    got.insert(got.end(), raw.begin() + r * stride, raw.begin() + r * stride + n);
    some.insert(some.end(), want.begin() + r * n, want.begin() + (r + 1) * n);
  }
  const Error error = relative_l2(from_bf16(got), some, n);
  EXPECT_LT(error.all, kAll);
  EXPECT_LT(error.worst_row, kWorstRow) << "row " << error.worst;
  return got;
}

TEST(Fp8GroupedStream, MatchesFloat64AndBitsDoNotDependOnTheTiles) {
  DSV3_NEEDS_GPU();
  const std::vector<int> rows = {5, 0, 23, 8, 0, 1, 70};
  for (const auto& [n, k] : {std::pair{96, 128}, {256, 256}, {200, 1536}}) {
    std::vector<Bf16> first;
    for (const int tile_rows : {8, 16, 32, 64, 128}) {
      const std::vector<Bf16> got = check_grouped(n, k, rows, tile_rows);
      if (first.empty()) first = got;
      ASSERT_EQ(got.size(), first.size());
      EXPECT_TRUE(same_bits(got, first, got.size())) << "n " << n << ", k " << k << ", tile_rows " << tile_rows;
    }
  }
}

TEST(Fp8GroupedStream, LargeExperts) {
  DSV3_NEEDS_GPU();
  std::vector<int> rows(12);
  for (size_t e = 0; e < rows.size(); ++e) rows[e] = static_cast<int>(e * e % 11);
  for (const auto& [n, k] : {std::pair{4096, 7168}, {7168, 2048}, {512, 7168}, {7168, 256}, {256, 7168}, {7168, 128}}) {
    for (const int tile_rows : {8, 16, 64}) check_grouped(n, k, rows, tile_rows);
  }
  check_grouped(4096, 512, std::vector<int>(64, 33), 32);  // more items than blocks, many times round the ring
}

TEST(Fp8GroupedStream, AnEmptyListWritesNothing) {
  DSV3_NEEDS_GPU();
  const RandomWeight w(128, 256, 1, 2);
  const RandomRows x(8, 256, 2, 7);
  const Guarded<ExpertTile> list(4);
  Guarded<int32_t> count(1);
  count.zero();
  const Guarded<Bf16> y(8 * 128);
  EXPECT_OK(
      fp8_grouped_gemm_stream(x.rows, w.weight, {list.get(), count.get(), 4, 8}, {y.get(), 8, 128, 128}, nullptr));
  expect_synced();
  for (const Bf16 value : y.download()) ASSERT_TRUE(is_poison(value));
}

// ---- the dependency wait
// ---------------------------------------------------------------------------------------------

TEST(Fp8Stream, WaitsForItsPredecessor) {
  DSV3_NEEDS_GPU();
  const int64_t m = 8, n = 512, k = 1536;
  const RandomWeight w(n, k, 1);
  const RandomRows x(m, k, 2), source(m, k, 3);
  const Guarded<ExpertTile> list(std::vector<ExpertTile>{{0, 0, 8, 0}});
  const Guarded<int32_t> count(std::vector<int32_t>{0});
  const Guarded<Bf16> y(m * n), grouped(m * n);
  ASSERT_OK(write_late(x.data.get(), source.data.get(), m * k, count.get(), 0));
  ASSERT_OK(stream_gemm(x.rows, w.weight, {y.get(), m, n, n}));
  ASSERT_OK(write_late(x.data.get(), source.data.get(), m * k, count.get(), 1));
  ASSERT_OK(
      fp8_grouped_gemm_stream(x.rows, w.weight, {list.get(), count.get(), 1, 8}, {grouped.get(), m, n, n}, nullptr));
  expect_synced();
  Fp8Rows fresh = x.rows;  // its scales, the other data
  fresh.data = source.data.get();
  const std::vector<double> want = product_f64(fresh, w.weight, m);
  EXPECT_LT(relative_l2(from_bf16(y.download()), want, n).worst_row, kWorstRow);
  EXPECT_LT(relative_l2(from_bf16(grouped.download()), want, n).worst_row, kWorstRow);
}

}  // namespace
}  // namespace dsv3::cuda::testing
