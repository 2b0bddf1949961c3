// The end of a streaming kernel: blocks of a cluster that shared the K of a tile add their sums and store them.
#pragma once

#include "../common/inbox.cuh"
#include "stream_tile.cuh"

namespace dsv3::cuda::stream {

/// Where a tile goes: `y` at its first token and row. Of the tile, `tokens` tokens and `rows` weight rows (a multiple of
/// 8) exist. `split`: this block's rank among the `splits` of the cluster, one of kStreamSplits.
struct SplitTile {
  __nv_bfloat16* y;
  int64_t y_stride;
  int tokens, rows, split, splits;
  bool accumulate;  ///< adds to what y holds
};

/// Adds what lies at `to` where the tile accumulates; two rows of a token.
__device__ inline float2 with_before(const SplitTile& tile, const __nv_bfloat16* to, float2 sum) {
  if (!tile.accumulate) return sum;
  const uint32_t before = *reinterpret_cast<const uint32_t*>(to);
  return {sum.x + __uint_as_float(before << 16), sum.y + __uint_as_float(before & 0xffff0000u)};
}

// Up to 32 tokens: blocks send their sums to each other, an even number of tokens to each as far as they go, and who gets
// them adds them in order of split and stores: one way across the network of the SMs, and nobody waits for who only
// sends. Inbox: [split][row][slot of the token] floats.

/// Tokens that a block of the cluster finishes: even, so that two go with one store.
template <int kTokens>
__device__ inline int inbox_slots(int splits) {
  return ((kTokens + splits - 1) / splits + 1) / 2 * 2;
}
/// Of a tile's `tokens`, pairs that block `split` finishes.
__device__ inline int inbox_pairs(int tokens, int split, int slots) {
  return (min(max(tokens - split * slots, 0), slots) + 1) / 2;
}

/// By all threads, at the start, after init_barriers(). Several splits.
template <class S, int kTokens, int kRows>
__device__ inline void open_inbox(const Memory<kTokens, kRows>& memory, int tokens, int split, int splits) {
  static_assert(S::kSends);
  cuda::open_inbox(memory.inbox_full(), inbox_pairs(tokens, split, inbox_slots<kTokens>(splits)) * splits * kRows * 8);
}

/// By all threads. sum: the consumers'.
template <class S, int kTokens, int kRows>
__device__ inline void send_and_store(const Memory<kTokens, kRows>& memory, const float (&sum)[kTokens / 2],
                                      const SplitTile& tile) {
  const int thread = threadIdx.x, splits = tile.splits, slots = inbox_slots<kTokens>(splits);
  cluster_wait();  // all inboxes are open
  if (thread >= S::kConsumers) return;
  float* const place = memory.inbox() + (tile.split * kRows + thread / 32 * 16 + thread % 32 / 4) * slots;
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    const int token = 8 * i + thread % 4 * 2;
    if (token >= tile.tokens) continue;
    const uint32_t owner = token / slots, full = cluster_address(memory.inbox_full(), owner);
    const uint32_t there = cluster_address(place + token % slots, owner);
    store_cluster_async(there, float2{sum[4 * i], sum[4 * i + 1]}, full);
    store_cluster_async(there + 32 * slots, float2{sum[4 * i + 2], sum[4 * i + 3]}, full);  // 8 rows on
  }
  const int mine = inbox_pairs(tile.tokens, tile.split, slots);
  if (mine == 0) return;
  barrier_wait(memory.inbox_full(), 0);
  for (int c = thread; c < mine * kRows / 2; c += S::kConsumers) {
    const int slot = c / (kRows / 2) * 2, row = c % (kRows / 2) * 2, token = tile.split * slots + slot;
    if (row >= tile.rows) continue;
    const float* from = memory.inbox() + row * slots + slot;
    float2 low = *reinterpret_cast<const float2*>(from), high = *reinterpret_cast<const float2*>(from + slots);
    for (int s = 1; s < splits; ++s) {
      from += kRows * slots;
      const float2 a = *reinterpret_cast<const float2*>(from), b = *reinterpret_cast<const float2*>(from + slots);
      low.x += a.x, low.y += a.y, high.x += b.x, high.y += b.y;
    }
    __nv_bfloat16* to = tile.y + token * tile.y_stride + row;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (token + j >= tile.tokens) break;
      const float2 total = with_before(tile, to, j == 0 ? float2{low.x, high.x} : float2{low.y, high.y});
      *reinterpret_cast<uint32_t*>(to) = pack_bf16(total.x, total.y);
      to += tile.y_stride;
    }
  }
}

