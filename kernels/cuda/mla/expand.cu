// Attention's outputs out of the latent space. A head's weights are [128 v, 512 c]. Any number of rows: a block has all of them. Few rows
// in pieces: a block has a slice of c, every warp owns 16 v, and the blocks of a head form a cluster, in which sums meet. Either way each
// row's 128 values end up in one half-warp, as the scale needs.

#include "../common/inbox.cuh"
#include "../common/tensor_map.h"
#include "../common/wgmma.cuh"
#include "head_products.cuh"
#include "mla_decode_pieces.cuh"

namespace dsv3::cuda {
namespace {

using namespace heads;

struct ExpandParams {
  const Bf16* latent;
  const Bf16* kv_b;
  Bf16* out;           // or null
  uint8_t* quantised;  // or null
  float* scales;
  int64_t out_stride, quantised_stride, scale_stride;
  int32_t rows, heads;
  bool ue8m0;
  DecodePieces pieces;
};

/// Eight values of a head from column i, by 16 neighbouring lanes; all 32 call it.
__device__ inline void store_values(const ExpandParams& p, int64_t row, int head, int i, bool valid, const float (&v)[8]) {
  const float scale = group_scale(v, p.ue8m0);
  if (!valid) return;
  if (p.out != nullptr) store_vector(p.out + row * p.out_stride + head * kValue + i, v);
  if (p.quantised == nullptr) return;
  *reinterpret_cast<uint2*>(p.quantised + row * p.quantised_stride + head * kValue + i) = to_e4m3(v, scale);
  if (i == 0) p.scales[head * p.scale_stride + row] = scale;
}

// ---- any number of rows ----------------------------------------------------------------------------------------------

constexpr int kBoxes = kLatent / 64, kBoxRowBytes = 128;  // what the copy engine takes: 64 latents
constexpr int kRowThreads = 256;                          // two warpgroups with 64 v each

template <int kTokens>
struct ExpandShared {
  uint8_t weights[kBoxes][kValue * kBoxRowBytes];
  uint8_t rows[kBoxes][kTokens * kBoxRowBytes];
  float values[kTokens][kValue + 4];  // + 4: the 8 x 4 lanes of a result hit 32 banks
  uint64_t weights_full[kBoxes], rows_full[kBoxes];
};
static_assert(sizeof(ExpandShared<64>) <= 232448, "shared memory of a block");

/// A head and kTokens rows of the batch. The head's weights are the operand of 64 rows, requested before the kernel ahead has ended, and
/// rows of the batch the columns of the result. Grid (heads, rows / kTokens).
template <int kTokens>
__global__ __launch_bounds__(kRowThreads) void expand_kernel(const __grid_constant__ ExpandParams p, const __grid_constant__ CUtensorMap weight_map,
                                                             const __grid_constant__ CUtensorMap row_map) {
  launch_dependents();
  extern __shared__ __align__(1024) uint8_t raw_shared[];
  auto& shared = *reinterpret_cast<ExpandShared<kTokens>*>(raw_shared);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, warp = thread / 32 % 4, lane = thread % 32;
  const int head = static_cast<int>(blockIdx.x), first_row = static_cast<int>(blockIdx.y) * kTokens;
  if (thread == 0) {
    prefetch_tensor_map(&weight_map);
    prefetch_tensor_map(&row_map);
    for (int box = 0; box < kBoxes; ++box) {
      barrier_init(&shared.weights_full[box], 1);
      barrier_init(&shared.rows_full[box], 1);
    }
    fence_barrier_init();
    for (int box = 0; box < kBoxes; ++box) {
      barrier_expect(&shared.weights_full[box], sizeof(shared.weights[box]));
      tma_load_2d(shared.weights[box], &weight_map, &shared.weights_full[box], box * 64, head * kHeadRows + kNope);
    }
  }
  __syncthreads();
  wait_for_previous(p);
  if (thread == 0) {
    for (int box = 0; box < kBoxes; ++box) {
      barrier_expect(&shared.rows_full[box], sizeof(shared.rows[box]));
      tma_load_2d(shared.rows[box], &row_map, &shared.rows_full[box], head * kLatent + box * 64, first_row);
    }
  }
  __syncwarp();

  float sum[kTokens / 2];
#pragma unroll
  for (float& each : sum) each = 0;
  const uint64_t weights = wgmma_descriptor_128(shared_address(shared.weights) + group * 64 * kBoxRowBytes);
  const uint64_t rows = wgmma_descriptor_128(shared_address(shared.rows));
#pragma unroll
  for (int box = 0; box < kBoxes; ++box) {
    barrier_wait(&shared.weights_full[box], 0);
    barrier_wait(&shared.rows_full[box], 0);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // 16 latents are 32 bytes
      wgmma_bf16<kTokens>(sum, weights + ((box * sizeof(shared.weights[0]) + k * 32) >> 4), rows + ((box * sizeof(shared.rows[0]) + k * 32) >> 4),
                          box + k > 0 ? 1 : 0);
    }
    wgmma_commit();
  }
  wgmma_wait<0>();
#pragma unroll
  for (float& each : sum) wgmma_pin(each);
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    shared.values[i / 4 * 8 + lane % 4 * 2 + i % 2][group * 64 + warp * 16 + lane / 4 + i / 2 % 2 * 8] = sum[i];
  }
  __syncthreads();
  for (int token = thread / kGroupVectors; token < kTokens; token += kRowThreads / kGroupVectors) {  // 16 lanes a row
    const int i = lane % kGroupVectors * kVector;
    float v[8];
    load_floats(&shared.values[token][i], v);
    store_values(p, first_row + token, head, i, first_row + token < p.rows, v);
  }
}

