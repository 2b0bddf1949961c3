// Down product of experts in decode (fp8_down.h): short items, where what surrounds the loads costs as much as they do.
//
// A block computes 128 rows of W for one tile, all of K, with one warpgroup (two times 64 rows) and a producer warp, and ends. Its ring
// is no deeper than three stages, so that four blocks share an SM and the blocks of nine experts are resident at once: they
// advance together at the speed of HBM, and none waits for a turn. The weights are requested as soon as the tile is known; the
// consumers look up the scales meanwhile.
#include <algorithm>
#include <string>

#include "fp8_down.h"
#include "stream_tile.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kRows = 128, kConsumers = 128, kThreads = kConsumers + 32;
constexpr int kBlocksPerSm = 4, kMaxStages = 3;
constexpr int kWeightBytes = kRows * 128, kScaleSlot = 128;
constexpr int kPitch = kRows + 4;  // floats of a token's sums: 2 * pitch = 8 mod 32 spreads a fragment over the banks

/// Offsets in a block's shared memory, by its number of stages (at most k / 128).
template <int kTokens>
struct Layout {
  static constexpr int kTokenBytes = kTokens * 128;
  static constexpr int kCopyBytes = kWeightBytes + kTokenBytes + kTokens * 4;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes + kScaleSlot;
  static constexpr int kBarrierBytes = 2 * kMaxStages * 8;  // behind the ring; then a weight scale for each 128 of K
  static int shared_bytes(int stages, int k_blocks) { return 1024 /* alignment */ + stages * kStageBytes + kBarrierBytes + k_blocks * 4; }
  static_assert(kTokens * 4 <= kScaleSlot && kTokens * kPitch * 4 <= kWeightBytes);  // the sums lie over the first stage's weights
  static_assert(1024 + kMaxStages * kStageBytes + kBarrierBytes + 16 * 4 <= 57344);  // 228 KiB / 4 - 1 KiB a block: K = 2048 fits
};

template <int kTokens>
struct Room {
  using L = Layout<kTokens>;
  uint8_t* base;
  int stages;
  __device__ Room(uint8_t* raw, int num_stages) : base(raw + ((1024 - (shared_address(raw) & 1023)) & 1023)), stages(num_stages) {}
  __device__ uint8_t* weights(int stage) const { return base + stage * kWeightBytes; }
  __device__ uint8_t* tokens(int stage) const { return base + stages * kWeightBytes + stage * L::kTokenBytes; }
  __device__ float* scales(int stage) const {
    return reinterpret_cast<float*>(base + stages * (kWeightBytes + L::kTokenBytes) + stage * kScaleSlot);
  }
  __device__ uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(base + stages * L::kStageBytes) + stage; }
  __device__ uint64_t* empty(int stage) const { return full(kMaxStages + stage); }
  __device__ float* weight_scales() const { return reinterpret_cast<float*>(full(2 * kMaxStages)); }
};

struct DownParams {
  stream::Maps maps;           // weights: [count * n][k], boxes of 128 rows
  const float* weight_scales;  // [count][row_tiles][k_blocks]
  const ExpertTile* tiles;
  const int32_t* count;
  __nv_bfloat16* y;
  int64_t y_stride;
  int n, row_tiles, k_blocks, stages;
};

