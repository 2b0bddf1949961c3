// Router logits for few rows: y[r][e] = sum over k of x[r][k] * w[e][k]. The weights (3.7 MB for DeepSeek-V3) are all there is to read, so
// every SM asks for its share before it waits for the kernel before: a cluster of 8 blocks has 16 experts, a block an eighth of k, a warp
// every eighth 32 columns of it. mma.sync has the experts as its 16 rows and the batch as its 8 columns. One fixed order of sums (chunks of
// a warp, warps, blocks), whatever the number of rows.
#include "../common/inbox.cuh"
#include "../norm/rows.cuh"
#include "moe.h"

namespace dsv3::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kSplits = 8;
constexpr int kTileExperts = 16, kTileRows = 8;
constexpr int kChunk = 32;  // columns that a warp takes at a time
constexpr int kHeld = 4;    // chunks of weights a thread holds: 7168 columns are 3.5 a warp

struct RouterParams {
  const Bf16* x;
  const Bf16* w;  // [experts, hidden]
  float* y;
  int64_t x_stride, y_stride;
  int32_t rows, experts, hidden;
};

/// Lane (g, t) = (lane / 4, lane % 4) holds row g, columns 8 t .. 8 t + 7 of a chunk. As k may be taken in any order that both
/// operands share, the four words are the fragments of two products: words 0 and 1 of the first, 2 and 3 of the second.
__device__ inline void multiply(float (&sum)[4], const uint4& low, const uint4& high, const uint4& x) {
  const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
  mma_bf16_16816(sum, first, x.x, x.y);
  mma_bf16_16816(sum, second, x.z, x.w);
}
__device__ inline float4 add(const float4& a, const float4& b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

/// Cluster (16 experts, kTiles * 8 rows), block: a part of k.
template <int kTiles>
__global__ __launch_bounds__(kThreads) void router_kernel(const __grid_constant__ RouterParams p) {
  launch_dependents();
  __shared__ float4 partial[kWarps][kTiles * 32];  // fragments: experts g and g + 8, rows 2 t and 2 t + 1 of lane (g, t)
  constexpr int kMine = kTiles * 32 / kSplits;  // each block adds up and stores an eighth of the cluster's results
  __shared__ float4 inbox[kSplits][kMine];      // that its neighbours send it
  __shared__ alignas(8) uint64_t inbox_full;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int split = static_cast<int>(cluster_rank()), expert = static_cast<int>(blockIdx.x) / kSplits * kTileExperts;
  const int row = static_cast<int>(blockIdx.y) * kTiles * kTileRows;
  const int chunks = p.hidden / kChunk, share = (chunks + kSplits - 1) / kSplits;
  const int end = min(chunks, (split + 1) * share);
  int first = split * share + warp;

  // Experts past the last one read the last one's weights; nobody stores what comes of it.
  const Bf16* low = p.w + static_cast<int64_t>(min(expert + g, p.experts - 1)) * p.hidden + t * kVector;
  const Bf16* high = p.w + static_cast<int64_t>(min(expert + g + 8, p.experts - 1)) * p.hidden + t * kVector;
  uint4 w_low[kHeld], w_high[kHeld];
  const auto load_weights = [&] {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int chunk = first + j * kWarps;
      w_low[j] = w_high[j] = uint4{};
      if (chunk < end) w_low[j] = load_vector(low + chunk * kChunk), w_high[j] = load_vector(high + chunk * kChunk);
    }
  };
  load_weights();
  open_inbox(&inbox_full, sizeof(inbox));
  wait_for_previous(p);

  float sum[kTiles][4] = {};
  constexpr int kStep = kTiles > 4 ? 2 : kHeld;  // chunks of x in flight
  while (true) {
#pragma unroll
    for (int begin = 0; begin < kHeld; begin += kStep) {
      uint4 x[kStep][kTiles];
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
        const int chunk = first + (begin + j) * kWarps;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const int r = row + n * kTileRows + g;
          x[j][n] = uint4{};
          if (chunk < end && r < p.rows) x[j][n] = load_vector(p.x + r * p.x_stride + chunk * kChunk + t * kVector);
        }
      }
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) multiply(sum[n], w_low[begin + j], w_high[begin + j], x[j][n]);
      }
    }
    first += kHeld * kWarps;
    if (first >= end) break;
    load_weights();
  }

