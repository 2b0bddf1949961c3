// Gate and up product with activation and quantisation, for few rows (fp8_gate_up.h), at the speed at which weights come from HBM.
//
// Operands are swapped as in fp8_stream.cu: 64 weight rows are the M of wgmma, the tokens its N. An item is a tile of tokens and
// 128 columns of the output: 128 rows of the gate and 128 of the up weight (one warpgroup each), all of K. `splits` blocks, a
// cluster, share an item's K; each leaves its 256 sums a token in its own shared memory, and a warp a token adds them in order of
// split, applies the activation, finds the scale of the 128 columns and writes 128 bytes.
//
// One item a block: two blocks share an SM, so that one loads while the other starts or ends. Which experts are hit is known after
// the wait only; blocks of tiles that are not used leave at once.
#include <algorithm>
#include <string>

#include "../norm/rows.cuh"
#include "fp8_gate_up.h"
#include "stream_tile.cuh"

namespace dsv3::cuda {
namespace {

constexpr char kName[] = "fp8_gate_up";
constexpr int kConsumers = 256, kThreads = kConsumers + 32, kWarps = kConsumers / 32;
constexpr int kStages = 3;                            // 96 KiB of weights in flight
constexpr int kHalfBytes = 128 * 128;                 // gate or up rows of a stage
constexpr int kWeightBytes = 2 * kHalfBytes;
constexpr int kPitch = 2 * 128 + 4;                   // floats of a token's sums: 2 * pitch = 8 mod 32 spreads a fragment over the banks
constexpr int kScaleSlot = 128;                       // copies land on 128 bytes
constexpr int kBudget = 115712;                       // (228 KiB - 1 KiB a block) / 2

template <int kTokens>
struct Layout {
  static constexpr int kTokenBytes = kTokens * 128;
  static constexpr int kCopyBytes = kWeightBytes + kTokenBytes + kTokens * 4;
  static constexpr int kTokensAt = kStages * kWeightBytes;
  static constexpr int kScalesAt = kTokensAt + kStages * kTokenBytes;
  static constexpr int kWeightScalesAt = kScalesAt + kStages * kScaleSlot;  // [2][kMaxKBlocks]
  static constexpr int kBarriersAt = kWeightScalesAt + 2 * stream::kMaxKBlocks * 4;
  static constexpr int kSharedBytes = 1024 /* alignment */ + kBarriersAt + 2 * kStages * 8;
  static_assert(kTokens * 4 <= kScaleSlot && kSharedBytes <= kBudget && kBarriersAt % 8 == 0);
  static_assert(kTokens * kPitch * 4 <= kTokensAt);  // the sums lie over the spent ring
};

/// A block's shared memory by name.
template <int kTokens>
struct Room {
  using L = Layout<kTokens>;
  uint8_t* base;
  __device__ explicit Room(uint8_t* raw) : base(raw + ((1024 - (shared_address(raw) & 1023)) & 1023)) {}
  __device__ uint8_t* weights(int stage) const { return base + stage * kWeightBytes; }
  __device__ uint8_t* tokens(int stage) const { return base + L::kTokensAt + stage * L::kTokenBytes; }
  __device__ float* scales(int stage) const { return reinterpret_cast<float*>(base + L::kScalesAt + stage * kScaleSlot); }
  __device__ float* weight_scales(int half) const {
    return reinterpret_cast<float*>(base + L::kWeightScalesAt) + half * stream::kMaxKBlocks;
  }
  __device__ uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(base + L::kBarriersAt) + stage; }
  __device__ uint64_t* empty(int stage) const { return full(kStages + stage); }

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
  uint8_t* out;                // [rows][bands * 128]
  float* out_scales;           // [bands][out_stride]
  int64_t out_stride;
  int bands, k_blocks, splits;
  bool ue8m0;
};

/// One block's work: 128 columns `band` of a tile, k_blocks [k_begin, k_begin + stages).
struct Work {
  int expert = 0, row_begin = 0, rows = 0;
  int band = 0, k_begin = 0, stages = 0;
};

/// One thread of the producer warp. The kernel has waited for its predecessor.
template <int kTokens>
__device__ void produce(const GateUpParams& p, const Room<kTokens>& room, const Work& work) {
  using L = Layout<kTokens>;
  const uint32_t base = fixed_shared_address(room.base), full = base + L::kBarriersAt, empty = full + 8 * kStages;
  const int gate_row = work.expert * 2 * p.bands * 128 + work.band * 128, up_row = gate_row + p.bands * 128;
  Cursor<kStages> at;
  for (int i = 0; i < work.stages; ++i, at.advance()) {
    const int k_block = work.k_begin + i;
    const uint32_t barrier = full + 8 * at.stage, weights = base + at.stage * kWeightBytes;
    barrier_wait(empty + 8 * at.stage, at.parity ^ 1);  // the first round passes at once
    barrier_expect(barrier, L::kCopyBytes);
    // No evict-first: an expert with several tiles reads its weights again.
    tma_load_2d(weights, &p.maps.weights, barrier, k_block * 128, gate_row);
    tma_load_2d(weights + kHalfBytes, &p.maps.weights, barrier, k_block * 128, up_row);
    tma_load_2d(base + L::kTokensAt + at.stage * L::kTokenBytes, &p.maps.tokens, barrier, k_block * 128, work.row_begin);
    tma_load_2d(base + L::kScalesAt + at.stage * kScaleSlot, &p.maps.scales, barrier, work.row_begin, k_block);
  }
}

/// part[h][row][token] = the product of a stage, for 128 weight rows: two of 64; under way. As stream::start_product().
template <int kTokens>
__device__ void start_product(float (&part)[2][kTokens / 2], const uint8_t* weights, const uint8_t* tokens) {
  const uint64_t a = wgmma_descriptor_128(shared_address(weights)), b = wgmma_descriptor_128(shared_address(tokens));
#pragma unroll
  for (int i = 0; i < kTokens; ++i) wgmma_pin(part[i / (kTokens / 2)][i % (kTokens / 2)]);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {  // 32 bytes along K; 64 rows are 8192 bytes further
    wgmma_e4m3<kTokens>(part[0], a + 2 * k, b + 2 * k, k > 0 ? 1 : 0);
    wgmma_e4m3<kTokens>(part[1], a + (8192 >> 4) + 2 * k, b + 2 * k, k > 0 ? 1 : 0);
  }
  wgmma_commit();
}

/// A consumer warp: all k blocks, then the sums to `partial` [kTokens][kPitch]: 128 of the gate, 128 of up.
template <int kTokens>
__device__ void consume(const Room<kTokens>& room, int stages, float* partial, int warp, int lane) {
  constexpr int kDepth = kTokens <= 16 ? 2 : 1;  // stages whose products are under way together
  const int half = warp / 4;                     // the warpgroup: gate, up
  const float* weight_scales = room.weight_scales(half);
  float sum[2][kTokens / 2] = {}, part[kDepth][2][kTokens / 2] = {};
  Cursor<kStages> at;
  const auto add = [&]<int kSteps>(std::integral_constant<int, kSteps>, int i) {
    int stage[kSteps];
#pragma unroll
    for (int d = 0; d < kSteps; ++d, at.advance()) {
      stage[d] = at.stage;
      barrier_wait(room.full(at.stage), at.parity);
      start_product<kTokens>(part[d], room.weights(at.stage) + half * kHalfBytes, room.tokens(at.stage));
    }
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      wgmma_wait_but(kSteps - 1 - d);
#pragma unroll
      for (int h = 0; h < 2; ++h) stream::promote<kTokens>(sum[h], part[d][h], room.scales(stage[d]), weight_scales[i + d]);
      fence_async_proxy();  // the scales have been read: the copy engine may write there
      __syncwarp();
      if (lane == 0) barrier_arrive(room.empty(stage[d]));
    }
  };
  add_in_steps<kDepth>(stages, add);
  named_barrier_sync(1, kConsumers);  // nobody reads the ring any more, and no copy is on its way
  float* mine = partial + 2 * (lane % 4) * kPitch + half * 128 + warp % 4 * 16 + lane / 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) {
      float* to = mine + h * 64 + 8 * i * kPitch;
      to[0] = sum[h][4 * i];
      to[kPitch] = sum[h][4 * i + 1];
      to[8] = sum[h][4 * i + 2];
      to[kPitch + 8] = sum[h][4 * i + 3];
    }
  }
}

