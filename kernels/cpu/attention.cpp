#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace dsv3::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kTileBlocks = 4;  // key blocks of one tile of the expanded form

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/// Running maximum and sum of a row's softmax.
struct Softmax {
  float max = kMinusInfinity;
  float sum = 0;

  /// Turns `n` scores (a multiple of 16, -inf where masked) into weights relative to the new maximum, and returns the
  /// factor by which everything accumulated before must shrink.
  float fold(float* scores, int64_t n) {
    const float top = std::max(max, *std::max_element(scores, scores + n));
    if (top == kMinusInfinity) {
      std::fill(scores, scores + n, 0.0f);
      return 1.0f;
    }
    const float shrink = max == kMinusInfinity ? 0.0f : std::exp(max - top);
    sum = sum * shrink + simd().exp_sum(scores, n, top);
    max = top;
    return shrink;
  }
};

/// All rows of one head of one span, expanded form.
class ExpandedHead {
 public:
  ExpandedHead(const AttentionShape& shape, const CpuKvProjection& kv_b, const CacheView& cache,
               const AttentionSpan& span, int64_t head)
      : shape_(shape), kv_b_(kv_b), cache_(cache), span_(span), head_(head),
        tile_tokens_(kTileBlocks * cache.block_tokens),
        keys_(static_cast<size_t>(round_up(tile_tokens_, kPanelCols) * (shape.nope + shape.rope))),
        values_(static_cast<size_t>(tile_tokens_ * round_up(shape.v, kPanelCols))),
        expanded_(static_cast<size_t>(tile_tokens_ * kPanelCols)),
        softmax_(static_cast<size_t>(span.rows)),
        acc_(static_cast<size_t>(span.rows * v_padded())) {}

  void run() {
    const int64_t context = span_.start + span_.rows;
    for (int64_t tile = 0; tile < context; tile += tile_tokens_) {
      const int64_t tokens = std::min(tile_tokens_, context - tile);
      expand_tile(tile, tokens);
      // Rows before the tile see nothing of it.
      for (int64_t r = std::max<int64_t>(0, tile - span_.start); r < span_.rows; r += kRowBlock) {
        attend(tile, tokens, r, std::min(kRowBlock, span_.rows - r));
      }
    }
    for (int64_t r = 0; r < span_.rows; ++r) {
      float* out = span_.out + r * shape_.heads * shape_.v + head_ * shape_.v;
      const float* acc = acc_.data() + r * v_padded();
      const float inverse = 1.0f / softmax_[static_cast<size_t>(r)].sum;
      for (int64_t j = 0; j < shape_.v; ++j) out[j] = acc[j] * inverse;
    }
  }

 private:
  int64_t v_padded() const { return round_up(shape_.v, kPanelCols); }
  int64_t key_dim() const { return shape_.nope + shape_.rope; }

