// The experts' products of decode: gate and up with activation and quantisation against float64, down against the grouped kernel.
#include <algorithm>
#include <cstring>
#include <string>

#include "fp8_case.cuh"
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

/// Rows of experts in the permuted order, cut into tiles; experts begin on multiples of 8.
struct Plan {
  std::vector<ExpertTile> tiles;
  std::vector<int> expert_of_row;  // -1: in no tile
  Plan(const std::vector<int>& rows_of_expert, int tile_rows) {
    for (size_t e = 0; e < rows_of_expert.size(); ++e) {
      const int begin = static_cast<int>(expert_of_row.size()), rows = rows_of_expert[e];
      for (int r = 0; r < rows; r += tile_rows) tiles.push_back({static_cast<int32_t>(e), begin + r, std::min(tile_rows, rows - r), 0});
      expert_of_row.resize(begin + rows, static_cast<int>(e));
      while (expert_of_row.size() % kExpertRowAlign != 0) expert_of_row.push_back(-1);
    }
  }
};

/// What a run wrote. Starts as poison.
struct Out {
  Guarded<uint8_t> data;
  Guarded<float> scales;
  Fp8Rows rows;
  Out(int64_t m, int64_t width) : data(m * width), scales((m + 3) / 4 * 4 * (width / 128)) {
    rows = {data.get(), scales.get(), m, width, (m + 3) / 4 * 4};
  }
};
struct Bits {
  std::vector<uint8_t> data;
  std::vector<float> scales;
  explicit Bits(const Out& out) : data(out.data.download()), scales(out.scales.download()) {}
  bool operator==(const Bits& other) const {
    return data == other.data && std::memcmp(scales.data(), other.scales.data(), scales.size() * sizeof(float)) == 0;
  }
};

/// products: gate and up in float64 [rows, 2 * width]. Rows with expert -1 must be as they were.
void check(const Out& out, const std::vector<double>& products, const std::vector<int>& expert_of_row, bool ue8m0) {
  EXPECT_TRUE(out.data.guards_intact() && out.scales.guards_intact());
  const Bits got(out);
  const int64_t width = out.rows.cols, stride = out.rows.scale_stride;
  std::vector<double> want(128);
  for (int64_t r = 0; r < stride; ++r) {
    const bool used = r < out.rows.rows && expert_of_row[r] >= 0;
    for (int64_t g = 0; g < width / 128; ++g) {
      SCOPED_TRACE("row " + std::to_string(r) + ", group " + std::to_string(g));
      const float scale = got.scales[g * stride + r];
      if (!used) {
        ASSERT_TRUE(std::isnan(scale)) << "a scale of a row in no tile was written";
        for (int64_t c = 0; c < 128 && r < out.rows.rows; ++c) ASSERT_EQ(got.data[r * width + g * 128 + c], 0xFF);
        continue;
      }
      double most = 1e-4;
      for (int64_t c = 0; c < 128; ++c) {
        const double gate = products[r * 2 * width + g * 128 + c], up = products[r * 2 * width + width + g * 128 + c];
        want[c] = gate / (1 + std::exp(-gate)) * up;
        most = std::max(most, std::abs(want[c]));
      }
      // Tensor-core sums are off by 1.2e-4 of their size (rms); 2e-3 covers the largest of a group in gate and up.
      if (ue8m0) {
        uint32_t bits = 0;
        std::memcpy(&bits, &scale, 4);
        ASSERT_EQ(bits & 0x7fffffu, 0u) << scale;
        ASSERT_TRUE(scale >= most / 448 * 0.998 && scale <= most / 448 * 2.004) << scale << " for " << most;
      } else {
        ASSERT_NEAR(scale, most / 448, most / 448 * 2e-3);
      }
      for (int64_t c = 0; c < 128; ++c) {
        __nv_fp8_e4m3 code;
        code.__x = got.data[r * width + g * 128 + c];
        // Half a step of e4m3 is 1/16 of the value, or 2^-10 of the scale where it is subnormal; then the sums' error, as above.
        const double allowed = std::abs(want[c]) / 16 * 1.01 + scale * 0x1p-10 * 1.01 + 2e-3 * most;
        const double value = static_cast<double>(static_cast<float>(code)) * static_cast<double>(scale);
        ASSERT_TRUE(std::abs(value - want[c]) <= allowed) << "column " << c << ": " << value << ", wanted " << want[c];
      }
    }
  }
}

