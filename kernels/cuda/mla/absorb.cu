// Head products of decode. A block takes one head, a slice of its 512 latents (128 or 64) and 64 rows at most. Weights are the 16-row
// operand of mma.sync, rows of the batch its 8 columns; the weight tile lives in registers while the rows pass by.
//   absorb_queries: tile [128 n, width c]; every warp owns 16 c and sums over all n. No sums across blocks.
//   expand_values:  tile [128 v, width c]; every warp owns 16 v and sums over the slice. The blocks of a head form a cluster; partial sums
//                   meet through distributed shared memory, so that each row's 128 values are in one half-warp, as the scale needs.
#include <algorithm>

#include "../norm/rows.cuh"
#include "absorb.h"

namespace dsv3::cuda {
namespace {

constexpr int kHeadRows = kNope + kValue;  // rows of kv_b a head
constexpr int kTileRows = 128;             // of a weight tile: n, or v
constexpr int kChunkRows = 64;             // rows of the batch a block
constexpr int kStepRows = 16;              // of them at a time: two mma.sync
constexpr int kPartialStride = kValue + 4;  // floats; + 4: the 8 x 4 lanes of an mma result hit 32 banks
static_assert(kNope == kTileRows && kValue == kTileRows);

/// Byte of 16-byte piece `piece` of row `row`: 8 rows at one piece are 8 different groups of banks, as ldmatrix reads them.
template <int kPieces>
__device__ int tile_byte(int row, int piece) { return (row * kPieces + (piece ^ (row & 7))) * 16; }

/// rows x kPieces pieces; rows from `valid` on become zeros.
template <int kThreads, int kPieces>
__device__ void load_tile(char* to, const Bf16* from, int64_t stride, int rows, int valid) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool used = row < valid;
    cp_async_16(to + tile_byte<kPieces>(row, piece), used ? from + row * stride + piece * kVector : from, used);
  }
}

/// acc[j][..] += weights [16, kSteps * 16] times rows [16, kSteps * 16] at `rows`; j: rows 0-7, rows 8-15.
template <int kSteps>
__device__ void multiply(float (&acc)[2][4], const uint32_t (&weights)[kSteps][4], const char* rows, int first_row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = first_row + (lane & 7) + (lane >> 4) * 8;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t b[4];  // k 0-7 and 8-15 of rows 0-7, then of rows 8-15
    ldmatrix_x4(b, rows + tile_byte<kSteps * 2>(row, step * 2 + ((lane >> 3) & 1)));
    mma_bf16_16816(acc[0], weights[step], b[0], b[1]);
    mma_bf16_16816(acc[1], weights[step], b[2], b[3]);
  }
}

__host__ __device__ constexpr int padded_rows(int64_t rows) {
  return static_cast<int>((rows < kChunkRows ? rows : kChunkRows) + kStepRows - 1) / kStepRows * kStepRows;
}
template <int kWidth>
__host__ __device__ constexpr int weight_bytes() { return kTileRows * kWidth * 2; }

// ---- queries ---------------------------------------------------------------------------------------------------------------------

struct AbsorbParams {
  const Bf16* q;
  const Bf16* kv_b;
  Bf16* out;
  int64_t q_stride;
  int32_t rows, heads;
};

// Shared memory: weights, rows [padded, 128], 512 bytes a warp to turn results around.
template <int kWidth>
constexpr int absorb_shared_bytes(int64_t rows) { return weight_bytes<kWidth>() + padded_rows(rows) * kNope * 2 + kWidth / 16 * 512; }

// 128 heads are 512 blocks: four on an SM (64 registers a thread) and they all run at once.
template <int kWidth>
__global__ __launch_bounds__(kWidth * 2, 512 / kWidth) void absorb_kernel(const __grid_constant__ AbsorbParams p) {
  launch_dependents();
  constexpr int kThreads = kWidth * 2, kPieces = kWidth / kVector, kRowPieces = kNope / kVector, kSteps = kNope / 16;
  extern __shared__ __align__(128) char shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int column = static_cast<int>(blockIdx.x) * kWidth, head = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.z) * kChunkRows, valid = min(p.rows - first_row, kChunkRows);
  char* const rows = shared + weight_bytes<kWidth>();
  char* const turned = rows + padded_rows(p.rows) * kNope * 2 + warp * 512;

  load_tile<kThreads, kPieces>(shared, p.kv_b + static_cast<int64_t>(head) * kHeadRows * kLatent + column, kLatent, kTileRows, kTileRows);
  cp_async_commit();
  wait_for_previous();
  load_tile<kThreads, kRowPieces>(rows, p.q + first_row * p.q_stride + head * kQueryHead, p.q_stride, padded_rows(valid), valid);
  cp_async_commit();

  cp_async_wait<1>();
  __syncthreads();
  // The tile lies as [n][c] and the operand is [c][n]: 8 x 8 pieces are transposed on the way. Order: c 0-7, c 8-15 of n 0-7, then n 8-15.
  uint32_t weights[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    ldmatrix_x4_transposed(weights[step],
                           shared + tile_byte<kPieces>(step * 16 + (lane & 7) + (lane >> 4) * 8, warp * 2 + ((lane >> 3) & 1)));
  }
  cp_async_wait<0>();
  __syncthreads();

  // stmatrix takes one row of 8 c from each lane: row lane % 8 (+ 8 from lane 16 on), c 0-7 or 8-15. The exclusive or keeps the rows
  // 0-3 and 4-7 of one 8 x 8 piece in different banks.
  const int to_row = (lane & 7) + (lane >> 4) * 8, to_half = (lane >> 3) & 1, from_row = lane / 2, from_half = lane & 1;
  char* const to = turned + to_row * 32 + (to_half ^ ((to_row >> 2) & 1)) * 16;
  const char* const from = turned + from_row * 32 + (from_half ^ ((from_row >> 2) & 1)) * 16;
  for (int step_row = 0; step_row < valid; step_row += kStepRows) {
    float acc[2][4] = {};
    multiply<kSteps>(acc, weights, rows, step_row);
    stmatrix_x4_transposed(to, pack_bf16(acc[0][0], acc[0][1]), pack_bf16(acc[0][2], acc[0][3]), pack_bf16(acc[1][0], acc[1][1]),
                           pack_bf16(acc[1][2], acc[1][3]));
    __syncwarp();
    if (step_row + from_row < valid) {
      const int64_t row = first_row + step_row + from_row;
      *reinterpret_cast<uint4*>(p.out + (row * p.heads + head) * kCacheRow + column + warp * 16 + from_half * kVector) =
          *reinterpret_cast<const uint4*>(from);
    }
    __syncwarp();
  }
}

