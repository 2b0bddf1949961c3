// Head products around decode attention against float64: sizes of blocks, ragged rows, both outputs, and bits that do not depend on
// the number of rows.
#include "kernels/cuda/mla/absorb.h"

#include <algorithm>
#include <string>
#include <vector>

#include "mla_decode_case.cuh"
#include "rows_reference.h"
#include "simple_reference.cuh"

namespace dsv3::cuda {
namespace {

using namespace testing;

constexpr int64_t kWeightRows = kNope + kValue;

/// One thread an output: y[r][h][i] = sum over k of x(r, h, k) W(h, i, k); W_K transposed or W_V plain.
__global__ void heads_kernel(const Bf16* x, int64_t x_row, int64_t x_head, const Bf16* kv_b, bool values, double* y, int64_t rows,
                             int heads) {
  const int n = values ? kValue : kLatent, k = values ? kLatent : kNope;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= rows * heads * n) return;
  const int64_t row = at / n / heads;
  const int head = static_cast<int>(at / n % heads), i = static_cast<int>(at % n);
  const Bf16* w = kv_b + (head * kWeightRows + (values ? kNope + i : 0)) * kLatent + (values ? 0 : i);
  double sum = 0;
  for (int j = 0; j < k; ++j) {
    sum += static_cast<double>(__bfloat162float(x[row * x_row + head * x_head + j])) *
           static_cast<double>(__bfloat162float(w[static_cast<int64_t>(j) * (values ? 1 : kLatent)]));
  }
  y[at] = sum;
}

std::vector<double> reference(const Bf16* x, int64_t x_row, int64_t x_head, const Bf16* kv_b, bool values, int64_t rows, int heads) {
  const int64_t count = rows * heads * (values ? kValue : kLatent);
  const Guarded<double> y(static_cast<size_t>(count));
  if (count > 0) heads_kernel<<<static_cast<unsigned>((count + 127) / 128), 128>>>(x, x_row, x_head, kv_b, values, y.get(), rows, heads);
  expect_synced();
  return y.download();
}

struct Weights {
  explicit Weights(int heads) : data(random_bf16(heads * kWeightRows * kLatent, 7, 0.05f)), heads(heads) {}
  Bf16Weight view() const { return {data.get(), heads * kWeightRows, kLatent, 1}; }
  Guarded<Bf16> data;
  int heads;
};

std::string case_name(int64_t rows, int heads, const char* what, int of_block) {
  return std::to_string(rows) + " rows, " + std::to_string(heads) + " heads, " + what + " " + std::to_string(of_block);
}

/// Queries whose turned parts are NaN: nobody may read them.
std::vector<Bf16> queries(int64_t rows, int heads, int64_t stride) {
  std::vector<Bf16> q = random_bf16(rows * stride, 3);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < stride; ++i) {
      if (i >= heads * kQueryHead || i % kQueryHead >= kNope) q[static_cast<size_t>(r * stride + i)] = to_bf16(NAN);
    }
  }
  return q;
}

void check_queries(const Weights& weights, int64_t rows, int width) {
  const int heads = weights.heads;
  const std::string name = case_name(rows, heads, "width", width);
  const int64_t stride = heads * kQueryHead + 8;
  const Guarded<Bf16> q(queries(rows, heads, stride));
  Guarded<Bf16> out(static_cast<size_t>(rows * heads * kCacheRow));
  std::vector<Bf16> first;
  for (int time = 0; time < 2; ++time) {
    out.poison();
    EXPECT_OK(absorb_queries({.q = q.get(), .q_stride = stride, .kv_b = weights.view(), .absorbed_q = out.get(), .rows = rows,
                              .heads = heads, .width = width}, nullptr));
    expect_synced();
    const std::vector<Bf16> got = rows_of(out.download(), rows * heads, kLatent, kCacheRow, name);
    if (time == 1) EXPECT_TRUE(same_bits(first, got)) << name << ": other bits the second time";
    first = got;
  }
  EXPECT_TRUE(out.guards_intact()) << name;
  if (rows == 0) return;
  expect_close(from_bf16(first), reference(q.get(), stride, kQueryHead, weights.data.get(), false, rows, heads), kLatent, false, name);
}