  /// Fills keys_ as panels [keys / 32][key_dim][32] and values_ as panels [v / 32][tile_tokens][32].
  void expand_tile(int64_t tile, int64_t tokens) {
    const int64_t first_row = head_ * (shape_.nope + shape_.v);
    // Columns of kv_b come panel by panel; a head's rows need not start on a panel.
    const int64_t first_panel = first_row / kPanelCols;
    const int64_t last_panel = (first_row + shape_.nope + shape_.v - 1) / kPanelCols;
    for (int64_t p = first_panel; p <= last_panel; ++p) {
      for (int64_t t = 0; t < tokens; t += cache_.block_tokens) {
        const float* rows = cache_.at(span_.blocks[static_cast<size_t>((tile + t) / cache_.block_tokens)]);
        gemm_panel(std::min(cache_.block_tokens, tokens - t), rows, cache_.row, kv_b_.expand, p,
                   expanded_.data() + t * kPanelCols, kPanelCols);
      }
      for (int64_t j = 0; j < kPanelCols; ++j) {
        const int64_t dim = p * kPanelCols + j - first_row;
        if (dim < 0 || dim >= shape_.nope + shape_.v) continue;
        if (dim < shape_.nope) {
          for (int64_t t = 0; t < tokens; ++t) *key(t, dim) = expanded_[static_cast<size_t>(t * kPanelCols + j)];
        } else {
          const int64_t v = dim - shape_.nope;
          float* panel = values_.data() + v / kPanelCols * tile_tokens_ * kPanelCols + v % kPanelCols;
          for (int64_t t = 0; t < tokens; ++t) {
            panel[t * kPanelCols] = expanded_[static_cast<size_t>(t * kPanelCols + j)];
          }
        }
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = cache_.at(span_.blocks[static_cast<size_t>((tile + t) / cache_.block_tokens)]) +
                         (tile + t) % cache_.block_tokens * cache_.row + shape_.latent;
      for (int64_t d = 0; d < shape_.rope; ++d) *key(t, shape_.nope + d) = row[d];
    }
  }

  float* key(int64_t token, int64_t dim) {
    return keys_.data() + (token / kPanelCols * key_dim() + dim) * kPanelCols + token % kPanelCols;
  }

  void attend(int64_t tile, int64_t tokens, int64_t row, int64_t rows) {
    const int64_t padded = round_up(tokens, kPanelCols);
    alignas(kCacheLineBytes) float scores[kRowBlock * 512];
    DSV3_CHECK(padded <= 512, "tile larger than the score buffer");
    const float* q = span_.q + row * shape_.heads * key_dim() + head_ * key_dim();
    for (int64_t k = 0; k < padded; k += kPanelCols) {
      simd().panel(rows, key_dim(), q, shape_.heads * key_dim(), keys_.data() + k * key_dim(), kPanelCols, scores + k,
                   padded, false);
    }
    float* acc = acc_.data() + row * v_padded();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t visible = std::clamp<int64_t>(span_.start + row + r + 1 - tile, 0, tokens);
      float* s = scores + r * padded;
      simd().scale(shape_.softmax_scale, s, visible);
      std::fill(s + visible, s + padded, kMinusInfinity);
      const float shrink = softmax_[static_cast<size_t>(row + r)].fold(s, padded);
      simd().scale(shrink, acc + r * v_padded(), v_padded());
    }
    for (int64_t v = 0; v < v_padded(); v += kPanelCols) {
      simd().panel(rows, tokens, scores, padded, values_.data() + v * tile_tokens_, kPanelCols, acc + v, v_padded(),
                   true);
    }
  }

  const AttentionShape& shape_;
  const CpuKvProjection& kv_b_;
  const CacheView& cache_;
  const AttentionSpan& span_;
  const int64_t head_;
  const int64_t tile_tokens_;
  AlignedFloats keys_, values_, expanded_;
  std::vector<Softmax> softmax_;
  AlignedFloats acc_;  // [rows][v_padded]
};

/// `count` <= kRowBlock latent queries (of one or more heads and rows of one span) over the span's context.
/// q [count, row], out [count, latent]; visible[i] = number of positions that query i sees.
void attend_absorbed(const AttentionShape& shape, const CacheView& cache, std::span<const int32_t> blocks,
                     const float* q, float* out, int64_t count, const int64_t* visible) {
  const int64_t row = cache.row, latent = shape.latent;
  const int64_t padded = round_up(cache.block_tokens, 16);
  AlignedFloats scores(static_cast<size_t>(count * padded));
  Softmax softmax[kRowBlock];
  std::fill(out, out + count * latent, 0.0f);
  const int64_t context = *std::max_element(visible, visible + count);
  for (int64_t tile = 0; tile < context; tile += cache.block_tokens) {
    const float* rows = cache.at(blocks[static_cast<size_t>(tile / cache.block_tokens)]);
    const int64_t tokens = std::min(cache.block_tokens, context - tile);
    for (int64_t t = 0; t < tokens; ++t) simd().dots(count, row, q, row, rows + t * row, scores.data() + t, padded);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t seen = std::clamp<int64_t>(visible[i] - tile, 0, tokens);
      float* s = scores.data() + i * padded;
      simd().scale(shape.softmax_scale, s, seen);
      std::fill(s + seen, s + padded, kMinusInfinity);
      simd().scale(softmax[i].fold(s, padded), out + i * latent, latent);
    }
    int64_t c = 0;
    for (; c + kPanelCols <= latent; c += kPanelCols) {
      simd().panel(count, tokens, scores.data(), padded, rows + c, row, out + c, latent, true);
    }
    for (int64_t i = 0; c < latent && i < count; ++i) {  // latent sizes that are no multiple of a panel
      for (int64_t t = 0; t < tokens; ++t) {
        simd().axpy(scores[static_cast<size_t>(i * padded + t)], rows + t * row + c, out + i * latent + c, latent - c);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) simd().scale(1.0f / softmax[i].sum, out + i * latent, latent);
}

}  // namespace

