// A launch of its own for rope.cuh; few decode rows are turned beside absorb_queries().
#include "rope.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void rope_kernel(const __grid_constant__ RopeAndCache p) {
  launch_dependents();
  rope::turn_row<kThreads>(p, blockIdx.x);
}

}  // namespace

Status check_rope(const RopeAndCache& p) {
  constexpr const char* kName = "rope_and_cache";
  const int64_t rows = p.kv_a.rows;
  if (p.heads < 0) return wrong(kName, "heads is negative");
  DSV3_TRY(check_matrix(kName, "kv_a", p.kv_a, rows, kCacheRow));
  if (p.heads > 0) DSV3_TRY(check_matrix(kName, "q", p.q, rows, int64_t{p.heads} * kQueryHead));
  if (p.latent_gain == nullptr || !aligned(p.latent_gain)) return wrong(kName, "latent_gain is null or not on 16 bytes");
  if (p.frequencies == nullptr || p.positions == nullptr || p.cache_rows == nullptr) return wrong(kName, "a list is null");
  if (p.pages.data == nullptr || !aligned(p.pages.data)) return wrong(kName, "pages are null or not on 16 bytes");
  if (!aligned(p.absorbed_q)) return wrong(kName, "absorbed_q is not on 16 bytes");
  return {};
}

Status rope_and_cache(const RopeAndCache& p, Stream stream) {
  if (p.kv_a.rows == 0) return {};
  DSV3_TRY(check_rope(p));
  return launch("rope_and_cache", rope_kernel, {dim3(static_cast<unsigned>(p.kv_a.rows)), dim3(kThreads)}, stream, p);
}

}  // namespace dsv3::cuda
