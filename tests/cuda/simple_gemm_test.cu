// The readable products against float64: ragged sizes, strides, padding that holds NaN, and the same bits in any batch.
#include "kernels/cuda/gemm/gemm.h"
#include "kernels/cuda/gemm/simple_tile.cuh"
#include "simple_reference.cuh"

namespace dsv3::cuda {
namespace {

using namespace testing;

struct Size {
  int64_t m, n, k;
  std::string name() const { return "m " + std::to_string(m) + ", n " + std::to_string(n) + ", k " + std::to_string(k); }
};

template <class T>
struct MatrixOf;
template <>
struct MatrixOf<Bf16> {
  using type = Bf16Matrix;
};
template <>
struct MatrixOf<float> {
  using type = F32Matrix;
};

/// x with gaps of NaN between its rows, W, and y with gaps that must stay as they are.
template <class T>
struct Bf16Case {
  Bf16Case(const Size& s, uint32_t seed)
      : size(s), x_stride(s.k + 16), y_stride(s.n + (s.n % 2 != 0 ? 6 : 8)), x(static_cast<size_t>(s.m * x_stride)),
        w(random_bf16(s.n * s.k, seed + 1, 0.05f)), y(static_cast<size_t>(s.m * y_stride)) {
    std::vector<Bf16> values(static_cast<size_t>(s.m * x_stride), __ushort_as_bfloat16(0xFFFF));
    const std::vector<Bf16> dense = random_bf16(s.m * s.k, seed);
    for (int64_t row = 0; row < s.m; ++row) std::copy_n(dense.data() + row * s.k, s.k, values.data() + row * x_stride);
    x.upload(values);
  }
  /// Rows [begin, begin + rows) alone.
  void run(int64_t begin, int64_t rows) {
    const Bf16Matrix xs{x.get() + begin * x_stride, rows, size.k, x_stride};
    EXPECT_OK(simple_bf16_gemm(xs, Bf16Weight{w.get(), size.n, size.k, 1},
                               typename MatrixOf<T>::type{y.get() + begin * y_stride, rows, size.n, y_stride}, nullptr));
    expect_synced();
  }
  std::vector<T> result() const { return rows_of(y.download(), size.m, size.n, y_stride, size.name()); }
  std::vector<double> want() const {
    return reference_product(Bf16View{x.get(), x_stride}, Bf16View{w.get(), size.k}, size.m, size.n, size.k);
  }

