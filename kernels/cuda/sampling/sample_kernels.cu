// Sampling: rows of float32 logits in, tokens out. scan (best id, finite?) -> weigh (weights, histogram) -> finish (cuts and the
// draw, one block a row) -> settle_kernels.cu. A row's result depends on nothing but that row: chunks are
// fixed, comparisons are exact, and weights are integers, whose sums do not depend on order.
#include <climits>

#include "../common/launch.cuh"
#include "../common/ptx.cuh"
#include "dsv3/kernels/random.h"
#include "row_select.cuh"

namespace dsv3::cuda {
namespace {

constexpr int kScanThreads = 256, kVectors = kChunkIds / (4 * kScanThreads);
constexpr int kMaxChunks = (1 << kVocabBits) / kChunkIds;
static_assert(kVectors * 4 * kScanThreads == kChunkIds && kMaxChunks == 64);
static_assert(kFinishThreads * 4 == kChunkIds && kFinishThreads * 2 == kBins && kFinishThreads * 2 == kShortList);

/// Vector j of this thread in the chunk: ids [id, id + 4); what lies past the vocabulary is NaN and must be skipped by id.
__device__ float4 load_vector(const float* row, int32_t id, int32_t vocab) {
  if (id + 3 < vocab) return *reinterpret_cast<const float4*>(row + id);
  float4 x{NAN, NAN, NAN, NAN};
  if (id < vocab) x.x = row[id];
  if (id + 1 < vocab) x.y = row[id + 1];
  if (id + 2 < vocab) x.z = row[id + 2];
  return x;
}
__device__ float element(const float4& x, int c) { return c == 0 ? x.x : c == 1 ? x.y : c == 2 ? x.z : x.w; }

__device__ ScanPart better(const ScanPart& a, const ScanPart& b) {
  const bool second = b.best > a.best || (b.best == a.best && b.best_id < a.best_id);
  return {second ? b.best : a.best, second ? b.best_id : a.best_id, fmaxf(a.raw_max, b.raw_max), a.bad | b.bad};
}
__device__ ScanPart no_part() { return {-INFINITY, INT_MAX, -INFINITY, 0}; }
__device__ ScanPart warp_best(ScanPart part) {
  for (int step = 16; step > 0; step /= 2) {
    const ScanPart other{__shfl_xor_sync(0xffffffffu, part.best, step), __shfl_xor_sync(0xffffffffu, part.best_id, step),
                         __shfl_xor_sync(0xffffffffu, part.raw_max, step), __shfl_xor_sync(0xffffffffu, part.bad, step)};
    part = better(part, other);
  }
  return part;
}

/// A job in shared memory, loaded by one thread. Shared variables have no constructors, hence the bytes.
struct JobBytes {
  alignas(16) unsigned char bytes[sizeof(RowJob)];
  __device__ RowJob& job() { return *reinterpret_cast<RowJob*>(bytes); }
};

/// The whole row's ScanPart, in every thread. `shared` gets it; ends with a barrier.
__device__ void reduce_parts(const SlotView& view, int row, ScanPart* shared) {
  if (threadIdx.x < 32) {
    ScanPart part = no_part();
    for (int c = static_cast<int>(threadIdx.x); c < view.chunks; c += 32) {
      part = better(part, view.parts[static_cast<int64_t>(row) * view.chunks + c]);
    }
    part = warp_best(part);
    if (part.best_id == INT_MAX) part.best_id = 0;
    if (threadIdx.x == 0) *shared = part;
  }
  __syncthreads();
}

/// Block (chunk, row).
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const __grid_constant__ SlotView view, const __grid_constant__ ScanCall call) {
  launch_dependents();
  wait_for_previous();
  __shared__ JobBytes job_bytes;
  __shared__ ScanPart warps[kScanThreads / 32];
  const int chunk = static_cast<int>(blockIdx.x), row = static_cast<int>(blockIdx.y), t = static_cast<int>(threadIdx.x);
  const int32_t vocab = view.limits.vocab, first = chunk * kChunkIds + 4 * t;
  const float* logits = call.logits + row * call.stride;
  float4 x[kVectors];  // asked for before the job is known: the two latencies overlap
#pragma unroll
  for (int j = 0; j < kVectors; ++j) x[j] = load_vector(logits, first + j * 4 * kScanThreads, vocab);
  if (t == 0) job_bytes.job() = load_job(view, call, row);
  __syncthreads();
  const RowJob& job = job_bytes.job();
  if (!job.valid) return;

  ScanPart part = no_part();
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int32_t id = first + j * 4 * kScanThreads + c;
      if (id >= vocab) continue;
      const float raw = element(x[j], c);
      part.raw_max = fmaxf(part.raw_max, raw);
      part.bad |= isfinite(raw) ? 0 : 1;
      if (id < view.limits.known_vocab && (raw > part.best || part.best_id == INT_MAX)) {  // a thread's ids go up: ties keep the lowest
        part.best = raw;
        part.best_id = id;
      }
    }
  }
  if (job.adjusted) {  // the best of other values; reads the row again, from L1
    part.best = -INFINITY;
    part.best_id = INT_MAX;
#pragma unroll 1
    for (int i = 0; i < 4 * kVectors; ++i) {
      const int32_t id = first + i / 4 * 4 * kScanThreads + i % 4;
      if (id >= view.limits.known_vocab) continue;
      const float value = adjust(job, logits[id], id);
      if (value > part.best || part.best_id == INT_MAX) {
        part.best = value;
        part.best_id = id;
      }
    }
  }
  part = warp_best(part);
  if (t % 32 == 0) warps[t / 32] = part;
  __syncthreads();
  if (t == 0) {
    for (int w = 1; w < kScanThreads / 32; ++w) part = better(part, warps[w]);
    view.parts[static_cast<int64_t>(row) * view.chunks + chunk] = part;
  }
  if (job.cut) {  // weigh_kernel adds to the histogram
    for (int i = chunk * kScanThreads + t; i < kBins; i += view.chunks * kScanThreads) {
      view.bin_masses[static_cast<int64_t>(row) * kBins + i] = 0;
      view.bin_counts[static_cast<int64_t>(row) * kBins + i] = 0;
    }
  }
}

