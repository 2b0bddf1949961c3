// The gate against the CPU's, the order by expert, and the copies and sums around the expert products.
#include <cstring>
#include <set>

#include "kernels/cpu/moe.h"
#include "kernels/cuda/moe/moe.h"
#include "rows_reference.h"
#include "simple_reference.cuh"

namespace dsv3::cuda::testing {
namespace {

struct GateCase {
  const char* name;
  int64_t experts, groups, top_groups, top_k;
  bool sigmoid, bias, top2, normalise, scale_when_normalised;
};
const GateCase kGates[] = {
    {"V3", 256, 8, 4, 8, true, true, true, true, true},
    {"V2", 160, 8, 3, 6, false, false, false, false, false},
    {"V2 lite", 64, 1, 1, 6, false, false, false, false, false},
    {"n_group 1", 384, 1, 1, 8, true, true, true, true, true},
    {"normalised V2", 160, 8, 3, 6, false, false, false, true, false},
    {"small", 16, 4, 2, 4, true, true, true, true, true},
    {"all", 16, 1, 1, 16, true, true, true, true, true},
    {"largest", 1024, 64, 40, 32, true, true, true, true, true},
    {"one", 5, 1, 1, 1, true, false, true, true, true},
    {"groups of 20", 640, 32, 5, 7, true, true, true, true, true},
};
GateShape shape_of(const GateCase& c) {
  GateShape gate;
  gate.experts = c.experts, gate.groups = c.groups, gate.top_groups = c.top_groups, gate.top_k = c.top_k, gate.sigmoid = c.sigmoid;
  gate.group_by_top2 = c.top2, gate.normalise = c.normalise, gate.scale_when_normalised = c.scale_when_normalised, gate.scale = 2.5f;
  return gate;
}

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};
Routed run_route(const GateShape& gate, const std::vector<float>& logits, const std::vector<float>& bias) {
  const auto rows = static_cast<int64_t>(logits.size()) / gate.experts;
  const Guarded<float> logits_device(logits), bias_device(bias), weights(static_cast<size_t>(rows * gate.top_k));
  const Guarded<int32_t> ids(static_cast<size_t>(rows * gate.top_k));
  EXPECT_OK(route(rows, gate, logits_device.get(), bias.empty() ? nullptr : bias_device.get(), nullptr, ids.get(), weights.get(), nullptr));
  expect_synced();
  EXPECT_TRUE(ids.guards_intact() && weights.guards_intact());
  return {ids.download(), weights.download()};
}

TEST(CudaRoute, ChoosesAsTheCpuDoes) {
  DSV3_NEEDS_GPU();
  for (const auto& c : kGates) {
    for (const int64_t rows : {0, 1, 5, 300, 600}) {  // the last one by a warp a row
      for (const bool ties : {false, true}) {
        const std::string what = std::string(c.name) + ", " + std::to_string(rows) + " rows" + (ties ? ", ties" : "");
        const GateShape gate = shape_of(c);
        auto logits = normal_values(static_cast<size_t>(rows * c.experts), 21, 2.0f);
        std::vector<float> bias;
        if (c.bias) bias = normal_values(static_cast<size_t>(c.experts), 22, 0.3f);
        if (ties) {  // equal logits and an equal, negative bias: exact ties, on the CPU and here
          for (auto& x : logits) x = std::round(x * 2) / 2 + 0.1f;
          for (auto& b : bias) b = -2.0f;
        }
        const Routed got = run_route(gate, logits, bias);
        for (int64_t r = 0; r < rows; ++r) {
          std::vector<int32_t> ids(static_cast<size_t>(c.top_k));
          std::vector<float> weights(static_cast<size_t>(c.top_k));
          cpu::route_row(gate, logits.data() + r * c.experts, bias.empty() ? nullptr : bias.data(), ids.data(), weights.data());
          for (int64_t k = 0; k < c.top_k; ++k) {
            const auto i = static_cast<size_t>(r * c.top_k + k);
            const int32_t id = got.ids[i], want = ids[static_cast<size_t>(k)];
            ASSERT_TRUE(id >= 0 && id < c.experts) << what << ", row " << r;
            if (id != want) {  // exp() differs in its last bit between the two: only such a near tie may swap
              const auto choice = [&](int32_t e) {
                const float x = logits[static_cast<size_t>(r * c.experts + e)], b = bias.empty() ? 0.0f : bias[static_cast<size_t>(e)];
                return c.sigmoid ? 1 / (1 + std::exp(-static_cast<double>(x))) + b : static_cast<double>(x);
              };
              ASSERT_FALSE(ties) << what << ", row " << r << ", k " << k << ": " << id << " instead of " << want;
              ASSERT_NEAR(choice(id), choice(want), 5e-7) << what << ", row " << r << ", k " << k;
              continue;
            }
            ASSERT_NEAR(got.weights[i], weights[static_cast<size_t>(k)], 3e-6f * weights[static_cast<size_t>(k)]) << what << ", row " << r;
          }
        }
      }
    }
  }
}

TEST(CudaRoute, BadLogitsChooseValidExpertsAndRowsAreIndependent) {
  DSV3_NEEDS_GPU();
  for (const auto& c : kGates) {
    const GateShape gate = shape_of(c);
    auto logits = normal_values(static_cast<size_t>(9 * c.experts), 23);
    const std::vector<float> alone(logits.end() - c.experts, logits.end());
    for (int64_t e = 0; e < c.experts; ++e) {
      logits[static_cast<size_t>(e)] = NAN;
      logits[static_cast<size_t>(c.experts + e)] = INFINITY;
      logits[static_cast<size_t>(2 * c.experts + e)] = -INFINITY;
      if (e % 3 == 0) logits[static_cast<size_t>(3 * c.experts + e)] = NAN;
    }
    const std::vector<float> bias(c.bias ? static_cast<size_t>(c.experts) : 0, -0.5f);
    const Routed got = run_route(gate, logits, bias), again = run_route(gate, logits, bias), single = run_route(gate, alone, bias);
    for (int64_t r = 0; r < 9; ++r) {
      std::set<int32_t> seen;
      for (int64_t k = 0; k < c.top_k; ++k) {
        const int32_t id = got.ids[static_cast<size_t>(r * c.top_k + k)];
        ASSERT_TRUE(id >= 0 && id < c.experts && seen.insert(id).second) << c.name << ", row " << r << ", id " << id;
      }
    }
    const auto k = static_cast<size_t>(c.top_k);
    EXPECT_EQ(got.ids, again.ids) << c.name;
    EXPECT_EQ(std::memcmp(got.weights.data(), again.weights.data(), 9 * k * sizeof(float)), 0) << c.name;
    EXPECT_EQ(std::memcmp(got.ids.data() + 8 * k, single.ids.data(), k * sizeof(int32_t)), 0) << c.name;
    EXPECT_EQ(std::memcmp(got.weights.data() + 8 * k, single.weights.data(), k * sizeof(float)), 0) << c.name;
  }
}

/// Buffers of an order, and the order itself.
struct OrderBuffers {
  OrderBuffers(int64_t rows, int64_t top_k, int64_t experts, int tile_rows)
      : rows(rows),
        top_k(top_k),
        capacity(expert_order_rows(rows, top_k, experts) + 5),
        max_tiles(expert_order_tiles(rows, top_k, experts, tile_rows)),
        position(static_cast<size_t>(rows * top_k)),
        source(static_cast<size_t>(capacity)),
        num_tiles(1),
        scratch(static_cast<size_t>(expert_order_scratch(rows, top_k, experts))),
        tiles(static_cast<size_t>(max_tiles)) {
    position.zero();  // the poison is -1, which the kernels have to write themselves
    source.zero();
  }
  /// by_position: rows are to be permuted from `position`, not from `source`.
  ExpertOrder view(bool by_position = false) const {
    ExpertOrder order;
    order.position = position.get(), order.source = source.get(), order.tiles = tiles.get(), order.num_tiles = num_tiles.get();
    order.capacity = capacity, order.max_tiles = static_cast<int32_t>(max_tiles);
    if (by_position) order.rows = rows, order.top_k = top_k;
    return order;
  }
  bool guards_intact() const {
    return position.guards_intact() && source.guards_intact() && num_tiles.guards_intact() && scratch.guards_intact() &&
           tiles.guards_intact();
  }
  int64_t rows, top_k, capacity, max_tiles;
  Guarded<int32_t> position, source, num_tiles, scratch;
  Guarded<ExpertTile> tiles;
};

/// skew: most entries go to few experts; outside: some ids are other ranks'.
std::vector<int32_t> random_ids(int64_t count, int64_t experts, bool skew, bool outside, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    auto id = static_cast<int32_t>(generator() % static_cast<uint32_t>(experts));
    if (skew && generator() % 4 != 0) id %= 3;
    if (outside && generator() % 2 == 0) id = generator() % 2 == 0 ? -1 - id : static_cast<int32_t>(experts) + id;
    ids.push_back(id);
  }
  return ids;
}

