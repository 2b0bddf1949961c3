#include "attention.h"

#include <gtest/gtest.h>

#include "support/numbers.h"

namespace dsv3::cpu {
namespace {

using testing::normal_floats;
using testing::relative_l2;

struct Case {
  int64_t heads, context, rows;  // the last `rows` of `context` positions are queries
  int64_t nope = 128, rope = 64, v = 128, latent = 512;
};

/// One sequence in shuffled blocks, its queries, and float64 attention over it.
class Problem {
 public:
  explicit Problem(const Case& c) : c_(c) {
    shape.heads = c.heads;
    shape.nope = c.nope;
    shape.rope = c.rope;
    shape.v = c.v;
    shape.latent = c.latent;
    shape.softmax_scale = 0.07f;
    row_ = c.latent + c.rope;
    weights = normal_floats(static_cast<size_t>(c.heads * (c.nope + c.v) * c.latent), 1, 0.05f);
    q = normal_floats(static_cast<size_t>(c.rows * c.heads * (c.nope + c.rope)), 2);
    const auto num_blocks = (c.context + 63) / 64 + 1;
    cache = normal_floats(static_cast<size_t>(num_blocks * 64 * row_), 3);
    for (int64_t b = 0; b + 1 < num_blocks; ++b) blocks.push_back(static_cast<int32_t>((b * 7 + 3) % num_blocks));
    std::vector<bool> used(static_cast<size_t>(num_blocks));
    for (auto& b : blocks) {
      while (used[static_cast<size_t>(b)]) b = static_cast<int32_t>((b + 1) % num_blocks);
      used[static_cast<size_t>(b)] = true;
    }
    // What no sequence owns must not matter: poison it, and the tail of the last block.
    for (int64_t b = 0; b < num_blocks; ++b) {
      if (!used[static_cast<size_t>(b)]) std::fill_n(cache.begin() + b * 64 * row_, 64 * row_, NAN);
    }
    for (int64_t p = c.context; p < static_cast<int64_t>(blocks.size()) * 64; ++p) {
      std::fill_n(const_cast<float*>(cached(p)), row_, NAN);
    }
  }

  CacheView view() const { return {cache.data(), row_, 64}; }
  const float* cached(int64_t position) const {
    return cache.data() + (blocks[static_cast<size_t>(position / 64)] * 64 + position % 64) * row_;
  }

  std::vector<double> reference() const {
    std::vector<double> out(static_cast<size_t>(c_.rows * c_.heads * c_.v));
    for (int64_t r = 0; r < c_.rows; ++r) {
      const int64_t visible = c_.context - c_.rows + r + 1;
      for (int64_t h = 0; h < c_.heads; ++h) {
        const float* query = q.data() + (r * c_.heads + h) * (c_.nope + c_.rope);
        std::vector<double> scores(static_cast<size_t>(visible));
        double top = -1e300, sum = 0;
        for (int64_t t = 0; t < visible; ++t) {
          double s = 0;
          for (int64_t d = 0; d < c_.nope; ++d) s += query[d] * project(h, d, t);
          for (int64_t d = 0; d < c_.rope; ++d) s += static_cast<double>(query[c_.nope + d]) * cached(t)[c_.latent + d];
          scores[static_cast<size_t>(t)] = s * static_cast<double>(shape.softmax_scale);
          top = std::max(top, scores[static_cast<size_t>(t)]);
        }
        for (auto& s : scores) sum += s = std::exp(s - top);
        double* to = out.data() + (r * c_.heads + h) * c_.v;
        for (int64_t t = 0; t < visible; ++t) {
          for (int64_t d = 0; d < c_.v; ++d) to[d] += scores[static_cast<size_t>(t)] / sum * project(h, c_.nope + d, t);
        }
      }
    }
    return out;
  }

  /// Output of rows [first, first + count), in one form.
  std::vector<float> run(bool absorbed, int64_t first, int64_t count, int threads) const {
    std::vector<float> out(static_cast<size_t>(count * c_.heads * c_.v), NAN);
    const AttentionSpan span{q.data() + first * c_.heads * (c_.nope + c_.rope), out.data(), count,
                             c_.context - c_.rows + first, blocks};
    ForkJoin pool(threads);
    const CpuKvProjection kv_b(weights.data(), shape);
    AlignedFloats scratch;
    if (absorbed) {
      attention_absorbed(pool, shape, kv_b, view(), {&span, 1}, scratch);
    } else {
      attention_expanded(pool, shape, kv_b, view(), {&span, 1});
    }
    return out;
  }

  AttentionShape shape;
  std::vector<float> weights, q, cache;
  std::vector<int32_t> blocks;

 private:
  /// Row `d` of head h's part of kv_b, times the latent of position t.
  double project(int64_t h, int64_t d, int64_t t) const {
    const float* w = weights.data() + (h * (c_.nope + c_.v) + d) * c_.latent;
    double sum = 0;
    for (int64_t i = 0; i < c_.latent; ++i) sum += static_cast<double>(w[i]) * cached(t)[i];
    return sum;
  }
  Case c_;
  int64_t row_;
};

class Attention : public ::testing::TestWithParam<Case> {};

TEST_P(Attention, BothFormsAgreeWithFloat64) {
  const Problem problem(GetParam());
  const auto want = problem.reference();
  const auto rows = GetParam().rows;
  for (bool absorbed : {false, true}) {
    SCOPED_TRACE(absorbed ? "absorbed" : "expanded");
    const auto got = problem.run(absorbed, 0, rows, 2);
    const auto width = got.size() / static_cast<size_t>(rows);
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
      // Float32 sums of up to 576 products and a softmax over the context: a few 1e-6 per row.
      EXPECT_LE(relative_l2(got.data() + r * width, want.data() + r * width, width), 1e-5) << "row " << r;
    }
  }
}

TEST_P(Attention, ChunksAndThreadsChangeNoBit) {
  const Problem problem(GetParam());
  const auto rows = GetParam().rows;
  for (bool absorbed : {false, true}) {
    const auto whole = problem.run(absorbed, 0, rows, 3);
    std::vector<float> parts;
    for (int64_t r = 0; r < rows; r += 7) {
      const auto part = problem.run(absorbed, r, std::min<int64_t>(7, rows - r), 1);
      parts.insert(parts.end(), part.begin(), part.end());
    }
    EXPECT_TRUE(whole == parts) << (absorbed ? "absorbed" : "expanded");
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Attention,
                         ::testing::Values(Case{8, 1, 1}, Case{8, 64, 1}, Case{8, 65, 2}, Case{2, 300, 40},
                                           Case{1, 257, 257}, Case{3, 130, 30, 24, 8, 40, 72},
                                           Case{16, 90, 4}));

}  // namespace
}  // namespace dsv3::cpu