#pragma unroll
  for (int n = 0; n < kTiles; ++n) partial[warp][n * 32 + lane] = {sum[n][0], sum[n][1], sum[n][2], sum[n][3]};
  __syncthreads();
  cluster_wait();  // all inboxes are open
  if (thread < kTiles * 32) {
    float4 all = partial[0][thread];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) all = add(all, partial[w][thread]);
    const uint32_t owner = thread / kMine;
    store_cluster_async(cluster_address(&inbox[split][thread % kMine], owner), all, cluster_address(&inbox_full, owner));
  }
  if (thread < kMine) {
    barrier_wait(&inbox_full, 0);
    const int item = split * kMine + thread;
    float4 all = inbox[0][thread];
#pragma unroll
    for (int s = 1; s < kSplits; ++s) all = add(all, inbox[s][thread]);
    const int e = expert + item % 32 / 4, r = row + item / 32 * kTileRows + item % 4 * 2;
    float* y = p.y + r * p.y_stride + e;
    if (r < p.rows && e < p.experts) y[0] = all.x;
    if (r + 1 < p.rows && e < p.experts) y[p.y_stride] = all.y;
    if (r < p.rows && e + 8 < p.experts) y[8] = all.z;
    if (r + 1 < p.rows && e + 8 < p.experts) y[p.y_stride + 8] = all.w;
  }
}

}  // namespace

Status router_gemm(const Bf16Matrix& x, const Bf16Weight& w, const F32Matrix& y, Stream stream) {
  constexpr const char* kName = "router_gemm";
  if (x.rows == 0) return {};
  DSV3_TRY(check_matrix(kName, "x", x, x.rows, w.k));
  if (w.data == nullptr || !aligned(w.data) || y.data == nullptr) return wrong(kName, "w or y is null or not on 16 bytes");
  if (w.n < 8 || w.n > 1024 || w.n % 8 != 0) return wrong(kName, std::to_string(w.n) + " experts, allowed multiples of 8 up to 1024");
  if (w.k % 64 != 0 || w.k > int64_t{1} << 20) return wrong(kName, "hidden size is " + std::to_string(w.k) + ", wanted a multiple of 64");
  if (y.rows < x.rows || y.cols != w.n || y.stride < w.n) {
    return wrong(kName, "y is " + std::to_string(y.rows) + " x " + std::to_string(y.cols) + ", wanted " + std::to_string(x.rows) + " x " +
                            std::to_string(w.n));
  }
  constexpr int64_t kMostRows = 64;  // of a cluster
  const int64_t pieces = (x.rows + kMostRows - 1) / kMostRows;
  if (pieces > 65535) return wrong(kName, std::to_string(x.rows) + " rows");
  const RouterParams p{x.data,
                       w.data,
                       y.data,
                       x.stride,
                       y.stride,
                       static_cast<int32_t>(x.rows),
                       static_cast<int32_t>(w.n),
                       static_cast<int32_t>(w.k)};
  const int64_t tiles = (w.n + kTileExperts - 1) / kTileExperts;
  const LaunchShape shape{dim3(static_cast<unsigned>(tiles * kSplits), static_cast<unsigned>(pieces)), dim3(kThreads), 0, kSplits};
  if (x.rows <= 8) return launch(kName, router_kernel<1>, shape, stream, p);
  if (x.rows <= 32) return launch(kName, router_kernel<4>, shape, stream, p);
  return launch(kName, router_kernel<8>, shape, stream, p);
}

}  // namespace dsv3::cuda
