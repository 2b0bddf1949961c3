// The experts' products of decode: gate and up with activation and quantisation against float64, down against the grouped kernel.
#include <algorithm>
#include <string>

#include "gate_up_case.cuh"
#include "kernels/cuda/gemm/fp8_gate_up.h"
#include "kernels/cuda/gemm/gemm.h"
#include "late_writer.cuh"

namespace dsv3::cuda::testing {
namespace {

TEST(GateUpChoice, FourSplitsWhereThereIsWork) {
  EXPECT_EQ(gate_up_splits(7168), 4);
  EXPECT_EQ(gate_up_splits(12 * 128), 4);
  EXPECT_EQ(gate_up_splits(11 * 128), 2);
  EXPECT_EQ(gate_up_splits(5 * 128), 1);
  EXPECT_EQ(gate_up_splits(128), 1);
}

TEST(GateUpChoice, FewItemsAreSharedByTwoBlocks) {
  EXPECT_EQ(gate_up_cols(18, 4), 64);
  EXPECT_EQ(gate_up_cols(33, 4), 64);
  EXPECT_EQ(gate_up_cols(34, 4), 128);
  EXPECT_EQ(gate_up_cols(1, 8), 128);
}

/// Rows of experts in the permuted order, cut into tiles of 8; experts begin on multiples of 8.
struct Plan {
  std::vector<ExpertTile> tiles;
  std::vector<int> expert_of_row;  // -1: in no tile
  explicit Plan(const std::vector<int>& rows_of_expert) {
    constexpr int kTileRows = 8;
    for (size_t e = 0; e < rows_of_expert.size(); ++e) {
      const int begin = static_cast<int>(expert_of_row.size()), rows = rows_of_expert[e];
      for (int r = 0; r < rows; r += kTileRows) tiles.push_back({static_cast<int32_t>(e), begin + r, std::min(kTileRows, rows - r), 0});
      expert_of_row.resize(begin + rows, static_cast<int>(e));
      while (expert_of_row.size() % kExpertRowAlign != 0) expert_of_row.push_back(-1);
    }
  }
};

/// With room in the list for few and for many tiles: blocks take 64 columns, and 128.
void check_grouped(int64_t width, int64_t k, const std::vector<int>& rows_of_expert, const std::vector<int>& all_splits, bool ue8m0) {
  const RandomWeight w(2 * width, k, 5, static_cast<int64_t>(rows_of_expert.size()));
  const Plan plan(rows_of_expert);
  const int64_t rows = static_cast<int64_t>(plan.expert_of_row.size());
  const RandomRows x(rows, k, 6, 7);
  const Guarded<int> experts(plan.expert_of_row);
  const std::vector<double> products = product_f64(x.rows, w.weight, rows, experts.get());
  for (const int splits : all_splits) {
    std::vector<Bits> first;
    for (const int spare : {1, 140}) {
      SCOPED_TRACE("width " + std::to_string(width) + ", k " + std::to_string(k) + ", splits " + std::to_string(splits) + ", " +
                   std::to_string(spare) + " spare tiles");
      // Entries behind the count are poison: experts and rows of -1.
      const int max_tiles = static_cast<int>(plan.tiles.size()) + spare;
      Guarded<ExpertTile> list(max_tiles);
      EXPECT_EQ(cudaMemcpy(list.get(), plan.tiles.data(), plan.tiles.size() * sizeof(ExpertTile), cudaMemcpyHostToDevice), cudaSuccess);
      const Guarded<int32_t> count(std::vector<int32_t>{static_cast<int32_t>(plan.tiles.size())});
      const Out out(rows, width), again(rows, width);
      const GateUpOptions options{.ue8m0 = ue8m0, .splits = splits};
      ASSERT_OK(fp8_gate_up(x.rows, w.weight, {list.get(), count.get(), max_tiles, 8}, out.rows, options, nullptr));
      ASSERT_OK(fp8_gate_up(x.rows, w.weight, {list.get(), count.get(), max_tiles, 8}, again.rows, options, nullptr));
      expect_synced();
      ASSERT_NO_FATAL_FAILURE(check_gate_up(out, products, plan.expert_of_row, ue8m0));
      first.emplace_back(out);
      EXPECT_TRUE(first.front() == first.back()) << "a row's bits depend on the columns of a block";
      EXPECT_TRUE(first.back() == Bits(again)) << "two runs differ";
    }
  }
}

TEST(GateUp, EachTileOnce) {  // short enough for every sanitizer
  DSV3_NEEDS_GPU();
  check_grouped(128, 1152, {5, 0, 23}, {1, 4}, false);
}

TEST(GateUp, TilesMatchFloat64AndBitsDoNotDependOnThem) {
  DSV3_NEEDS_GPU();
  const std::vector<int> rows = {5, 0, 23, 8, 0, 1, 35};
  check_grouped(128, 128, rows, {0, 1}, false);
  check_grouped(128, 256, rows, {0, 1, 2}, true);
  check_grouped(256, 1152, rows, {0, 1, 2, 4, 8}, false);
  check_grouped(384, 2048, rows, {1, 2, 8}, true);
}

TEST(GateUp, LargeTiles) {
  DSV3_NEEDS_GPU();
  const std::vector<int> rows = {1, 0, 17, 1, 9, 1, 0, 3, 1, 1};
  check_grouped(256, 7168, rows, {0, 1, 2, 4, 8}, false);
  check_grouped(2048, 7168, rows, {0, 1, 2, 8}, false);
  check_grouped(2048, 256, rows, {0, 1, 2}, true);
  check_grouped(256, 896, std::vector<int>(150, 3), {1, 2, 4}, false);  // more blocks than fit at a time
}

TEST(GateUp, AnEmptyListWritesNothing) {
  DSV3_NEEDS_GPU();
  const RandomWeight w(256, 1024, 1, 2);
  const RandomRows x(8, 1024, 2, 7);
  const Guarded<ExpertTile> list(4);
  Guarded<int32_t> count(1);
  count.zero();
  for (const int splits : {1, 4}) {
    const Out out(8, 128);
    EXPECT_OK(fp8_gate_up(x.rows, w.weight, {list.get(), count.get(), 4, 8}, out.rows, {.splits = splits}, nullptr));
    expect_synced();
    for (const uint8_t value : Bits(out).data) ASSERT_EQ(value, 0xFF);
    for (const float value : Bits(out).scales) ASSERT_TRUE(std::isnan(value));
  }
  EXPECT_OK(fp8_gate_up(x.rows, w.weight, {list.get(), count.get(), 0, 8}, {}, {}, nullptr));
  EXPECT_OK(fp8_gate_up({nullptr, nullptr, 0, 1024, 0}, w.weight, {list.get(), count.get(), 4, 8}, {}, {}, nullptr));
  expect_synced();
}

TEST(GateUp, SaysWhatIsWrong) {
  const auto bytes = reinterpret_cast<uint8_t*>(1024);
  const auto floats = reinterpret_cast<float*>(1024);
  const Fp8Rows x{bytes, floats, 4, 256, 4}, out{bytes, floats, 4, 128, 4};
  const ExpertTiles tiles{reinterpret_cast<ExpertTile*>(1024), reinterpret_cast<int32_t*>(1024), 1, 8};
  const auto message = [&](const Fp8Weight& w, const ExpertTiles& list, const Fp8Rows& to, int splits) {
    const Status status = fp8_gate_up(x, w, list, to, {.splits = splits}, nullptr);
    EXPECT_EQ(status.code(), Code::kInternal);
    return std::string(status.message());
  };
  EXPECT_NE(message({bytes, floats, 384, 256, 1}, tiles, out, 0).find("twice a multiple of 128"), std::string::npos);
  EXPECT_NE(message({bytes, floats, 512, 256, 1}, tiles, out, 0).find("wanted"), std::string::npos);
  EXPECT_NE(message({bytes, floats, 256, 256, 1}, tiles, out, 3).find("splits"), std::string::npos);
  EXPECT_NE(message({bytes, floats, 256, 256, 1}, tiles, out, 4).find("splits"), std::string::npos);
  EXPECT_NE(message({bytes, floats, 256, 4096, 1}, tiles, out, 16).find("in k"), std::string::npos);
  EXPECT_NE(message({bytes, floats, 256, 256, 1}, {tiles.tiles, tiles.count, 1, 64}, out, 0).find("tile_rows is not 8"), std::string::npos);
  EXPECT_NE(message({bytes, floats, 256, 256, 1}, {nullptr, nullptr, 1, 8}, out, 0).find("no list"), std::string::npos);
}

/// Its list and rows come late, and so do those of the product behind it.
TEST(GateUp, WaitsForItsPredecessor) {
  DSV3_NEEDS_GPU();
  const int64_t m = 8, width = 256, k = 2048, n = 576;
  const RandomWeight w(2 * width, k, 1), down(n, width, 2);
  const RandomRows source(m, k, 3);
  Fp8Rows x = source.rows;  // its scales, the other data
  const Guarded<uint8_t> data(m * k);
  const Guarded<ExpertTile> list(std::vector<ExpertTile>{{0, 0, 8, 0}});
  const Guarded<int32_t> count(std::vector<int32_t>{0});
  const Out middle(m, width);
  const Guarded<Bf16> y(m * n);
  x.data = data.get();
  const ExpertTiles tiles{list.get(), count.get(), 1, 8};
  ASSERT_OK(write_late(data.get(), source.data.get(), m * k, count.get(), 1));
  ASSERT_OK(fp8_gate_up(x, w.weight, tiles, middle.rows, {}, nullptr));
  ASSERT_OK(fp8_grouped_gemm(middle.rows, down.weight, tiles, {y.get(), m, n, n}, {}, nullptr));
  expect_synced();
  ASSERT_NO_FATAL_FAILURE(check_gate_up(middle, product_f64(source.rows, w.weight, m), std::vector<int>(m, 0), false));
  // 2.5e-3: BF16 rounding is 1.7e-3, sums in the tensor core 1.2e-4.
  EXPECT_LT(relative_l2(from_bf16(y.download()), product_f64(middle.rows, down.weight, m), n).all, 2.5e-3);
}

/// Launches that overlap, with other shapes between, give the same bits every time.
TEST(GateUp, FiftyLaunchesBackToBack) {
  DSV3_NEEDS_GPU();
  const RandomWeight split(512, 3072, 1), whole(2048, 256, 2);
  const RandomRows a(8, 3072, 3), b(5, 256, 4, 7);
  const Guarded<ExpertTile> eight(std::vector<ExpertTile>{{0, 0, 8, 0}}), five(std::vector<ExpertTile>{{0, 0, 5, 0}});
  const Guarded<int32_t> one(std::vector<int32_t>{1});
  std::vector<Bits> first;
  for (int round = 0; round < 2; ++round) {
    const Out out_a(8, 256), out_b(5, 1024);
    for (int i = 0; i < (round == 0 ? 1 : 50); ++i) {
      ASSERT_OK(fp8_gate_up(a.rows, split.weight, {eight.get(), one.get(), 1, 8}, out_a.rows, {}, nullptr));
      ASSERT_OK(fp8_gate_up(b.rows, whole.weight, {five.get(), one.get(), 1, 8}, out_b.rows, {}, nullptr));
    }
    expect_synced();
    first.emplace_back(out_a);
    first.emplace_back(out_b);
  }
  EXPECT_TRUE(first[0] == first[2] && first[1] == first[3]);
}

}  // namespace
}  // namespace dsv3::cuda::testing
