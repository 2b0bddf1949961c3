// Experts of few rows as hits: the list beside the gate's choice, gate and up, and the weighted sum of their outputs, against
// float64.
#include <map>

#include "gate_up_case.cuh"
#include "kernels/cuda/gemm/fp8_expert_sum.h"
#include "kernels/cuda/gemm/fp8_gate_up.h"
#include "kernels/cuda/moe/moe.h"
#include "late_writer.cuh"

namespace dsv3::cuda::testing {
namespace {

/// A list on the device with room for two hits more than it has; what lies there is poison.
struct HitList {
  std::vector<ExpertTile> hits;
  Guarded<ExpertTile> tiles;
  Guarded<int32_t> count;
  Guarded<float> weights;
  ExpertHits view;
  HitList(const std::vector<int>& experts, int rows, const std::vector<float>& row_weights)
      : tiles(experts.size() + 2), count(std::vector<int32_t>{static_cast<int32_t>(experts.size())}), weights((experts.size() + 2) * kHitRows) {
    for (const int expert : experts) {
      hits.push_back({expert, static_cast<int32_t>(hits.size()) * kHitRows, rows, 0});
    }
    EXPECT_EQ(cudaMemcpy(tiles.get(), hits.data(), hits.size() * sizeof(ExpertTile), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(weights.get(), row_weights.data(), hits.size() * kHitRows * 4, cudaMemcpyHostToDevice), cudaSuccess);
    view = {tiles.get(), count.get(), weights.get(), static_cast<int32_t>(experts.size()) + 2, rows};
  }
};
std::vector<float> row_weights(size_t hits) {
  std::vector<float> weights = normal_values(hits * kHitRows, 77);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = i % 3 == 1 ? 0.0f : 0.1f + std::abs(weights[i]);
  return weights;
}

void check_gate_up_of(int64_t width, int64_t k, const std::vector<int>& experts, int rows) {
  SCOPED_TRACE("width " + std::to_string(width) + ", k " + std::to_string(k) + ", " + std::to_string(rows) + " rows");
  const auto hits = static_cast<int64_t>(experts.size()), out_rows = (hits + 2) * kHitRows;
  const RandomWeight w(2 * width, k, 5, 8);
  const RandomRows x(rows, k, 6, 3);
  // The same by rows: each hit has a copy of the batch.
  std::vector<uint8_t> data(static_cast<size_t>(out_rows * k), 0xFF);
  std::vector<float> scales(static_cast<size_t>(out_rows * (k / 128)), NAN);
  std::vector<int> expert_of_row(static_cast<size_t>((out_rows + 3) / 4 * 4), -1);
  const auto x_data = x.data.download();
  const auto x_scales = x.scales.download();
  for (int64_t h = 0; h < hits; ++h) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t to = h * kHitRows + r;
      expert_of_row[static_cast<size_t>(to)] = experts[static_cast<size_t>(h)];
      std::copy_n(x_data.begin() + r * k, k, data.begin() + to * k);
      for (int64_t g = 0; g < k / 128; ++g)
        scales[static_cast<size_t>(g * out_rows + to)] = x_scales[static_cast<size_t>(g * x.rows.scale_stride + r)];
    }
  }
  const Guarded<uint8_t> copied_data(data);
  const Guarded<float> copied_scales(scales);
  const Guarded<int> experts_device(expert_of_row);
  const Fp8Rows copied{copied_data.get(), copied_scales.get(), out_rows, k, out_rows};
  const std::vector<double> products = product_f64(copied, w.weight, out_rows, experts_device.get());

