// FP8 products by wgmma tiles against float64: every compiled tile, ragged rows and columns, lists of expert tiles,
// order of launches.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "harness.h"
#include "kernels/cuda/gemm/gemm.h"
#include "kernels/cuda/gemm/tiles_choice.h"
#include "late_writer.cuh"

namespace dsv3::cuda::testing {
namespace {

// BF16 rounding: at most 2^-9 of each element (1.66e-3 relative L2 over many); e4m3 sums in the tensor core, promoted
// every 128: 1.2e-4. The worst row is a sum over fewer elements.
constexpr double kTolerance = 2.5e-3, kRowTolerance = 4e-3;

__device__ float e4m3_value(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

/// want[r, c] in float64, r of `rows` from first_row on, with expert e's weight. One thread an output.
__global__ void reference(Fp8Rows x, Fp8Weight w, int expert, int first_row, int rows, double* want) {
  __shared__ float value[256];
  value[threadIdx.x] = e4m3_value(static_cast<uint8_t>(threadIdx.x));
  __syncthreads();
  const int64_t col = static_cast<int64_t>(blockIdx.x) * 64 + threadIdx.x % 64;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * 4 + threadIdx.x / 64;
  if (col >= w.n || row >= rows) return;
  const uint8_t* xs = x.data + (first_row + row) * w.k;
  const uint8_t* ws = w.data + (expert * w.n + col) * w.k;
  const float* w_scales = w.scales + (expert * ((w.n + 127) / 128) + col / 128) * (w.k / 128);
  double sum = 0;
  for (int64_t g = 0; g < w.k / 128; ++g) {
    double part = 0;
    for (int64_t i = g * 128; i < g * 128 + 128; i += 16) {
      const uint4 xv = *reinterpret_cast<const uint4*>(xs + i), wv = *reinterpret_cast<const uint4*>(ws + i);
      const uint32_t xa[4] = {xv.x, xv.y, xv.z, xv.w}, wa[4] = {wv.x, wv.y, wv.z, wv.w};
      for (int j = 0; j < 16; ++j) {
        part += static_cast<double>(value[xa[j / 4] >> (8 * (j % 4)) & 255]) *
                static_cast<double>(value[wa[j / 4] >> (8 * (j % 4)) & 255]);
      }
    }
    sum +=
        part * static_cast<double>(x.scales[g * x.scale_stride + first_row + row]) * static_cast<double>(w_scales[g]);
  }
  want[(first_row + row) * w.n + col] = sum;
}

/// Seeded e4m3 codes of normal values.
std::vector<uint8_t> normal_codes(size_t count, uint32_t seed) {
  std::vector<uint8_t> table(4096), codes(count);
  const std::vector<float> values = normal_values(table.size(), seed, 2.0f);
  for (size_t i = 0; i < table.size(); ++i) table[i] = __nv_cvt_float_to_fp8(values[i], __NV_SATFINITE, __NV_E4M3);
  uint64_t state = seed * 2654435761u + 12345;
  for (auto& code : codes) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    code = table[state >> 52];
  }
  return codes;
}
std::vector<float> random_scales(size_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(0.002f, 0.03f);
  std::vector<float> scales(count);
  for (auto& scale : scales) scale = uniform(generator);
  return scales;
}

/// One product's operands on the device. Scales of x beyond its rows, and y, are poison; y has a gap of 8 columns.
struct Operands {
  int64_t m, n, k, experts, scale_stride, y_stride;
  Guarded<uint8_t> x_data, w_data;
  Guarded<float> x_scales, w_scales;
  Guarded<Bf16> y_data;
  Guarded<double> want;