// ---- values ----------------------------------------------------------------------------------------------------------------------

struct ExpandParams {
  const Bf16* latent;
  const Bf16* kv_b;
  Bf16* out;           // or null
  uint8_t* quantised;  // or null
  float* scales;
  int64_t out_stride, quantised_stride, scale_stride;
  int32_t rows, heads;
  bool ue8m0;
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
  wait_for_previous();
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
  const int64_t to_row = first_row + row;
  const float scale = group_scale(v, p.ue8m0);
  if (row < valid) {
    if (p.out != nullptr) store_vector(p.out + to_row * p.out_stride + head * kValue + i, v);
    if (p.quantised != nullptr) {
      *reinterpret_cast<uint2*>(p.quantised + to_row * p.quantised_stride + head * kValue + i) = to_e4m3(v, scale);
      if (i == 0) p.scales[head * p.scale_stride + to_row] = scale;
    }
  }
  __syncwarp();
  cluster_wait();
}

// ---- launchers -------------------------------------------------------------------------------------------------------------------

Status check(const char* name, const Bf16Weight& kv_b, int64_t rows, int64_t heads, int width) {
  if (rows < 0 || rows > int64_t{65535} * kChunkRows) return wrong(name, std::to_string(rows) + " rows");
  if (heads <= 0 || heads > 65535) return wrong(name, std::to_string(heads) + " heads");
  if (kv_b.data == nullptr || !aligned(kv_b.data)) return wrong(name, "kv_b is null or not on 16 bytes");
  if (kv_b.n != heads * kHeadRows || kv_b.k != kLatent) {
    return wrong(name, "kv_b is " + std::to_string(kv_b.n) + " x " + std::to_string(kv_b.k) + ", wanted 256 rows of 512 a head");
  }
  if (width != 64 && width != 128) return wrong(name, "width " + std::to_string(width) + ", wanted 64 or 128");
  return {};
}

LaunchShape shape_of(int width, int threads, int shared_bytes, int64_t rows, int64_t heads) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(kLatent / width), static_cast<unsigned>(heads),
                    static_cast<unsigned>((rows + kChunkRows - 1) / kChunkRows));
  shape.block = dim3(static_cast<unsigned>(threads));
  shape.shared_bytes = static_cast<size_t>(shared_bytes);
  return shape;
}

template <int kWidth>
Status launch_absorb(const AbsorbParams& p, Stream stream) {
  DSV3_TRY(allow_shared_bytes("absorb_queries", absorb_kernel<kWidth>, absorb_shared_bytes<kWidth>(kChunkRows)));
  return launch("absorb_queries", absorb_kernel<kWidth>, shape_of(kWidth, kWidth * 2, absorb_shared_bytes<kWidth>(p.rows), p.rows, p.heads),
                stream, p);
}

template <int kWidth>
Status launch_expand(const ExpandParams& p, Stream stream) {
  DSV3_TRY(allow_shared_bytes("expand_values", expand_kernel<kWidth>, expand_shared_bytes<kWidth>(kChunkRows)));
  LaunchShape shape = shape_of(kWidth, kExpandThreads, expand_shared_bytes<kWidth>(p.rows), p.rows, p.heads);
  shape.cluster = kLatent / kWidth;
  return launch("expand_values", expand_kernel<kWidth>, shape, stream, p);
}

}  // namespace

Status absorb_queries(const AbsorbQueries& p, Stream stream) {
  const char* const name = "absorb_queries";
  if (p.rows == 0) return {};
  const int width = p.width != 0 ? p.width : absorb_width(p.heads);
  DSV3_TRY(check(name, p.kv_b, p.rows, p.heads, width));
  if (p.q == nullptr || !aligned(p.q) || p.q_stride % kVector != 0 || p.q_stride < int64_t{p.heads} * kQueryHead) {
    return wrong(name, "q is null, not on 16 bytes, or has a stride of " + std::to_string(p.q_stride));
  }
  if (p.absorbed_q == nullptr || !aligned(p.absorbed_q)) return wrong(name, "absorbed_q is null or not on 16 bytes");
  const AbsorbParams params{p.q, p.kv_b.data, p.absorbed_q, p.q_stride, static_cast<int32_t>(p.rows), p.heads};
  return width == 128 ? launch_absorb<128>(params, stream) : launch_absorb<64>(params, stream);
}

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
                            p.quantised.scale_stride, static_cast<int32_t>(p.rows), p.heads, p.ue8m0};
  return width == 128 ? launch_expand<128>(params, stream) : launch_expand<64>(params, stream);
}

}  // namespace dsv3::cuda