__device__ Elements sampled_elements(const SlotView& view, const RowJob& job, float best) {
  return {&job, job.adjusted, view.limits.known_vocab, best, job.cut ? 64.0f / job.rules.temperature : 0.0f,
          1.0 / static_cast<double>(job.rules.temperature)};
}
__device__ Elements raw_elements(const SlotView& view, const RowJob& job, float raw_max) {
  return {&job, false, view.limits.vocab, raw_max, 0.0f, 1.0};
}

/// Block (chunk, row): weights of sampled rows (and their histogram if there is a cut), weights of raw logits for logprobs.
__global__ void __launch_bounds__(kScanThreads) weigh_kernel(const __grid_constant__ SlotView view, const __grid_constant__ ScanCall call) {
  launch_dependents();
  wait_for_previous();
  __shared__ JobBytes job_bytes;
  __shared__ ScanPart whole;
  __shared__ uint64_t scratch[kScanThreads / 32];
  __shared__ unsigned long long bin_masses[kBins];
  __shared__ unsigned int bin_counts[kBins];
  const int chunk = static_cast<int>(blockIdx.x), row = static_cast<int>(blockIdx.y), t = static_cast<int>(threadIdx.x);
  if (t == 32) job_bytes.job() = load_job(view, call, row);
  reduce_parts(view, row, &whole);
  const RowJob& job = job_bytes.job();
  if (!job.valid || whole.bad != 0) return;
  const bool draws = !job.greedy && whole.best != -INFINITY, logprobs = job.num_logprobs >= 0;
  if (!draws && !logprobs) return;
  const bool cut = draws && job.cut;
  if (cut) {
    for (int i = t; i < kBins; i += kScanThreads) {
      bin_masses[i] = 0;
      bin_counts[i] = 0;
    }
    __syncthreads();
  }
  const Elements sampled = sampled_elements(view, job, whole.best), raw = raw_elements(view, job, whole.raw_max);
  const int32_t vocab = view.limits.vocab, first = chunk * kChunkIds + 4 * t;
  uint64_t mass = 0, raw_mass = 0;
  for (int j = 0; j < kVectors; ++j) {
    const float4 x = load_vector(job.logits, first + j * 4 * kScanThreads, vocab);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int32_t id = first + j * 4 * kScanThreads + c;
      if (id >= vocab) continue;
      if (logprobs) raw_mass += raw.weight(element(x, c));
      if (!draws || id >= view.limits.known_vocab) continue;
      const float adjusted = adjust(job, element(x, c), id);
      if (adjusted == -INFINITY) continue;
      const uint64_t weight = sampled.weight(adjusted);
      mass += weight;
      if (cut) {
        const int bin = bin_of(adjusted, whole.best, sampled.bin_scale);
        atomicAdd(&bin_counts[bin], 1u);
        if (weight != 0) atomicAdd(&bin_masses[bin], static_cast<unsigned long long>(weight));
      }
    }
  }
  const uint64_t mass_sum = block_sum<kScanThreads>(mass, scratch), raw_sum = block_sum<kScanThreads>(raw_mass, scratch);
  if (t == 0) {
    view.masses[static_cast<int64_t>(row) * view.chunks + chunk] = mass_sum;
    view.raw_masses[static_cast<int64_t>(row) * view.chunks + chunk] = raw_sum;
  }
  if (!cut) return;
  // block_sum's barriers lie between the last addition and these reads.
  for (int i = t; i < kBins; i += kScanThreads) {
    if (bin_counts[i] == 0) continue;
    atomicAdd(view.bin_counts + static_cast<int64_t>(row) * kBins + i, bin_counts[i]);
    atomicAdd(reinterpret_cast<unsigned long long*>(view.bin_masses) + static_cast<int64_t>(row) * kBins + i, bin_masses[i]);
  }
}