void check_order(int64_t rows, int64_t top_k, int64_t experts, int tile_rows, bool skew, bool outside) {
  const std::string what = std::to_string(rows) + " x " + std::to_string(top_k) + " to " + std::to_string(experts) + " experts, tiles of " +
                           std::to_string(tile_rows) + (skew ? ", skewed" : "") + (outside ? ", some outside" : "");
  SCOPED_TRACE(what);
  const auto ids = random_ids(rows * top_k, experts, skew, outside, 31);
  const Guarded<int32_t> ids_device(ids);
  const OrderBuffers order(rows, top_k, experts, tile_rows);
  ASSERT_OK(order_by_expert(rows, top_k, experts, ids_device.get(), tile_rows, order.view(), order.scratch.get(), nullptr));
  expect_synced();
  ASSERT_TRUE(order.guards_intact());
  const auto position = order.position.download(), source = order.source.download();
  const auto tiles = order.tiles.download();
  std::vector<int32_t> want_source(source.size(), -1);
  std::vector<std::vector<size_t>> entries(static_cast<size_t>(experts));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < experts) {
      entries[static_cast<size_t>(ids[i])].push_back(i);
    } else {
      ASSERT_EQ(position[i], -1);
    }
  }
  int32_t at = 0;
  size_t tile = 0;
  const auto num_tiles = static_cast<size_t>(order.num_tiles.download()[0]);
  ASSERT_LE(num_tiles, tiles.size());
  for (size_t e = 0; e < entries.size(); ++e) {
    const auto count = static_cast<int32_t>(entries[e].size());
    for (int32_t i = 0; i < count; ++i) {
      ASSERT_EQ(position[entries[e][static_cast<size_t>(i)]], at + i) << "expert " << e;
      want_source[static_cast<size_t>(at + i)] = static_cast<int32_t>(entries[e][static_cast<size_t>(i)]) / static_cast<int32_t>(top_k);
    }
    for (int32_t done = 0; done < count; done += tile_rows, ++tile) {
      ASSERT_LT(tile, num_tiles);
      ASSERT_EQ(tiles[tile].expert, static_cast<int32_t>(e));
      ASSERT_EQ(tiles[tile].row_begin, at + done);
      ASSERT_EQ(tiles[tile].rows, std::min(tile_rows, count - done));
    }
    at += (count + kExpertRowAlign - 1) / kExpertRowAlign * kExpertRowAlign;
  }
  EXPECT_EQ(tile, num_tiles);
  EXPECT_EQ(source, want_source);
}