__device__ inline void add(float4& a, const float4& b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }

/// A consumer warp, after all blocks have left their sums: every (kSplits * kWarps)-th token of the tile, four columns a lane.
template <int kSplits>
__device__ void finish(const GateUpParams& p, const Work& work, const float* partial, int rank, int warp, int lane) {
#pragma unroll 1
  for (int token = rank + kSplits * warp; token < work.rows; token += kSplits * kWarps) {
    const float* from = partial + token * kPitch + lane * 4;
    float4 gate{}, up{}, g[kSplits], u[kSplits];
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      if constexpr (kSplits == 1) {
        g[s] = *reinterpret_cast<const float4*>(from);
        u[s] = *reinterpret_cast<const float4*>(from + 128);
      } else {
        const uint32_t address = cluster_address(from, s);
        g[s] = load_cluster_f32x4(address);
        u[s] = load_cluster_f32x4(address + 512);
      }
    }
#pragma unroll
    for (int s = 0; s < kSplits; ++s) add(gate, g[s]), add(up, u[s]);
    // group_scale() looks at 16 lanes of 8 values: the largest of the other 16 lanes takes the place of a fifth one.
    float v[8] = {silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w, 0, 0, 0, 0};
    v[4] = __shfl_xor_sync(~0u, fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3]))), 16);
    const float scale = group_scale(v, p.ue8m0);
    const int64_t row = work.row_begin + token;
    *reinterpret_cast<uint32_t*>(p.out + row * p.bands * 128 + work.band * 128 + lane * 4) = to_e4m3(v, scale).x;
    if (lane == 0) p.out_scales[work.band * p.out_stride + row] = scale;
  }
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads, 2) gate_up_kernel(const __grid_constant__ GateUpParams p) {
  launch_dependents();
  extern __shared__ __align__(1024) uint8_t raw_memory[];
  const Room<kTokens> room(raw_memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int item = blockIdx.x / p.splits, rank = blockIdx.x % p.splits;  // clusters lie along x: rank = cluster_rank()
  if (threadIdx.x == kConsumers) stream::prefetch(p.maps);
  room.init_barriers();

  wait_for_previous();
  Work work{.band = item % p.bands, .k_begin = p.k_blocks * rank / p.splits};
  work.stages = p.k_blocks * (rank + 1) / p.splits - work.k_begin;
  const ExpertTile* tile = p.tiles + item / p.bands;
  const int count = __ldcg(p.count);
  work.expert = __ldcg(&tile->expert);
  work.row_begin = __ldcg(&tile->row_begin);
  work.rows = min(__ldcg(&tile->rows), kTokens);
  if (item / p.bands >= count) return;  // the whole cluster does

  float* partial = reinterpret_cast<float*>(room.base);
  if (warp == kWarps) {
    if (elect_one()) produce<kTokens>(p, room, work);
    __syncwarp();
  } else {
    const int half = warp / 4;
    const int64_t scale_row = static_cast<int64_t>(work.expert * 2 + half) * p.bands + work.band;
    const float* from = p.weight_scales + scale_row * p.k_blocks + work.k_begin;
    for (int i = threadIdx.x % 128; i < work.stages; i += 128) room.weight_scales(half)[i] = __ldg(from + i);
    named_barrier_sync(1, kConsumers);
    consume<kTokens>(room, work.stages, partial, warp, lane);
    if (p.splits == 1) {
      named_barrier_sync(1, kConsumers);
      finish<1>(p, work, partial, 0, warp, lane);
    }
  }
  if (p.splits == 1) return;
  __syncwarp();
  cluster_arrive();
  cluster_wait();
  if (warp < kWarps) {
    switch (p.splits) {
      case 2: finish<2>(p, work, partial, rank, warp, lane); break;
      case 4: finish<4>(p, work, partial, rank, warp, lane); break;
      default: finish<8>(p, work, partial, rank, warp, lane); break;
    }
  }
  __syncwarp();
  // A block stays until the others have read its sums (what they stored depends on them: the reads are done). Nothing is published
  // here: a release would wait for the stores of the output.
  cluster_arrive_relaxed();
  cluster_wait();
}

template <int kTokens>
Status start(const GateUpParams& p, int64_t tiles, Stream stream) {
  constexpr int kBytes = Layout<kTokens>::kSharedBytes;
  if (Status s = allow_shared_bytes(kName, gate_up_kernel<kTokens>, kBytes); !s.ok()) return s;
  const auto blocks = static_cast<unsigned>(tiles * p.bands * p.splits);
  return launch(kName, gate_up_kernel<kTokens>, {dim3(blocks), dim3(kThreads), kBytes, static_cast<unsigned>(p.splits)}, stream, p);
}

}  // namespace

