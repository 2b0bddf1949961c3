// Queries into the latent space. Tile [128 n, width c]; every warp owns 16 c and sums over all n. No sums across blocks.
#include "../norm/rope.cuh"
#include "head_products.cuh"

namespace dsv3::cuda {
namespace {

using namespace heads;

struct AbsorbParams {
  const Bf16* q;
  const Bf16* kv_b;
  Bf16* out;
  int64_t q_stride;
  int32_t rows, heads;
  bool turns;
  RopeAndCache turn;  // where `turns`: by the blocks behind the slices
};

__host__ __device__ constexpr int padded_rows(int64_t rows) {
  return static_cast<int>((rows < kChunkRows ? rows : kChunkRows) + kStepRows - 1) / kStepRows * kStepRows;
}

// Shared memory: weights, rows [padded, 128], 512 bytes a warp to turn results around.
template <int kWidth>
constexpr int absorb_shared_bytes(int64_t rows) { return weight_bytes<kWidth>() + padded_rows(rows) * kNope * 2 + kWidth / 16 * 512; }

// 128 heads are 512 blocks: four on an SM (64 registers a thread) and they all run at once.
template <int kWidth>
__global__ __launch_bounds__(kWidth * 2, 512 / kWidth) void absorb_kernel(const __grid_constant__ AbsorbParams p) {
  constexpr int kThreads = kWidth * 2, kPieces = kWidth / kVector, kRowPieces = kNope / kVector, kSteps = kNope / 16;
  if (blockIdx.x == kLatent / kWidth) {
    launch_dependents();
    for (unsigned row = blockIdx.z * gridDim.y + blockIdx.y; row < static_cast<unsigned>(p.rows); row += gridDim.y * gridDim.z) {
      rope::turn_row<kThreads>(p.turn, row);
      __syncthreads();  // its shared memory serves the next row
    }
    return;
  }
  extern __shared__ __align__(128) char shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int column = static_cast<int>(blockIdx.x) * kWidth, head = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.z) * kChunkRows, valid = min(p.rows - first_row, kChunkRows);
  char* const rows = shared + weight_bytes<kWidth>();
  char* const turned = rows + padded_rows(p.rows) * kNope * 2 + warp * 512;

  load_tile<kThreads, kPieces>(shared, p.kv_b + static_cast<int64_t>(head) * kHeadRows * kLatent + column, kLatent, kTileRows, kTileRows);
  cp_async_commit();
  wait_for_previous(p);
  launch_dependents();  // not before: mla_decode() reads the cache and the schedule early
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

template <int kWidth>
Status launch_absorb(const AbsorbParams& p, Stream stream) {
  DSV3_TRY(allow_shared_bytes("absorb_queries", absorb_kernel<kWidth>, absorb_shared_bytes<kWidth>(kChunkRows)));
  LaunchShape shape = shape_of(kWidth, kWidth * 2, absorb_shared_bytes<kWidth>(p.rows), p.rows, p.heads);
  shape.grid.x += p.turns ? 1 : 0;
  return launch("absorb_queries", absorb_kernel<kWidth>, shape, stream, p);
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
  AbsorbParams params{p.q, p.kv_b.data, p.absorbed_q, p.q_stride, static_cast<int32_t>(p.rows), p.heads, p.turn != nullptr, {}};
  if (p.turn != nullptr) {
    DSV3_TRY(check_rope(*p.turn));
    if (p.turn->kv_a.rows != p.rows) return wrong(name, "the rows to turn are others");
    params.turn = *p.turn;
  }
  return width == 128 ? launch_absorb<128>(params, stream) : launch_absorb<64>(params, stream);
}

}  // namespace dsv3::cuda
