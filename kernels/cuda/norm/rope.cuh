// Before attention: the latent's norm, the rotation of k_pe and of every head's q_pe, and the row of the KV cache. A block a row.
#pragma once

#include "norm.h"
#include "rows.cuh"

namespace dsv3::cuda::rope {

inline constexpr int kBatch = 4;                          // vectors of q that a thread has in flight: 128 heads in one go
inline constexpr int kLatentThreads = kLatent / kVector;  // 64: two warps
inline constexpr int kHeadVectors = kRope / kVector;      // 8
inline constexpr int kPairs = kRope / 2;                  // 32: one warp makes the cosines

/// cos and sin of position * frequency. Whole turns go in double (163840 radians keep 11 digits after it), the rest is small
/// enough for float32; its rounding error is put back to first order.
__device__ inline float2 cos_sin(double angle) {
  constexpr double kTurnsPerRadian = 0.15915494309189533577, kPi = 3.14159265358979323846;
  const double turns = angle * kTurnsPerRadian;
  const double half_turns = 2.0 * (turns - rint(turns));  // [-1, 1]
  const float high = static_cast<float>(half_turns), low = static_cast<float>((half_turns - high) * kPi);
  float s, c;
  sincospif(high, &s, &c);
  return {fmaf(-s, low, c), fmaf(c, low, s)};
}

/// Four interleaved pairs (model.md 5.1).
__device__ inline uint4 turn(const uint4& raw, const float2* pairs) {
  float v[8];
  unpack_bf16(raw, v);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = v[2 * i], b = v[2 * i + 1];
    const float2 t = pairs[i];
    v[2 * i] = a * t.x - b * t.y;
    v[2 * i + 1] = a * t.y + b * t.x;
  }
  return pack_bf16_vector(v);
}

/// Row `row`, by kThreads threads, a whole block. Waits for the kernel ahead.
template <int kThreads>
__device__ inline void turn_row(const RopeAndCache& p, int64_t row) {
  static_assert(kThreads >= kCacheRow / kVector + kPairs);
  __shared__ float2 rotation[kPairs];
  __shared__ float partial[kLatentThreads / 32];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  float gain[8] = {};
  if (thread < kLatentThreads) load_floats(p.latent_gain + thread * kVector, gain);
  const int pair = thread - (kThreads - kPairs);  // the last warp
  const double frequency = pair >= 0 ? p.frequencies[pair] : 0.0;
  wait_for_previous(p);

  const int32_t position = p.positions[row];
  const int64_t cache_row = p.cache_rows[row];
  const bool cached = position >= 0 && cache_row >= 0;
  Bf16* q = p.q.data + row * p.q.stride + kNope;
  const int q_vectors = p.heads * kHeadVectors;
  uint4 raw[kBatch];
#pragma unroll
  for (int j = 0; j < kBatch; ++j) {
    const int i = thread + j * kThreads;
    if (i < q_vectors) raw[j] = load_vector(q + i / kHeadVectors * kQueryHead + i % kHeadVectors * kVector);
  }
  const Bf16* kv = p.kv_a.data + row * p.kv_a.stride;
  uint4 key{};  // threads 0..63: the latent; 64..71: k_pe
  if (thread < kCacheRow / kVector) key = load_vector(kv + thread * kVector);
  float latent[8];
  unpack_bf16(key, latent);
  if (warp < kLatentThreads / 32) {
    const float sum = warp_sum(sum_of_squares(latent));
    if (thread % 32 == 0) partial[warp] = sum;
  }
  if (pair >= 0) {
    const float2 t = cos_sin(static_cast<double>(position) * frequency);
    rotation[pair] = {t.x * p.cos_factor, t.y * p.cos_factor};
  }
  __syncthreads();

  // The row of the cache.
  char* to = static_cast<char*>(p.pages.data) + cache_row * (p.pages.format == KvFormat::kBf16 ? kCacheRow * 2 : 656);
  if (cached && warp < kLatentThreads / 32) {
    const float inverse = 1.0f / sqrtf((partial[0] + partial[1]) / kLatent + p.eps);
#pragma unroll
    for (int j = 0; j < 8; ++j) latent[j] = latent[j] * inverse * gain[j];
    if (p.pages.format == KvFormat::kBf16) {
      store_vector(reinterpret_cast<Bf16*>(to) + thread * kVector, latent);
    } else {
      const float scale = group_scale(latent, false);
      *reinterpret_cast<uint2*>(to + thread * kVector) = to_e4m3(latent, scale);
      if (thread % kGroupVectors == 0) reinterpret_cast<float*>(to + kLatent)[thread / kGroupVectors] = scale;
    }
  }
  const int k_vector = thread - kLatentThreads;
  if (cached && k_vector >= 0 && k_vector < kHeadVectors) {
    char* k_pe = to + (p.pages.format == KvFormat::kBf16 ? kLatent * 2 : kLatent + 4 * 4);
    reinterpret_cast<uint4*>(k_pe)[k_vector] = turn(key, rotation + k_vector * 4);
  }

  // Every head's q_pe.
  for (int begin = 0; begin < q_vectors; begin += kBatch * kThreads) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = begin + thread + j * kThreads;
      if (i >= q_vectors) break;
      const int head = i / kHeadVectors, part = i % kHeadVectors;
      Bf16* at = q + head * kQueryHead + part * kVector;
      if (begin > 0) raw[j] = load_vector(at);
      const uint4 turned = turn(raw[j], rotation + part * 4);
      *reinterpret_cast<uint4*>(at) = turned;
      if (p.absorbed_q == nullptr) continue;
      *reinterpret_cast<uint4*>(p.absorbed_q + (row * p.heads + head) * kCacheRow + kLatent + part * kVector) = turned;
    }
  }
}

}  // namespace dsv3::cuda::rope