/// Position in a ring of a length known at run time.
struct Cursor {
  int stages, stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

/// Two times 64 weight rows, as stream::add_stage(): the same operations in the same order, with one wait for both.
template <int kTokens>
__device__ void add_stage(float (&sum)[2][kTokens / 2], float (&part)[2][kTokens / 2], const uint8_t* weights, const uint8_t* tokens,
                          const float* token_scales, float weight_scale) {
  const uint64_t a = wgmma_descriptor_128(shared_address(weights)), b = wgmma_descriptor_128(shared_address(tokens));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {  // 32 bytes along K; 64 rows are 8192 bytes further
    wgmma_e4m3<kTokens>(part[0], a + 2 * k, b + 2 * k, k > 0 ? 1 : 0);
    wgmma_e4m3<kTokens>(part[1], a + (8192 >> 4) + 2 * k, b + 2 * k, k > 0 ? 1 : 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) wgmma_pin(part[h][i]);
  }
  const float* mine = token_scales + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    const float2 scale = *reinterpret_cast<const float2*>(mine + 8 * i);
    const float first = __fmul_rn(weight_scale, scale.x), second = __fmul_rn(weight_scale, scale.y);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h][4 * i] = __fmaf_rn(part[h][4 * i], first, sum[h][4 * i]);
      sum[h][4 * i + 1] = __fmaf_rn(part[h][4 * i + 1], second, sum[h][4 * i + 1]);
      sum[h][4 * i + 2] = __fmaf_rn(part[h][4 * i + 2], first, sum[h][4 * i + 2]);
      sum[h][4 * i + 3] = __fmaf_rn(part[h][4 * i + 3], second, sum[h][4 * i + 3]);
    }
  }
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) down_kernel(const __grid_constant__ DownParams p) {
  using L = Layout<kTokens>;
  launch_dependents();
  extern __shared__ __align__(1024) uint8_t raw_memory[];
  const Room<kTokens> room(raw_memory, p.stages);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  if (thread == kConsumers) stream::prefetch(p.maps);
  if (thread == 0) {
    for (int s = 0; s < p.stages; ++s) {
      barrier_init(room.full(s), 1);                 // the producer's arrival, with the bytes
      barrier_init(room.empty(s), kConsumers / 32);  // one of each consumer warp
    }
    fence_barrier_init();
  }
  __syncthreads();

  const int row_tile = static_cast<int>(blockIdx.x) % p.row_tiles, index = static_cast<int>(blockIdx.x) / p.row_tiles;
  wait_for_previous();
  const ExpertTile* tile = p.tiles + index;
  const int count = __ldcg(p.count), expert = __ldcg(&tile->expert), token_begin = __ldcg(&tile->row_begin);
  const int tokens = min(__ldcg(&tile->rows), kTokens);
  if (index >= count) return;

  Cursor at{p.stages};
  if (warp == kConsumers / 32) {
    if (lane != 0) return;
    const int weight_row = expert * p.n + row_tile * kRows;  // rows past n belong to the next expert (or are zeros): never stored
    for (int i = 0; i < p.k_blocks; ++i, at.advance()) {
      barrier_wait(room.empty(at.stage), at.parity ^ 1);  // the first round passes at once
      barrier_expect(room.full(at.stage), L::kCopyBytes);
      tma_load_2d(room.weights(at.stage), &p.maps.weights, room.full(at.stage), i * 128, weight_row);
      tma_load_2d(room.tokens(at.stage), &p.maps.tokens, room.full(at.stage), i * 128, token_begin);
      tma_load_2d(room.scales(at.stage), &p.maps.scales, room.full(at.stage), token_begin, i);
    }
    return;
  }

  const float* from = p.weight_scales + (static_cast<int64_t>(expert) * p.row_tiles + row_tile) * p.k_blocks;
  for (int i = thread; i < p.k_blocks; i += kConsumers) room.weight_scales()[i] = __ldg(from + i);
  named_barrier_sync(1, kConsumers);
  float sum[2][kTokens / 2] = {}, part[2][kTokens / 2] = {};
  for (int i = 0; i < p.k_blocks; ++i, at.advance()) {
    barrier_wait(room.full(at.stage), at.parity);
    add_stage<kTokens>(sum, part, room.weights(at.stage), room.tokens(at.stage), room.scales(at.stage), room.weight_scales()[i]);
    __syncwarp();
    if (lane == 0) barrier_arrive(room.empty(at.stage));
  }
  named_barrier_sync(1, kConsumers);  // nobody reads the ring any more, and no copy is on its way: the sums go there
  float* sums = reinterpret_cast<float*>(room.base);
  float* mine = sums + 2 * (lane % 4) * kPitch + warp * 16 + lane / 4;
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
  named_barrier_sync(1, kConsumers);
  for (int c = thread; c < tokens * (kRows / 8); c += kConsumers) {
    const int token = c / (kRows / 8), row = c % (kRows / 8) * 8;
    if (row_tile * kRows + row >= p.n) continue;  // n is a multiple of 8
    const float4* values = reinterpret_cast<const float4*>(sums + token * kPitch + row);
    stream::store_bf16x8(p.y + static_cast<int64_t>(token_begin + token) * p.y_stride + row_tile * kRows + row, values[0], values[1]);
  }
}

template <int kTokens>
Status start(const DownParams& p, int max_tiles, Stream stream) {
  const int bytes = Layout<kTokens>::shared_bytes(p.stages, p.k_blocks);
  if (Status s = allow_shared_bytes("fp8_down", down_kernel<kTokens>, bytes); !s.ok()) return s;
  const auto blocks = static_cast<unsigned>(max_tiles * p.row_tiles);
  return launch("fp8_down", down_kernel<kTokens>, {dim3(blocks), dim3(kThreads), static_cast<size_t>(bytes), 1}, stream, p);
}

}  // namespace

Status fp8_down(const Fp8Rows& x, const Fp8Weight& w, const ExpertTiles& tiles, const Bf16Matrix& y, Stream stream) {
  if (x.rows == 0 || tiles.max_tiles == 0) return {};
  const char* what = stream::fault(x, w, y);
  if (what == nullptr && (tiles.tiles == nullptr || tiles.count == nullptr || tiles.max_tiles < 0)) what = "no list of tiles";
  if (what == nullptr && static_cast<int64_t>(tiles.max_tiles) * ((w.n + 127) / 128) > INT32_MAX) what = "too many tiles";
  if (what == nullptr && tiles.tile_rows != 8 && tiles.tile_rows != 16) what = "tile_rows is neither 8 nor 16";
  if (what != nullptr) {
    return {Code::kInternal, std::string("fp8_down: ") + what + " (rows " + std::to_string(x.rows) + ", tile_rows " +
                                 std::to_string(tiles.tile_rows) + ", n " + std::to_string(w.n) + ", k " + std::to_string(w.k) + ")"};
  }
  DownParams p{};
  if (Status s = stream::make_maps(x, w, kRows, tiles.tile_rows, &p.maps); !s.ok()) return s;
  p.weight_scales = w.scales;
  p.tiles = tiles.tiles;
  p.count = tiles.count;
  p.y = y.data;
  p.y_stride = y.stride;
  p.n = static_cast<int>(w.n);
  p.row_tiles = static_cast<int>((w.n + 127) / 128);
  p.k_blocks = static_cast<int>(w.k / 128);
  p.stages = std::min(p.k_blocks, kMaxStages);
  return tiles.tile_rows == 8 ? start<8>(p, tiles.max_tiles, stream) : start<16>(p, tiles.max_tiles, stream);
}

}  // namespace dsv3::cuda
