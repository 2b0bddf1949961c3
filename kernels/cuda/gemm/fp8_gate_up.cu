// Gate and up product with activation and quantisation, for few rows (fp8_gate_up.h), at the speed at which weights come from HBM.
//
// Operands are swapped as in fp8_stream.cu: 64 weight rows are the M of wgmma, the tokens its N. An item is a tile of 8 tokens and
// 128 columns of the output: 128 rows of the gate and 128 of the up weight (one warpgroup each), all of K. A cluster works on it:
// `splits` blocks share K, and where there are few items two blocks share the columns, too. They send their sums to each other, a
// token's to one block; a warp of that adds them in order of split, applies the activation, finds the scale of the 128 columns and
// writes 128 bytes.
//
// One item a cluster: two blocks share an SM, so that one loads while the other starts or ends. Which experts are hit is known after
// the wait only; blocks of tiles that are not used leave at once. For hits (ExpertHits) the successor may begin early, too, but not
// before most weights here are on their way: its own would get in front of them.
#include <algorithm>
#include <string>

#include "../common/inbox.cuh"
#include "../norm/rows.cuh"
#include "fp8_gate_up.h"
#include "gemm_choice.h"
#include "stream_tile.cuh"

namespace dsv3::cuda {
namespace {

constexpr char kName[] = "fp8_gate_up";
constexpr int kTokens = 8, kConsumers = 256, kThreads = kConsumers + 32, kWarps = kConsumers / 32;
constexpr int kTriggerStages = 4;  // stages still to be requested when the successor of hits may start: it takes a microsecond
constexpr int kScaleSlot = 128;  // copies land on 128 bytes
constexpr int kBudget = 115712;  // (228 KiB - 1 KiB a block) / 2

/// A block's shared memory where it takes kCols columns of the output, 128 or 64.
template <int kCols>
struct Room {
  static constexpr int kStages = kCols == 128 ? 3 : 6;  // 96 KiB of weights in flight
  static constexpr int kDepth = kCols == 128 ? 2 : 3;   // stages whose products are under way together
  static constexpr int kParts = 128 / kCols;            // blocks that share an item's columns
  static constexpr int kHalfBytes = kCols * 128;        // gate or up rows of a stage
  static constexpr int kWeightBytes = 2 * kHalfBytes, kTokenBytes = kTokens * 128;
  static constexpr int kCopyBytes = kWeightBytes + kTokenBytes + kTokens * 4;
  static constexpr int kSums = 2 * kCols;               // of a token: of the gate, of up
  static constexpr int kTokensAt = kStages * kWeightBytes;
  static constexpr int kScalesAt = kTokensAt + kStages * kTokenBytes;
  static constexpr int kInboxAt = kScalesAt + kStages * kScaleSlot;  // [blocks of the cluster][slot of a token][kSums]
  static constexpr int kWeightScalesAt = kInboxAt + 8 * kSums * 4;   // [2][kMaxKBlocks]
  static constexpr int kBarriersAt = kWeightScalesAt + 2 * stream::kMaxKBlocks * 4;
  static constexpr int kSharedBytes = 1024 /* alignment */ + kBarriersAt + (2 * kStages + 1) * 8;
  static_assert(kTokens * 4 <= kScaleSlot && kSharedBytes <= kBudget && kBarriersAt % 8 == 0);

  uint8_t* base;
  __device__ explicit Room(uint8_t* raw) : base(raw + ((1024 - (shared_address(raw) & 1023)) & 1023)) {}
  __device__ uint8_t* weights(int stage) const { return base + stage * kWeightBytes; }
  __device__ uint8_t* tokens(int stage) const { return base + kTokensAt + stage * kTokenBytes; }
  __device__ float* scales(int stage) const { return reinterpret_cast<float*>(base + kScalesAt + stage * kScaleSlot); }
  __device__ float* inbox() const { return reinterpret_cast<float*>(base + kInboxAt); }
  __device__ float* weight_scales(int half) const {
    return reinterpret_cast<float*>(base + kWeightScalesAt) + half * stream::kMaxKBlocks;
  }
  __device__ uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(base + kBarriersAt) + stage; }
  __device__ uint64_t* empty(int stage) const { return full(kStages + stage); }
  __device__ uint64_t* inbox_full() const { return full(2 * kStages); }