  Operands(int64_t m_, int64_t n_, int64_t k_, uint32_t seed, int64_t experts_ = 1)
      : m(m_),
        n(n_),
        k(k_),
        experts(experts_),
        scale_stride((m_ + 3) / 4 * 4 + 4),
        y_stride(n_ + 8),
        x_data(normal_codes(m_ * k_, seed)),
        w_data(normal_codes(experts_ * n_ * k_, seed + 1)),
        x_scales(k_ / 128 * scale_stride),
        w_scales(random_scales(experts_ * ((n_ + 127) / 128) * (k_ / 128), seed + 2)),
        y_data(m_ * y_stride),
        want(m_ * n_) {
    std::vector<float> scales = x_scales.download();
    const std::vector<float> random = random_scales(scales.size(), seed + 3);
    for (int64_t g = 0; g < k / 128; ++g) std::copy_n(&random[g * scale_stride], m, &scales[g * scale_stride]);
    x_scales.upload(scales);
  }
  Fp8Rows x() const { return {x_data.get(), x_scales.get(), m, k, scale_stride}; }
  Fp8Weight w() const { return {w_data.get(), w_scales.get(), n, k, experts}; }
  Bf16Matrix y() const { return {y_data.get(), m, n, y_stride}; }
  void compute_want(int expert, int first_row, int rows) const {
    const dim3 grid(static_cast<unsigned>((n + 63) / 64), static_cast<unsigned>((rows + 3) / 4));
    reference<<<grid, 256>>>(x(), w(), expert, first_row, rows, want.get());
    expect_synced();
  }
};

/// Rows of y where written[row], against want; all other elements must still be poison.
void expect_close(const Operands& o, const std::vector<bool>& written, const std::string& what) {
  const std::vector<Bf16> y = o.y_data.download();
  const std::vector<double> all = o.want.download();
  std::vector<float> got;
  std::vector<double> want;
  int64_t strays = 0;
  for (int64_t r = 0; r < o.m; ++r) {
    for (int64_t c = 0; c < o.y_stride; ++c) {
      const Bf16 value = y[r * o.y_stride + c];
      if (written[r] && c < o.n) {
        got.push_back(from_bf16(value));
        want.push_back(all[r * o.n + c]);
      } else if (__bfloat16_as_ushort(value) != 0xFFFF) {
        ++strays;
      }
    }
  }
  EXPECT_EQ(strays, 0) << what << ": elements written outside";
  EXPECT_TRUE(o.y_data.guards_intact()) << what;
  const Error error = relative_l2(got, want, o.n);
  EXPECT_LT(error.all, kTolerance) << what;
  EXPECT_LT(error.worst_row, kRowTolerance) << what << ", row " << error.worst << " of those written";
}

TileShape chosen(const Fp8Rows& x, const Fp8Weight& w) {
  return choose_tiles(x.rows, w.n, w.k, 132);
}
std::string name(const Operands& o, TileShape tile) {
  return "m " + std::to_string(o.m) + " n " + std::to_string(o.n) + " k " + std::to_string(o.k) + " tile " +
         to_string(tile);
}

bool same_bits(const std::vector<Bf16>& a, const std::vector<Bf16>& b, size_t count) {
  return std::memcmp(a.data(), b.data(), count * sizeof(Bf16)) == 0;
}

/// Every tile against float64, twice with the same bits, and the same bits from every tile.
void check_dense(int64_t m, int64_t n, int64_t k) {
  Operands o(m, n, k, static_cast<uint32_t>(m * 31 + n * 7 + k));
  o.compute_want(0, 0, static_cast<int>(m));
  std::vector<Bf16> first;
  for (const TileShape tile : kTileShapes) {
    o.y_data.poison();
    ASSERT_OK(fp8_gemm_tiles(tile, o.x(), o.w(), o.y(), nullptr));
    expect_synced();
    const std::vector<Bf16> bits = o.y_data.download();
    if (first.empty() || !same_bits(first, bits, bits.size()))
      expect_close(o, std::vector<bool>(m, true), name(o, tile));
    EXPECT_TRUE(o.y_data.guards_intact()) << name(o, tile);
    ASSERT_OK(fp8_gemm_tiles(tile, o.x(), o.w(), o.y(), nullptr));
    expect_synced();
    EXPECT_TRUE(same_bits(bits, o.y_data.download(), bits.size())) << name(o, tile) << ": not repeatable";
    if (first.empty()) first = bits;
    EXPECT_TRUE(same_bits(first, bits, bits.size()))
        << name(o, tile) << ": other bits than " << to_string(kTileShapes[0]);
  }
}

TEST(Fp8TilesChoice, PicksACompiledTile) {
  constexpr std::array<std::array<int64_t, 2>, 12> kShapes = {{{2112, 7168},
                                                               {24576, 1536},
                                                               {32768, 512},
                                                               {7168, 16384},
                                                               {4096, 7168},
                                                               {7168, 2048},
                                                               {36864, 7168},
                                                               {7168, 18432},
                                                               {512, 7168},
                                                               {7168, 256},
                                                               {3072, 1536},
                                                               {4608, 7168}}};
  for (const auto& [n, k] : kShapes) {
    for (const int64_t m : {1, 64, 128, 1024, 4096, 65536}) {
      const TileShape tile = choose_tiles(m, n, k, 132);
      EXPECT_NE(std::find(kTileShapes.begin(), kTileShapes.end(), tile), kTileShapes.end()) << to_string(tile);
      for (const TileShape other : kTileShapes)
        EXPECT_LE(modelled_cycles(tile, m, n, k, 132), modelled_cycles(other, m, n, k, 132));
    }
    EXPECT_EQ(to_string(choose_tiles(65536, n, k, 132)), "256x128") << n << " x " << k;
  }
  EXPECT_EQ(to_string(choose_tiles(256, 2112, 7168, 132)), "64x64 alone");  // one wave
}

TEST(Fp8TilesChoice, GroupedTileHoldsTheRows) {
  for (const int rows : {8, 16, 32, 64, 128, 256}) {
    for (const int64_t n : {96, 256, 512, 4096, 7168}) EXPECT_GE(choose_grouped_tiles(rows, n, 2048).rows, rows);
  }
  EXPECT_EQ(choose_grouped_tiles(256, 512, 7168).rows, 256);
  EXPECT_EQ(to_string(choose_grouped_tiles(128, 512, 7168)), "128x128");  // 192 would waste a third
  EXPECT_EQ(to_string(choose_grouped_tiles(128, 7168, 2048)), "128x192");
  EXPECT_EQ(to_string(choose_grouped_tiles(128, 7168, 256)), "128x128");
}

TEST(Fp8TilesChoice, BandsOfRowTiles) {
  const auto band = [](int tile_rows, int max_tiles, int64_t k, int64_t experts) {
    const ExpertTiles tiles{nullptr, nullptr, max_tiles, tile_rows};
    return band_tiles(tile_rows, max_tiles > 0 ? &tiles : nullptr, {nullptr, nullptr, 7168, k, experts});
  };
  EXPECT_EQ(band(128, 0, 2048, 1), 16);       // dense
  EXPECT_EQ(band(128, 300, 2048, 256), 1);    // about a tile each
  EXPECT_EQ(band(256, 300, 2048, 256), 1);
  EXPECT_EQ(band(128, 768, 2048, 256), 4);    // a few
  EXPECT_EQ(band(128, 768, 256, 256), 2);     // a few, short K
  EXPECT_EQ(band(256, 768, 256, 256), 1);
  EXPECT_EQ(band(128, 2048, 2048, 256), 16);  // many
}

TEST(Fp8Tiles, EachTileOnce) {  // short enough for every sanitizer
  DSV3_NEEDS_GPU();
  check_dense(65, 136, 1664);
}

TEST(Fp8Tiles, RaggedRowsAndColumns) {
  DSV3_NEEDS_GPU();
  for (const int64_t m : {1, 7, 64, 65, 127, 128, 129, 260}) {
    for (const int64_t n : {8, 96, 576}) {
      for (const int64_t k : {128, 512}) check_dense(m, n, k);
    }
  }
}

TEST(Fp8Tiles, KLongerThanTheRingOfStages) {
  DSV3_NEEDS_GPU();
  check_dense(130, 264, 128 * 19);
  for (const int64_t k_blocks : {31, 32, 33, 65})
    check_dense(65, 136, 128 * k_blocks);  // scales of W come in chunks of 32
}

TEST(Fp8Tiles, LargeShapes) {
  DSV3_NEEDS_GPU();
  check_dense(1000, 2112, 7168);
  check_dense(200, 32768, 512);
  check_dense(257, 7168, 16384);
  check_dense(2100, 4096, 512);  // several tiles for each cluster, a last band of one row of tiles
}

TEST(Fp8Tiles, LargeARowDoesNotDependOnTheOthers) {
  DSV3_NEEDS_GPU();
  Operands o(1000, 2112, 2048, 5);
  ASSERT_OK(fp8_gemm_tiles(chosen(o.x(), o.w()), o.x(), o.w(), o.y(), nullptr));
  expect_synced();
  const std::vector<Bf16> all = o.y_data.download();
  for (const int64_t m : {1, 64, 128, 300}) {
    o.y_data.poison();
    Fp8Rows x = o.x();
    Bf16Matrix y = o.y();
    x.rows = y.rows = m;
    ASSERT_OK(fp8_gemm_tiles(chosen(x, o.w()), x, o.w(), y, nullptr));
    expect_synced();
    const std::vector<Bf16> few = o.y_data.download();
    EXPECT_TRUE(same_bits(all, few, m * o.y_stride - 8)) << "m " << m;
    EXPECT_EQ(__bfloat16_as_ushort(few[m * o.y_stride]), 0xFFFF) << "m " << m;
  }
}

/// A list for `counts[e]` rows of expert e, first rows on multiples of 8. Returns the rows in all.
int64_t make_tiles(const std::vector<int>& counts, int tile_rows, std::vector<ExpertTile>* list) {
  int64_t row = 0;
  for (size_t e = 0; e < counts.size(); ++e) {
    for (int at = 0; at < counts[e]; at += tile_rows) {
      list->push_back(
          {static_cast<int32_t>(e), static_cast<int32_t>(row + at), std::min(tile_rows, counts[e] - at), -1});
    }
    row += (counts[e] + kExpertRowAlign - 1) / kExpertRowAlign * kExpertRowAlign;
  }
  return row;
}

void check_grouped(const std::vector<int>& counts, int tile_rows, int64_t n, int64_t k) {
  std::vector<ExpertTile> list;
  const int64_t rows = make_tiles(counts, tile_rows, &list);
  Operands o(rows + 128, n, k, static_cast<uint32_t>(tile_rows + n + rows), static_cast<int64_t>(counts.size()));
  std::vector<bool> written(o.m, false);
  for (const ExpertTile& tile : list) {
    std::fill_n(written.begin() + tile.row_begin, tile.rows, true);
    o.compute_want(tile.expert, tile.row_begin, tile.rows);
  }
  std::vector<uint8_t> x = o.x_data.download();  // rows of no tile hold NaN, data and scales
  std::vector<float> scales = o.x_scales.download();
  for (int64_t r = 0; r < o.m; ++r) {
    if (written[r]) continue;
    std::fill_n(&x[r * k], k, 0x7F);
    for (int64_t g = 0; g < k / 128; ++g) scales[g * o.scale_stride + r] = NAN;
  }
  o.x_data.upload(x);
  o.x_scales.upload(scales);
  const int32_t used = static_cast<int32_t>(list.size());
  list.resize(list.size() + 5, {1 << 20, 1 << 20, tile_rows, -1});  // beyond the count: must not be touched
  const Guarded<ExpertTile> device_list(list);
  const Guarded<int32_t> count(std::vector<int32_t>{used});
  const ExpertTiles tiles{device_list.get(), count.get(), static_cast<int32_t>(list.size()), tile_rows};
  std::vector<Bf16> first;
  for (const TileShape tile : kTileShapes) {
    if (tile.rows < tile_rows) continue;
    const std::string what =
        "grouped, tile_rows " + std::to_string(tile_rows) + ", tiles " + std::to_string(used) + ", " + name(o, tile);
    o.y_data.poison();
    ASSERT_OK(fp8_grouped_gemm_tiles(tile, o.x(), o.w(), tiles, o.y(), nullptr));
    expect_synced();
    const std::vector<Bf16> bits = o.y_data.download();
    if (used > 0 && (first.empty() || !same_bits(first, bits, bits.size()))) expect_close(o, written, what);
    EXPECT_TRUE(o.y_data.guards_intact()) << what;
    ASSERT_OK(fp8_grouped_gemm_tiles(tile, o.x(), o.w(), tiles, o.y(), nullptr));
    expect_synced();
    EXPECT_TRUE(same_bits(bits, o.y_data.download(), bits.size())) << what << ": not repeatable";
    if (first.empty()) first = bits;
    EXPECT_TRUE(same_bits(first, bits, bits.size())) << what << ": other bits than the first tile";
    if (used == 0) {
      for (const Bf16 value : bits) ASSERT_EQ(__bfloat16_as_ushort(value), 0xFFFF) << what;
    }
  }
}

TEST(Fp8Tiles, Grouped) {
  DSV3_NEEDS_GPU();
  check_grouped({0, 0, 0}, 128, 256, 256);
  check_grouped({0, 1, 0, 128, 5, 0, 129, 8}, 128, 96, 256);
  check_grouped({1, 63, 64, 65, 127, 128, 129, 0, 191, 192, 193, 256, 257, 8}, 256, 136,
                640);  // every count of waves, odd ones first
  check_grouped({3, 0, 64, 65, 1}, 64, 200, 384);
  check_grouped({9, 0, 1, 8, 20}, 8, 256, 128);
}

TEST(Fp8Tiles, LargeGrouped) {
  DSV3_NEEDS_GPU();
  std::mt19937 generator(3);
  for (const int tile_rows : {32, 64, 128, 256}) {
    std::vector<int> counts(8);
    for (auto& count : counts) count = static_cast<int>(generator() % 300);
    counts[4] = 0;
    check_grouped(counts, tile_rows, 4096, 896);  // several tiles for each cluster
    check_grouped(counts, tile_rows, 2112, 256);
  }
}

TEST(Fp8Tiles, WaitsForTheKernelBefore) {
  DSV3_NEEDS_GPU();
  Operands o(200, 264, 256, 11);
  o.compute_want(0, 0, 200);
  Guarded<uint8_t> late(o.x_data.size());
  Fp8Rows x = o.x();
  x.data = late.get();
  std::vector<ExpertTile> list;
  make_tiles({200}, 128, &list);
  Guarded<ExpertTile> host_list(list), late_list(list.size());
  late_list.zero();
  const Guarded<int32_t> count(std::vector<int32_t>{static_cast<int32_t>(list.size())});
  for (const bool grouped : {false, true}) {
    late.poison();
    o.y_data.poison();
    expect_synced();
    ASSERT_OK(write_late(late.get(), o.x_data.get(), static_cast<int64_t>(late.size())));
    if (grouped) {
      ASSERT_OK(write_late(reinterpret_cast<uint8_t*>(late_list.get()),
                           reinterpret_cast<const uint8_t*>(host_list.get()),
                           static_cast<int64_t>(list.size() * sizeof(ExpertTile))));
      const ExpertTiles tiles{late_list.get(), count.get(), static_cast<int32_t>(list.size()), 128};
      ASSERT_OK(fp8_grouped_gemm_tiles(choose_grouped_tiles(128, o.n, o.k), x, o.w(), tiles, o.y(), nullptr));
    } else {
      ASSERT_OK(fp8_gemm_tiles(chosen(x, o.w()), x, o.w(), o.y(), nullptr));
    }
    expect_synced();
    expect_close(o, std::vector<bool>(200, true),
                 grouped ? "grouped after a late writer" : "dense after a late writer");
  }
}

TEST(Fp8Tiles, RefusesWhatItCannotDo) {
  DSV3_NEEDS_GPU();
  Operands o(16, 64, 128, 1);
  Fp8Rows none = o.x();
  Bf16Matrix no_y = o.y();
  none.rows = no_y.rows = 0;
  EXPECT_OK(fp8_gemm_tiles(chosen(none, o.w()), none, o.w(), no_y, nullptr));
  const auto refused = [](const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y) {
    return fp8_gemm_tiles({128, 128}, x, w, y, nullptr).code() == Code::kInternal;
  };
  Fp8Rows x = o.x();
  Bf16Matrix y = o.y();
  Fp8Weight w = o.w();
  x.scale_stride = 12;
  EXPECT_TRUE(refused(x, w, y));
  y.stride = 65;
  EXPECT_TRUE(refused(o.x(), w, y));
  y = o.y();
  y.data += 1;
  EXPECT_TRUE(refused(o.x(), w, y));
  y = o.y();
  w.n = y.cols = 60;
  EXPECT_TRUE(refused(o.x(), w, y));
  w = o.w();
  w.k = 96;
  EXPECT_TRUE(refused(o.x(), w, o.y()));
}

}  // namespace
}  // namespace dsv3::cuda::testing
