// Cached rows of one sequence, out of its pages into packed BF16 buffers: the prefix that a prefill chunk attends to.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <string>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "mla.h"

namespace dsv3::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kFp8ScaleOffset = kLatent, kFp8RopeOffset = kLatent + 16, kFp8RowBytes = 656;  // bytes

struct GatherParams {
  const uint8_t* pages;
  const int32_t* blocks;  ///< of the slot
  int32_t first, count;
  Bf16 *latent, *rope;
};

/// One warp per row.
template <KvFormat kFormat>
__global__ void __launch_bounds__(32 * kWarps) gather_cache_kernel(const __grid_constant__ GatherParams p) {
  launch_dependents();
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (i >= p.count) return;
  const int64_t position = p.first + i;
  const int64_t row = static_cast<int64_t>(p.blocks[position / kCacheBlockTokens]) * kCacheBlockTokens + position % kCacheBlockTokens;
  auto* latent = reinterpret_cast<uint4*>(p.latent + i * kLatent);  // 64 x 16 bytes
  auto* rope = reinterpret_cast<uint4*>(p.rope + i * kRope);        // 8 x 16 bytes
  if constexpr (kFormat == KvFormat::kBf16) {
    const auto* from = reinterpret_cast<const uint4*>(p.pages + row * (kCacheRow * 2));
    latent[lane] = from[lane];
    latent[lane + 32] = from[lane + 32];
    if (lane < 8) rope[lane] = from[64 + lane];
  } else {
    const uint8_t* from = p.pages + row * kFp8RowBytes;
    const uint4 packed = reinterpret_cast<const uint4*>(from)[lane];  // columns 16 lane .. 16 lane + 15: one scale
    const float scale = reinterpret_cast<const float*>(from + kFp8ScaleOffset)[lane / 8];
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
    uint32_t values[8];
    for (int word = 0; word < 4; ++word) {
      for (int half = 0; half < 2; ++half) {
        const auto pair = static_cast<__nv_fp8x2_storage_t>(words[word] >> (16 * half));
        const float2 two = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
        values[2 * word + half] = pack_bf16(two.x * scale, two.y * scale);
      }
    }
    latent[2 * lane] = make_uint4(values[0], values[1], values[2], values[3]);
    latent[2 * lane + 1] = make_uint4(values[4], values[5], values[6], values[7]);
    if (lane < 8) rope[lane] = reinterpret_cast<const uint4*>(from + kFp8RopeOffset)[lane];
  }
}

}  // namespace

Status gather_cache(const KvPages& pages, const int32_t* block_tables, int32_t max_blocks, int32_t slot, int32_t first, int32_t count,
                    Bf16* latent, Bf16* rope, Stream stream) {
  const auto wrong = [](const std::string& what) { return Status{Code::kInternal, "gather_cache: " + what}; };
  if (count < 0 || first < 0 || slot < 0) return wrong("negative slot, position or count");
  if (count == 0) return {};
  if (pages.data == nullptr || block_tables == nullptr || latent == nullptr || rope == nullptr) return wrong("null pointer");
  for (const void* pointer : {static_cast<const void*>(pages.data), static_cast<const void*>(latent), static_cast<const void*>(rope)}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return wrong("pages, latent and rope must start on 16 bytes");
  }
  if (static_cast<int64_t>(first) + count > static_cast<int64_t>(max_blocks) * kCacheBlockTokens) {
    return wrong("positions " + std::to_string(first) + " + " + std::to_string(count) + " lie beyond a table of " +
                 std::to_string(max_blocks) + " blocks");
  }
  const int32_t* blocks = block_tables + static_cast<int64_t>(slot) * max_blocks;
  const GatherParams params{static_cast<const uint8_t*>(pages.data), blocks, first, count, latent, rope};
  const LaunchShape shape{dim3(static_cast<unsigned>((count + kWarps - 1) / kWarps)), dim3(32 * kWarps)};
  auto* kernel = pages.format == KvFormat::kBf16 ? gather_cache_kernel<KvFormat::kBf16> : gather_cache_kernel<KvFormat::kFp8>;
  return launch("gather_cache", kernel, shape, stream, params);
}

}  // namespace dsv3::cuda