  Size size;
  int64_t x_stride, y_stride;
  Guarded<Bf16> x, w;
  Guarded<T> y;
};

template <class T>
void check_bf16(const Size& size) {
  Bf16Case<T> c(size, static_cast<uint32_t>(size.m * 31 + size.n));
  c.run(0, size.m);
  const std::vector<T> first = c.result();
  expect_close(as_floats(first), c.want(), size.n, std::is_same_v<T, float>, size.name());
  EXPECT_TRUE(c.y.guards_intact()) << size.name();
  c.y.poison();
  c.run(0, size.m);
  EXPECT_TRUE(same_bits(first, c.result())) << size.name() << ": other bits the second time";
}

TEST(SimpleGemm, Bf16) {
  DSV3_NEEDS_GPU();
  for (const Size& size : {Size{0, 64, 64}, Size{1, 64, 64}, Size{1, 1, 8}, Size{3, 72, 136}, Size{64, 64, 512}, Size{65, 130, 1000},
                           Size{127, 129, 264}, Size{200, 256, 192}, Size{16, 256, 7168}, Size{2100, 1100, 136}}) {
    check_bf16<Bf16>(size);
    check_bf16<float>(size);
  }
}

TEST(SimpleGemm, LargeBf16) {
  DSV3_NEEDS_GPU();
  check_bf16<Bf16>({1024, 2112, 7168});
}

/// All rows at once, then in parts that use other tiles and other places in them.
TEST(SimpleGemm, Bf16RowsHaveTheSameBitsInAnyBatch) {
  DSV3_NEEDS_GPU();
  Bf16Case<float> c({200, 8520, 712}, 7);  // together in large tiles, in parts in small ones
  c.run(0, 200);
  const std::vector<float> together = c.result();
  for (const int64_t part : {1, 7, 16, 64, 100}) {
    c.y.poison();
    for (int64_t begin = 0; begin < 200; begin += part) c.run(begin, std::min<int64_t>(part, 200 - begin));
    EXPECT_TRUE(same_bits(together, c.result())) << "in parts of " << part;
  }
}

/// FP8 operands on the device. Rows of x that `valid` leaves out hold NaN, and so do their scales.
struct Fp8Case {
  Fp8Case(const Size& s, int64_t experts, const std::vector<bool>& valid, uint32_t seed)
      : size(s), scale_stride((s.m + 3) / 4 * 4), x(static_cast<size_t>(s.m * s.k)),
        x_scales(static_cast<size_t>(s.k / 128 * scale_stride)), w(random_e4m3(experts * s.n * s.k, seed + 1)),
        w_scales(random_scales(experts * ((s.n + 127) / 128) * (s.k / 128), seed + 2)), y(static_cast<size_t>(s.m * s.n)) {
    std::vector<uint8_t> codes = random_e4m3(s.m * s.k, seed);
    std::vector<float> scales = random_scales(s.k / 128 * scale_stride, seed + 3);
    for (int64_t row = 0; row < s.m; ++row) {
      if (valid.empty() || valid[static_cast<size_t>(row)]) continue;
      std::fill_n(codes.data() + row * s.k, s.k, uint8_t{0x7F});
      for (int64_t group = 0; group < s.k / 128; ++group) scales[static_cast<size_t>(group * scale_stride + row)] = NAN;
    }
    x.upload(codes);
    x_scales.upload(scales);
    weight = {w.get(), w_scales.get(), s.n, s.k, experts};
  }
  Fp8Rows rows() const { return {x.get(), x_scales.get(), size.m, size.k, scale_stride}; }
  Bf16Matrix out() const { return {y.get(), size.m, size.n, size.n}; }
  /// Rows [begin, begin + count) by expert `expert`.
  std::vector<double> want(int64_t begin, int64_t count, int64_t expert) const {
    const Fp8RowsView xs{x.get() + begin * size.k, x_scales.get() + begin, size.k, scale_stride};
    const Fp8WeightView ws{w.get() + expert * size.n * size.k, w_scales.get() + expert * ((size.n + 127) / 128) * (size.k / 128), size.k};
    return reference_product(xs, ws, count, size.n, size.k);
  }

