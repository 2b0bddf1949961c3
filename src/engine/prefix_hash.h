// Keyed hashes that name runs of tokens in the prefix cache. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace dsv3::scheduling {

struct HashKey {
  uint64_t k0 = 0, k1 = 0;
  static HashKey random();  ///< from the system's generator
};

/// SipHash-2-4 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012) of `size` bytes. Without the key nobody
/// can prepare prompts that collide.
uint64_t siphash24(HashKey key, const void* data, size_t size);

/// Hashes of full blocks, each chained to the one before, so that one number stands for a whole prefix. They only
/// narrow the search: the cache compares token ids as well.
class PrefixHasher {
 public:
  /// `mask` cuts the hash down; tests use it to force collisions.
  PrefixHasher(HashKey key, int32_t block_tokens, uint64_t mask = ~uint64_t{0})
      : key_(key), block_tokens_(block_tokens), mask_(mask) {}

  int32_t block_tokens() const { return block_tokens_; }
  uint64_t root(std::string_view salt) const;  ///< the parent of a first block
  uint64_t block(uint64_t parent, std::span<const int32_t> ids) const;
  /// One hash for each full block of `ids`.
  std::vector<uint64_t> chain(std::string_view salt, std::span<const int32_t> ids) const;

 private:
  HashKey key_;
  int32_t block_tokens_;
  uint64_t mask_;
};

}  // namespace dsv3::scheduling