void check_values(const Weights& weights, int64_t rows, int tokens, bool ue8m0) {
  const int heads = weights.heads;
  const std::string name = case_name(rows, heads, "tokens", tokens) + (ue8m0 ? ", ue8m0" : "");
  const int64_t cols = int64_t{heads} * kValue, stride = cols + 8;
  const Guarded<Bf16> latent(random_bf16(rows * heads * kLatent, 5));
  const Guarded<Bf16> out(static_cast<size_t>(rows * stride)), alone(static_cast<size_t>(rows * stride));
  const Fp8Buffer quantised(rows, cols), quantised_alone(rows, cols);
  ExpandValues p{.latent = latent.get(), .kv_b = weights.view(), .out = {out.get(), rows, cols, stride}, .quantised = quantised.view(),
                 .ue8m0 = ue8m0, .rows = rows, .heads = heads, .tokens = tokens};
  EXPECT_OK(expand_values(p, nullptr));
  p.quantised = {};
  p.out.data = alone.get();
  EXPECT_OK(expand_values(p, nullptr));
  p.out = {};
  p.quantised = quantised_alone.view();
  EXPECT_OK(expand_values(p, nullptr));
  expect_synced();
  const std::vector<Bf16> got = rows_of(out.download(), rows, cols, stride, name);
  EXPECT_TRUE(same_bits(got, rows_of(alone.download(), rows, cols, stride, name))) << name << ": BF16 alone differs";
  EXPECT_TRUE(same_bits(quantised.data.download(), quantised_alone.data.download())) << name << ": e4m3 alone differs";
  EXPECT_TRUE(same_bits(quantised.scales.download(), quantised_alone.scales.download())) << name << ": scales alone differ";
  EXPECT_TRUE(out.guards_intact() && alone.guards_intact() && quantised_alone.guards_intact()) << name;
  if (rows == 0) return;
  const std::vector<double> want = reference(latent.get(), int64_t{heads} * kLatent, kLatent, weights.data.get(), true, rows, heads);
  expect_close(from_bf16(got), want, cols, false, name);
  // 32 steps of the tensor core, each cut off at about 2^-23 of the sum: far below 1e-4 of the largest of 128 values.
  expect_fp8(quantised, want, ue8m0, 1e-4, name);
}

TEST(Absorb, WhereItPays) {
  EXPECT_TRUE(use_absorb_queries(64, 128));
  EXPECT_FALSE(use_absorb_queries(65, 128));
  EXPECT_TRUE(use_absorb_queries(256, 16));
  EXPECT_FALSE(use_absorb_queries(257, 8));
  EXPECT_TRUE(use_expand_values(256));
  EXPECT_FALSE(use_expand_values(257));
}

TEST(Absorb, RowsOfABlock) {
  EXPECT_EQ(expand_tokens(1, 128), 16);
  EXPECT_EQ(expand_tokens(16, 128), 16);
  EXPECT_EQ(expand_tokens(17, 128), 32);
  EXPECT_EQ(expand_tokens(128, 128), 64);
  EXPECT_EQ(expand_tokens(64, 16), 16);
  EXPECT_EQ(expand_tokens(128, 16), 32);
  EXPECT_EQ(expand_tokens(256, 16), 64);
  EXPECT_EQ(expand_tokens(10000, 8), 64);
}

TEST(CudaAbsorb, Queries) {
  DSV3_NEEDS_GPU();
  for (const int heads : {8, 16}) {
    const Weights weights(heads);
    for (const int64_t rows : {0, 1, 3, 8, 17, 64, 65}) {
      check_queries(weights, rows, 64);
      if (heads == 8) check_queries(weights, rows, 128);
    }
  }
}