// More tokens, or one split: sums are left in shared memory and fetched.

/// A warpgroup's sums (64 weight rows from `row`, its tokens from `token`) to `tile`: [kTokens][kTilePitch] floats over the
/// spent ring, which nobody reads any more.
template <class S>
__device__ inline void leave_sums(const float (&sum)[S::kGroupTokens / 2], float* tile, int row, int token) {
  const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  float* mine = tile + (token + 2 * (lane % 4)) * S::kTilePitch + row + warp * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < S::kGroupTokens / 8; ++i) {
    mine[8 * i * S::kTilePitch] = sum[4 * i];
    mine[(8 * i + 1) * S::kTilePitch] = sum[4 * i + 1];
    mine[8 * i * S::kTilePitch + 8] = sum[4 * i + 2];
    mine[(8 * i + 1) * S::kTilePitch + 8] = sum[4 * i + 3];
  }
}

/// Sums the tile over the splits, in order, and stores this block's even share of it: four rows of one token a thread
/// and turn. Each block of a cluster reads nearly rows x tokens x 4 bytes from its neighbours, at about 20 bytes/ns.
/// `sums` lies at the same place in each block of the cluster.
template <class S, int kSplits>
__device__ void reduce_and_store(const float* sums, const SplitTile& tile, int thread) {
  constexpr int kChunks = S::kRows / 4;
  uint32_t from[kSplits];
#pragma unroll
  for (int s = 0; s < kSplits; ++s) from[s] = kSplits > 1 ? cluster_address(sums, s) : 0;
  const int chunks = tile.tokens * kChunks, share = (chunks + kSplits - 1) / kSplits;
  const int end = min(chunks, (tile.split + 1) * share);
  for (int c = tile.split * share + thread; c < end; c += S::kConsumers) {
    const int token = c / kChunks, row = c % kChunks * 4;
    if (row >= tile.rows) continue;
    const int at = token * S::kTilePitch + row;
    float4 sum[kSplits];
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      if (kSplits == 1 || s == tile.split) {  // its own part: not over the network of the SMs
        sum[s] = *reinterpret_cast<const float4*>(sums + at);
      } else {
        sum[s] = load_cluster_f32x4(from[s] + at * 4);
      }
    }
#pragma unroll
    for (int s = 1; s < kSplits; ++s)
      sum[0].x += sum[s].x, sum[0].y += sum[s].y, sum[0].z += sum[s].z, sum[0].w += sum[s].w;
    store_bf16x4(tile.y + token * tile.y_stride + row, sum[0]);
  }
}

/// By all threads of the block, after the consumers' leave_sums().
template <class S>
__device__ inline void store_tile(const float* sums, const SplitTile& tile) {
  const int thread = threadIdx.x;
  if (tile.splits == 1) {
    if (thread >= S::kConsumers) return;
    named_barrier_sync(1, S::kConsumers);
    reduce_and_store<S, 1>(sums, tile, thread);
    return;
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();
  if (thread < S::kConsumers) {
    switch (tile.splits) {  // those of kStreamSplits
      case 2:
        reduce_and_store<S, 2>(sums, tile, thread);
        break;
      case 3:
        reduce_and_store<S, 3>(sums, tile, thread);
        break;
      case 4:
        reduce_and_store<S, 4>(sums, tile, thread);
        break;
      case 6:
        reduce_and_store<S, 6>(sums, tile, thread);
        break;
      default:
        reduce_and_store<S, 8>(sums, tile, thread);
        break;
    }
  }
  __syncwarp();
  // A block stays until the others have read its share (what they stored depends on it: the reads are done). Nothing is
  // published here: a release would wait for the stores of the output.
  cluster_arrive_relaxed();
  cluster_wait();
}

}  // namespace dsv3::cuda::stream
