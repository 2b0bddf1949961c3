// Row-wise operations: norms, quantisation, activation, rotation, embedding, copies. Float32 inside, sums in a fixed order.
// rows may be 0. Buffers may be padded rows of a decode graph: every row is computed whatever it holds.
#pragma once

#include "../common/types.h"
#include "dsv3/base/status.h"

namespace dsv3::cuda {

/// residual += delta (unless delta.data is null), in float32; h = gain * residual / sqrt(mean(residual^2) + eps), one rounding
/// to BF16: `out` (unless null), `quantised` (unless its data is null; from the unrounded values). gain [cols].
Status add_rms_norm(const F32Matrix& residual, const Bf16Matrix& delta, const float* gain, float eps, const Bf16Matrix& out,
                    const Fp8Rows& quantised, bool ue8m0, Stream stream);
/// The same of BF16 rows, without a residual; `out` may be x.
Status rms_norm(const Bf16Matrix& x, const float* gain, float eps, const Bf16Matrix& out, const Fp8Rows& quantised, bool ue8m0, Stream stream);

/// model.md 8.2: per row and 128 columns a = max(|x|, 1e-4), s = a / 448 (ue8m0: 2^ceil(log2 s)), e4m3(x / s).
Status quantise(const Bf16Matrix& x, const Fp8Rows& out, bool ue8m0, Stream stream);
/// silu(gate_up[:, :width]) * gate_up[:, width:]; out or quantised may be null.
Status silu_mul(const Bf16Matrix& gate_up, const Bf16Matrix& out, const Fp8Rows& quantised, bool ue8m0, Stream stream);

/// out[r] = table[tokens[r] - first_id], zeros where the id is not in [first_id, first_id + table.rows).
Status embed(const int32_t* tokens, const Bf16Matrix& table, int64_t first_id, const F32Matrix& out, Stream stream);
Status embed(const int32_t* tokens, const Bf16Matrix& table, int64_t first_id, const Bf16Matrix& out, Stream stream);
/// out[i] = x[rows_wanted[i]], i < out.rows; rows_wanted: device; -1 gives zeros. float32 is rounded to BF16.
Status gather_rows(const F32Matrix& x, const int32_t* rows_wanted, const Bf16Matrix& out, Stream stream);
Status gather_rows(const Bf16Matrix& x, const int32_t* rows_wanted, const Bf16Matrix& out, Stream stream);
Status zero_rows(const Bf16Matrix& x, Stream stream);
Status add_rows(const Bf16Matrix& a, const Bf16Matrix& b, Stream stream);   ///< a += b
Status zero_floats(float* x, int64_t count, Stream stream);

struct RopeAndCache {
  Bf16Matrix q;                        ///< [rows, heads * 192]; the last 64 of each head are turned in place (model.md 5.1)
  Bf16* absorbed_q = nullptr;          ///< [rows, heads, 576] or null: gets each head's turned 64 at + 512
  Bf16Matrix kv_a;                     ///< [rows, 576] (strided)
  const float* latent_gain = nullptr;  ///< [512]
  float eps = 0;
  const double* frequencies = nullptr; ///< device, [32], radians per position; angle = position * f in double, cos and sin to float32
  float cos_factor = 1;
  const int32_t* positions = nullptr;   ///< [rows]; < 0: padding, nothing is cached
  const int64_t* cache_rows = nullptr;  ///< [rows] row in the layer's pages
  int32_t heads = 0;
  KvPages pages;
};
/// Normalises the latent, turns k_pe and every q_pe by position, writes the cache rows (FP8: scale = amax / 448 per 128 latents, amax >= 1e-4).
Status rope_and_cache(const RopeAndCache& p, Stream stream);
/// What it demands; for launchers that do the same beside their own work.
Status check_rope(const RopeAndCache& p);

}  // namespace dsv3::cuda