TEST(CudaExpertOrder, SortsStably) {
  DSV3_NEEDS_GPU();
  for (const int64_t rows : {0, 1, 5, 64, 65, 128, 256, 257, 300, 512, 513, 3000}) {  // 512, 2048, 4096 entries: other kernels
    check_order(rows, 8, 256, 16, false, false);
    check_order(rows, 8, 32, 128, true, true);
    check_order(rows, 9, 257, 16, true, false);
    check_order(rows, 1, 1, 8, false, false);
    check_order(rows, 6, 1024, 64, true, false);
  }
}

TEST(CudaExpertOrder, LargePrefill) {
  DSV3_NEEDS_GPU();
  check_order(65536, 8, 256, 128, true, false);
}

TEST(CudaExpertOrder, UpperBoundsHold) {
  EXPECT_EQ(expert_order_rows(1, 8, 256), 64);
  EXPECT_EQ(expert_order_tiles(1, 8, 256, 8), 9);
  EXPECT_EQ(expert_order_rows(0, 8, 256), 0);
  EXPECT_FALSE(order_by_expert(1, 8, 2000, nullptr, 8, {}, nullptr, nullptr).ok());
}

/// ids and weights of a gate with a shared expert's column and padding rows; order, if wanted.
struct GateRun {
  GateRun(int64_t rows, const GateShape& gate, const OrderBuffers* order, int64_t experts, const float* logits, const float* bias,
          const int32_t* positions, int32_t shared_id)
      : ids(static_cast<size_t>(rows * (gate.top_k + (shared_id >= 0)))), weights(ids.size()) {
    if (order != nullptr) {
      EXPECT_OK(route_and_order(rows, gate, logits, bias, positions, ids.get(), weights.get(), experts, 16, order->view(),
                                order->scratch.get(), nullptr, shared_id));
    } else {
      EXPECT_OK(route(rows, gate, logits, bias, positions, ids.get(), weights.get(), nullptr, shared_id));
    }
    expect_synced();
    EXPECT_TRUE(ids.guards_intact() && weights.guards_intact());
  }
  std::vector<float> weights_at(int64_t begin, int64_t count) const {
    const auto all = weights.download();
    return {all.begin() + begin, all.begin() + begin + count};
  }
  std::vector<int32_t> ids_at(int64_t begin, int64_t count) const {
    const auto all = ids.download();
    return {all.begin() + begin, all.begin() + begin + count};
  }
  Guarded<int32_t> ids;
  Guarded<float> weights;
};