TEST(CudaAbsorb, Values) {
  DSV3_NEEDS_GPU();
  for (const int heads : {8, 16}) {
    const Weights weights(heads);
    for (const int64_t rows : {0, 1, 3, 8, 17, 64, 65}) {
      for (const int tokens : {16, 32, 64}) check_values(weights, rows, tokens, (rows + tokens / 16) % 2 == 0);
    }
  }
  check_values(Weights(5), 300, 0, false);
}

TEST(CudaAbsorb, LargeAllHeads) {
  DSV3_NEEDS_GPU();
  const Weights weights(128);
  for (const int64_t rows : {1, 16, 128}) {
    check_queries(weights, rows, 0);
    check_values(weights, rows, 0, false);
  }
  const Weights few(16);
  for (const int64_t rows : {128, 200}) {
    check_queries(few, rows, 0);
    check_values(few, rows, 0, false);
  }
}

/// A row has the same bits alone, in another place, and among any number of rows.
TEST(CudaAbsorb, BitsDoNotDependOnTheBatch) {
  DSV3_NEEDS_GPU();
  const int heads = 5;
  const Weights weights(heads);
  const int64_t rows = 130, cols = int64_t{heads} * kValue, q_stride = heads * kQueryHead;
  const Guarded<Bf16> q(queries(rows, heads, q_stride)), latent(random_bf16(rows * heads * kLatent, 5));
  for (const auto& [width, tokens] : {std::pair{64, 16}, {128, 32}, {64, 64}}) {
    const auto run = [&, width = width, tokens = tokens](int64_t first, int64_t count) {  // the whole batch in blocks of `tokens`
      const Guarded<Bf16> absorbed(static_cast<size_t>(count * heads * kCacheRow)), out(static_cast<size_t>(count * cols));
      const Fp8Buffer fp8(count, cols);
      EXPECT_OK(absorb_queries({.q = q.get() + first * q_stride, .q_stride = q_stride, .kv_b = weights.view(), .absorbed_q = absorbed.get(),
                                .rows = count, .heads = heads, .width = width}, nullptr));
      EXPECT_OK(expand_values({.latent = latent.get() + first * heads * kLatent, .kv_b = weights.view(),
                               .out = {out.get(), count, cols, cols}, .quantised = fp8.view(), .rows = count, .heads = heads,
                               .tokens = count == rows ? tokens : 0}, nullptr));
      expect_synced();
      // Per row: its BF16 results, e4m3 bytes and scales, as bytes.
      std::vector<std::vector<uint8_t>> bytes(static_cast<size_t>(count));
      const auto add = [&](const auto& values, int64_t at, int64_t n, int64_t row) {
        const auto* from = reinterpret_cast<const uint8_t*>(values.data() + at);
        auto& to = bytes[static_cast<size_t>(row)];
        to.insert(to.end(), from, from + static_cast<size_t>(n) * sizeof(values[0]));
      };
      const auto a = absorbed.download(), o = out.download();
      const auto e = fp8.data.download();
      const auto s = fp8.scales.download();
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t h = 0; h < heads; ++h) {
          add(a, (r * heads + h) * kCacheRow, kLatent, r);
          add(s, h * fp8.scale_stride + r, 1, r);
        }
        add(o, r * cols, cols, r);
        add(e, r * cols, cols, r);
      }
      return bytes;
    };
    const auto all = run(0, rows);
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1}, {5, 1}, {63, 3}, {64, 17}, {129, 1}}) {
      const auto part = run(first, count);
      for (int64_t r = 0; r < count; ++r) {
        const bool same = part[static_cast<size_t>(r)] == all[static_cast<size_t>(first + r)];
        EXPECT_TRUE(same) << "width " << width << ", tokens " << tokens << ", row " << first + r << " of " << count;
      }
    }
  }
}