  Size size;
  int64_t scale_stride;
  Guarded<uint8_t> x;
  Guarded<float> x_scales;
  Guarded<uint8_t> w;
  Guarded<float> w_scales;
  Guarded<Bf16> y;
  Fp8Weight weight;
};

TEST(SimpleGemm, Fp8) {
  DSV3_NEEDS_GPU();
  for (const Size& size : {Size{0, 128, 128}, Size{1, 128, 128}, Size{5, 72, 256}, Size{64, 256, 384}, Size{67, 200, 1024},
                           Size{130, 576, 512}, Size{8, 256, 7168}}) {
    Fp8Case c(size, 1, {}, static_cast<uint32_t>(size.m + size.n));
    EXPECT_OK(simple_fp8_gemm(c.rows(), c.weight, c.out(), nullptr));
    expect_synced();
    const std::vector<Bf16> first = c.y.download();
    expect_close(from_bf16(first), c.want(0, size.m, 0), size.n, false, size.name());
    EXPECT_TRUE(c.y.guards_intact()) << size.name();
    c.y.poison();
    EXPECT_OK(simple_fp8_gemm(c.rows(), c.weight, c.out(), nullptr));
    expect_synced();
    EXPECT_TRUE(same_bits(first, c.y.download())) << size.name() << ": other bits the second time";
  }
}

TEST(SimpleGemm, Fp8RowsHaveTheSameBitsInAnyBatch) {
  DSV3_NEEDS_GPU();
  Fp8Case c({140, 192, 640}, 1, {}, 3);
  EXPECT_OK(simple_fp8_gemm(c.rows(), c.weight, c.out(), nullptr));
  expect_synced();
  const std::vector<Bf16> together = c.y.download();
  for (const int64_t part : {4, 16, 100}) {
    c.y.poison();
    for (int64_t begin = 0; begin < 140; begin += part) {
      const int64_t rows = std::min<int64_t>(part, 140 - begin);
      const Fp8Rows x{c.x.get() + begin * 640, c.x_scales.get() + begin, rows, 640, c.scale_stride};
      EXPECT_OK(simple_fp8_gemm(x, c.weight, Bf16Matrix{c.y.get() + begin * 192, rows, 192, 192}, nullptr));
    }
    expect_synced();
    EXPECT_TRUE(same_bits(together, c.y.download())) << "in parts of " << part;
  }
}

/// Experts' rows on multiples of 8, in tiles; behind the used tiles lie some that nobody may follow.
struct Grouping {
  Grouping(const std::vector<int64_t>& rows_of_experts, int tile_rows) {
    for (size_t expert = 0; expert < rows_of_experts.size(); ++expert) {
      begin.push_back(rows);
      for (int64_t at = 0; at < rows_of_experts[expert]; at += tile_rows) {
        tiles.push_back({static_cast<int32_t>(expert), static_cast<int32_t>(rows + at),
                         static_cast<int32_t>(std::min<int64_t>(tile_rows, rows_of_experts[expert] - at)), 0});
      }
      for (int64_t row = 0; row < (rows_of_experts[expert] + 7) / 8 * 8; ++row) valid.push_back(row < rows_of_experts[expert]);
      rows = static_cast<int64_t>(valid.size());
    }
    valid.resize(valid.size() + static_cast<size_t>(tile_rows), false);  // rows that may be read past the last tile
    rows = static_cast<int64_t>(valid.size());
    used = static_cast<int32_t>(tiles.size());
    for (int i = 0; i < 80; ++i) tiles.push_back({1 << 20, 1 << 28, tile_rows, 0});
  }
  std::vector<int64_t> begin;
  std::vector<bool> valid;
  std::vector<ExpertTile> tiles;
  int64_t rows = 0;
  int32_t used = 0;
};

/// Valid rows match; all others are still poison.
template <class WantRows>
void check_grouped(const std::vector<Bf16>& y, const Grouping& g, const std::vector<int64_t>& counts, int64_t n, const std::string& name,
                   const WantRows& want_rows) {
  for (size_t expert = 0; expert < counts.size(); ++expert) {
    if (counts[expert] == 0) continue;
    const std::vector<Bf16> part(y.begin() + g.begin[expert] * n, y.begin() + (g.begin[expert] + counts[expert]) * n);
    expect_close(from_bf16(part), want_rows(g.begin[expert], counts[expert], static_cast<int64_t>(expert)), n, false,
                 name + ", expert " + std::to_string(expert));
  }
  for (int64_t row = 0; row < g.rows; ++row) {
    if (g.valid[static_cast<size_t>(row)]) continue;
    const bool untouched =
        std::all_of(y.begin() + row * n, y.begin() + (row + 1) * n, [](Bf16 v) { return __bfloat16_as_ushort(v) == 0xFFFF; });
    EXPECT_TRUE(untouched) << name << ": padding row " << row << " was written";
  }
}

TEST(SimpleGemm, Grouped) {
  DSV3_NEEDS_GPU();
  const std::vector<int64_t> counts = {3, 0, 64, 17, 131, 1};
  for (const int tile_rows : {8, 16, 32, 64, 128, 256}) {
    const Grouping g(counts, tile_rows);
    const Guarded<ExpertTile> tiles(g.tiles);
    const Guarded<int32_t> count(std::vector<int32_t>{g.used});
    const ExpertTiles list{tiles.get(), count.get(), static_cast<int32_t>(g.tiles.size()), tile_rows};
    const Size size{g.rows, 200, 384};
    const std::string name = "tiles of " + std::to_string(tile_rows);

    Fp8Case fp8(size, static_cast<int64_t>(counts.size()), g.valid, 11);
    EXPECT_OK(simple_fp8_grouped_gemm(fp8.rows(), fp8.weight, list, fp8.out(), nullptr));
    expect_synced();
    check_grouped(fp8.y.download(), g, counts, size.n, "FP8, " + name,
                  [&](int64_t begin, int64_t rows, int64_t e) { return fp8.want(begin, rows, e); });
    EXPECT_TRUE(fp8.y.guards_intact()) << name;

    std::vector<Bf16> values = random_bf16(size.m * size.k, 12);
    for (int64_t row = 0; row < size.m; ++row) {
      if (!g.valid[static_cast<size_t>(row)]) std::fill_n(values.data() + row * size.k, size.k, __ushort_as_bfloat16(0x7FFF));
    }
    const Guarded<Bf16> x(values), w(random_bf16(static_cast<int64_t>(counts.size()) * size.n * size.k, 13, 0.05f));
    const Guarded<Bf16> y(static_cast<size_t>(size.m * size.n));
    const Bf16Weight weight{w.get(), size.n, size.k, static_cast<int64_t>(counts.size())};
    EXPECT_OK(simple_bf16_grouped_gemm(Bf16Matrix{x.get(), size.m, size.k, size.k}, weight, list,
                                       Bf16Matrix{y.get(), size.m, size.n, size.n}, nullptr));
    expect_synced();
    check_grouped(y.download(), g, counts, size.n, "BF16, " + name, [&](int64_t begin, int64_t rows, int64_t e) {
      return reference_product(Bf16View{x.get() + begin * size.k, size.k}, Bf16View{w.get() + e * size.n * size.k, size.k}, rows, size.n,
                               size.k);
    });
    EXPECT_TRUE(y.guards_intact()) << name;
  }
}

TEST(SimpleGemm, HeadProduct) {
  DSV3_NEEDS_GPU();
  struct Case {
    int64_t rows, heads, n, k;
    bool transposed;
  };
  // The absorbed form: q_nope [128] to latents [512] by W_UK [128][512] as it lies, and latents to values by W_UV [128][512].
  for (const Case& c : {Case{5, 3, 512, 128, true}, Case{70, 2, 512, 128, true}, Case{5, 3, 128, 512, false}, Case{66, 2, 128, 512, false},
                        Case{2, 2, 72, 40, true}, Case{2, 2, 36, 72, false}, Case{0, 2, 128, 512, false}}) {
    const int64_t w_stride = (c.transposed ? c.n : c.k) + 8, w_rows = c.transposed ? c.k : c.n;
    check_head_product({c.rows, c.heads, c.n, c.k, c.transposed, 4, w_stride, w_stride * w_rows + 128},
                       [](const HeadProduct& product) { return simple_head_product(product, nullptr); });
  }
}

TEST(SimpleGemm, LargeTilesOnlyWhereTheyFillTheDevice) {
  EXPECT_FALSE(simple::prefer_large_tile(64, 1000, 4096, 132));  // no tile has more than 64 rows
  EXPECT_FALSE(simple::prefer_large_tile(128, 1, 256, 132));
  EXPECT_TRUE(simple::prefer_large_tile(1024, 1, 2112, 132));  // 8 * 17 tiles
  EXPECT_TRUE(simple::prefer_large_tile(128, 66, 200, 132));   // 66 * 2
  EXPECT_FALSE(simple::prefer_large_tile(128, 65, 200, 132));
}

/// Launchers refuse before they touch the device, so this needs none.
TEST(SimpleGemm, RefusesWhatItCannotDo) {
  auto* bf16 = reinterpret_cast<Bf16*>(uintptr_t{1 << 20});
  auto* bytes = reinterpret_cast<uint8_t*>(uintptr_t{1 << 20});
  auto* scales = reinterpret_cast<float*>(uintptr_t{1 << 20});
  const Bf16Matrix y{bf16, 4, 64, 64};
  EXPECT_EQ(simple_bf16_gemm(Bf16Matrix{bf16, 4, 60, 64}, Bf16Weight{bf16, 64, 60, 1}, y, nullptr).code(), Code::kInternal);  // k % 8
  EXPECT_EQ(simple_bf16_gemm(Bf16Matrix{bf16, 4, 64, 68}, Bf16Weight{bf16, 64, 64, 1}, y, nullptr).code(), Code::kInternal);  // stride
  EXPECT_EQ(simple_bf16_gemm(Bf16Matrix{bf16 + 1, 4, 64, 64}, Bf16Weight{bf16, 64, 64, 1}, y, nullptr).code(),
            Code::kInternal);                                                                                                 // alignment
  EXPECT_EQ(simple_bf16_gemm(Bf16Matrix{bf16, 5, 64, 64}, Bf16Weight{bf16, 64, 64, 1}, y, nullptr).code(), Code::kInternal);  // rows of y
  EXPECT_EQ(simple_fp8_gemm(Fp8Rows{bytes, scales, 4, 64, 4}, Fp8Weight{bytes, scales, 64, 64, 1}, y, nullptr).code(),
            Code::kInternal);  // k % 128
  EXPECT_EQ(simple_fp8_gemm(Fp8Rows{bytes, nullptr, 4, 128, 4}, Fp8Weight{bytes, scales, 64, 128, 1}, y, nullptr).code(), Code::kInternal);
  EXPECT_TRUE(simple_bf16_gemm(Bf16Matrix{bf16, 0, 64, 64}, Bf16Weight{bf16, 64, 64, 1}, Bf16Matrix{bf16, 0, 64, 64}, nullptr).ok());
}

}  // namespace
}  // namespace dsv3::cuda