  /// By all threads. full: one arrival (the producer's, with the bytes); empty: one of each consumer warp.
  __device__ void init_barriers() const {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) {
        barrier_init(full(s), 1);
        barrier_init(empty(s), kWarps);
      }
      fence_barrier_init();
    }
    __syncthreads();
  }
};

struct GateUpParams {
  stream::Maps maps;           // weights: [count * 2 * width][k], boxes of 128 rows
  const float* weight_scales;  // [count][2 * bands][k_blocks]
  const ExpertTile* tiles;
  const int32_t* count;
  const float* hit_weights;    // null, or [tiles][kHitRows]: all tiles read x's first rows (ExpertHits)
  uint8_t* out;                // [rows][bands * 128]
  float* out_scales;           // [bands][out_stride]
  int64_t out_stride;
  int bands, k_blocks, splits;
  bool ue8m0;
  bool evict_first;            // weights
};

/// One block's work: of the 128 columns `band` of a tile those from `column`, k_blocks [k_begin, k_begin + stages).
struct Work {
  int expert = 0, row_begin = 0, rows = 0;
  int token_row = 0;  ///< of x: row_begin, or 0
  int band = 0, column = 0, k_begin = 0, stages = 0;
};

/// One thread of the producer warp. The kernel has waited for its predecessor.
template <int kCols>
__device__ void produce(const GateUpParams& p, const Room<kCols>& room, const Work& work) {
  using R = Room<kCols>;
  const uint32_t base = fixed_shared_address(room.base), full = base + R::kBarriersAt, empty = full + 8 * R::kStages;
  const int gate_row = work.expert * 2 * p.bands * 128 + work.band * 128 + work.column, up_row = gate_row + p.bands * 128;
  Cursor<R::kStages> at;
  const bool hits = p.hit_weights != nullptr;
  const uint64_t hint = p.evict_first ? kEvictFirst : kEvictNormal;
  for (int i = 0; i < work.stages; ++i, at.advance()) {
    if (hits && i == max(work.stages - kTriggerStages, 0)) launch_dependents();  // the list that it reads before it waits is complete
    const int k_block = work.k_begin + i;
    const uint32_t barrier = full + 8 * at.stage, weights = base + at.stage * R::kWeightBytes;
    barrier_wait(empty + 8 * at.stage, at.parity ^ 1);  // the first round passes at once
    barrier_expect(barrier, R::kCopyBytes);
    tma_load_2d(weights, &p.maps.weights, barrier, k_block * 128, gate_row, hint);
    tma_load_2d(weights + R::kHalfBytes, &p.maps.weights, barrier, k_block * 128, up_row, hint);
    tma_load_2d(base + R::kTokensAt + at.stage * R::kTokenBytes, &p.maps.tokens, barrier, k_block * 128, work.token_row);
    tma_load_2d(base + R::kScalesAt + at.stage * kScaleSlot, &p.maps.scales, barrier, work.token_row, k_block);
  }
}

/// part[h][row][token] = the product of a stage, for kTiles * 64 weight rows; under way. As stream::start_product().
template <int kTiles>
__device__ void start_product(float (&part)[kTiles][kTokens / 2], const uint8_t* weights, const uint8_t* tokens) {
  const uint64_t a = wgmma_descriptor_128(shared_address(weights)), b = wgmma_descriptor_128(shared_address(tokens));
#pragma unroll
  for (int i = 0; i < kTiles * kTokens / 2; ++i) wgmma_pin(part[i / (kTokens / 2)][i % (kTokens / 2)]);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {  // 32 bytes along K; 64 rows are 8192 bytes further
#pragma unroll
    for (int h = 0; h < kTiles; ++h) wgmma_e4m3<kTokens>(part[h], a + h * (8192 >> 4) + 2 * k, b + 2 * k, k > 0 ? 1 : 0);
  }
  wgmma_commit();
}