  const std::vector<float> ones(static_cast<size_t>(hits * kHitRows), 1.0f), weights = row_weights(experts.size());
  const HitList plain(experts, rows, ones), weighted(experts, rows, weights);
  const Out out(out_rows, width), scaled(out_rows, width);
  ASSERT_OK(fp8_gate_up_hits(x.first(rows), w.weight, plain.view, out.rows, {}, nullptr));
  ASSERT_OK(fp8_gate_up_hits(x.first(rows), w.weight, weighted.view, scaled.rows, {}, nullptr));
  expect_synced();
  ASSERT_NO_FATAL_FAILURE(check_gate_up(out, products, expert_of_row, false));
  const Bits got(scaled), want(out);
  ASSERT_EQ(got.data, want.data);
  for (size_t i = 0; i < want.scales.size(); ++i) {
    const size_t row = i % static_cast<size_t>(out.rows.scale_stride);
    if (std::isnan(want.scales[i])) {
      ASSERT_TRUE(std::isnan(got.scales[i]));
    } else {
      ASSERT_EQ(got.scales[i], want.scales[i] * weights[row]) << "row " << row;
    }
  }
}

TEST(ExpertHits, GateAndUpMatchFloat64) {
  DSV3_NEEDS_GPU();
  check_gate_up_of(128, 512, {0, 3, 7}, 1);
  check_gate_up_of(256, 1152, {1, 2}, 8);
  check_gate_up_of(256, 7168, {0, 2, 3, 4, 5, 7}, 3);
}

/// `bound`: BF16 rounding is 1.7e-3, sums in the tensor core 1.2e-4.
void check_sum(int64_t n, int64_t k, const std::vector<int>& experts, int rows, bool accumulate) {
  SCOPED_TRACE("n " + std::to_string(n) + ", k " + std::to_string(k) + ", " + std::to_string(experts.size()) + " hits, " + std::to_string(rows) +
               " rows" + (accumulate ? ", accumulated" : ""));
  const auto hits = static_cast<int64_t>(experts.size()), middle_rows = (hits + 2) * kHitRows;
  const RandomWeight w(n, k, 5, 8);
  RandomRows middle(middle_rows, k, 6);
  // Rows that the batch does not have: NaN.
  std::vector<uint8_t> data = middle.data.download();
  std::vector<int> expert_of_row(static_cast<size_t>(middle_rows), -1);
  for (int64_t i = 0; i < middle_rows; ++i) {
    const bool used = i / kHitRows < hits && i % kHitRows < rows;
    if (used) expert_of_row[static_cast<size_t>(i)] = experts[static_cast<size_t>(i / kHitRows)];
    if (!used) std::fill_n(data.begin() + i * k, k, uint8_t{0xFF});
  }
  EXPECT_EQ(cudaMemcpy(middle.data.get(), data.data(), data.size(), cudaMemcpyHostToDevice), cudaSuccess);
  const Guarded<int> experts_device(expert_of_row);
  const std::vector<double> each = product_f64(middle.rows, w.weight, middle_rows, experts_device.get());
  std::vector<float> before = normal_values(static_cast<size_t>(rows * n), 9, 30.0f);
  const std::vector<Bf16> before_bf16 = to_bf16(before);
  std::vector<double> want(static_cast<size_t>(rows * n), 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      double& sum = want[static_cast<size_t>(r * n + c)];
      if (accumulate) sum = static_cast<double>(from_bf16(before_bf16[static_cast<size_t>(r * n + c)]));
      for (int64_t h = 0; h < hits; ++h) sum += each[static_cast<size_t>((h * kHitRows + r) * n + c)];
    }
  }
  const HitList list(experts, rows, row_weights(experts.size()));
  const Guarded<Bf16> y(before_bf16), again(before_bf16);
  ASSERT_OK(fp8_expert_sum(middle.rows, w.weight, list.view, accumulate, {y.get(), rows, n, n}, nullptr));
  ASSERT_OK(fp8_expert_sum(middle.rows, w.weight, list.view, accumulate, {again.get(), rows, n, n}, nullptr));
  expect_synced();
  EXPECT_TRUE(y.guards_intact());
  const std::vector<Bf16> got = y.download();
  EXPECT_TRUE(same_bits(got, again.download(), got.size())) << "two runs differ";
  if (hits == 0 && !accumulate) {
    for (const Bf16 value : got) ASSERT_EQ(from_bf16(value), 0.0f);
    return;
  }
  EXPECT_LT(relative_l2(from_bf16(got), want, n).all, 2.5e-3);
}

TEST(ExpertHits, SumsMatchFloat64) {
  DSV3_NEEDS_GPU();
  check_sum(576, 128, {0, 3, 7}, 1, false);
  check_sum(64, 256, {1}, 8, true);  // fewer stages than blocks share
  check_sum(200, 384, {0, 1, 2, 3, 4, 5, 6, 7}, 5, false);
  check_sum(512, 128, {}, 3, false);
  check_sum(512, 128, {}, 3, true);
}

TEST(ExpertHits, LargeSums) {
  DSV3_NEEDS_GPU();
  check_sum(7168, 256, {0, 2, 3, 4, 5, 7}, 1, false);
  check_sum(7168, 2048, {0, 1, 2, 3, 4, 5, 6, 7}, 8, false);
  check_sum(7168, 128, {0, 6}, 7, true);
}