/// Rows inside of a larger FP8 buffer: the others stay as they are.
TEST(CudaAbsorb, ValuesIntoPartOfABuffer) {
  DSV3_NEEDS_GPU();
  const int heads = 3;
  const int64_t rows = 16, first = 3, count = 5, cols = heads * kValue;
  const Weights weights(heads);
  const Guarded<Bf16> latent(random_bf16(count * heads * kLatent, 5));
  const Fp8Buffer whole(rows, cols), part(count, cols);
  Fp8Rows inside = whole.view();
  inside.data += first * cols, inside.scales += first, inside.rows = count;
  for (const Fp8Rows& to : {inside, part.view()}) {
    EXPECT_OK(expand_values({.latent = latent.get(), .kv_b = weights.view(), .quantised = to, .rows = count, .heads = heads}, nullptr));
  }
  expect_synced();
  std::vector<uint8_t> data(static_cast<size_t>(rows * cols), 0xFF);
  const auto wanted = part.data.download();
  std::copy(wanted.begin(), wanted.end(), data.begin() + first * cols);
  EXPECT_EQ(whole.data.download(), data);
  const auto got_scales = whole.scales.download(), want_scales = part.scales.download();
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t r = 0; r < whole.scale_stride; ++r) {
      const float got = got_scales[static_cast<size_t>(h * whole.scale_stride + r)];
      if (r >= first && r < first + count) {
        EXPECT_EQ(got, want_scales[static_cast<size_t>(h * part.scale_stride + r - first)]) << "head " << h << ", row " << r;
      } else {
        EXPECT_TRUE(std::isnan(got)) << "head " << h << ", row " << r << " was written";
      }
    }
  }
  EXPECT_TRUE(whole.guards_intact());
}

/// mla_decode_pieces() and the product that joins them, against float64 and against the merging kernel.
void check_pieces(const MlaShape& shape, int width) {
  SCOPED_TRACE(shape.name() + ", width " + std::to_string(width));
  MlaBatch batch(shape);
  const auto groups = static_cast<int64_t>(shape.groups.size()), rows = groups * shape.max_group_rows, cols = int64_t{shape.heads} * kValue;
  const Weights weights(shape.heads);
  const Workspace ws(batch.params());
  const auto expand = [&](const DecodePieces& pieces) {
    const Guarded<Bf16> out(static_cast<size_t>(rows * cols));
    EXPECT_OK(expand_values({.latent = batch.params().out, .kv_b = weights.view(), .out = {out.get(), rows, cols, cols}, .rows = rows,
                             .heads = shape.heads, .width = width, .pieces = pieces},
                            nullptr));
    expect_synced();
    EXPECT_TRUE(out.guards_intact());
    std::vector<float> used;
    const std::vector<float> all = from_bf16(out.download());
    for (int64_t g = 0; g < groups; ++g) {
      const auto begin = all.begin() + g * shape.max_group_rows * cols;
      used.insert(used.end(), begin, begin + shape.groups[static_cast<size_t>(g)].first * cols);
    }
    return used;
  };
  EXPECT_OK(mla_decode_schedule(batch.params(), ws.view, nullptr));
  DecodePieces pieces;
  EXPECT_OK(mla_decode_pieces(batch.params(), ws.view, &pieces, nullptr));
  const std::vector<float> joined = expand(pieces), again = expand(pieces);
  batch.poison_output();
  EXPECT_OK(mla_decode(batch.params(), ws.view, nullptr));
  const std::vector<float> merged = expand({});
  EXPECT_EQ(joined, again);
  // Sums of pieces in another order move some latents to the neighbouring BF16: 2^-9 of them at most.
  EXPECT_LT(relative_l2(joined, merged, cols).worst_row, 2e-3);

  const std::vector<double> latents = batch.reference();
  const std::vector<float> w = from_bf16(weights.data.download());
  std::vector<double> want;
  for (size_t query = 0; query < latents.size() / kLatent; ++query) {
    const size_t head = query % static_cast<size_t>(shape.heads);
    for (size_t v = 0; v < kValue; ++v) {
      const float* row = w.data() + (head * kWeightRows + kNope + v) * kLatent;
      double sum = 0;
      for (size_t c = 0; c < kLatent; ++c) sum += latents[query * kLatent + c] * static_cast<double>(row[c]);
      want.push_back(sum);
    }
  }
  ASSERT_EQ(want.size(), joined.size());
  // What mla_decode_test.cu allows a row of latents, and the rounding of the result.
  EXPECT_LT(relative_l2(joined, want, cols).worst_row, shape.format == KvFormat::kFp8 ? 2e-2 : 7e-3);
}

