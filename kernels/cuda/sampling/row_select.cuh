// Finds an element of a row in the order best first (lowest id of equals) by how many, or how much weight, come up to it,
// without sorting the row: a histogram names the bin, the bin is narrowed until it fits in shared memory, then sorted.
#pragma once

#include "block_scan.cuh"
#include "row_logits.cuh"

namespace dsv3::cuda {

inline constexpr int kShortList = 2048;  ///< keys sorted in shared memory

struct SelectShared {
  union {
    struct {
      unsigned long long masses[kBins];
      unsigned int counts[kBins];
    };
    uint64_t keys[kShortList];
  };
  uint64_t scratch[kFinishThreads / 32];
  int32_t found, filled;
  uint64_t before_count, before_mass, key, mass;
};

/// The elements: ids [0, count) of a row, adjusted or raw, weighed relative to `best`.
struct Elements {
  const RowJob* job = nullptr;
  bool adjusted = false;
  int32_t count = 0;
  float best = 0, bin_scale = 0;  ///< scale 0: everything is in bin 0
  double inverse_temperature = 1;

  __device__ float value(int32_t id) const { return adjusted ? adjust(*job, job->logits[id], id) : job->logits[id]; }
  __device__ double exponent(float x) const { return (static_cast<double>(x) - static_cast<double>(best)) * inverse_temperature; }
  __device__ uint64_t weight(float x) const { return weight_of(exponent(x)); }
  /// body(value, id) in some order; minus infinity is left out. Rows start on 16 bytes. A thread asks for kAhead vectors at once: with a
  /// block or two on an SM, a walk is a matter of latency. The vectors move up by one so that the body is not repeated for each of them.
  template <class Body>
  __device__ void each(Body&& body) const {
    constexpr int kAhead = 4;
    const auto* const vectors = reinterpret_cast<const float4*>(job->logits);
    const int32_t whole = count / 4;
    const auto visit = [&](float raw, int32_t id) {
      const float x = adjusted ? adjust(*job, raw, id) : raw;
      if (x != -INFINITY) body(x, id);
    };
    for (int32_t first = static_cast<int32_t>(threadIdx.x); first < whole; first += kAhead * kFinishThreads) {
      float4 ahead[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int32_t at = first + j * kFinishThreads;
        ahead[j] = at < whole ? vectors[at] : float4{};
      }
#pragma unroll 1
      for (int32_t at = first; at < min(whole, first + kAhead * kFinishThreads); at += kFinishThreads) {
        visit(ahead[0].x, 4 * at);
        visit(ahead[0].y, 4 * at + 1);
        visit(ahead[0].z, 4 * at + 2);
        visit(ahead[0].w, 4 * at + 3);
#pragma unroll
        for (int j = 1; j < kAhead; ++j) ahead[j - 1] = ahead[j];
      }
    }
    const int32_t id = 4 * whole + static_cast<int32_t>(threadIdx.x);
    if (id < count) visit(job->logits[id], id);
  }
};

/// Elements of one bin with keys in [low, high]; what comes before them.
struct Range {
  int32_t bin = 0;
  uint64_t low = 0, high = kWholeRange;
  uint64_t before_count = 0, before_mass = 0, count = 0;

  __device__ bool holds(const Elements& e, float x, uint64_t key) const {
    return key >= low && key <= high && (e.bin_scale == 0.0f || bin_of(x, e.best, e.bin_scale) == bin);
  }
};

/// The target: the first element at which the running count (or weight) reaches `amount` >= 1.
struct Target {
  bool by_count = false;
  uint64_t amount = 1;
};

/// Which of kBins bins holds the target; updates range.before_* and range.count. Whole block. Two bins a thread.
template <class Counts, class Masses>
__device__ int pick_bin(const Counts* counts, const Masses* masses, const Target& target, Range& range, SelectShared& shared) {
  const int first = 2 * static_cast<int>(threadIdx.x);
  const uint64_t c[2] = {counts[first], counts[first + 1]}, m[2] = {masses[first], masses[first + 1]};
  uint64_t count = range.before_count + block_sum_before<kFinishThreads>(c[0] + c[1], shared.scratch);
  uint64_t mass = range.before_mass + block_sum_before<kFinishThreads>(m[0] + m[1], shared.scratch);
  if (threadIdx.x == 0) shared.found = -1;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint64_t reached = target.by_count ? count : mass, step = target.by_count ? c[i] : m[i];
    if (reached < target.amount && target.amount <= reached + step) {  // true for one bin of the block at most
      shared.found = first + i;
      shared.before_count = count;
      shared.before_mass = mass;
      shared.key = c[i];
    }
    count += c[i];
    mass += m[i];
  }
  __syncthreads();
  const int found = shared.found;
  if (found >= 0) {
    range.before_count = shared.before_count;
    range.before_mass = shared.before_mass;
    range.count = shared.key;
  }
  __syncthreads();
  return found;
}