/// A consumer warp: the sums of all k blocks for 16 rows of each 64 of its half.
template <int kCols>
__device__ void consume(const Room<kCols>& room, int stages, float (&sum)[kCols / 64][kTokens / 2], int half, int lane) {
  using R = Room<kCols>;
  constexpr int kTiles = kCols / 64;
  const float* weight_scales = room.weight_scales(half);
  float part[R::kDepth][kTiles][kTokens / 2] = {};
  Cursor<R::kStages> at;
  const auto add = [&]<int kSteps>(std::integral_constant<int, kSteps>, int i) {
    int stage[kSteps];
#pragma unroll
    for (int d = 0; d < kSteps; ++d, at.advance()) {
      stage[d] = at.stage;
      barrier_wait(room.full(at.stage), at.parity);
      start_product<kTiles>(part[d], room.weights(at.stage) + half * R::kHalfBytes, room.tokens(at.stage));
    }
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      wgmma_wait_but(kSteps - 1 - d);
#pragma unroll
      for (int h = 0; h < kTiles; ++h) stream::promote<kTokens>(sum[h], part[d][h], room.scales(stage[d]), weight_scales[i + d]);
      if (stages - i - d <= R::kStages) continue;  // nothing comes there any more
      fence_async_proxy();  // the scales have been read: the copy engine may write there
      __syncwarp();
      if (lane == 0) barrier_arrive(room.empty(stage[d]));
    }
  };
  add_in_steps<R::kDepth>(stages, add);
}

/// A consumer warp's sums to the blocks that finish their tokens: token t is block t % blocks's.
template <int kCols>
__device__ void send(const Room<kCols>& room, const float (&sum)[kCols / 64][kTokens / 2], int tokens, int rank, int blocks, int warp,
                     int lane) {
  const int slots = (kTokens + blocks - 1) / blocks, row = warp / 4 * kCols + warp % 4 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int token = lane % 4 * 2 + j;
    if (token >= tokens) continue;
    float* place = room.inbox() + (rank * slots + token / blocks) * Room<kCols>::kSums + row;
    if (blocks == 1) {
#pragma unroll
      for (int h = 0; h < kCols / 64; ++h) place[h * 64] = sum[h][j], place[h * 64 + 8] = sum[h][2 + j];
      continue;
    }
    const uint32_t owner = token % blocks, full = cluster_address(room.inbox_full(), owner), to = cluster_address(place, owner);
#pragma unroll
    for (int h = 0; h < kCols / 64; ++h) {
      store_cluster_async(to + h * 256, sum[h][j], full);
      store_cluster_async(to + h * 256 + 32, sum[h][2 + j], full);
    }
  }
}

__device__ inline void add(float4& a, const float4& b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }

/// One warp, one token of this block's: four columns a lane. `weight`: of the hit, which its scale takes along.
template <int kCols>
__device__ void finish(const GateUpParams& p, const Room<kCols>& room, const Work& work, int token, int blocks, float weight, int lane) {
  using R = Room<kCols>;
  const int slots = (kTokens + blocks - 1) / blocks, part = lane * 4 / kCols;
  const float* from = room.inbox() + (part * slots + token / blocks) * R::kSums + lane * 4 % kCols;
  float4 gate{}, up{};
  for (int s = 0; s < p.splits; ++s, from += R::kParts * slots * R::kSums) {
    add(gate, *reinterpret_cast<const float4*>(from));
    add(up, *reinterpret_cast<const float4*>(from + kCols));
  }
  // group_scale() looks at 16 lanes of 8 values: the largest of the other 16 lanes takes the place of a fifth one.
  float v[8] = {silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w, 0, 0, 0, 0};
  v[4] = __shfl_xor_sync(~0u, fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3]))), 16);
  const float scale = group_scale(v, p.ue8m0);
  const int64_t row = work.row_begin + token;
  *reinterpret_cast<uint32_t*>(p.out + row * p.bands * 128 + work.band * 128 + lane * 4) = to_e4m3(v, scale).x;
  if (lane == 0) p.out_scales[work.band * p.out_stride + row] = scale * weight;
}

