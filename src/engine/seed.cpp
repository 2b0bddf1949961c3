#include "dsv3/engine/engine.h"
#include "dsv3/kernels/random.h"

namespace dsv3 {

uint64_t derive_seed(uint64_t seed, int32_t choice) {
  if (choice == 0) return seed;
  const auto bits = philox4x32({static_cast<uint32_t>(choice), 0, 0, 1},
                               {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (uint64_t{bits[0]} << 32) | bits[1];
}

}  // namespace dsv3