Status fp8_gate_up(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Fp8Rows& out, const GateUpOptions& options,
                   Stream stream) {
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
  const int tokens = tiles.tile_rows;
  if (tokens != 8 && tokens != 16 && tokens != 32) return fault("tile_rows is none of 8, 16, 32");
  const int splits = options.splits != 0 ? options.splits : gate_up_splits(w.k);
  if (splits < 1 || splits > kGateUpMaxSplits || (splits & (splits - 1)) != 0 || splits > w.k / 128) return fault("splits do not fit");
  if (tiles.max_tiles * (width / 128) * splits > INT32_MAX) return fault("too many tiles");

  GateUpParams p{};
  if (Status s = stream::make_maps(x, w, 128, tokens, &p.maps); !s.ok()) return s;
  p.weight_scales = w.scales;
  p.tiles = tiles.tiles;
  p.count = tiles.count;
  p.out = out.data;
  p.out_scales = out.scales;
  p.out_stride = out.scale_stride;
  p.bands = static_cast<int>(width / 128);
  p.k_blocks = static_cast<int>(w.k / 128);
  p.splits = splits;
  p.ue8m0 = options.ue8m0;
  switch (tokens) {
    case 8: return start<8>(p, tiles.max_tiles, stream);
    case 16: return start<16>(p, tiles.max_tiles, stream);
    default: return start<32>(p, tiles.max_tiles, stream);
  }
}

}  // namespace dsv3::cuda