/// Where the running weight passes u of `total` (1..total).
__device__ uint64_t draw_amount(double u, uint64_t total) {
  const uint64_t below = __double2ull_rd(u * static_cast<double>(total));
  return (below < total ? below : total - 1) + 1;
}

/// A draw without cuts walks the ids upwards. masses: of the row's chunks. Whole block; `shared.key` carries the answer.
__device__ int32_t draw_by_id(const SlotView& view, const RowJob& job, const Elements& e, const uint64_t* masses, uint64_t amount,
                              SelectShared& shared) {
  int chunk = 0;  // every thread walks the same few sums
  uint64_t before = 0;
  while (chunk < view.chunks - 1 && before + masses[chunk] < amount) before += masses[chunk++];
  const int32_t first = chunk * kChunkIds + 4 * static_cast<int32_t>(threadIdx.x);
  uint64_t weights[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    weights[c] = 0;
    if (first + c < e.count) {
      const float x = e.value(first + c);
      if (x != -INFINITY) weights[c] = e.weight(x);
    }
  }
  uint64_t running = before + block_sum_before<kFinishThreads>(weights[0] + weights[1] + weights[2] + weights[3], shared.scratch);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (running < amount && amount <= running + weights[c]) shared.key = static_cast<uint64_t>(first + c);
    running += weights[c];
  }
  __syncthreads();
  const auto id = static_cast<int32_t>(shared.key);
  __syncthreads();
  return id;
}

/// top_k, then top_p of what is left, then min_p, then the draw from the best down. Whole block.
__device__ int32_t draw_with_cuts(const SlotView& view, const RowJob& job, const Elements& e, int row, uint64_t total, double u,
                                  int32_t fallback, SelectShared& shared) {
  const uint32_t* counts = view.bin_counts + static_cast<int64_t>(row) * kBins;
  const uint64_t* masses = view.bin_masses + static_cast<int64_t>(row) * kBins;
  uint64_t last_key = 0;
  if (job.rules.top_k > 0) {
    const Found found = locate(e, counts, masses, {true, static_cast<uint64_t>(job.rules.top_k)}, shared);
    if (found.key != 0) {  // else there are no more than top_k
      last_key = found.key;
      total = found.mass;
    }
  }
  if (job.rules.top_p < 1.0f) {
    const uint64_t wanted = __double2ull_ru(static_cast<double>(job.rules.top_p) * static_cast<double>(total));
    const uint64_t amount = wanted < 1 ? 1 : wanted < total ? wanted : total;
    const Found found = locate(e, counts, masses, {false, amount}, shared);
    if (found.key != 0) {
      last_key = found.key;
      total = found.mass;
    }
  }
  if (job.rules.min_p > 0.0f) {
    uint64_t mine = 0;
    e.each([&](float x, int32_t id) {
      if (key_of(x, id) < last_key) return;
      if (exp(e.exponent(x)) >= static_cast<double>(job.rules.min_p)) mine += e.weight(x);
    });
    total = block_sum<kFinishThreads>(mine, shared.scratch);
  }
  const Found found = locate(e, counts, masses, {false, draw_amount(u, total)}, shared);
  return found.key != 0 ? id_of(found.key) : fallback;
}

/// shared.keys gets the `wanted` best of all the row's raw logits, best first. Whole block.
__device__ void best_raw(const SlotView& view, const Elements& e, int row, int wanted, SelectShared& shared) {
  // As many chunks have a logit of at least the wanted-th best maximum of a chunk, so nothing below it is wanted: mostly few are left.
  __shared__ float maxima[kMaxChunks];
  __shared__ float floor;
  const int t = static_cast<int>(threadIdx.x);
  if (wanted <= view.chunks) {
    if (t < view.chunks) maxima[t] = view.parts[static_cast<int64_t>(row) * view.chunks + t].raw_max;
    __syncthreads();
    if (t < view.chunks) {
      int rank = 0;
      for (int c = 0; c < view.chunks; ++c) rank += maxima[c] > maxima[t] || (maxima[c] == maxima[t] && c < t) ? 1 : 0;
      if (rank == wanted - 1) floor = maxima[t];
    }
    __syncthreads();
    gather_sorted(e, shared, [&](float x, uint64_t) { return x >= floor; });
    if (shared.filled <= kShortList) return;
  }
  const Found last = locate(e, nullptr, nullptr, {true, static_cast<uint64_t>(wanted)}, shared);
  gather_sorted(e, shared, [&](float, uint64_t key) { return key >= last.key; });
}