/// What the kernel before the queries' writes late is there for an attention that reads early.
TEST(CudaAbsorb, EarlyReadersFindWhatIsOlder) {
  DSV3_NEEDS_GPU();
  constexpr int kHeads = 16;
  const MlaBatch batch({.heads = kHeads, .groups = {{1, 200}}, .max_group_rows = 1, .seed = 5});
  MlaDecode decode = batch.params();
  const Workspace ws(decode);
  ASSERT_OK(mla_decode_schedule(decode, ws.view, nullptr));
  ASSERT_OK(mla_decode(decode, ws.view, nullptr));
  expect_synced();
  const std::vector<float> want = batch.output("before");

  const LateRow late(batch, 0, 10);
  const Weights weights(kHeads);
  const Guarded<Bf16> q(queries(1, kHeads, kHeads * kQueryHead)), absorbed(kHeads * kCacheRow);
  decode.reads_early = true;
  ASSERT_OK(late.write());
  ASSERT_OK(absorb_queries({.q = q.get(), .q_stride = kHeads * kQueryHead, .kv_b = weights.view(), .absorbed_q = absorbed.get(), .rows = 1,
                            .heads = kHeads},
                           nullptr));
  ASSERT_OK(mla_decode(decode, ws.view, nullptr));
  expect_synced();
  EXPECT_EQ(want, batch.output("behind a late writer"));
}

TEST(CudaAbsorb, ValuesOutOfPieces) {
  DSV3_NEEDS_GPU();
  check_pieces({.heads = 16, .groups = {{1, 700}}, .max_group_rows = 1}, 64);
  check_pieces({.heads = 16, .groups = {{1, 9000}}, .max_group_rows = 1}, 64);
  check_pieces({.heads = 8, .groups = {{1, 20000}, {1, 5}, {1, 900}}, .max_group_rows = 1}, 128);
  check_pieces({.heads = 16, .format = KvFormat::kFp8, .groups = {{2, 3000}, {4, 100}}, .max_group_rows = 4}, 64);
  check_pieces({.heads = 64, .groups = {{2, 5000}, {2, 1}, {1, 1500}, {2, 2500}}, .max_group_rows = 2}, 128);
  check_pieces({.heads = 128, .groups = {{1, 2000}}, .max_group_rows = 1}, 128);
  check_pieces({.heads = 128, .groups = {{2, 3000}, {2, 900}}, .max_group_rows = 2}, 128);
}

