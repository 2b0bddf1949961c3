// Attention's outputs out of the latent space. Tile [128 v, width c]; every warp owns 16 v and sums over the slice. The blocks of a head
// form a cluster; partial sums meet in one of them, so that each row's 128 values are in one half-warp, as the scale needs.
#include <algorithm>

#include "../common/inbox.cuh"
#include "head_products.cuh"
#include "mla_decode_pieces.cuh"

namespace dsv3::cuda {
namespace {

using namespace heads;

constexpr int kPartialStride = kValue + 4;  // floats; + 4: the 8 x 4 lanes of an mma result hit 32 banks

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

constexpr int kExpandThreads = kTileRows / 16 * 32;

// Shared memory: weights, later (once they are in registers) partial sums [padded, 132] in their place; rows [padded, width].
template <int kWidth>
__host__ __device__ constexpr int expand_rows_at(int64_t rows) {
  const int partials = padded_rows(rows) * kPartialStride * 4;
  return partials > weight_bytes<kWidth>() ? partials : weight_bytes<kWidth>();
}
template <int kWidth>
constexpr int expand_shared_bytes(int64_t rows) { return expand_rows_at<kWidth>(rows) + padded_rows(rows) * kWidth * 2; }

/// Eight values of a head from column i, by 16 neighbouring lanes; all 32 call it.
__device__ inline void store_values(const ExpandParams& p, int64_t row, int head, int i, bool valid, const float (&v)[8]) {
  const float scale = group_scale(v, p.ue8m0);
  if (!valid) return;
  if (p.out != nullptr) store_vector(p.out + row * p.out_stride + head * kValue + i, v);
  if (p.quantised == nullptr) return;
  *reinterpret_cast<uint2*>(p.quantised + row * p.quantised_stride + head * kValue + i) = to_e4m3(v, scale);
  if (i == 0) p.scales[head * p.scale_stride + row] = scale;
}

template <int kWidth>
__global__ __launch_bounds__(kExpandThreads, 4) void expand_kernel(const __grid_constant__ ExpandParams p) {
  launch_dependents();
  constexpr int kSlices = kLatent / kWidth, kPieces = kWidth / kVector, kSteps = kWidth / 16;
  static_assert(kSlices * (kExpandThreads / kGroupVectors) >= kChunkRows, "a half-warp finishes one row");
  extern __shared__ __align__(128) char shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int slice = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);  // gridDim.x is the cluster: slice is the rank
  const int first_row = static_cast<int>(blockIdx.z) * kChunkRows, valid = min(p.rows - first_row, kChunkRows);
  char* const rows = shared + expand_rows_at<kWidth>(p.rows);
  float* const partial = reinterpret_cast<float*>(shared);

  load_tile<kExpandThreads, kPieces>(shared, p.kv_b + (static_cast<int64_t>(head) * kHeadRows + kNope) * kLatent + slice * kWidth, kLatent,
                                     kTileRows, kTileRows);
  cp_async_commit();
  wait_for_previous(p);
  const int64_t latent_stride = static_cast<int64_t>(p.heads) * kLatent;
  load_tile<kExpandThreads, kPieces>(rows, p.latent + first_row * latent_stride + head * kLatent + slice * kWidth, latent_stride,
                                     padded_rows(valid), valid);
  cp_async_commit();

  cp_async_wait<1>();
  __syncthreads();
  uint32_t weights[kSteps][4];  // v 0-7, v 8-15 of c 0-7, then of c 8-15
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    ldmatrix_x4(weights[step], shared + tile_byte<kPieces>(warp * 16 + (lane & 15), step * 2 + (lane >> 4)));
  }
  cp_async_wait<0>();
  __syncthreads();  // and nobody reads weights in shared memory any more

  for (int step_row = 0; step_row < valid; step_row += kStepRows) {
    float acc[2][4] = {};
    multiply<kSteps>(acc, weights, rows, step_row);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float* const at = partial + (step_row + j * 8 + lane % 4 * 2) * kPartialStride + warp * 16 + lane / 4;
      at[0] = acc[j][0];
      at[kPartialStride] = acc[j][1];
      at[8] = acc[j][2];
      at[kPartialStride + 8] = acc[j][3];
    }
  }
  cluster_arrive();
  cluster_wait();

  // 16 lanes finish a row: 8 values each, slices added in order.
  const int row = slice + static_cast<int>(threadIdx.x) / kGroupVectors * kSlices, i = lane % kGroupVectors * kVector;
  float v[8] = {};
  if (row < valid) {
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const uint32_t at = cluster_address(partial + row * kPartialStride + i, static_cast<uint32_t>(s));
      const float4 low = load_cluster_f32x4(at), high = load_cluster_f32x4(at + 16);
      v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
      v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
    }
  }
  __syncwarp();
  cluster_arrive();  // this thread has read what it needs; blocks stay until all have
  store_values(p, first_row + row, head, i, row < valid, v);
  __syncwarp();
  cluster_wait();
}