template <int kCols>
__global__ void __launch_bounds__(kThreads, 2) gate_up_kernel(const __grid_constant__ GateUpParams p) {
  using R = Room<kCols>;
  const bool hits = p.hit_weights != nullptr;
  if (!hits) launch_dependents();
  extern __shared__ __align__(1024) uint8_t raw_memory[];
  const R room(raw_memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int blocks = p.splits * R::kParts;  // of the cluster, which lies along x
  const int item = blockIdx.x / blocks, rank = blockIdx.x % blocks, split = rank / R::kParts;
  if (threadIdx.x == kConsumers) stream::prefetch(p.maps);
  room.init_barriers();

  wait_for_previous(p);
  Work work{.band = item % p.bands, .column = rank % R::kParts * kCols, .k_begin = p.k_blocks * split / p.splits};
  work.stages = p.k_blocks * (split + 1) / p.splits - work.k_begin;
  const auto look_up = [&] {
    const int4 tile = __ldcg(reinterpret_cast<const int4*>(p.tiles + item / p.bands));
    const bool used = item / p.bands < __ldcg(p.count);
    return used ? tile : int4{-1, 0, 0, 0};
  };
  const auto take = [&](const int4& tile) {
    work.expert = tile.x, work.row_begin = tile.y, work.rows = min(tile.z, kTokens);
    work.token_row = hits ? 0 : work.row_begin;
    return work.expert >= 0;  // the same for the whole cluster
  };
  if (warp == kWarps) {
    if (!take(look_up())) return;
    if (blocks > 1) cluster_arrive_relaxed();  // the inbox is another warp's
    if (elect_one()) produce<kCols>(p, room, work);
    __syncwarp();
    if (blocks > 1) cluster_wait();
    return;
  }
  // One warp looks up for the others: the list is a line or two of L2, which one request of each warp of the device would keep busy for
  // microseconds.
  __shared__ int4 looked_up;
  if (warp == 0) {
    const int4 tile = look_up();
    if (lane == 0) looked_up = tile;
  }
  named_barrier_sync(1, kConsumers);
  if (!take(looked_up)) return;
  const int half = warp / 4, token = rank + blocks * warp;  // the one that this warp finishes
  const int mine = (work.rows - rank + blocks - 1) / blocks;  // tokens of this block
  if (blocks > 1) open_inbox(room.inbox_full(), mine * blocks * R::kSums * 4);
  float weight = 1.0f;
  if (hits && token < work.rows) weight = __ldcg(p.hit_weights + work.row_begin + token);  // kHitRows rows a hit, both
  const int64_t scale_row = static_cast<int64_t>(work.expert * 2 + half) * p.bands + work.band;
  const float* from = p.weight_scales + scale_row * p.k_blocks + work.k_begin;
  for (int i = threadIdx.x % 128; i < work.stages; i += 128) room.weight_scales(half)[i] = __ldg(from + i);
  named_barrier_sync(1, kConsumers);
  float sum[kCols / 64][kTokens / 2] = {};
  consume<kCols>(room, work.stages, sum, half, lane);
  __syncwarp();
  if (blocks > 1) cluster_wait();  // all inboxes are open
  send<kCols>(room, sum, work.rows, rank, blocks, warp, lane);
  if (blocks == 1) named_barrier_sync(1, kConsumers);
  if (token >= work.rows) return;
  if (blocks > 1) barrier_wait(room.inbox_full(), 0);
  __syncwarp();
  finish<kCols>(p, room, work, token, blocks, weight, lane);
}

template <int kCols>
Status start(const GateUpParams& p, int64_t tiles, Stream stream) {
  using R = Room<kCols>;
  DSV3_TRY(allow_shared_bytes(kName, gate_up_kernel<kCols>, R::kSharedBytes));
  const unsigned cluster = static_cast<unsigned>(p.splits * R::kParts);
  const auto blocks = static_cast<unsigned>(tiles * p.bands) * cluster;
  return launch(kName, gate_up_kernel<kCols>, {dim3(blocks), dim3(kThreads), R::kSharedBytes, cluster}, stream, p);
}

Status run(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const float* hit_weights, const Fp8Rows& out,
           const GateUpOptions& options, Stream stream) {
  const auto fault = [&](const char* what) {
    return wrong(kName, std::string(what) + " (rows " + std::to_string(x.rows) + ", n " + std::to_string(w.n) + ", k " +
                            std::to_string(w.k) + ", tile_rows " + std::to_string(tiles.tile_rows) + ")");
  };
  if (x.rows == 0 || tiles.max_tiles == 0) return {};
  // A matrix that passes: what would be gate and up in BF16 is never stored.
  const Bf16Matrix products{reinterpret_cast<Bf16*>(out.data), x.rows, w.n, w.n};
  if (const char* what = stream::fault(x, w, products); what != nullptr) return fault(what);
  if (w.n % 256 != 0) return fault("n is not twice a multiple of 128");
  const int64_t width = w.n / 2;
  if (Status s = check_fp8(kName, "out", out, 1, width); !s.ok()) return s;
  if (tiles.tiles == nullptr || tiles.count == nullptr || tiles.max_tiles < 0) return fault("no list of tiles");
  if (tiles.tile_rows != kTokens) return fault("tile_rows is not 8");
  const int splits = options.splits != 0 ? options.splits : gate_up_splits(w.k);
  if (splits < 1 || splits > kGateUpMaxSplits || (splits & (splits - 1)) != 0 || splits > w.k / 128) return fault("splits do not fit");
  if (tiles.max_tiles * (width / 128) * splits > INT32_MAX) return fault("too many tiles");

  GateUpParams p{};
  const int cols = gate_up_cols(tiles.max_tiles * (width / 128), splits);
  DSV3_TRY(stream::make_maps(x, w, cols, kTokens, &p.maps));
  p.weight_scales = w.scales;
  p.tiles = tiles.tiles;
  p.count = tiles.count;
  p.hit_weights = hit_weights;
  // Hits are of different experts; of tiles an expert may have several, which read the same weights.
  p.evict_first = hit_weights != nullptr && evicts_first(int64_t{tiles.max_tiles} * w.n * w.k);
  p.out = out.data;
  p.out_scales = out.scales;
  p.out_stride = out.scale_stride;
  p.bands = static_cast<int>(width / 128);
  p.k_blocks = static_cast<int>(w.k / 128);
  p.splits = splits;
  p.ue8m0 = options.ue8m0;
  return cols == 64 ? start<64>(p, tiles.max_tiles, stream) : start<128>(p, tiles.max_tiles, stream);
}

}  // namespace

Status fp8_gate_up(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Fp8Rows& out, const GateUpOptions& options,
                   Stream stream) {
  return run(x, w, tiles, nullptr, out, options, stream);
}

Status fp8_gate_up_hits(const Fp8Rows& x, const Fp8Weight& w, const ExpertHits& hits, const Fp8Rows& out,
                        const GateUpOptions& options, Stream stream) {
  if (hits.rows == 0) return {};
  if (hits.weights == nullptr || hits.rows < 0 || hits.rows > kHitRows || x.rows != hits.rows ||
      out.rows < int64_t{hits.max_hits} * kHitRows) {
    return wrong(kName, "hits of " + std::to_string(hits.rows) + " rows, x has " + std::to_string(x.rows) + ", out " +
                            std::to_string(out.rows) + " for " + std::to_string(hits.max_hits) + " hits of 8");
  }
  return run(x, w, {hits.tiles, hits.count, hits.max_hits, kHitRows}, hits.weights, out, options, stream);
}

}  // namespace dsv3::cuda
