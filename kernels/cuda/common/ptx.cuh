// Named wrappers of the PTX that our kernels use (PTX ISA 9.0, sm_90a). No kernel holds inline PTX of its own.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace dsv3::cuda {

// ---- addresses, lanes ----------------------------------------------------------------------------------------

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// The same as a value that the compiler does not work out again at every use (which takes a loop of one thread longer
/// than its copies).
__device__ inline uint32_t fixed_shared_address(const void* p) {
  uint32_t address;
  asm volatile("mov.b32 %0, %1;" : "=r"(address) : "r"(shared_address(p)));
  return address;
}

/// True in one thread of a converged warp.
__device__ inline bool elect_one() {
  uint32_t elected = 0;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}\n" : "=r"(elected));
  return elected != 0;
}

// ---- programmatic dependent launch -----------------------------------------------------------------------------

/// Lets the next kernel of the stream start as soon as its blocks fit.
__device__ inline void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
/// Returns when the kernel before has completed and its writes are visible. Every kernel calls it in every thread that
/// touches anything but constants, before it touches it. What an older kernel wrote may be read earlier only if the kernel
/// ahead lets its successor start after its own wait, and both say so.
__device__ inline void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// Reads a kernel's parameters (a __grid_constant__), line by line, for its block: each line's first reading takes a good part of a
/// microsecond, which is for free before the wait.
template <class Params>
__device__ inline void read_parameters(const Params& params) {
  uint32_t words = 0;
#pragma unroll
  for (size_t at = 0; at < sizeof(Params); at += 64) {
    words |= *reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(&params) + at);
  }
  // An instruction that hardly ever runs, and does nothing, so that the compiler cannot leave the reading out.
  asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, %0, 0;\n@p nanosleep.u32 0;\n}\n" ::"r"(words));
}
template <class Params>
__device__ inline void wait_for_previous(const Params& params) {
  read_parameters(params);
  wait_for_previous();
}

// ---- barriers in shared memory ----------------------------------------------------------------------------------

__device__ inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// Makes barrier_init visible to the copy engine and the cluster; then __syncthreads() (or a cluster barrier).
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// One arrival that also announces `bytes` of copies. Barriers and places of copies: pointers, or shared addresses.
__device__ inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  barrier_expect(shared_address(barrier), bytes);
}
__device__ inline bool barrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}\n"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done != 0;
}
/// Waits until the phase of this parity has completed. A fresh barrier has completed phase 1 (producers start with 1).
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  while (!barrier_try_wait(barrier, parity)) {
  }
}
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  barrier_wait(shared_address(barrier), parity);
}

/// bar.sync among `threads` threads (a multiple of 32) on named barrier `id` (1..15; 0 is __syncthreads).
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- registers of a warpgroup --------------------------------------------------------------------------------------

template <int kRegisters>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- copies ---------------------------------------------------------------------------------------------------------

/// Orders ordinary shared-memory writes before reads by the tensor cores or the copy engine (each writer calls it), and
/// ordinary reads before the copy engine's writes: a stage whose scales have just been read is released after it.
/// Without, under load, a refill was measured to overtake reads that had been issued.
__device__ inline void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// L2 hints of createpolicy.fractional (the encodings that CUDA's own headers pass for whole-fraction policies).
inline constexpr uint64_t kEvictFirst = 0x12F0000000000000ull;
inline constexpr uint64_t kEvictNormal = 0x1000000000000000ull;

__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/// Box at (x = column, y = row) of a 2-d map into shared memory, counted on `barrier`.
__device__ inline void tma_load_2d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y,
                                   uint64_t hint = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, "
      "%4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "l"(hint)
      : "memory");
}
__device__ inline void tma_load_2d(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y,
                                   uint64_t hint = kEvictNormal) {
  tma_load_2d(shared_address(to), map, shared_address(barrier), x, y, hint);
}
/// The same box to the same place in shared memory of every block of `mask` (bits: ranks in the cluster), counted on
/// the barrier at the place of `barrier` in each of them.
__device__ inline void tma_load_2d_multicast(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y,
                                             uint16_t mask, uint64_t hint = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(mask), "l"(hint)
      : "memory");
}
/// 16 bytes, asynchronously; zeros when !valid.
__device__ inline void cp_async_16(void* to, const void* from, bool valid = true) {
  const uint32_t bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- matrix fragments ----------------------------------------------------------------------------------------------

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
__device__ inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
__device__ inline void stmatrix_x4(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}
__device__ inline void stmatrix_x4_transposed(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
/// d[16x8] += a[16x16] b[8x16]^T in BF16, float32 sums.
__device__ inline void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// Two floats as a BF16 pair, `low` in the low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// FP16; beyond 65504 infinite.
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// 2^x, to 2 units in the last place; results below 2^-126 are 0, and so is 2^-inf.
__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- clusters
// -----------------------------------------------------------------------------------------------------------

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// The same without publishing writes: says only that this thread has the results of its earlier reads, and, after
/// fence_barrier_init(), that its barriers may be used.
__device__ inline void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Address in the cluster's window of the same shared variable of block `rank`.
__device__ inline uint32_t cluster_address(const void* p, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}

/// Arrives on a barrier of any block of the cluster (cluster_address() names it). Says that this thread has read its
/// own shared memory; it publishes no writes to other blocks (.release.cluster would, at the price of a fence of the
/// whole GPU).
__device__ inline void barrier_arrive_cluster(uint32_t cluster_barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_barrier) : "memory");
}

/// Stores four bytes at an address of the cluster's window and counts them on a barrier of the same block, whose waiters see
/// them. Nobody needs to wait for the thread or the block that stored.
__device__ inline void store_cluster_async(uint32_t address, float value, uint32_t cluster_barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address),
               "r"(__float_as_uint(value)), "r"(cluster_barrier)
               : "memory");
}

__device__ inline void store_cluster_async(uint32_t address, const float2& value, uint32_t cluster_barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(address),
               "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)), "r"(cluster_barrier)
               : "memory");
}
__device__ inline void store_cluster_async(uint32_t address, const float4& value, uint32_t cluster_barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)), "r"(__float_as_uint(value.z)),
      "r"(__float_as_uint(value.w)), "r"(cluster_barrier)
      : "memory");
}

/// 16 bytes at an address of the cluster's window (cluster_address(), plus bytes).
__device__ inline float4 load_cluster_f32x4(uint32_t address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

}  // namespace dsv3::cuda
