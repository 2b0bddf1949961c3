// y = x W^T for at most 128 rows, at the speed at which W comes from HBM.
//
// A block computes kRows weight rows x kTokens tokens over its share of K; `splits` blocks that share a tile form a cluster
// and add their shares through distributed shared memory, in order of split. The weights of the first stages (all of them for
// most shapes) are requested before the kernel waits for its predecessor; activations and their scales after.
//
// Each token's arithmetic is the same for every kTokens; in deterministic mode the splits depend on n and k alone, too, so that
// a row's bits never depend on the batch. Otherwise tiles of 128 rows (64 tokens and more) are split further, to fill the SMs.
//
// clang-format off
// Choices and predictions (gemm_choice.h) at 8 rows; in a chain of dependent launches, H100, microseconds:
//   n x k         tiles x splits  stages   predicted   best public     n x k         tiles x splits  stages   predicted   public
//   2112 x 7168       33 x 4        14         5.9        10.2          3072 x 1536      48 x 3        4         2.5        4.5
//   24576 x 1536     384 x 1        12        12.6        15.8          1536 x 1536      24 x 4        3         1.8        3.8
//   32768 x 512      512 x 1         4         5.9         7.9          4096 x 512       64 x 1        4         1.0        3.0
//   7168 x 16384     112 x 1       128        38.2        43.3          2048 x 512       32 x 1        4         0.7        2.6
//   4096 x 7168       64 x 2        28        10.5        12.7          7168 x 1024     112 x 1        8         2.7        5.0
//   7168 x 2048      112 x 1        16         5.1         7.5          512 x 7168        8 x 8        7         2.2        7.1
//   36864 x 7168     576 x 1        56        85.7        91.7          256 x 7168        4 x 8        7         1.6        6.3
//   7168 x 18432     112 x 1       144        43.0        48.7          7168 x 256      112 x 1        2         0.9        2.9
//   4608 x 7168       72 x 2        28        11.7        14.6          7168 x 128      112 x 1        1         0.6        2.4
// clang-format on
#include <algorithm>
#include <string>

#include "gemm.h"
#include "gemm_choice.h"
#include "stream_tile.cuh"

namespace dsv3::cuda {
namespace {

using stream::Cursor;
using stream::Memory;
using stream::Shape;

struct DenseParams {
  stream::Maps maps;
  const float* weight_scales;  // [ceil(n / 128)][k_blocks]
  __nv_bfloat16* y;
  int64_t y_stride;
  int m, n, k_blocks, splits;
};

/// Sums the tile over the splits, in order, and stores this block's share of it: eight rows of one token a thread and turn.
/// `tile`: [kTokens][kTilePitch] floats at the same place in each block of the cluster.
template <int kTokens, int kSplits>
__device__ void reduce_and_store(const DenseParams& p, const float* tile, int row_begin, int rank, int thread) {
  using S = Shape<kTokens>;
  constexpr int kChunks = S::kRows / 8;
  uint32_t from[kSplits];
#pragma unroll
  for (int s = 0; s < kSplits; ++s) from[s] = kSplits > 1 ? cluster_address(tile, s) : 0;
  for (int c = rank * S::kConsumers + thread; c < p.m * kChunks; c += kSplits * S::kConsumers) {
    const int token = c / kChunks, row = c % kChunks * 8;
    if (row_begin + row >= p.n) continue;  // n is a multiple of 8
    const int at = token * S::kTilePitch + row;
    float4 low[kSplits], high[kSplits];
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      if constexpr (kSplits == 1) {
        low[s] = *reinterpret_cast<const float4*>(tile + at);
        high[s] = *reinterpret_cast<const float4*>(tile + at + 4);
      } else {
        low[s] = load_cluster_f32x4(from[s] + at * 4);
        high[s] = load_cluster_f32x4(from[s] + at * 4 + 16);
      }
    }
#pragma unroll
    for (int s = 1; s < kSplits; ++s) {
      low[0].x += low[s].x, low[0].y += low[s].y, low[0].z += low[s].z, low[0].w += low[s].w;
      high[0].x += high[s].x, high[0].y += high[s].y, high[0].z += high[s].z, high[0].w += high[s].w;
    }
    stream::store_bf16x8(p.y + token * p.y_stride + row_begin + row, low[0], high[0]);
  }
}

/// Lane 0 of the producer warp.
template <int kTokens>
__device__ void produce(const DenseParams& p, const Memory<kTokens>& memory, int row_begin, int k_begin, int count) {
  using S = Shape<kTokens>;
  const auto load_weights = [&](int i, int stage) {
    barrier_expect(memory.full(stage), S::kCopyBytes);
    tma_load_2d(memory.weights(stage), &p.maps.weights, memory.full(stage), (k_begin + i) * 128, row_begin, kEvictFirst);
  };
  const auto load_tokens = [&](int i, int stage) {
    tma_load_2d(memory.tokens(stage), &p.maps.tokens, memory.full(stage), (k_begin + i) * 128, 0);
    tma_load_2d(memory.scales(stage), &p.maps.scales, memory.full(stage), 0, k_begin + i);
  };
  const int early = min(count, S::kStages);
  for (int i = 0; i < early; ++i) load_weights(i, i);
  wait_for_previous();
  for (int i = 0; i < early; ++i) load_tokens(i, i);
  Cursor<S::kStages> at;
  at.parity = 1;  // the second round
  for (int i = early; i < count; ++i, at.advance()) {
    barrier_wait(memory.empty(at.stage), at.parity ^ 1);
    load_weights(i, at.stage);
    load_tokens(i, at.stage);
  }
}

template <int kTokens>
__global__ void __launch_bounds__(Shape<kTokens>::kThreads, Shape<kTokens>::kBlocksPerSm)
    stream_kernel(const __grid_constant__ DenseParams p) {
  using S = Shape<kTokens>;
  launch_dependents();
  extern __shared__ __align__(1024) uint8_t raw_memory[];
  const Memory<kTokens> memory(raw_memory);
  const int thread = threadIdx.x;
  const int tile = blockIdx.x / p.splits, rank = blockIdx.x % p.splits;  // clusters lie along x: rank = cluster_rank()
  const int row_begin = tile * S::kRows;
  const int k_begin = p.k_blocks * rank / p.splits, count = p.k_blocks * (rank + 1) / p.splits - k_begin;
  if (thread == S::kConsumers) stream::prefetch(p.maps);
  memory.init_barriers();
  float* partial = reinterpret_cast<float*>(memory.base);

  if (thread >= S::kConsumers) {
    if (thread == S::kConsumers) produce<kTokens>(p, memory, row_begin, k_begin, count);
    __syncwarp();
  } else {
    float* weight_scales = memory.weight_scales();
    for (int i = thread; i < count; i += S::kConsumers) {
      weight_scales[i] = __ldg(p.weight_scales + static_cast<int64_t>(row_begin / 128) * p.k_blocks + k_begin + i);
    }
    named_barrier_sync(1, S::kConsumers);
    wait_for_previous();  // y may still be read

    const int warp = thread / 32, lane = thread % 32, group = thread / 128;
    float sum[kTokens / 2] = {}, part[kTokens / 2] = {};
    Cursor<S::kStages> at;
    for (int i = 0; i < count; ++i, at.advance()) {
      barrier_wait(memory.full(at.stage), at.parity);
      stream::add_stage<kTokens>(sum, part, memory.weights(at.stage) + group * 8192, memory.tokens(at.stage), memory.scales(at.stage),
                                 weight_scales[i]);
      __syncwarp();
      if (lane == 0) barrier_arrive(memory.empty(at.stage));
    }
    named_barrier_sync(1, S::kConsumers);  // nobody reads the ring any more, and no copy is on its way: the tile goes there
    float* mine = partial + 2 * (lane % 4) * S::kTilePitch + warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) {
      mine[8 * i * S::kTilePitch] = sum[4 * i];
      mine[(8 * i + 1) * S::kTilePitch] = sum[4 * i + 1];
      mine[8 * i * S::kTilePitch + 8] = sum[4 * i + 2];
      mine[(8 * i + 1) * S::kTilePitch + 8] = sum[4 * i + 3];
    }
    if (p.splits == 1) {
      named_barrier_sync(1, S::kConsumers);
      reduce_and_store<kTokens, 1>(p, partial, row_begin, 0, thread);
    }
  }
  if (p.splits == 1) return;
  cluster_arrive();
  cluster_wait();
  if (thread < S::kConsumers) {
    switch (p.splits) {  // those of stream_splits()
      case 2: reduce_and_store<kTokens, 2>(p, partial, row_begin, rank, thread); break;
      case 3: reduce_and_store<kTokens, 3>(p, partial, row_begin, rank, thread); break;
      case 4: reduce_and_store<kTokens, 4>(p, partial, row_begin, rank, thread); break;
      case 6: reduce_and_store<kTokens, 6>(p, partial, row_begin, rank, thread); break;
      default: reduce_and_store<kTokens, 8>(p, partial, row_begin, rank, thread); break;
    }
  }
  __syncwarp();
  cluster_arrive();  // a block stays until the others have read its share
  cluster_wait();
}