/// NaN in one row (padding) stays in it.
TEST(CudaAbsorb, NanStaysInItsRow) {
  DSV3_NEEDS_GPU();
  const int heads = 2;
  const int64_t rows = 9, bad = 4, cols = heads * kValue;
  const Weights weights(heads);
  std::vector<Bf16> values = random_bf16(rows * heads * kLatent, 5);
  std::fill_n(values.begin() + bad * heads * kLatent, heads * kLatent, to_bf16(NAN));
  std::vector<Bf16> q = queries(rows, heads, heads * kQueryHead);
  std::fill_n(q.begin() + bad * heads * kQueryHead, heads * kQueryHead, to_bf16(NAN));
  const Guarded<Bf16> latent(values), q_device(q), out(static_cast<size_t>(rows * cols)),
      absorbed(static_cast<size_t>(rows * heads * kCacheRow));
  EXPECT_OK(absorb_queries({.q = q_device.get(), .q_stride = heads * kQueryHead, .kv_b = weights.view(), .absorbed_q = absorbed.get(),
                            .rows = rows, .heads = heads}, nullptr));
  EXPECT_OK(expand_values({.latent = latent.get(), .kv_b = weights.view(), .out = {out.get(), rows, cols, cols}, .rows = rows,
                           .heads = heads}, nullptr));
  expect_synced();
  const auto o = from_bf16(out.download());
  const auto a = from_bf16(rows_of(absorbed.download(), rows * heads, kLatent, kCacheRow, "NaN"));
  for (int64_t r = 0; r < rows; ++r) {
    const auto finite = [](float x) { return std::isfinite(x); };
    EXPECT_EQ(std::all_of(o.begin() + r * cols, o.begin() + (r + 1) * cols, finite), r != bad) << "values, row " << r;
    const bool all = std::all_of(a.begin() + r * heads * kLatent, a.begin() + (r + 1) * heads * kLatent, finite);
    EXPECT_EQ(all, r != bad) << "queries, row " << r;
  }
}

TEST(CudaAbsorbChecks, WidthsAndRefusals) {
  EXPECT_EQ(absorb_width(128), 128);
  EXPECT_EQ(absorb_width(32), 128);
  EXPECT_EQ(absorb_width(16), 64);
  EXPECT_EQ(absorb_width(8), 64);
  Bf16* const some = reinterpret_cast<Bf16*>(uintptr_t{4096});  // never read
  const Bf16Weight kv_b{some, 2 * kWeightRows, kLatent, 1};
  EXPECT_OK(absorb_queries({}, nullptr));  // no rows, nothing to check
  EXPECT_OK(expand_values({}, nullptr));
  const AbsorbQueries queries{.q = some, .q_stride = 2 * kQueryHead, .kv_b = kv_b, .absorbed_q = some, .rows = 1, .heads = 2};
  const auto refused = [](const Status& status) { return status.code() == Code::kInternal; };
  AbsorbQueries q = queries;
  q.heads = 3;  // kv_b does not fit
  EXPECT_TRUE(refused(absorb_queries(q, nullptr)));
  q = queries, q.q_stride = 2 * kQueryHead + 4;
  EXPECT_TRUE(refused(absorb_queries(q, nullptr)));
  q = queries, q.absorbed_q = nullptr;
  EXPECT_TRUE(refused(absorb_queries(q, nullptr)));
  q = queries, q.width = 32;
  EXPECT_TRUE(refused(absorb_queries(q, nullptr)));
  const ExpandValues values{.latent = some, .kv_b = kv_b, .out = {some, 1, 2 * kValue, 2 * kValue}, .rows = 1, .heads = 2};
  ExpandValues v = values;
  v.out = {};
  EXPECT_TRUE(refused(expand_values(v, nullptr)));  // no output
  v = values, v.out.cols = kValue;
  EXPECT_TRUE(refused(expand_values(v, nullptr)));
  v = values, v.quantised = {reinterpret_cast<uint8_t*>(some), nullptr, 1, 2 * kValue, 4};
  EXPECT_TRUE(refused(expand_values(v, nullptr)));
  v = values, v.tokens = 24;
  EXPECT_TRUE(refused(expand_values(v, nullptr)));
  DecodeSchedule* const schedule = reinterpret_cast<DecodeSchedule*>(uintptr_t{4096});  // never read
  v = values, v.rows = v.out.rows = kPieceRows + 1, v.pieces.scratch.schedule = schedule;
  EXPECT_TRUE(refused(expand_values(v, nullptr)));
  v = values, v.rows = -1;
  EXPECT_TRUE(refused(expand_values(v, nullptr)));
}

}  // namespace
}  // namespace dsv3::cuda
