// Rotation, latent norm and cache rows against float64.
#include <cstring>

#include "kernels/cuda/mla/absorb.h"
#include "kernels/cuda/norm/norm.h"
#include "rows_reference.h"

namespace dsv3::cuda::testing {
namespace {

constexpr float kEps = 1e-6f;
constexpr double kBf16Step = 1.0 / 256 + 1e-4;  // one rounding to BF16, relative to the larger of a pair

std::vector<double> frequencies() {
  std::vector<double> f;
  for (int i = 0; i < 32; ++i) f.push_back(std::pow(10000.0, -i / 32.0));
  return f;
}

struct Turned {
  double a, b;
};
Turned turned(double a, double b, double angle, double factor) {
  const double c = std::cos(angle) * factor, s = std::sin(angle) * factor;
  return {a * c - b * s, a * s + b * c};
}

void check_pair(float a, float b, const Turned& want, const std::string& what) {
  const double size = std::hypot(want.a, want.b);
  ASSERT_NEAR(a, want.a, kBf16Step * size) << what;
  ASSERT_NEAR(b, want.b, kBf16Step * size) << what;
}

/// absorb_width: 0, or the launch is absorb_queries() of that width, which does the same beside.
void check(int64_t rows, int heads, KvFormat format, bool absorbed, int absorb_width = 0) {
  const std::string what = std::to_string(rows) + " rows, " + std::to_string(heads) + " heads, " + (format == KvFormat::kFp8 ? "fp8" : "bf16") +
                           (absorb_width > 0 ? ", beside absorb_queries of width " + std::to_string(absorb_width) : "");
  SCOPED_TRACE(what);
  const int64_t q_stride = heads * 192 + 8, kv_stride = 576 + 8, blocks = rows / 64 + 2;
  const double factor = 1.25;
  const auto q = to_bf16(normal_values(static_cast<size_t>(rows * q_stride), 1)),
             kv = to_bf16(normal_values(static_cast<size_t>(rows * kv_stride), 2));
  const auto gain = normal_values(512, 3);
  const auto f = frequencies();
  const int32_t edges[] = {0, 1, 4095, 163839, -1, 77777};
  std::vector<int32_t> positions;
  std::vector<int64_t> cache_rows;
  for (int64_t r = 0; r < rows; ++r) {
    positions.push_back(edges[r % 6]);
    cache_rows.push_back(rows - r + 17);
  }
  const Guarded<Bf16> q_device(q), kv_device(kv), absorbed_device(static_cast<size_t>(rows * heads * 576));
  const Guarded<float> gain_device(gain);
  const Guarded<double> f_device(f);
  const Guarded<int32_t> positions_device(positions);
  const Guarded<int64_t> cache_rows_device(cache_rows);
  const int64_t row_bytes = format == KvFormat::kFp8 ? 656 : 1152;
  const Guarded<uint8_t> pages(static_cast<size_t>(blocks * 64 * row_bytes));
  RopeAndCache p;
  p.q = {q_device.get(), rows, heads * 192, q_stride};
  p.absorbed_q = absorbed ? absorbed_device.get() : nullptr;
  p.kv_a = {kv_device.get(), rows, 576, kv_stride};
  p.latent_gain = gain_device.get(), p.eps = kEps, p.frequencies = f_device.get(), p.cos_factor = static_cast<float>(factor);
  p.positions = positions_device.get(), p.cache_rows = cache_rows_device.get(), p.heads = heads;
  p.pages = {pages.get(), format, blocks};
  if (absorb_width == 0) {
    ASSERT_OK(rope_and_cache(p, nullptr));
    expect_synced();
  } else {
    const Guarded<Bf16> kv_b(to_bf16(normal_values(static_cast<size_t>(heads) * 256 * 512, 5, 0.05f)));
    ASSERT_OK(absorb_queries({.q = q_device.get(), .q_stride = q_stride, .kv_b = {kv_b.get(), heads * 256, 512, 1},
                              .absorbed_q = absorbed_device.get(), .rows = rows, .heads = heads, .width = absorb_width, .turn = &p},
                             nullptr));
    expect_synced();
  }
  const auto q_got = q_device.download(), absorbed_got = absorbed_device.download();
  const auto cache = pages.download();
  std::vector<bool> written(static_cast<size_t>(blocks * 64));
  for (int64_t r = 0; r < rows; ++r) {
    const std::string where = what + ", row " + std::to_string(r) + ", position " + std::to_string(positions[static_cast<size_t>(r)]);
    const double position = positions[static_cast<size_t>(r)];
    for (int64_t c = 0; c < q_stride; ++c) {
      const auto i = static_cast<size_t>(r * q_stride + c);
      const int64_t head = c / 192, in = c % 192;
      if (head >= heads || in < 128) {
        ASSERT_EQ(from_bf16(q_got[i]), from_bf16(q[i])) << where << ", column " << c;
      } else if (in % 2 == 0) {
        const Turned want = turned(from_bf16(q[i]), from_bf16(q[i + 1]), position * f[static_cast<size_t>(in - 128) / 2], factor);
        check_pair(from_bf16(q_got[i]), from_bf16(q_got[i + 1]), want, where + ", column " + std::to_string(c));
        if (!absorbed) continue;
        const Bf16* copy = absorbed_got.data() + (r * heads + head) * 576 + 512 + in - 128;
        ASSERT_EQ(std::memcmp(copy, &q_got[i], 4), 0) << where << ", head " << head;
      }
    }
    if (position < 0) continue;
    const auto at = static_cast<size_t>(cache_rows[static_cast<size_t>(r)]);
    written[at] = true;
    const uint8_t* row = cache.data() + at * static_cast<size_t>(row_bytes);
    const Bf16* source = kv.data() + r * kv_stride;
    double squares = 0;
    for (int c = 0; c < 512; ++c) squares += std::pow(from_bf16(source[c]), 2.0);
    const double inverse = 1 / std::sqrt(squares / 512 + static_cast<double>(kEps));
    for (int g = 0; g < 4; ++g) {
      double amax = 1e-4;
      for (int c = g * 128; c < g * 128 + 128; ++c)
        amax = std::max(amax, std::fabs(from_bf16(source[c]) * inverse * gain[static_cast<size_t>(c)]));
      float scale = 0;
      std::memcpy(&scale, row + 512 + 4 * g, 4);
      if (format == KvFormat::kFp8) {
        ASSERT_NEAR(scale / (amax / 448), 1.0, 2e-6) << where;
      }
      for (int c = g * 128; c < g * 128 + 128; ++c) {
        const double want = from_bf16(source[c]) * inverse * gain[static_cast<size_t>(c)];
        if (format == KvFormat::kFp8) {
          const double allowed = std::max(std::fabs(want) / 16, scale / 1024.0) * (1 + 1e-4) + 2e-6 * amax;
          ASSERT_NEAR(static_cast<double>(e4m3_to_f32(row[c])) * scale, want, allowed) << where << ", latent " << c;
        } else {
          Bf16 got;
          std::memcpy(&got, row + 2 * c, 2);
          ASSERT_NEAR(from_bf16(got), want, std::fabs(want) * kBf16Step + 1e-30) << where << ", latent " << c;
        }
      }
    }
    for (int i = 0; i < 32; ++i) {
      Bf16 pair[2];
      std::memcpy(pair, row + (format == KvFormat::kFp8 ? 528 : 1024) + 4 * i, 4);
      const Turned want =
          turned(from_bf16(source[512 + 2 * i]), from_bf16(source[513 + 2 * i]), position * f[static_cast<size_t>(i)], factor);
      check_pair(from_bf16(pair[0]), from_bf16(pair[1]), want, where + ", k_pe pair " + std::to_string(i));
    }
  }
  for (size_t row = 0; row < written.size(); ++row) {
    if (written[row]) continue;
    for (int64_t b = 0; b < row_bytes; ++b)
      ASSERT_EQ(cache[row * static_cast<size_t>(row_bytes) + static_cast<size_t>(b)], 0xFF) << what << ", cache row " << row;
  }
  EXPECT_TRUE(q_device.guards_intact() && absorbed_device.guards_intact() && pages.guards_intact()) << what;
}

TEST(CudaRope, RotatesAndCaches) {
  DSV3_NEEDS_GPU();
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    check(1, 128, format, true);
    check(6, 128, format, false);
    check(5, 3, format, true);
    check(12, 160, format, true);  // more than one round of q vectors
    check(300, 16, format, true);
  }
}

TEST(CudaRope, BesideAbsorbedQueries) {
  DSV3_NEEDS_GPU();
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    check(1, 16, format, true, 64);
    check(20, 8, format, true, 64);  // more rows than heads
    check(5, 3, format, true, 128);
    check(70, 2, format, true, 128);  // more than a chunk
  }
}

TEST(CudaRope, NoRows) {
  EXPECT_OK(rope_and_cache({}, nullptr));
  RopeAndCache p;
  p.kv_a.rows = 1;
  EXPECT_FALSE(rope_and_cache(p, nullptr).ok());
}

}  // namespace
}  // namespace dsv3::cuda::testing