CpuKvProjection::CpuKvProjection(const float* w, const AttentionShape& shape)
    : expand(w, shape.heads * (shape.nope + shape.v), shape.latent, shape.latent) {
  std::vector<float> turned(static_cast<size_t>(shape.latent * shape.nope));
  for (int64_t h = 0; h < shape.heads; ++h) {
    const float* head = w + h * (shape.nope + shape.v) * shape.latent;
    for (int64_t d = 0; d < shape.nope; ++d) {
      for (int64_t c = 0; c < shape.latent; ++c) {
        turned[static_cast<size_t>(c * shape.nope + d)] = head[d * shape.latent + c];
      }
    }
    absorb.emplace_back(turned.data(), shape.latent, shape.nope, shape.nope);
    value.emplace_back(head + shape.nope * shape.latent, shape.v, shape.latent, shape.latent);
  }
}

void attention_expanded(ForkJoin& pool, const AttentionShape& shape, const CpuKvProjection& kv_b,
                        const CacheView& cache, std::span<const AttentionSpan> spans) {
  const auto tasks = static_cast<int64_t>(spans.size()) * shape.heads;
  pool.run(tasks, [&](int64_t task) {
    ExpandedHead(shape, kv_b, cache, spans[static_cast<size_t>(task / shape.heads)], task % shape.heads).run();
  });
}

void attention_absorbed(ForkJoin& pool, const AttentionShape& shape, const CpuKvProjection& kv_b,
                        const CacheView& cache, std::span<const AttentionSpan> spans, AlignedFloats& scratch) {
  const int64_t heads = shape.heads, q_dim = shape.nope + shape.rope, row = cache.row, latent = shape.latent;
  int64_t total_rows = 0;
  for (const auto& span : spans) total_rows += span.rows;
  if (total_rows == 0) return;

  // Latent queries [rows, heads, row] and outputs [rows, heads, latent].
  scratch.resize(static_cast<size_t>(total_rows * heads * (row + latent)));
  float* queries = scratch.data();
  float* outputs = queries + total_rows * heads * row;

  // Neighbouring spans are one matrix: weights are read once for all of them.
  struct Run {
    const float* q;
    float* out;
    int64_t rows, first;
  };
  std::vector<Run> runs;
  int64_t first = 0;
  for (const auto& span : spans) {
    if (!runs.empty() && runs.back().q + runs.back().rows * heads * q_dim == span.q) {
      runs.back().rows += span.rows;
    } else {
      runs.push_back({span.q, span.out, span.rows, first});
    }
    first += span.rows;
  }
  pool.run(heads, [&](int64_t h) {
    const auto& absorb = kv_b.absorb[static_cast<size_t>(h)];
    for (const auto& run : runs) {
      float* q_lat = queries + (run.first * heads + h) * row;
      for (int64_t p = 0; p < absorb.panels(); ++p) {
        gemm_panel(run.rows, run.q + h * q_dim, heads * q_dim, absorb, p, q_lat + p * kPanelCols, heads * row);
      }
      for (int64_t r = 0; r < run.rows; ++r) {
        std::memcpy(q_lat + r * heads * row + latent, run.q + r * heads * q_dim + h * q_dim + shape.nope,
                    static_cast<size_t>(shape.rope) * sizeof(float));
      }
    }
  });

  // Tasks of at most kRowBlock queries of one span, smaller where that keeps all threads busy.
  struct Task {
    const AttentionSpan* span;
    int64_t first_query, count, first_row;
  };
  const int64_t all = total_rows * heads;
  const int64_t group = std::clamp<int64_t>((all + pool.num_threads() - 1) / pool.num_threads(), 1, kRowBlock);
  std::vector<Task> tasks;
  first = 0;
  for (const auto& span : spans) {
    for (int64_t i = 0; i < span.rows * heads; i += group) {
      tasks.push_back({&span, i, std::min(group, span.rows * heads - i), first});
    }
    first += span.rows;
  }
  pool.run(static_cast<int64_t>(tasks.size()), [&](int64_t t) {
    const Task& task = tasks[static_cast<size_t>(t)];
    int64_t visible[kRowBlock];
    for (int64_t i = 0; i < task.count; ++i) visible[i] = task.span->start + (task.first_query + i) / heads + 1;
    const int64_t query = task.first_row * heads + task.first_query;
    attend_absorbed(shape, cache, task.span->blocks, queries + query * row, outputs + query * latent, task.count,
                    visible);
  });

  pool.run(heads, [&](int64_t h) {
    const auto& value = kv_b.value[static_cast<size_t>(h)];
    for (const auto& run : runs) {
      for (int64_t p = 0; p < value.panels(); ++p) {
        gemm_panel(run.rows, outputs + (run.first * heads + h) * latent, heads * latent, value, p,
                   run.out + h * shape.v + p * kPanelCols, heads * shape.v);
      }
    }
  });
}

}  // namespace dsv3::cpu
