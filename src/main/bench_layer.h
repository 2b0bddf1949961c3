// dsv3-serve bench-layer: times a truncated model of full width (or one rank's slice of it) with random weights: decode steps by
// batch size and prefill steps by length, each beside the sum of its parts' limits.
#pragma once

#include "options.h"

namespace dsv3 {

Status run_bench_layer(ServerOptions& options);

}  // namespace dsv3