/// At most kPieceRows rows, whose latents may still lie in pieces: they are joined here. Slices send each other their sums: row r is
/// finished by slice r % kSlices.
template <int kWidth>
__global__ __launch_bounds__(kExpandThreads, 4) void expand_few_kernel(const __grid_constant__ ExpandParams p) {
  launch_dependents();
  constexpr int kSlices = kLatent / kWidth, kPieces = kWidth / kVector, kSteps = kWidth / 16, kSlots = kPieceRows / kSlices;
  static_assert(kPieceRows % kSlices == 0 && kSlots * kGroupVectors <= 32, "a warp finishes a block's rows");
  using Merge = SliceMerge<kExpandThreads / 32, kWidth>;
  extern __shared__ __align__(128) char shared[];
  __shared__ typename Merge::Shared merging;
  __shared__ alignas(16) float inbox[kSlices][kSlots][kValue];
  __shared__ alignas(8) uint64_t inbox_full;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int slice = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int mine = (p.rows - slice + kSlices - 1) / kSlices;  // rows that this block finishes
  char* const rows = shared + weight_bytes<kWidth>();

  load_tile<kExpandThreads, kPieces>(shared, p.kv_b + (static_cast<int64_t>(head) * kHeadRows + kNope) * kLatent + slice * kWidth, kLatent,
                                     kTileRows, kTileRows);
  cp_async_commit();
  open_inbox(&inbox_full, mine * kSlices * kValue * 4);
  Merge merge(p.pieces, p.heads, head, slice * kWidth, merging);
  wait_for_previous(p);
  const int64_t latent_stride = static_cast<int64_t>(p.heads) * kLatent;
  load_tile<kExpandThreads, kPieces>(rows, p.latent + head * kLatent + slice * kWidth, latent_stride, kStepRows, p.rows);
  cp_async_commit();
  merge.run([&](int row, int quad, const float4& v) {
    *reinterpret_cast<uint2*>(rows + tile_byte<kPieces>(row, quad / 2) + quad % 2 * 8) = {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
  });
  cp_async_wait<0>();
  __syncthreads();

  uint32_t weights[kSteps][4];  // as in expand_kernel
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
    const float4 low = *reinterpret_cast<const float4*>(&inbox[s][slot][i]), high = *reinterpret_cast<const float4*>(&inbox[s][slot][i + 4]);
    v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
    v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
  }
  store_values(p, row, head, i, row < p.rows && lane < kSlots * kGroupVectors, v);
}

template <int kWidth>
Status launch_expand(const ExpandParams& p, Stream stream) {
  if (p.pieces.scratch.schedule != nullptr) {
    constexpr int kBytes = weight_bytes<kWidth>() + kStepRows * kWidth * 2;
    DSV3_TRY(allow_shared_bytes("expand_values", expand_few_kernel<kWidth>, kBytes));
    LaunchShape shape = shape_of(kWidth, kExpandThreads, kBytes, p.rows, p.heads);
    shape.cluster = kLatent / kWidth;
    return launch("expand_values", expand_few_kernel<kWidth>, shape, stream, p);
  }
  DSV3_TRY(allow_shared_bytes("expand_values", expand_kernel<kWidth>, expand_shared_bytes<kWidth>(kChunkRows)));
  LaunchShape shape = shape_of(kWidth, kExpandThreads, expand_shared_bytes<kWidth>(p.rows), p.rows, p.heads);
  shape.cluster = kLatent / kWidth;
  return launch("expand_values", expand_kernel<kWidth>, shape, stream, p);
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
  if (p.pieces.scratch.schedule != nullptr && p.rows > kPieceRows) return wrong(name, std::to_string(p.rows) + " rows in pieces, at most 8");
  return width == 128 ? launch_expand<128>(params, stream) : launch_expand<64>(params, stream);
}

}  // namespace dsv3::cuda
