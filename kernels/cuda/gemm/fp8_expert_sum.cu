// Down product and weighted sum of few rows' experts (fp8_expert_sum.h): one product whose K runs through all experts that
// are hit, one behind the other. A block has 64 columns of y and, of a cluster's `splits` blocks, an even share of that K;
// every block has the same work however many experts there are, and no expert's output is ever stored.
//
// As in fp8_stream.cu the weights of the first stages are requested before the wait for the kernel ahead; which they are
// stands in the list of hits, which is older than that kernel (fp8_expert_sum.h).
#include <algorithm>
#include <string>

#include "fp8_expert_sum.h"
#include "gemm_choice.h"
#include "stream_split.cuh"

namespace dsv3::cuda {
namespace {

constexpr char kName[] = "fp8_expert_sum";
using S = stream::Shape<kHitRows>;
using Memory = stream::Memory<kHitRows>;

struct SumParams {
  stream::Maps maps;           // weights: [count * n][k]; tokens: [kHitRows * hits][k]
  const float* weight_scales;  // [count][scale_rows][k_blocks]
  const ExpertTile* hits;
  const int32_t* count;
  __nv_bfloat16* y;
  int64_t y_stride;
  int rows, n, k_blocks, splits, scale_rows, max_hits;
  bool accumulate;
  bool evict_first;            // weights
};

/// Where a stage's weights lie, and their scale.
struct Load {
  int weight_row = 0;
  float weight_scale = 0;
};
/// Stage q of the sequence over all hits: all blocks of K of the first, then of the second, ...
__device__ Load find_load(const SumParams& p, int q, int end, int row) {
  Load load;
  if (q >= end) return load;
  const int expert = __ldcg(&p.hits[q / p.k_blocks].expert);
  load.weight_row = expert * p.n + row;
  load.weight_scale =
      __ldg(p.weight_scales + (static_cast<int64_t>(expert) * p.scale_rows + row / 128) * p.k_blocks + q % p.k_blocks);
  return load;
}

/// The producer warp: stages [begin, end) of the sequence. Its lanes look up 32 of them at a time.
__device__ void produce(const SumParams& p, const Memory& memory, int row, int begin, int end, int lane) {
  const auto to = memory.slots();
  const uint64_t hint = p.evict_first ? kEvictFirst : kEvictNormal;
  const auto load_tokens = [&](int q, int stage) {
    const int token_row = q / p.k_blocks * kHitRows, k_block = q % p.k_blocks;
    tma_load_2d(to.tokens(stage), &p.maps.tokens, to.full(stage), k_block * 128, token_row);
    tma_load_2d(to.scales(stage), &p.maps.scales, to.full(stage), token_row, k_block);
  };
  const int early = min(end - begin, S::kStages);
  if (early == 0) {
    wait_for_previous();
    return;
  }
  Cursor<S::kStages> at;
  Load next = find_load(p, begin + lane, end, row);
  for (int base = begin; base < end; base += 32) {
    const Load now = next;
    next = find_load(p, base + 32 + lane, end, row);
    for (int q = base; q < min(end, base + 32); ++q, at.advance()) {
      const int weight_row = __shfl_sync(~0u, now.weight_row, q - base);
      const float weight_scale = __shfl_sync(~0u, now.weight_scale, q - base);
      if (lane == 0) {
        barrier_wait(to.empty(at.stage), at.parity ^ 1);  // the first round passes at once
        memory.weight_scales()[at.stage] = weight_scale;  // the arrival below publishes it with the copies
        barrier_expect(to.full(at.stage), S::kCopyBytes);
        tma_load_2d(to.weights(at.stage), &p.maps.weights, to.full(at.stage), q % p.k_blocks * 128, weight_row,
                    hint);
        if (q >= begin + early) load_tokens(q, at.stage);
      }
      if (q == begin + early - 1) {
        wait_for_previous();
        if (lane < early) load_tokens(begin + lane, lane);
      }
      __syncwarp();
    }
  }
}

__global__ void __launch_bounds__(S::kThreads, S::kBlocksPerSm) expert_sum_kernel(const __grid_constant__ SumParams p) {
  launch_dependents();
  extern __shared__ __align__(1024) uint8_t raw_memory[];
  const Memory memory(raw_memory);
  const int thread = threadIdx.x, lane = thread % 32;
  const int split = blockIdx.x % p.splits, row = blockIdx.x / p.splits * S::kRows;  // clusters lie along x
  if (thread == S::kConsumers) stream::prefetch(p.maps);
  __shared__ int count;  // read by one warp: a request of every warp of the device would keep its line busy
  if (thread == S::kConsumers) count = min(max(__ldcg(p.count), 0), p.max_hits);
  memory.init_barriers();
  const int all = count * p.k_blocks;
  const int begin = all * split / p.splits, end = all * (split + 1) / p.splits;
  stream::open_inbox<S>(memory, p.rows, split, p.splits);

  stream::Consumer<S> consumer;
  if (thread >= S::kConsumers) {
    produce(p, memory, row, begin, end, lane);
  } else {
    wait_for_previous(p);  // y may still be read
    Cursor<S::kStages> at;
    // Lane 0 reads, the one that also releases the stage: racecheck follows orders of single threads only.
    consumer.add_all(memory, at, end - begin, false, [&](int, int stage) {
      return __shfl_sync(~0u, lane == 0 ? memory.weight_scales()[stage] : 0.0f, 0);
    });
  }
  __syncwarp();
  stream::send_and_store<S>(memory, consumer.sum, {p.y + row, p.y_stride, p.rows, p.n - row, split, p.splits, p.accumulate});
}

}  // namespace

Status fp8_expert_sum(const Fp8Rows& middle, const Fp8Weight& down, const ExpertHits& hits, bool accumulate,
                      const Bf16Matrix& y, Stream stream) {
  if (hits.rows == 0) return {};
  const char* what = stream::fault(middle, down, y);
  if (what == nullptr && (hits.rows < 0 || hits.rows > kHitRows || y.rows != hits.rows)) what = "rows are not 1 to 8, and those of y";
  if (what == nullptr && (hits.tiles == nullptr || hits.count == nullptr || hits.max_hits < 1)) what = "no list of hits";
  if (what == nullptr && middle.rows < int64_t{hits.max_hits} * kHitRows) what = "middle has not 8 rows a hit";
  if (what == nullptr && hits.max_hits * (down.k / 128) > INT32_MAX / 8) what = "too many hits";
  if (what != nullptr) {
    return wrong(kName, std::string(what) + " (rows " + std::to_string(hits.rows) + ", hits " + std::to_string(hits.max_hits) +
                            ", n " + std::to_string(down.n) + ", k " + std::to_string(down.k) + ")");
  }
  SumParams p{};
  DSV3_TRY(stream::make_maps(middle, down, S::kRows, kHitRows, &p.maps));
  p.weight_scales = down.scales;
  p.hits = hits.tiles;
  p.count = hits.count;
  p.y = y.data;
  p.y_stride = y.stride;
  p.rows = hits.rows;
  p.n = static_cast<int>(down.n);
  p.k_blocks = static_cast<int>(down.k / 128);
  p.splits = expert_sum_splits(down.n);
  p.scale_rows = static_cast<int>((down.n + 127) / 128);
  p.max_hits = hits.max_hits;
  p.accumulate = accumulate;
  p.evict_first = evicts_first(int64_t{hits.max_hits} * down.n * down.k);
  DSV3_TRY(allow_shared_bytes(kName, expert_sum_kernel, S::kSharedBytes));
  const auto blocks = static_cast<unsigned>((p.n + S::kRows - 1) / S::kRows * p.splits);
  return launch(kName, expert_sum_kernel,
                {dim3(blocks), dim3(S::kThreads), S::kSharedBytes, static_cast<unsigned>(p.splits)}, stream, p);
}

}  // namespace dsv3::cuda