template <int kTokens>
Status launch_rows(const ExpandParams& p, Stream stream) {
  CUtensorMap weights{}, rows{};
  DSV3_TRY(map_bf16(p.kv_b, int64_t{p.heads} * kHeadRows, kLatent, kLatent, kValue, &weights));
  DSV3_TRY(map_bf16(p.latent, p.rows, int64_t{p.heads} * kLatent, int64_t{p.heads} * kLatent, kTokens, &rows));
  constexpr int kBytes = sizeof(ExpandShared<kTokens>);
  DSV3_TRY(allow_shared_bytes("expand_values", expand_kernel<kTokens>, kBytes));
  const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>((p.rows + kTokens - 1) / kTokens));
  return launch("expand_values", expand_kernel<kTokens>, {grid, dim3(kRowThreads), kBytes}, stream, p, weights, rows);
}

// ---- few rows, in pieces -----------------------------------------------------------------------------------------

constexpr int kFewThreads = kTileRows / 16 * 32;

/// At most kPieceRows rows, whose latents may lie in pieces: they are joined here. Slices send each other their sums: row r is
/// finished by slice r % kSlices.
template <int kWidth>
__global__ __launch_bounds__(kFewThreads, 4) void expand_few_kernel(const __grid_constant__ ExpandParams p) {
  launch_dependents();
  constexpr int kSlices = kLatent / kWidth, kPieces = kWidth / kVector, kSteps = kWidth / 16, kSlots = kPieceRows / kSlices;
  static_assert(kPieceRows % kSlices == 0 && kSlots * kGroupVectors <= 32, "a warp finishes a block's rows");
  using Merge = SliceMerge<kFewThreads / 32, kWidth>;
  extern __shared__ __align__(128) char shared[];
  __shared__ typename Merge::Shared merging;
  __shared__ alignas(16) float inbox[kSlices][kSlots][kValue];
  __shared__ alignas(8) uint64_t inbox_full;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int slice = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int mine = (p.rows - slice + kSlices - 1) / kSlices;  // rows that this block finishes
  char* const rows = shared + weight_bytes<kWidth>();

  load_tile<kFewThreads, kPieces>(shared, p.kv_b + (static_cast<int64_t>(head) * kHeadRows + kNope) * kLatent + slice * kWidth, kLatent,
                                  kTileRows, kTileRows);
  cp_async_commit();
  open_inbox(&inbox_full, mine * kSlices * kValue * 4);
  Merge merge(p.pieces, p.heads, head, slice * kWidth, merging);
  wait_for_previous(p);
  const int64_t latent_stride = static_cast<int64_t>(p.heads) * kLatent;
  load_tile<kFewThreads, kPieces>(rows, p.latent + head * kLatent + slice * kWidth, latent_stride, kStepRows, p.rows);
  cp_async_commit();
  merge.run([&](int row, int vector, const float (&v)[8]) {
    *reinterpret_cast<uint4*>(rows + tile_byte<kPieces>(row, vector)) = pack_bf16_vector(v);
  });
  cp_async_wait<0>();
  __syncthreads();

  uint32_t weights[kSteps][4];  // v 0-7, v 8-15 of c 0-7, then of c 8-15
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    ldmatrix_x4(weights[step], shared + tile_byte<kPieces>(warp * 16 + (lane & 15), step * 2 + (lane >> 4)));
  }
  float acc[2][4] = {};
  multiply<kSteps>(acc, weights, rows, 0);
  cluster_wait();  // all inboxes are open
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = lane % 4 * 2 + j;
    if (row >= p.rows) continue;
    const uint32_t owner = row % kSlices, full = cluster_address(&inbox_full, owner);
    const uint32_t to = cluster_address(&inbox[slice][row / kSlices][warp * 16 + lane / 4], owner);
    store_cluster_async(to, acc[0][j], full);
    store_cluster_async(to + 32, acc[0][2 + j], full);
  }
  if (warp > 0 || mine <= 0) return;
  barrier_wait(&inbox_full, 0);
  __syncwarp();
  const int slot = lane / kGroupVectors % kSlots, row = slice + slot * kSlices, i = lane % kGroupVectors * kVector;
  float v[8] = {};
