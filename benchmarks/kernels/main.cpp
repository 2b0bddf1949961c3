// kernel_bench: times the CUDA kernels at the shapes of DeepSeek-V3, next to baselines of the same run and to the figures of
// public kernels.
//
//   kernel_bench [--filter TEXT] [--quick] [--out FILE] [--commit SHA]
//
// --filter runs the kernels whose name contains TEXT; --out appends one JSON line a row to FILE.
#include <cstdio>
#include <string>

#include "harness.h"

namespace {

using namespace dsv3::cuda::bench;

struct Benchmark {
  const char* name;
  void (*run)(const Options&, Report&);
};
// clang-format off
constexpr Benchmark kBenchmarks[] = {
    {"gemm", bench_gemm},
    {"gemm_variants", bench_gemm_variants},
    {"grouped_gemm", bench_grouped_gemm},
    {"absorb", bench_absorb},
    {"tiles_variants", bench_tiles_variants},
    {"gate_up", bench_gate_up},
    {"expert_hits", bench_expert_hits},
    {"mla_decode", bench_mla_decode},
    {"mla_prefill", bench_mla_prefill},
    {"rows", bench_rows},
    {"sampling", bench_sampling},
};
// clang-format on

}  // namespace

int main(int argc, char** argv) {
  Options options;
  std::string out, commit = "unknown";
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--quick") {
      options.quick = true;
    } else if (i + 1 < argc && (flag == "--filter" || flag == "--out" || flag == "--commit")) {
      (flag == "--filter" ? options.filter : flag == "--out" ? out : commit) = argv[++i];
    } else {
      std::fprintf(stderr, "usage: kernel_bench [--filter TEXT] [--quick] [--out FILE] [--commit SHA]\n");
      return 2;
    }
  }
  Report report(out, commit);
  for (const Benchmark& benchmark : kBenchmarks) {
    std::fprintf(stderr, "kernel_bench: %s\n", benchmark.name);
    benchmark.run(options, report);
  }
  report.print_table();
  return 0;
}