TEST(CudaRoute, AnyNumberOfRowsGivesTheSameBits) {
  DSV3_NEEDS_GPU();
  for (const auto& c : kGates) {
    const GateShape gate = shape_of(c);
    const int64_t rows = 600, part = 200;
    auto logits = normal_values(static_cast<size_t>(rows * c.experts), 51, 2.0f);
    for (size_t i = 0; i < logits.size(); i += 97) logits[i] = i % 2 == 0 ? NAN : 1.0f;
    for (int64_t e = 0; e < c.experts; ++e) logits[static_cast<size_t>(2 * c.experts + e)] = -100.0f;  // all the same: ties
    std::vector<int32_t> positions(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) positions[static_cast<size_t>(r)] = r % 7 == 3 ? -1 : static_cast<int32_t>(r);
    const Guarded<float> logits_device(logits), bias(normal_values(static_cast<size_t>(c.experts), 52, 0.3f));
    const Guarded<int32_t> positions_device(positions);
    for (const bool shared : {false, true}) {
      const int32_t shared_id = shared ? static_cast<int32_t>(c.experts) : -1;
      const int64_t columns = c.top_k + (shared ? 1 : 0);
      const float* const bias_data = c.bias ? bias.get() : nullptr;
      const GateRun all(rows, gate, nullptr, 0, logits_device.get(), bias_data, positions_device.get(), shared_id);
      for (int64_t begin = 0; begin < rows; begin += part) {
        const GateRun some(part, gate, nullptr, 0, logits_device.get() + begin * c.experts, bias_data, positions_device.get() + begin,
                           shared_id);
        ASSERT_EQ(some.ids.download(), all.ids_at(begin * columns, part * columns)) << c.name << ", row " << begin;
        const auto got = some.weights.download(), want = all.weights_at(begin * columns, part * columns);
        ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0) << c.name << ", row " << begin;
      }
      const auto ids = all.ids.download();
      const auto weights = all.weights.download();
      for (int64_t r = 0; r < rows; ++r) {
        const bool padding = positions[static_cast<size_t>(r)] < 0;
        for (int64_t k = 0; k < columns; ++k) {
          const auto i = static_cast<size_t>(r * columns + k);
          if (padding) {
            ASSERT_EQ(ids[i], -1) << c.name << ", row " << r;
            ASSERT_EQ(weights[i], 0.0f) << c.name << ", row " << r;
          } else if (k == c.top_k) {
            ASSERT_EQ(ids[i], shared_id) << c.name << ", row " << r;
            ASSERT_EQ(weights[i], 1.0f) << c.name << ", row " << r;
          } else {
            ASSERT_TRUE(ids[i] >= 0 && ids[i] < c.experts) << c.name << ", row " << r;
          }
        }
      }
    }
  }
}

