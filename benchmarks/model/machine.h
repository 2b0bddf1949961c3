// What this machine can do at most: the roofs that the model's figures are held against.
#pragma once

namespace dsv3::bench {

/// Bytes per second that `threads` read from a buffer of `megabytes`, streaming. Best of several passes.
double read_bytes_per_second(int threads, int megabytes);

/// Floating-point operations per second of OpenBLAS sgemm on `threads` threads, 1536^3. Best of several runs.
double sgemm_flops_per_second(int threads);

}  // namespace dsv3::bench