#pragma unroll
  for (int s = 0; s < kSlices; ++s) {
    float more[8];
    load_floats(&inbox[s][slot][i], more);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] += more[j];
  }
  store_values(p, row, head, i, row < p.rows && lane < kSlots * kGroupVectors, v);
}

template <int kWidth>
Status launch_few(const ExpandParams& p, Stream stream) {
  constexpr int kBytes = weight_bytes<kWidth>() + kStepRows * kWidth * 2;
  DSV3_TRY(allow_shared_bytes("expand_values", expand_few_kernel<kWidth>, kBytes));
  LaunchShape shape = shape_of(kWidth, kFewThreads, kBytes, p.rows, p.heads);
  shape.cluster = kLatent / kWidth;
  return launch("expand_values", expand_few_kernel<kWidth>, shape, stream, p);
}

}  // namespace

Status expand_values(const ExpandValues& p, Stream stream) {
  const char* const name = "expand_values";
  if (p.rows == 0) return {};
  const int width = p.width != 0 ? p.width : absorb_width(p.heads);
  DSV3_TRY(check(name, p.kv_b, p.rows, p.heads, width));
  if (p.latent == nullptr || !aligned(p.latent)) return wrong(name, "latent is null or not on 16 bytes");
  const int64_t cols = int64_t{p.heads} * kValue;
  if (p.out.data == nullptr && p.quantised.data == nullptr) return wrong(name, "no output");
  if (p.out.data != nullptr) DSV3_TRY(check_matrix(name, "out", p.out, p.rows, cols));
  if (p.quantised.data != nullptr) DSV3_TRY(check_fp8(name, "quantised", p.quantised, p.rows, cols));
  const ExpandParams params{p.latent, p.kv_b.data, p.out.data, p.quantised.data, p.quantised.scales, p.out.stride, p.quantised.cols,
                            p.quantised.scale_stride, static_cast<int32_t>(p.rows), p.heads, p.ue8m0, p.pieces};
  if (p.pieces.scratch.schedule != nullptr) {
    if (p.rows > kPieceRows) return wrong(name, std::to_string(p.rows) + " rows in pieces, at most 8");
    return width == 128 ? launch_few<128>(params, stream) : launch_few<64>(params, stream);
  }
  const int tokens = p.tokens != 0 ? p.tokens : expand_tokens(p.rows, p.heads);
  if (p.rows > int64_t{65535} * tokens) return wrong(name, std::to_string(p.rows) + " rows");
  switch (tokens) {
    case 16:
      return launch_rows<16>(params, stream);
    case 32:
      return launch_rows<32>(params, stream);
    case 64:
      return launch_rows<64>(params, stream);
    default:
      return wrong(name, std::to_string(p.tokens) + " tokens, wanted 16, 32 or 64");
  }
}

}  // namespace dsv3::cuda
