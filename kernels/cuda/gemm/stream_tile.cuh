// What the dense and the grouped streaming kernel share. Operands are swapped: 64 weight rows are the M of wgmma, the
// tokens its N, so that few tokens cost few registers and the ring of stages can be deep.
//
// A block: one or two consumer warpgroups (each with 64 of the weight rows, or, with 64 rows and 128 tokens, with 64 of
// the tokens) and, last, a producer warp. A stage of the ring is 128 of K:
//   weights [kRows][128] e4m3, tokens [kTokens][128] e4m3 (both swizzled by 128 bytes), the tokens' scales [kTokens]
//   float.
#pragma once

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "../common/ring.cuh"
#include "../common/tensor_map.h"
#include "../common/wgmma.cuh"

namespace dsv3::cuda::stream {

inline constexpr int kMaxKBlocks = 256;  // of one split: K <= 32768

template <int kTokens, int kRowsOfBlock = kTokens >= 64 ? 128 : 64>
struct Shape {
  static constexpr int kRows = kRowsOfBlock;
  static constexpr bool kShareTokens =
      kRows == 64 && kTokens == 128;  // both warpgroups take all rows and half of the tokens
  static constexpr int kWarpgroups = kRows == 128 || kShareTokens ? 2 : 1;
  static constexpr int kGroupTokens = kShareTokens ? kTokens / 2 : kTokens;  // of a warpgroup
  static constexpr int kConsumers = 128 * kWarpgroups;                       // threads
  static constexpr int kThreads = kConsumers + 32;
  /// Stages whose products are under way together: the way from a stage's arrival to its promotion takes longer than
  /// the product.
  static constexpr int kDepth = kGroupTokens <= 32 ? 4 : kWarpgroups == 1 ? 2 : 1;
  // Two blocks (or one and the next kernel's) share an SM, so that one loads while the other starts or ends.
  static constexpr int kBlocksPerSm = kTokens <= 64 || kRows == 64 ? 2 : 1;

  static constexpr int kWeightBytes = kRows * 128;
  static constexpr int kTokenBytes = kTokens * 128;
  static constexpr int kScaleBytes = kTokens * 4;
  static constexpr int kScaleSlot = kScaleBytes < 128 ? 128 : kScaleBytes;  // copies land on 128 bytes
  static constexpr int kCopyBytes = kWeightBytes + kTokenBytes + kScaleBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes + kScaleSlot;

  // Grouped epilogue: each warp turns 16 weight rows x kPassTokens tokens at a time. The pitch in floats: 2 * 20 = 8
  // mod 32 spreads a fragment over all banks, 80 bytes keep 16-byte alignment.
  static constexpr int kPassTokens = kTokens < 16 ? kTokens : 16;
  static constexpr int kWarpPitch = 20;
  static constexpr int kWarpStaging = kPassTokens * kWarpPitch * 4;
  static constexpr int kStaging = kConsumers / 32 * kWarpStaging;
  // Epilogue of one split, or of more than 32 tokens: the whole tile as [token][row] floats over the spent ring; 2 * pitch = 8 mod 32 here, too.
  static constexpr int kTilePitch = kRows + 4;

  // Epilogue of up to 32 tokens: sums that blocks of a cluster send each other (stream_split.cuh). Rounding a block's
  // tokens up to an even number adds 8 at most.
  static constexpr bool kSends = kRows == 64 && kTokens <= 32;
  static constexpr int kInbox = kSends ? (kTokens + 8) * kRows * 4 : 0;

  static constexpr int kFixedBytes = 1024 /* alignment */ + kMaxKBlocks * 4 + 256 /* barriers */ + kStaging + kInbox;
  static constexpr int kBudget = kBlocksPerSm == 2 ? 115712 : 232448;  // (228 KiB - 1 KiB a block) / blocks; 227 KiB
  static constexpr int kStages = (kBudget - kFixedBytes) / kStageBytes;
  static_assert(kStages >= 4 && kStages * 16 + 8 <= 256);
  static_assert(kTokens * kTilePitch * 4 <= kStages * (kWeightBytes + kTokenBytes));