TEST(CudaRoute, RoutesAndOrdersAtOnceAsOneByOne) {
  DSV3_NEEDS_GPU();
  for (const auto& c : {kGates[0], kGates[5], kGates[6], kGates[8]}) {
    const GateShape gate = shape_of(c);
    for (const int64_t rows : {1, 2, 3, 8, 9, 15, 16, 17, 40}) {
      for (const bool shared : {false, true}) {
        const std::string what = std::string(c.name) + ", " + std::to_string(rows) + " rows" + (shared ? ", shared expert" : "");
        SCOPED_TRACE(what);
        const int32_t shared_id = shared ? static_cast<int32_t>(c.experts) : -1;
        const int64_t columns = c.top_k + (shared ? 1 : 0), experts = c.experts + (shared ? 1 : 0);
        const Guarded<float> logits(normal_values(static_cast<size_t>(rows * c.experts), 53, 2.0f));
        const Guarded<float> bias(normal_values(static_cast<size_t>(c.experts), 54, 0.3f));
        std::vector<int32_t> positions(static_cast<size_t>(rows), 5);
        if (rows > 2) positions[1] = -1;
        const Guarded<int32_t> positions_device(positions);
        const float* const bias_data = c.bias ? bias.get() : nullptr;
        const OrderBuffers once(rows, columns, experts, 16), apart(rows, columns, experts, 16);
        const GateRun got(rows, gate, &once, experts, logits.get(), bias_data, positions_device.get(), shared_id);
        const GateRun want(rows, gate, nullptr, 0, logits.get(), bias_data, positions_device.get(), shared_id);
        ASSERT_OK(order_by_expert(rows, columns, experts, want.ids.get(), 16, apart.view(), apart.scratch.get(), nullptr));
        expect_synced();
        ASSERT_TRUE(once.guards_intact());
        ASSERT_EQ(got.ids.download(), want.ids.download());
        ASSERT_EQ(got.weights.download(), want.weights.download());
        ASSERT_EQ(once.position.download(), apart.position.download());
        ASSERT_EQ(once.source.download(), apart.source.download());
        const auto tiles = once.num_tiles.download();
        ASSERT_EQ(tiles, apart.num_tiles.download());
        const auto got_tiles = once.tiles.download(), want_tiles = apart.tiles.download();
        ASSERT_EQ(std::memcmp(got_tiles.data(), want_tiles.data(), static_cast<size_t>(tiles[0]) * sizeof(ExpertTile)), 0);
      }
    }
  }
}

TEST(CudaRoute, OneKernelForFewRowsOnly) {
  const GateShape v3 = shape_of(kGates[0]), largest = shape_of(kGates[7]);
  EXPECT_TRUE(routes_and_orders_at_once(1, v3, 257));
  EXPECT_TRUE(routes_and_orders_at_once(16, v3, 256));
  EXPECT_FALSE(routes_and_orders_at_once(17, v3, 256));
  EXPECT_FALSE(routes_and_orders_at_once(0, v3, 256));
  EXPECT_FALSE(routes_and_orders_at_once(1, largest, 1024));
  EXPECT_FALSE(routes_and_orders_at_once(1, shape_of(kGates[1]), 160));  // softmax
}