/// The list comes late, and the sum asks for weights before the product ahead of it has ended.
TEST(ExpertHits, WaitForTheirPredecessors) {
  DSV3_NEEDS_GPU();
  const int64_t width = 256, k = 2048, n = 576;
  const int rows = 2;
  const RandomWeight w(2 * width, k, 1, 4), down(n, width, 2, 4);
  const RandomRows x(rows, k, 3);
  const HitList list({1, 3}, rows, row_weights(2));
  const Out middle(4 * kHitRows, width);
  Guarded<ExpertTile> late_tiles(2);
  late_tiles.zero();
  const Guarded<int32_t> late_count(std::vector<int32_t>{0});
  ExpertHits hits = list.view;
  hits.tiles = late_tiles.get(), hits.count = late_count.get();
  const Guarded<Bf16> y(rows * n), want(rows * n);
  ASSERT_OK(write_late(reinterpret_cast<uint8_t*>(late_tiles.get()), reinterpret_cast<const uint8_t*>(list.tiles.get()), 2 * sizeof(ExpertTile),
                       late_count.get(), 2));
  ASSERT_OK(fp8_gate_up_hits(x.rows, w.weight, hits, middle.rows, {}, nullptr));
  ASSERT_OK(fp8_expert_sum(middle.rows, down.weight, hits, false, {y.get(), rows, n, n}, nullptr));
  expect_synced();
  ASSERT_OK(fp8_gate_up_hits(x.rows, w.weight, list.view, middle.rows, {}, nullptr));
  expect_synced();
  ASSERT_OK(fp8_expert_sum(middle.rows, down.weight, list.view, false, {want.get(), rows, n, n}, nullptr));
  expect_synced();
  EXPECT_TRUE(same_bits(y.download(), want.download(), static_cast<size_t>(rows * n)));
}

void check_lists(const std::vector<int64_t>& numbers_of_rows) {
  GateShape gate;
  for (const bool grouped : {true, false}) {
    gate.experts = grouped ? 256 : 70, gate.top_k = grouped ? 8 : 5, gate.groups = grouped ? 8 : 1, gate.top_groups = grouped ? 4 : 1;
    gate.scale = 2.5f;
    for (const int64_t rows : numbers_of_rows) {
      for (const bool shared : {false, true}) {
        SCOPED_TRACE(std::to_string(gate.experts) + " experts, " + std::to_string(rows) + " rows" + (shared ? ", shared expert" : ""));
        ASSERT_TRUE(routes_to_hits(rows, gate));
        const auto shared_id = shared ? static_cast<int32_t>(gate.experts) : -1;
        const int64_t columns = gate.top_k + (shared ? 1 : 0), experts = gate.experts + (shared ? 1 : 0);
        const auto entries = static_cast<size_t>(rows * columns);
        const Guarded<float> logits(normal_values(static_cast<size_t>(rows * gate.experts), 53, 2.0f));
        const Guarded<float> bias(normal_values(static_cast<size_t>(gate.experts), 54, 0.3f));
        std::vector<int32_t> positions(static_cast<size_t>(rows), 5);
        if (rows > 2) positions[1] = -1;
        const Guarded<int32_t> positions_device(positions), ids(entries), want_ids(entries), count(1);
        const Guarded<float> weights(entries), want_weights(entries);
        const int32_t most = max_hits(rows, columns, experts);
        const Guarded<ExpertTile> tiles(most);
        const Guarded<float> hit_weights(most * kHitRows);
        const ExpertHits hits{tiles.get(), count.get(), hit_weights.get(), most, static_cast<int32_t>(rows)};
        ASSERT_OK(route_hits(rows, gate, logits.get(), bias.get(), positions_device.get(), ids.get(), weights.get(), hits, nullptr, shared_id));
        ASSERT_OK(route(rows, gate, logits.get(), bias.get(), positions_device.get(), want_ids.get(), want_weights.get(), nullptr, shared_id));
        expect_synced();
        ASSERT_TRUE(tiles.guards_intact() && hit_weights.guards_intact() && ids.guards_intact() && weights.guards_intact());
        ASSERT_EQ(ids.download(), want_ids.download());
        ASSERT_EQ(weights.download(), want_weights.download());
        std::map<int32_t, std::array<float, kHitRows>> want;
        const auto chosen = want_ids.download();
        const auto chosen_weights = want_weights.download();
        for (size_t i = 0; i < entries; ++i) {
          if (chosen[i] >= 0) want[chosen[i]][i / static_cast<size_t>(columns)] = chosen_weights[i];
        }
        ASSERT_EQ(count.download()[0], static_cast<int32_t>(want.size()));
        const auto got_tiles = tiles.download();
        const auto got_weights = hit_weights.download();
        size_t h = 0;
        for (const auto& [id, row_weights] : want) {
          ASSERT_EQ(got_tiles[h].expert, id);
          ASSERT_EQ(got_tiles[h].row_begin, static_cast<int32_t>(h) * kHitRows);
          ASSERT_EQ(got_tiles[h].rows, rows);
          for (size_t r = 0; r < kHitRows; ++r) ASSERT_EQ(got_weights[h * kHitRows + r], row_weights[r]) << "hit " << h << ", row " << r;
          ++h;
        }
      }
    }
  }
}