  static constexpr int kTokensAt = kStages * kWeightBytes;
  static constexpr int kScalesAt = kTokensAt + kStages * kTokenBytes;
  static constexpr int kStagingAt = kScalesAt + kStages * kScaleSlot;
  static constexpr int kInboxAt = kStagingAt + kStaging;
  static constexpr int kWeightScalesAt = kInboxAt + kInbox;
  static constexpr int kBarriersAt = kWeightScalesAt + kMaxKBlocks * 4;
  static constexpr int kSharedBytes = 1024 + kBarriersAt + 256;
  static_assert(kSharedBytes <= kBudget && kStagingAt % 16 == 0 && kBarriersAt % 8 == 0);
};

/// A block's shared memory by name.
template <int kTokens, int kRows = Shape<kTokens>::kRows>
struct Memory {
  using S = Shape<kTokens, kRows>;
  uint8_t* base;
  __device__ explicit Memory(uint8_t* raw) : base(raw + ((1024 - (shared_address(raw) & 1023)) & 1023)) {}
  __device__ uint8_t* weights(int stage) const { return base + stage * S::kWeightBytes; }
  __device__ uint8_t* tokens(int stage) const { return base + S::kTokensAt + stage * S::kTokenBytes; }
  __device__ float* scales(int stage) const {
    return reinterpret_cast<float*>(base + S::kScalesAt + stage * S::kScaleSlot);
  }
  __device__ float* staging(int warp) const {
    return reinterpret_cast<float*>(base + S::kStagingAt + warp * S::kWarpStaging);
  }
  __device__ float* inbox() const { return reinterpret_cast<float*>(base + S::kInboxAt); }
  __device__ float* weight_scales() const { return reinterpret_cast<float*>(base + S::kWeightScalesAt); }
  __device__ uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(base + S::kBarriersAt) + stage; }
  __device__ uint64_t* empty(int stage) const { return full(S::kStages + stage); }
  __device__ uint64_t* inbox_full() const { return full(2 * S::kStages); }

  /// Where the loading thread puts a stage: shared addresses that it has made ready once.
  struct Slots {
    uint32_t base;
    __device__ uint32_t weights(int stage) const { return base + stage * S::kWeightBytes; }
    __device__ uint32_t tokens(int stage) const { return base + S::kTokensAt + stage * S::kTokenBytes; }
    __device__ uint32_t scales(int stage) const { return base + S::kScalesAt + stage * S::kScaleSlot; }
    __device__ uint32_t full(int stage) const { return base + S::kBarriersAt + 8 * stage; }
    __device__ uint32_t empty(int stage) const { return full(S::kStages + stage); }
  };
  __device__ Slots slots() const { return {fixed_shared_address(base)}; }

  /// By all threads. full: one arrival (the producer's, with the bytes); empty: one of each consumer warp.
  __device__ void init_barriers() const {
    if (threadIdx.x == 0) {
      for (int s = 0; s < S::kStages; ++s) {
        barrier_init(full(s), 1);
        barrier_init(empty(s), S::kConsumers / 32);
      }
      fence_barrier_init();
    }
    __syncthreads();
  }
};

/// part[row][token] = the product of a stage, for the warpgroup's 64 rows, under way; fragment as in wgmma.cuh: rows
/// are weight rows, columns tokens.
template <int kTokens>
__device__ inline void start_product(float (&part)[kTokens / 2], const uint8_t* weights, const uint8_t* tokens) {
  const uint64_t a = wgmma_descriptor_128(shared_address(weights));
  const uint64_t b = wgmma_descriptor_128(shared_address(tokens));
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) wgmma_pin(part[i]);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) wgmma_e4m3<kTokens>(part, a + 2 * k, b + 2 * k, k > 0 ? 1 : 0);  // 32 bytes along K
  wgmma_commit();
}

/// sum[row][token] += weight_scale * token scale * part. The same order of operations for every kTokens: a token's bits
/// do not depend on it.
template <int kTokens>
__device__ inline void promote(float (&sum)[kTokens / 2], float (&part)[kTokens / 2], const float* token_scales,
                               float weight_scale) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) wgmma_pin(part[i]);
  const float* mine = token_scales + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    const float2 scale = *reinterpret_cast<const float2*>(mine + 8 * i);
    const float first = __fmul_rn(weight_scale, scale.x), second = __fmul_rn(weight_scale, scale.y);
    sum[4 * i] = __fmaf_rn(part[4 * i], first, sum[4 * i]);
    sum[4 * i + 1] = __fmaf_rn(part[4 * i + 1], second, sum[4 * i + 1]);
    sum[4 * i + 2] = __fmaf_rn(part[4 * i + 2], first, sum[4 * i + 2]);
    sum[4 * i + 3] = __fmaf_rn(part[4 * i + 3], second, sum[4 * i + 3]);
  }
}

/// Where a consumer warpgroup works within a block's tile, and its accumulators. `part` is scratch kept over all
/// stages.
template <class S>
struct Consumer {
  int row = 0, token = 0;  ///< its first of the block's weight rows and tokens
  float sum[S::kGroupTokens / 2] = {};
  float part[S::kDepth][S::kGroupTokens / 2] = {};