TEST(CudaRouterGemm, FloatsWhateverTheNumberOfRows) {
  DSV3_NEEDS_GPU();
  struct Size {
    int64_t experts, hidden;
  };
  for (const Size& size : {Size{256, 7168}, Size{8, 64}, Size{40, 192}, Size{384, 2048}, Size{24, 16448}}) {
    const int64_t most = 130, x_stride = size.hidden + 8, y_stride = size.experts + 3;
    std::vector<Bf16> values(static_cast<size_t>(most * x_stride), to_bf16(NAN));  // NaN between rows
    const auto dense = random_bf16(most * size.hidden, 61);
    for (int64_t r = 0; r < most; ++r) std::copy_n(dense.data() + r * size.hidden, size.hidden, values.data() + r * x_stride);
    const Guarded<Bf16> x(values), w(random_bf16(size.experts * size.hidden, 62, 0.05f));
    const auto want = reference_product(Bf16View{x.get(), x_stride}, Bf16View{w.get(), size.hidden}, most, size.experts, size.hidden);
    std::vector<float> one;  // of most rows
    for (const int64_t rows : std::initializer_list<int64_t>{most, 0, 1, 5, 8, 9, 32, 33, 64, 65}) {
      SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(size.experts) + " experts, hidden " + std::to_string(size.hidden));
      const Guarded<float> y(static_cast<size_t>(std::max<int64_t>(rows, 1) * y_stride));
      ASSERT_OK(router_gemm({x.get(), rows, size.hidden, x_stride}, {w.get(), size.experts, size.hidden, 1},
                            {y.get(), rows, size.experts, y_stride}, nullptr));
      expect_synced();
      ASSERT_TRUE(y.guards_intact());
      if (rows == 0) continue;
      const auto got = rows_of(y.download(), rows, size.experts, y_stride, "y");
      if (rows == most) {
        one = got;
        const Error error = relative_l2(got, want, size.experts);
        EXPECT_LT(error.all, kF32Tolerance);
        EXPECT_LT(error.worst_row, kF32Tolerance) << "row " << error.worst;
      } else {
        ASSERT_EQ(std::memcmp(got.data(), one.data(), got.size() * sizeof(float)), 0);
      }
    }
  }
  EXPECT_FALSE(router_gemm({nullptr, 1, 64, 64}, {nullptr, 8, 64, 1}, {nullptr, 1, 8, 8}, nullptr).ok());
}