TEST(ExpertHits, ListIsWhatTheGateChose) {
  DSV3_NEEDS_GPU();
  check_lists({2, 3, 5, 8});
}

TEST(ExpertHits, OneRowsListIsWhatTheGateChose) {  // no cluster
  DSV3_NEEDS_GPU();
  check_lists({1});
}

TEST(ExpertHits, SaysWhatIsWrong) {
  const auto bytes = reinterpret_cast<uint8_t*>(1024);
  const auto floats = reinterpret_cast<float*>(1024);
  const ExpertHits hits{reinterpret_cast<ExpertTile*>(1024), reinterpret_cast<int32_t*>(1024), floats, 2, 4};
  const Fp8Rows x{bytes, floats, 4, 256, 4}, middle{bytes, floats, 16, 128, 16};
  const Fp8Weight up{bytes, floats, 256, 256, 4}, down{bytes, floats, 64, 128, 4};
  const Bf16Matrix y{reinterpret_cast<Bf16*>(1024), 4, 64, 64};
  const auto gate_up = [&](const Fp8Rows& rows, const ExpertHits& list, const Fp8Rows& out) {
    return std::string(fp8_gate_up_hits(rows, up, list, out, {}, nullptr).message());
  };
  const auto sum = [&](const Fp8Rows& rows, const ExpertHits& list, const Bf16Matrix& out) {
    return std::string(fp8_expert_sum(rows, down, list, false, out, nullptr).message());
  };
  const Fp8Rows nine{bytes, floats, 9, 256, 12}, fifteen{bytes, floats, 15, 128, 16};
  ExpertHits large = hits, none = hits;
  large.rows = 9, none.tiles = nullptr;
  EXPECT_NE(gate_up(nine, large, middle).find("9 rows"), std::string::npos);
  EXPECT_NE(gate_up(x, hits, fifteen).find("out 15"), std::string::npos);
  EXPECT_NE(gate_up(x, none, middle).find("no list"), std::string::npos);
  EXPECT_NE(sum(middle, large, y).find("rows are not 1 to 8"), std::string::npos);
  EXPECT_NE(sum(fifteen, hits, y).find("8 rows a hit"), std::string::npos);
  EXPECT_NE(sum(middle, none, y).find("no list"), std::string::npos);
  EXPECT_NE(sum(middle, hits, {y.data, 4, 128, 128}).find("columns"), std::string::npos);
  GateShape gate;
  gate.experts = 256, gate.top_k = 8, gate.groups = 8, gate.top_groups = 4;
  EXPECT_FALSE(routes_to_hits(9, gate));
  EXPECT_FALSE(route_hits(9, gate, floats, floats, nullptr, hits.count, floats, hits, nullptr, 256).ok());
  EXPECT_NE(std::string(route_hits(4, gate, floats, floats, nullptr, hits.count, floats, hits, nullptr, 256).message()).find("2 hits"), std::string::npos);
}

TEST(ExpertHits, TwoBlocksForEachMultiprocessor) {
  EXPECT_EQ(expert_sum_splits(7168), 2);
  EXPECT_EQ(expert_sum_splits(2048), 4);
  EXPECT_EQ(expert_sum_splits(512), 8);
  EXPECT_EQ(expert_sum_splits(16384), 2);
}

}  // namespace
}  // namespace dsv3::cuda::testing