/// Splits range's keys into kBins parts, best first, and keeps the one with the target. False if there is none.
__device__ inline bool narrow(const Elements& e, const Target& target, Range& range, SelectShared& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kFinishThreads) {
    shared.masses[i] = 0;
    shared.counts[i] = 0;
  }
  __syncthreads();
  const int bits = 64 - __clzll(static_cast<long long>(range.high - range.low));
  const int shift = bits > 11 ? bits - 11 : 0;
  e.each([&](float x, int32_t id) {
    const uint64_t key = key_of(x, id);
    if (!range.holds(e, x, key)) return;
    const auto part = static_cast<int>((range.high - key) >> shift);
    atomicAdd(&shared.counts[part], 1u);
    if (!target.by_count || e.bin_scale != 0.0f) atomicAdd(&shared.masses[part], static_cast<unsigned long long>(e.weight(x)));
  });
  __syncthreads();
  const int part = pick_bin(shared.counts, shared.masses, target, range, shared);
  if (part < 0) return false;
  const uint64_t high = range.high - (static_cast<uint64_t>(part) << shift);
  const uint64_t size = uint64_t{1} << shift;
  range.low = high - range.low >= size ? high - size + 1 : range.low;
  range.high = high;
  return true;
}

/// Collects the keys that `keep` wants in shared.keys, best first, the rest of the sorted part zero. At most kShortList of
/// them. Returns how many.
template <class Keep>
__device__ int gather_sorted(const Elements& e, SelectShared& shared, Keep&& keep) {
  __syncthreads();
  if (threadIdx.x == 0) shared.filled = 0;
  __syncthreads();
  e.each([&](float x, int32_t id) {
    const uint64_t key = key_of(x, id);
    if (!keep(x, key)) return;
    const int at = atomicAdd(&shared.filled, 1);
    if (at < kShortList) shared.keys[at] = key;
  });
  __syncthreads();
  const int count = min(shared.filled, kShortList);
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kFinishThreads) shared.keys[i] = 0;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {  // bitonic, largest first; kFinishThreads pairs cover kShortList keys
    for (int step = run / 2; step > 0; step /= 2) {
      const int t = static_cast<int>(threadIdx.x);
      if (t < size / 2) {
        const int i = (t / step) * 2 * step + t % step, j = i + step;
        const uint64_t a = shared.keys[i], b = shared.keys[j];
        const bool falling = (i & run) == 0;
        if (falling ? a < b : a > b) {
          shared.keys[i] = b;
          shared.keys[j] = a;
        }
      }
      __syncthreads();
    }
  }
  return count;
}

struct Found {
  uint64_t key = 0;   ///< 0: the target is beyond the last element
  uint64_t mass = 0;  ///< weight of everything up to and with it
};

/// Whole block. counts and masses: the row's histogram, in global memory; null: none, start from the whole row.
__device__ inline Found locate(const Elements& e, const uint32_t* counts, const uint64_t* masses, const Target& target,
                               SelectShared& shared) {
  Range range;
  if (counts != nullptr) {
    range.bin = pick_bin(counts, masses, target, range, shared);
    if (range.bin < 0) return {};
  } else {
    range.count = static_cast<uint64_t>(e.count);
  }
  while (range.count > kShortList) {
    if (!narrow(e, target, range, shared)) return {};
  }
  const int count = gather_sorted(e, shared, [&](float x, uint64_t key) { return range.holds(e, x, key); });
  const int first = 2 * static_cast<int>(threadIdx.x);
  uint64_t key[2], mass[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    key[i] = first + i < count ? shared.keys[first + i] : 0;
    mass[i] = first + i < count ? e.weight(logit_of(key[i])) : 0;
  }
  uint64_t running = range.before_mass + block_sum_before<kFinishThreads>(mass[0] + mass[1], shared.scratch);
  if (threadIdx.x == 0) shared.key = shared.mass = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint64_t reached = target.by_count ? range.before_count + static_cast<uint64_t>(first + i) : running;
    const uint64_t step = target.by_count ? 1 : mass[i];
    if (key[i] != 0 && reached < target.amount && target.amount <= reached + step) {
      shared.key = key[i];
      shared.mass = running + mass[i];
    }
    running += mass[i];
  }
  __syncthreads();
  const Found found{shared.key, shared.mass};
  __syncthreads();
  return found;
}

}  // namespace dsv3::cuda