TEST(CudaMoe, PermutesActivatesAndCombines) {
  DSV3_NEEDS_GPU();
  for (const int64_t rows : {1, 5, 300}) {
    for (const int64_t cols : {7168, 384, 128}) {
      const bool by_position = (rows == 300) != (cols == 384);  // each size of rows and of columns in both forms
      const std::string what =
          std::to_string(rows) + " rows, " + std::to_string(cols) + " columns" + (by_position ? ", by position" : ", by source");
      SCOPED_TRACE(what);
      const int64_t top_k = 8, experts = 16;
      const auto ids = random_ids(rows * top_k, experts, false, true, 41);
      const Guarded<int32_t> ids_device(ids);
      const OrderBuffers order(rows, top_k, experts, 16);
      ASSERT_OK(order_by_expert(rows, top_k, experts, ids_device.get(), 16, order.view(), order.scratch.get(), nullptr));
      const int64_t capacity = order.capacity;

      // Rows into the order, BF16 and FP8.
      const auto x = to_bf16(normal_values(static_cast<size_t>(rows * cols), 42));
      const Guarded<Bf16> x_device(x), permuted(static_cast<size_t>(capacity * cols));
      ASSERT_OK(permute_rows(Bf16Matrix{x_device.get(), rows, cols, cols}, order.view(by_position), Bf16Matrix{permuted.get(), capacity, cols, cols},
                             nullptr));
      Fp8Buffer x8(rows, cols), permuted8(capacity, cols);
      std::vector<uint8_t> bytes(x8.data.size());
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 251);
      x8.data.upload(bytes);
      const auto scales = normal_values(x8.scales.size(), 43);
      x8.scales.upload(scales);
      ASSERT_OK(permute_rows(x8.view(), order.view(by_position), permuted8.view(), nullptr));
      expect_synced();
      const auto source = order.source.download();
      const auto permuted_got = permuted.download();
      const auto bytes_got = permuted8.data.download();
      const auto scales_got = permuted8.scales.download();
      std::vector<bool> skip;
      for (int64_t p = 0; p < capacity; ++p) {
        const int64_t from = source[static_cast<size_t>(p)];
        skip.push_back(from < 0);
        for (int64_t c = 0; c < cols; ++c) {
          const auto to = static_cast<size_t>(p * cols + c);
          ASSERT_EQ(__bfloat16_as_ushort(permuted_got[to]),
                    from < 0 ? 0xFFFF : __bfloat16_as_ushort(x[static_cast<size_t>(from * cols + c)]));
          ASSERT_EQ(bytes_got[to], from < 0 ? 0xFF : bytes[static_cast<size_t>(from * cols + c)]);
        }
        for (int64_t g = 0; g < cols / 128 && from >= 0; ++g) {
          ASSERT_EQ(scales_got[static_cast<size_t>(g * permuted8.scale_stride + p)],
                    scales[static_cast<size_t>(g * x8.scale_stride + from)]);
        }
      }
      EXPECT_TRUE(permuted.guards_intact() && permuted8.guards_intact());

      // silu * up: rows that nobody uses hold NaN and stay as they are.
      auto gate_up = to_bf16(normal_values(static_cast<size_t>(capacity * 2 * cols), 44));
      std::vector<double> exact;
      for (int64_t p = 0; p < capacity; ++p) {
        for (int64_t c = 0; c < cols; ++c) {
          Bf16 &gate = gate_up[static_cast<size_t>(p * 2 * cols + c)], &up = gate_up[static_cast<size_t>((p * 2 + 1) * cols + c)];
          if (skip[static_cast<size_t>(p)]) gate = up = to_bf16(NAN);
          const double v = from_bf16(gate);
          exact.push_back(v / (1 + std::exp(-v)) * from_bf16(up));
        }
      }
      const Guarded<Bf16> gate_up_device(gate_up), active(static_cast<size_t>(capacity * cols));
      const Fp8Buffer active8(capacity, cols);
      const Bf16Matrix gate_up_view{gate_up_device.get(), capacity, 2 * cols, 2 * cols};
      ASSERT_OK(silu_mul_permuted(gate_up_view, order.view(by_position), Bf16Matrix{active.get(), capacity, cols, cols}, nullptr));
      ASSERT_OK(silu_mul_permuted(gate_up_view, order.view(by_position), active8.view(), rows == 5, nullptr));
      expect_synced();
      expect_fp8(active8, exact, rows == 5, 2e-6, what, skip);
      const auto active_got = from_bf16(active.download());
      for (size_t i = 0; i < active_got.size(); ++i) {
        if (skip[i / static_cast<size_t>(cols)]) {
          ASSERT_TRUE(std::isnan(active_got[i]));
        } else {
          ASSERT_NEAR(active_got[i], exact[i], std::fabs(exact[i]) / 255 + 1e-30);  // one rounding to BF16
        }
      }
      EXPECT_TRUE(active.guards_intact());

      // The sum: `active` stands for the experts' results, with NaN in rows without a source.
      const auto weights = normal_values(static_cast<size_t>(rows * top_k), 45);
      const Guarded<float> weights_device(weights);
      const auto position = order.position.download();
      for (const bool accumulate : {false, true}) {
        Guarded<Bf16> out(static_cast<size_t>(rows * cols));
        if (accumulate) out.upload(x);
        ASSERT_OK(combine_experts(rows, top_k, Bf16Matrix{active.get(), capacity, cols, cols}, order.view(by_position), weights_device.get(),
                                  accumulate, Bf16Matrix{out.get(), rows, cols, cols}, nullptr));
        expect_synced();
        const auto got = from_bf16(out.download());
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            double want = accumulate ? from_bf16(x[static_cast<size_t>(r * cols + c)]) : 0, size = std::fabs(want);
            for (int64_t k = 0; k < top_k; ++k) {
              const auto i = static_cast<size_t>(r * top_k + k);
              if (position[i] < 0) continue;
              const double term = static_cast<double>(weights[i]) * active_got[static_cast<size_t>(position[i] * cols + c)];
              want += term, size += std::fabs(term);
            }
            // One rounding to BF16, and eight float32 sums.
            ASSERT_NEAR(got[static_cast<size_t>(r * cols + c)], want, std::fabs(want) / 255 + size * 1e-6 + 1e-30)
                << "row " << r << ", column " << c;
          }
        }
        EXPECT_TRUE(out.guards_intact());
      }
    }
  }
}

}  // namespace
}  // namespace dsv3::cuda::testing
