#include "machine.h"

#include <cblas.h>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "dsv3/base/clock.h"

namespace dsv3::bench {

double read_bytes_per_second(int threads, int megabytes) {
  using Wide __attribute__((vector_size(64))) = uint64_t;
  const size_t count = (static_cast<size_t>(megabytes) << 20) / sizeof(Wide);
  std::vector<Wide> data(count, Wide{} + 1);
  double best = 0;
  for (int pass = 0; pass < 8; ++pass) {
    const int64_t start = now_us();
    std::vector<std::thread> workers;
    std::vector<Wide> sums(static_cast<size_t>(threads) * 8);
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        const size_t begin = count * static_cast<size_t>(t) / static_cast<size_t>(threads);
        const size_t end = count * static_cast<size_t>(t + 1) / static_cast<size_t>(threads);
        Wide a{}, b{}, c{}, d{};
        size_t i = begin;
        for (; i + 4 <= end; i += 4) {
          a += data[i];
          b += data[i + 1];
          c += data[i + 2];
          d += data[i + 3];
        }
        sums[static_cast<size_t>(t) * 8] = a + b + c + d;
      });
    }
    for (auto& worker : workers) worker.join();
    const double seconds = static_cast<double>(now_us() - start) * 1e-6;
    if (sums[0][0] != 0) best = std::max(best, static_cast<double>(count * sizeof(Wide)) / seconds);
  }
  return best;
}

double sgemm_flops_per_second(int threads) {
  constexpr int kSize = 1536;
  openblas_set_num_threads(threads);
  std::vector<float> a(kSize * kSize, 0.5f), b(kSize * kSize, 0.25f), c(kSize * kSize);
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    const int64_t start = now_us();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1.0f, a.data(), kSize, b.data(), kSize,
                0.0f, c.data(), kSize);
    best = std::max(best, 2.0 * kSize * kSize * kSize / (static_cast<double>(now_us() - start) * 1e-6));
  }
  return best;
}

}  // namespace dsv3::bench