template <int kTokens>
Status start(const DenseParams& p, Stream stream) {
  using S = Shape<kTokens>;
  if (Status s = allow_shared_bytes("fp8_gemm_stream", stream_kernel<kTokens>, S::kSharedBytes); !s.ok()) return s;
  const unsigned tiles = static_cast<unsigned>((p.n + S::kRows - 1) / S::kRows), splits = static_cast<unsigned>(p.splits);
  return launch("fp8_gemm_stream", stream_kernel<kTokens>, {dim3(tiles * splits), dim3(S::kThreads), S::kSharedBytes, splits}, stream, p);
}

}  // namespace

Status fp8_gemm_stream(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y, const GemmOptions& options,
                       const GemmWorkspace&, Stream stream) {
  if (x.rows == 0) return {};
  const char* what = stream::fault(x, w, y);
  if (what == nullptr && x.rows != y.rows) what = "x and y differ in rows";
  if (what == nullptr && x.rows > kStreamMaxRows) what = "more than 128 rows";
  if (what == nullptr && w.count != 1) what = "a dense product of several weights";
  if (what != nullptr) {
    return {Code::kInternal, std::string("fp8_gemm_stream: ") + what + " (m " + std::to_string(x.rows) + ", n " + std::to_string(w.n) +
                                 ", k " + std::to_string(w.k) + ")"};
  }
  DenseParams p{};
  const int tokens = stream_tokens(x.rows);
  if (Status s = stream::make_maps(x, w, stream_weight_rows(tokens), tokens, &p.maps); !s.ok()) return s;
  p.weight_scales = w.scales;
  p.y = y.data;
  p.y_stride = y.stride;
  p.m = static_cast<int>(x.rows);
  p.n = static_cast<int>(w.n);
  p.k_blocks = static_cast<int>(w.k / 128);
  p.splits = choose_gemm(x.rows, w.n, w.k, options.deterministic).splits;
  switch (tokens) {
    case 8: return start<8>(p, stream);
    case 16: return start<16>(p, stream);
    case 32: return start<32>(p, stream);
    case 64: return start<64>(p, stream);
    default: return start<128>(p, stream);
  }
}

}  // namespace dsv3::cuda