/// Block: one row.
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const __grid_constant__ SlotView view, const __grid_constant__ ScanCall call) {
  launch_dependents();
  wait_for_previous();
  __shared__ JobBytes job_bytes;
  __shared__ ScanPart whole;
  __shared__ SelectShared shared;
  __shared__ uint64_t masses[kMaxChunks];
  const int row = static_cast<int>(blockIdx.x), t = static_cast<int>(threadIdx.x);
  if (t == 32) job_bytes.job() = load_job(view, call, row);
  reduce_parts(view, row, &whole);
  const RowJob& job = job_bytes.job();
  if (!job.valid || whole.bad != 0) {
    if (t == 0) view.row_results[row] = {call.kind == ScanKind::kGiven ? view.given_ids[row] : 0, whole.bad, 0.0f, 0};
    return;
  }
  int32_t id = whole.best_id;
  if (call.kind == ScanKind::kGiven) {
    id = view.given_ids[row];
  } else if (!job.greedy && whole.best != -INFINITY) {
    if (t < view.chunks) masses[t] = view.masses[static_cast<int64_t>(row) * view.chunks + t];
    __syncthreads();
    uint64_t total = 0;
    for (int c = 0; c < view.chunks; ++c) total += masses[c];
    const double u = uniform_draw(job.rules.seed, static_cast<uint64_t>(job.output_index));
    const Elements e = sampled_elements(view, job, whole.best);
    id = job.cut ? draw_with_cuts(view, job, e, row, total, u, id, shared)
                 : draw_by_id(view, job, e, masses, draw_amount(u, total), shared);
  }
  RowResult result{id, 0, 0.0f, 0};
  if (job.num_logprobs >= 0) {
    uint64_t raw_total = 0;
    for (int c = 0; c < view.chunks; ++c) raw_total += view.raw_masses[static_cast<int64_t>(row) * view.chunks + c];
    const double log_sum = log(static_cast<double>(raw_total) / kWeightOne) + static_cast<double>(whole.raw_max);
    result.logprob = static_cast<float>(static_cast<double>(job.logits[id]) - log_sum);
    result.num_top = min(min(job.num_logprobs, view.limits.max_top_logprobs), view.limits.vocab);
    if (result.num_top > 0) {
      const Elements e = raw_elements(view, job, whole.raw_max);
      best_raw(view, e, row, result.num_top, shared);
      if (t < result.num_top) {
        const uint64_t key = shared.keys[t];
        view.tops[static_cast<int64_t>(row) * view.limits.max_top_logprobs + t] = {
            id_of(key), static_cast<float>(static_cast<double>(logit_of(key)) - log_sum)};
      }
    }
  }
  if (t == 0) view.row_results[row] = result;
}

/// Warp: one row of a draft pass.
__global__ void __launch_bounds__(32) append_draft_kernel(const __grid_constant__ SlotView view, const __grid_constant__ ScanCall call) {
  launch_dependents();
  wait_for_previous();
  __shared__ ScanPart whole;
  const int row = static_cast<int>(blockIdx.x);
  reduce_parts(view, row, &whole);
  if (threadIdx.x != 0) return;
  const RowJob job = load_job(view, call, row);
  if (!job.valid) return;
  SlotRecord& slot = view.slots[job.slot];
  if (slot.num_drafts < kMaxDrafts) slot.drafts[slot.num_drafts++] = whole.best_id;
}

}  // namespace

Status launch_scan(const SlotView& view, const ScanCall& call, Stream stream) {
  if (call.rows == 0) return {};
  const dim3 split(static_cast<unsigned>(view.chunks), static_cast<unsigned>(call.rows));
  const LaunchShape scan{split, dim3(kScanThreads), 0, 1};
  const dim3 rows(static_cast<unsigned>(call.rows));
  DSV3_TRY(launch("sampling: scan", scan_kernel, scan, stream, view, call));
  if (call.kind == ScanKind::kDraft) {
    return launch("sampling: append_draft", append_draft_kernel, {rows, dim3(32), 0, 1}, stream, view, call);
  }
  DSV3_TRY(launch("sampling: weigh", weigh_kernel, scan, stream, view, call));
  return launch("sampling: finish", finish_kernel, {rows, dim3(kFinishThreads), 0, 1}, stream, view, call);
}

}  // namespace dsv3::cuda