  /// Adds kSteps stages, whose products are under way together, and releases those that are filled again: `left` stages
  /// are to come, these included. `weight_scale(d, stage)`: of the d-th of them.
  template <int kSteps, class M, class WeightScale>
  __device__ __forceinline__ void add(const M& memory, Cursor<S::kStages>& at, int left, WeightScale&& weight_scale) {
    int stage[kSteps];
    float scale[kSteps];
#pragma unroll
    for (int d = 0; d < kSteps; ++d, at.advance()) {
      stage[d] = at.stage;
      barrier_wait(memory.full(at.stage), at.parity);
      scale[d] = weight_scale(d, at.stage);
      start_product<S::kGroupTokens>(part[d], memory.weights(at.stage) + row * 128,
                                     memory.tokens(at.stage) + token * 128);
    }
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      wgmma_wait_but(kSteps - 1 - d);
      promote<S::kGroupTokens>(sum, part[d], memory.scales(stage[d]) + token, scale[d]);
      if (left - d <= S::kStages) continue;
      fence_async_proxy();  // the scales have been read: the copy engine may write there
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(memory.empty(stage[d]));
    }
  }
  /// The same for `stages` of them. Unless there are `more` to come, the last kStages are not released.
  template <class M, class WeightScale>
  __device__ __forceinline__ void add_all(const M& memory, Cursor<S::kStages>& at, int stages, bool more,
                                          WeightScale&& weight_scale) {
    const int left = more ? stages + S::kStages : stages;
    int i = 0;
    for (; i + S::kDepth <= stages; i += S::kDepth) {
      add<S::kDepth>(memory, at, left - i, [&](int d, int stage) { return weight_scale(i + d, stage); });
    }
    if constexpr (S::kDepth > 1) {
      for (; i < stages; ++i) add<1>(memory, at, left - i, [&](int, int stage) { return weight_scale(i, stage); });
    }
  }
};

/// Four floats as four BF16 at `to` (on 8 bytes).
__device__ inline void store_bf16x4(__nv_bfloat16* to, const float4& a) {
  *reinterpret_cast<uint2*>(to) = {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w)};
}
/// Eight floats as eight BF16 at `to` (on 16 bytes).
__device__ inline void store_bf16x8(__nv_bfloat16* to, const float4& a, const float4& b) {
  *reinterpret_cast<uint4*>(to) = {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)};
}

/// The three tensor maps of a product.
struct Maps {
  CUtensorMap weights, tokens, scales;
};
/// By one thread, before the first copy.
__device__ inline void prefetch(const Maps& maps) {
  prefetch_tensor_map(&maps.weights);
  prefetch_tensor_map(&maps.tokens);
  prefetch_tensor_map(&maps.scales);
}
/// Boxes: rows of W, tokens.
inline Status make_maps(const Fp8Rows& x, const Fp8Weight& w, int weight_box, int token_box, Maps* maps) {
  DSV3_TRY(map_weights(w, weight_box, &maps->weights));
  DSV3_TRY(map_rows(x, token_box, &maps->tokens));
  return map_row_scales(x, token_box, &maps->scales);
}

/// What both launchers demand; empty when all is well.
inline const char* fault(const Fp8Rows& x, const Fp8Weight& w, const Bf16Matrix& y) {
  const auto aligned = [](const void* p, uintptr_t bytes) {
    return p != nullptr && reinterpret_cast<uintptr_t>(p) % bytes == 0;
  };
  if (w.k <= 0 || w.k % 128 != 0 || w.k > 128 * kMaxKBlocks) return "k is not a multiple of 128 in 128..32768";
  if (w.n <= 0 || w.n % 8 != 0) return "n is not a positive multiple of 8";
  if (w.n * w.count > INT32_MAX || w.count < 1) return "count of weight rows out of range";
  if (x.cols != w.k) return "x and w differ in k";
  if (y.cols != w.n || y.stride < w.n || y.stride % 8 != 0) return "y's columns or stride do not fit";
  if (x.rows > INT32_MAX) return "too many rows";
  if (x.scale_stride % 4 != 0 || x.scale_stride < x.rows) return "scale_stride is not a multiple of 4, or below rows";
  if (!aligned(x.data, 16) || !aligned(x.scales, 16) || !aligned(w.data, 16) || !aligned(y.data, 16))
    return "a pointer is not on 16 bytes";
  if (w.scales == nullptr) return "no weight scales";
  return nullptr;
}

}  // namespace dsv3::cuda::stream
