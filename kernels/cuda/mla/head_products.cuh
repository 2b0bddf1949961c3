// What the head products of decode share (absorb.cu: queries, expand.cu: values in pieces). A block takes one head, a slice of its 512
// latents (128 or 64) and 64 rows at most. Weights are the 16-row operand of mma.sync, rows of the batch its 8 columns; the weight tile
// lives in registers while the rows pass by.
#pragma once

#include "../norm/rows.cuh"
#include "absorb.h"

namespace dsv3::cuda::heads {

inline constexpr int kHeadRows = kNope + kValue;  // rows of kv_b a head
inline constexpr int kTileRows = 128;             // of a weight tile: n, or v
inline constexpr int kChunkRows = 64;             // rows of the batch a block
inline constexpr int kStepRows = 16;              // of them at a time: two mma.sync
static_assert(kNope == kTileRows && kValue == kTileRows);

/// Byte of 16-byte piece `piece` of row `row`: 8 rows at one piece are 8 different groups of banks, as ldmatrix reads them.
template <int kPieces>
__device__ inline int tile_byte(int row, int piece) { return (row * kPieces + (piece ^ (row & 7))) * 16; }

/// rows x kPieces pieces; rows from `valid` on become zeros.
template <int kThreads, int kPieces>
__device__ inline void load_tile(char* to, const Bf16* from, int64_t stride, int rows, int valid) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool used = row < valid;
    cp_async_16(to + tile_byte<kPieces>(row, piece), used ? from + row * stride + piece * kVector : from, used);
  }
}

/// acc[j][..] += weights [16, kSteps * 16] times rows [16, kSteps * 16] at `rows`; j: rows 0-7, rows 8-15.
template <int kSteps>
__device__ inline void multiply(float (&acc)[2][4], const uint32_t (&weights)[kSteps][4], const char* rows, int first_row) {
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

template <int kWidth>
__host__ __device__ constexpr int weight_bytes() { return kTileRows * kWidth * 2; }

inline Status check(const char* name, const Bf16Weight& kv_b, int64_t rows, int64_t heads, int width) {
  if (rows < 0 || rows > int64_t{65535} * kChunkRows) return wrong(name, std::to_string(rows) + " rows");
  if (heads <= 0 || heads > 65535) return wrong(name, std::to_string(heads) + " heads");
  if (kv_b.data == nullptr || !aligned(kv_b.data)) return wrong(name, "kv_b is null or not on 16 bytes");
  if (kv_b.n != heads * kHeadRows || kv_b.k != kLatent) {
    return wrong(name, "kv_b is " + std::to_string(kv_b.n) + " x " + std::to_string(kv_b.k) + ", wanted 256 rows of 512 a head");
  }
  if (width != 64 && width != 128) return wrong(name, "width " + std::to_string(width) + ", wanted 64 or 128");
  return {};
}

inline LaunchShape shape_of(int width, int threads, int shared_bytes, int64_t rows, int64_t heads) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(kLatent / width), static_cast<unsigned>(heads),
                    static_cast<unsigned>((rows + kChunkRows - 1) / kChunkRows));
  shape.block = dim3(static_cast<unsigned>(threads));
  shape.shared_bytes = static_cast<size_t>(shared_bytes);
  return shape;
}

}  // namespace dsv3::cuda::heads