void check_grouped(int64_t width, int64_t k, const std::vector<int>& rows_of_expert, const std::vector<int>& all_splits, bool ue8m0) {
  const RandomWeight w(2 * width, k, 5, static_cast<int64_t>(rows_of_expert.size()));
  const Plan shape(rows_of_expert, 8);
  const int64_t rows = static_cast<int64_t>(shape.expert_of_row.size());
  const RandomRows x(rows, k, 6, 31);
  const Guarded<int> experts(shape.expert_of_row);
  const std::vector<double> products = product_f64(x.rows, w.weight, rows, experts.get());
  for (const int splits : all_splits) {
    std::vector<Bits> first;
    for (const int tile_rows : {8, 16, 32}) {
      SCOPED_TRACE("width " + std::to_string(width) + ", k " + std::to_string(k) + ", splits " + std::to_string(splits) + ", tile_rows " +
                   std::to_string(tile_rows));
      const Plan plan(rows_of_expert, tile_rows);
      // Entries behind the count are poison: experts and rows of -1.
      const int max_tiles = static_cast<int>(plan.tiles.size()) + tile_rows;
      Guarded<ExpertTile> list(max_tiles);
      EXPECT_EQ(cudaMemcpy(list.get(), plan.tiles.data(), plan.tiles.size() * sizeof(ExpertTile), cudaMemcpyHostToDevice), cudaSuccess);
      const Guarded<int32_t> count(std::vector<int32_t>{static_cast<int32_t>(plan.tiles.size())});
      const Out out(rows, width), again(rows, width);
      const GateUpOptions options{.ue8m0 = ue8m0, .splits = splits};
      ASSERT_OK(fp8_gate_up(x.rows, w.weight, {list.get(), count.get(), max_tiles, tile_rows}, out.rows, options, nullptr));
      ASSERT_OK(fp8_gate_up(x.rows, w.weight, {list.get(), count.get(), max_tiles, tile_rows}, again.rows, options, nullptr));
      expect_synced();
      ASSERT_NO_FATAL_FAILURE(check(out, products, plan.expert_of_row, ue8m0));
      first.emplace_back(out);
      EXPECT_TRUE(first.front() == first.back()) << "a row's bits depend on the tiles";
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
  EXPECT_NE(message({bytes, floats, 256, 256, 1}, {tiles.tiles, tiles.count, 1, 64}, out, 0).find("none of 8, 16, 32"), std::string::npos);
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
  ASSERT_NO_FATAL_FAILURE(check(middle, product_f64(source.rows, w.weight, m), std::vector<int>(m, 0), false));
  // 2.5e-3: BF16 rounding is 1.7e-3, sums in the tensor core 1.2e-4.
  EXPECT_LT(relative_l2(from_bf16(y.download()), product_f64(middle.rows, down.weight, m), n).all, 2.5e-3);
}

/// Launches that overlap, with other shapes between, give the same bits every time.
TEST(GateUp, FiftyLaunchesBackToBack) {
  DSV3_NEEDS_GPU();
  const RandomWeight split(512, 3072, 1), whole(2048, 256, 2);
  const RandomRows a(9, 3072, 3, 15), b(5, 256, 4, 7);
  const Guarded<ExpertTile> nine(std::vector<ExpertTile>{{0, 0, 9, 0}}), five(std::vector<ExpertTile>{{0, 0, 5, 0}});
  const Guarded<int32_t> one(std::vector<int32_t>{1});
  std::vector<Bits> first;
  for (int round = 0; round < 2; ++round) {
    const Out out_a(9, 256), out_b(5, 1024);
    for (int i = 0; i < (round == 0 ? 1 : 50); ++i) {
      ASSERT_OK(fp8_gate_up(a.rows, split.weight, {nine.get(), one.get(), 1, 16}, out_a.rows, {}, nullptr));
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
