// y = x W^T for few rows, at the speed at which W comes from HBM.
//
// A block computes kRows weight rows x kTokens tokens (all, or one of several tiles of tokens) over its share of K;
// `splits` blocks that share a tile form a cluster and add their shares through distributed shared memory, in order of
// split (stream_split.cuh). The weights of the first stages (all of them for most shapes) are requested before the kernel waits for its
// predecessor; activations and their scales after.
//
// Each token's arithmetic is the same for every tile; in deterministic mode the splits depend on n and k alone, too, so
// that a row's bits never depend on the batch. Otherwise tile and splits are those measured best (gemm_choice.h).
//
// What bounds it: one thread issues all copies of a block (30 to 50 instructions a stage, so all that they need is made
// ready before the loop), a stage takes 0.1 to 0.2 us from its arrival to its promotion (so the products of several are
// under way together, Shape::kDepth), and split tiles cross the network of the SMs at about 20 bytes/ns. From 33 rows on
// the tiles of fp8_tiles.cu are mostly faster; where K is long and the weight narrow, splits win up to 512 rows
// (gemm_choice.cpp).
#include <algorithm>
#include <string>

#include "gemm.h"
#include "gemm_choice.h"
#include "stream_split.cuh"

namespace dsv3::cuda {
namespace {

using stream::Memory;
using stream::Shape;

struct DenseParams {
  stream::Maps maps;
  const float* weight_scales;  // [ceil(n / 128)][k_blocks]
  __nv_bfloat16* y;
  int64_t y_stride;
  int m, n, k_blocks, splits, token_tiles;
  bool evict_first;  // weights
};

/// Where a block works: weight rows from row_begin, `tokens` tokens from token_begin, `count` blocks of K from k_begin.
/// `split` is its rank in the cluster.
struct Place {
  int row_begin, token_begin, tokens, k_begin, count, split;
};

/// One thread of the producer warp.
template <int kTokens, int kRows>
__device__ void produce(const DenseParams& p, const Memory<kTokens, kRows>& memory, const Place& place) {
  using S = Shape<kTokens, kRows>;
  const auto to = memory.slots();
  const uint64_t hint = p.evict_first ? kEvictFirst : kEvictNormal;
  const auto load_weights = [&](int i, int stage) {
    barrier_expect(to.full(stage), S::kCopyBytes);
    tma_load_2d(to.weights(stage), &p.maps.weights, to.full(stage), (place.k_begin + i) * 128, place.row_begin, hint);
  };
  const auto load_tokens = [&](int i, int stage) {
    tma_load_2d(to.tokens(stage), &p.maps.tokens, to.full(stage), (place.k_begin + i) * 128, place.token_begin);
    tma_load_2d(to.scales(stage), &p.maps.scales, to.full(stage), place.token_begin, place.k_begin + i);
  };
  const int early = min(place.count, S::kStages);
  for (int i = 0; i < early; ++i) load_weights(i, i);
  wait_for_previous();
  for (int i = 0; i < early; ++i) load_tokens(i, i);
  Cursor<S::kStages> at;
  at.parity = 1;  // the second round
  for (int i = early; i < place.count; ++i, at.advance()) {
    barrier_wait(to.empty(at.stage), at.parity ^ 1);
    load_weights(i, at.stage);
    load_tokens(i, at.stage);
  }
}

template <int kTokens, int kRows>
__global__ void __launch_bounds__(Shape<kTokens, kRows>::kThreads, Shape<kTokens, kRows>::kBlocksPerSm)
    stream_kernel(const __grid_constant__ DenseParams p) {
  using S = Shape<kTokens, kRows>;
  launch_dependents();
  extern __shared__ __align__(1024) uint8_t raw_memory[];
  const Memory<kTokens, kRows> memory(raw_memory);
  const int thread = threadIdx.x;
  // Along x: splits (a cluster), tiles of tokens (they share weights), rows.
  Place place;
  place.split = blockIdx.x % p.splits;
  const int tile = blockIdx.x / p.splits;
  place.row_begin = tile / p.token_tiles * S::kRows;
  place.token_begin = tile % p.token_tiles * kTokens;
  place.tokens = min(kTokens, p.m - place.token_begin);
  place.k_begin = p.k_blocks * place.split / p.splits;
  place.count = p.k_blocks * (place.split + 1) / p.splits - place.k_begin;
  if (thread == S::kConsumers) stream::prefetch(p.maps);
  memory.init_barriers();
  const bool sends = S::kSends && p.splits > 1;
  if constexpr (S::kSends) {
    if (sends) stream::open_inbox<S>(memory, place.tokens, place.split, p.splits);
  }
  float* partial = reinterpret_cast<float*>(memory.base);
  stream::Consumer<S> consumer;

  if (thread >= S::kConsumers) {
    if (elect_one()) produce<kTokens, kRows>(p, memory, place);
    __syncwarp();
  } else {
    float* weight_scales = memory.weight_scales();
    const float* band = p.weight_scales + static_cast<int64_t>(place.row_begin / 128) * p.k_blocks + place.k_begin;
    for (int i = thread; i < place.count; i += S::kConsumers) weight_scales[i] = __ldg(band + i);
    named_barrier_sync(1, S::kConsumers);
    wait_for_previous(p);  // y may still be read

    constexpr int kMine = S::kGroupTokens;
    const int group = thread / 128;
    const int group_row = S::kShareTokens ? 0 : group * 64, group_token = S::kShareTokens ? group * kMine : 0;
    consumer.row = group_row, consumer.token = group_token;
    Cursor<S::kStages> at;
    consumer.add_all(memory, at, place.count, false, [&](int i, int) { return weight_scales[i]; });
    if (!sends) {
      named_barrier_sync(1, S::kConsumers);  // nobody reads the ring any more, and no copy is on its way
      stream::leave_sums<S>(consumer.sum, partial, group_row, group_token);
    }
  }
  __nv_bfloat16* y = p.y + place.token_begin * p.y_stride + place.row_begin;
  const stream::SplitTile to{y, p.y_stride, place.tokens, p.n - place.row_begin, place.split, p.splits, false};
  if constexpr (S::kSends) {
    if (sends) {
      __syncwarp();
      stream::send_and_store<S>(memory, consumer.sum, to);
      return;
    }
  }
  stream::store_tile<S>(partial, to);
}

template <int kTokens, int kRows>
Status start(DenseParams& p, Stream stream) {
  using S = Shape<kTokens, kRows>;
  const auto kernel = stream_kernel<kTokens, kRows>;
  if (Status s = allow_shared_bytes("fp8_gemm_stream", kernel, S::kSharedBytes); !s.ok()) return s;
  p.token_tiles = (p.m + kTokens - 1) / kTokens;
  p.evict_first = p.token_tiles == 1 && evicts_first(int64_t{p.n} * p.k_blocks * 128);  // else other blocks read the same weights
  const int row_tiles = (p.n + kRows - 1) / kRows;
  const unsigned cluster = static_cast<unsigned>(p.splits);
  return launch(
      "fp8_gemm_stream", kernel,
      {dim3(static_cast<unsigned>(row_tiles * p.token_tiles) * cluster), dim3(S::kThreads), S::kSharedBytes, cluster},
      stream, p);
}

}  // namespace

Status fp8_gemm_stream(const StreamShape& shape, const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y,
                       Stream stream) {
  if (x.rows == 0) return {};
  const char* what = stream::fault(x, w, y);
  if (what == nullptr && x.rows != y.rows) what = "x and y differ in rows";
  if (what == nullptr && x.rows > kStreamMaxRows) what = "more than 1024 rows";
  if (what == nullptr && w.count != 1) what = "a dense product of several weights";
  if (what == nullptr &&
      (std::ranges::find(kStreamSplits, shape.splits) == kStreamSplits.end() || shape.splits > w.k / 128)) {
    what = "no such number of splits";
  }
  if (what == nullptr &&
      std::ranges::find(kStreamTiles, StreamTile{shape.tokens, shape.weight_rows}) == kStreamTiles.end()) {
    what = "no such tile";
  }
  if (what != nullptr) {
    return wrong("fp8_gemm_stream", std::string(what) + " (m " + std::to_string(x.rows) + ", n " + std::to_string(w.n) +
                                        ", k " + std::to_string(w.k) + ", " + describe(shape) + ")");
  }
  DenseParams p{};
  if (Status s = stream::make_maps(x, w, shape.weight_rows, shape.tokens, &p.maps); !s.ok()) return s;
  p.weight_scales = w.scales;
  p.y = y.data;
  p.y_stride = y.stride;
  p.m = static_cast<int>(x.rows);
  p.n = static_cast<int>(w.n);
  p.k_blocks = static_cast<int>(w.k / 128);
  p.splits = shape.splits;
  const bool narrow = shape.weight_rows == 64;
  switch (shape.tokens) {
    case 8:
      return start<8, 64>(p, stream);
    case 16:
      return start<16, 64>(p, stream);
    case 32:
      return start<32, 64>(p, stream);
    case 64:
      return narrow ? start<64, 64>(p, stream) : start<64, 128>(p, stream);
    default:
      return narrow ? start<128, 64>(p, stream) : start<128, 128>(p, stream);
  }
}

}  // namespace dsv3::cuda
