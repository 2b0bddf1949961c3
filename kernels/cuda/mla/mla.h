// Multi-head latent attention over the paged cache (model.md 4). Launchers check and enqueue; nothing is allocated.
#pragma once

#include <span>

#include "../common/types.h"
#include "dsv3/base/status.h"

namespace dsv3::cuda {

/// Decode: queries in the latent space against cached rows (absorbed form).
struct MlaDecode {
  const Bf16* q = nullptr;            ///< [rows, heads, 576]: 512 latent, 64 turned; packed
  Bf16* out = nullptr;                ///< [rows, heads, 512]: sum of softmax(scale * q k) times latents; packed
  int32_t heads = 0;                  ///< of this rank: any count <= 128
  float softmax_scale = 0;
  KvPages pages;
  const int32_t* block_tables = nullptr;  ///< [slots, max_blocks]
  int32_t max_blocks = 0;                 ///< row length of block_tables
  const QueryGroup* groups = nullptr;     ///< device, [num_groups], on 16 bytes; group with rows 0: its rows of `out` may be left alone
  int32_t num_groups = 0;
  int32_t max_group_rows = 1;             ///< upper bound of QueryGroup::rows here, <= kMaxGroupRows
  bool deterministic = false;             ///< splits at fixed positions: a row's bits do not depend on the batch
  /// The kernel ahead lets its successor start after its own wait only, and writes no cached row before a group's `start`, nor
  /// tables, groups or schedule: these may be read before it has ended. BF16 cache.
  bool reads_early = false;
};
/// Scratch: outputs of pieces in FP16, with each row's maximum and sum. The schedule of a step is worked out on the device from `groups`
/// (once a step; layers reuse it), so a captured graph serves any lengths.
struct MlaWorkspace {
  void* data = nullptr;
  int64_t bytes = 0;
};
/// Enough for any call with at most max_groups groups of max_group_rows rows.
int64_t mla_decode_workspace_bytes(int64_t max_groups, int64_t max_group_rows, int64_t heads);
/// Once a step, before the first mla_decode(): writes the schedule into the workspace.
Status mla_decode_schedule(const MlaDecode& p, const MlaWorkspace& ws, Stream stream);
Status mla_decode(const MlaDecode& p, const MlaWorkspace& ws, Stream stream);
/// The same, but groups that several parts worked on stay in pieces, which expand_values() joins (absorb.h): their rows of `out` are
/// left alone. Not deterministic.
struct DecodePieces;
Status mla_decode_pieces(const MlaDecode& p, const MlaWorkspace& ws, DecodePieces* pieces, Stream stream);
/// The readable rung: one block per row and head, no splits, float32. Any shape.
Status simple_mla_decode(const MlaDecode& p, Stream stream);

/// Prefill: keys and values per head (expanded form), causal by position.
struct MlaPrefill {
  const Bf16* q = nullptr;      ///< row r, head h at q + r * q_stride + h * 192: 128 plain, 64 turned
  int64_t q_stride = 0;
  const Bf16* kv = nullptr;     ///< key row t, head h at kv + t * kv_stride + h * 256: 128 key, 128 value
  int64_t kv_stride = 0;
  const Bf16* k_rope = nullptr; ///< [key rows, 64] turned, shared by the heads; packed
  Bf16* out = nullptr;          ///< row r, head h at out + r * out_stride + h * 128
  int64_t out_stride = 0;
  float* lse = nullptr;         ///< [rows, heads] natural-log sum of exp(scale * score) over all keys so far; may be null if !merge
  int32_t heads = 0;
  float softmax_scale = 0;
  std::span<const PrefillSpan> spans;   ///< host
  bool merge = false;           ///< out and lse hold the result over earlier keys: combine with it (long prefixes come in parts)
};
Status mla_prefill(const MlaPrefill& p, Stream stream);
Status simple_mla_prefill(const MlaPrefill& p, Stream stream);

/// latent[i, 512], rope[i, 64] (BF16, packed) = cache row of position first + i of the slot, i < count.
Status gather_cache(const KvPages& pages, const int32_t* block_tables, int32_t max_blocks, int32_t slot, int32_t first, int32_t count,
                    Bf16* latent, Bf16* rope, Stream stream);

}  // namespace dsv3::cuda
