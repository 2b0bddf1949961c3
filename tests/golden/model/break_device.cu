// A kernel that traps: what a GPU fault looks like to everybody who uses the same context.
#include <cuda_runtime.h>

namespace dsv3::testing {
namespace {

__global__ void trap_kernel() { asm volatile("trap;"); }

}  // namespace

void break_device() {
  trap_kernel<<<1, 1>>>();
  cudaDeviceSynchronize();
}

}  // namespace dsv3::testing
