// Plain structs that launchers take. No CUDA headers: host code of other modules may include this.
#pragma once

#include <cstdint>

struct CUstream_st;
struct __nv_bfloat16;

namespace dsv3::cuda {

using Stream = CUstream_st*;
using Bf16 = __nv_bfloat16;

inline constexpr int kQuantGroup = 128;        ///< columns that share one activation scale; edge of a weight's scale block
inline constexpr int kCacheBlockTokens = 64;   ///< tokens of one KV block
inline constexpr int kLatent = 512, kRope = 64, kCacheRow = kLatent + kRope;  ///< MLA cache row (model.md 4.4)
inline constexpr int kNope = 128, kValue = 128, kQueryHead = kNope + kRope;   ///< MLA head sizes

/// BF16 [rows, cols], row-major. `stride`: elements from row to row.
struct Bf16Matrix {
  Bf16* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;
};

/// Float32 [rows, cols], row-major. `stride`: elements from row to row.
struct F32Matrix {
  float* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;
};

/// Activations as FP8 products read them (model.md 8.2): e4m3 [rows, cols], rows packed (stride = cols, cols a multiple of
/// 128), and one float32 scale per row and 128 columns: scales[group * scale_stride + row]. scale_stride is a multiple of 4
/// and >= rows; data and scales start on 128 bytes. Value = e4m3 * scale.
struct Fp8Rows {
  uint8_t* data = nullptr;
  float* scales = nullptr;
  int64_t rows = 0, cols = 0, scale_stride = 0;
};

/// A weight W [n, k] of y = x W^T: e4m3, rows packed, k a multiple of 128; scales [ceil(n / 128)][k / 128] float32, the
/// multiplier of each 128 x 128 block. `count` of them lie one behind the other (experts): data at e * n * k, scales at
/// e * ceil(n / 128) * (k / 128). data starts on 128 bytes.
struct Fp8Weight {
  const uint8_t* data = nullptr;
  const float* scales = nullptr;
  int64_t n = 0, k = 0, count = 1;
};

/// A weight W [n, k] of y = x W^T in BF16, rows packed; `count` as above.
struct Bf16Weight {
  const Bf16* data = nullptr;
  int64_t n = 0, k = 0, count = 1;
};

/// A run of rows of one expert, in the permuted order: rows [row_begin, row_begin + rows), rows <= the list's tile_rows.
struct alignas(16) ExpertTile {
  int32_t expert = 0, row_begin = 0, rows = 0, unused = 0;
};

/// The tiles of a grouped product, written by the device (moe.h). `tiles` and `count` are device memory.
struct ExpertTiles {
  const ExpertTile* tiles = nullptr;  ///< [max_tiles]
  const int32_t* count = nullptr;     ///< how many of them are used in this step
  int32_t max_tiles = 0;
  int32_t tile_rows = 0;              ///< 8, 16, 32, 64, 128 or 256: grouped_tile_rows() chooses
};

/// First rows of experts lie on multiples of this in the permuted order.
inline constexpr int kExpertRowAlign = 8;

/// The experts that a batch of at most kHitRows rows goes to, each of them once, lowest first: the whole batch is one tile
/// of tokens, of which an expert takes all and uses those with a weight. No row is moved. Device memory, written by
/// route_hits() (moe.h).
inline constexpr int kHitRows = 8;
struct ExpertHits {
  ExpertTile* tiles = nullptr;  ///< [max_hits] of hit h: its expert, row_begin kHitRows * h, all rows of the batch
  int32_t* count = nullptr;     ///< how many are used in this step
  float* weights = nullptr;     ///< [max_hits][kHitRows] of each row at the expert; 0: the row does not go there
  int32_t max_hits = 0, rows = 0;
};

enum class KvFormat { kBf16, kFp8 };

/// One layer's pages. kBf16: a row is 576 BF16 (1152 bytes). kFp8: a row is 656 bytes: 512 e4m3, 4 float32 scales (one per
/// 128 latents, model.md 4.4), 64 BF16. Row of token t of a sequence: block_table[t / 64] * 64 + t % 64.
struct KvPages {
  void* data = nullptr;
  KvFormat format = KvFormat::kBf16;
  int64_t num_blocks = 0;
  int64_t row_bytes() const { return format == KvFormat::kBf16 ? kCacheRow * 2 : 656; }
};

/// Rows of one sequence that attend in the absorbed form: query i (0 <= i < rows) sees cache rows [0, start + i].
/// Written by the device. rows 0: nothing to do (padding).
struct QueryGroup {
  int32_t slot = 0;       ///< row of the block tables
  int32_t row_begin = 0;  ///< first row in the batch
  int32_t rows = 0;       ///< <= kMaxGroupRows
  int32_t start = 0;      ///< position of the first row
};
inline constexpr int kMaxGroupRows = 4;

/// Rows of one sequence that attend in the expanded form to keys that lie unpaged in a buffer. Known to the host.
struct PrefillSpan {
  int32_t row_begin = 0, rows = 0;   ///< query rows in the batch
  int32_t start = 0;                 ///< position of the first query row
  int32_t key_begin = 0, keys = 0;   ///< rows of the key buffer
  int32_t key_start = 0;             ///< position of the first key; query at position p sees keys at positions <= p
};

}  // namespace dsv3::cuda
