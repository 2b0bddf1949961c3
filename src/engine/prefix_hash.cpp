// SipHash and the chain of block hashes built on it.
#include "prefix_hash.h"

#include <bit>
#include <cstring>
#include <random>

namespace dsv3::scheduling {
namespace {

struct SipState {
  uint64_t v0, v1, v2, v3;

  explicit SipState(HashKey key)
      : v0(key.k0 ^ 0x736f6d6570736575ull),
        v1(key.k1 ^ 0x646f72616e646f6dull),
        v2(key.k0 ^ 0x6c7967656e657261ull),
        v3(key.k1 ^ 0x7465646279746573ull) {}

  void round() {
    v0 += v1, v1 = std::rotl(v1, 13) ^ v0, v0 = std::rotl(v0, 32);
    v2 += v3, v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3, v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1, v1 = std::rotl(v1, 17) ^ v2, v2 = std::rotl(v2, 32);
  }
  void add(uint64_t word) {
    v3 ^= word;
    round();
    round();
    v0 ^= word;
  }
};

uint64_t load_le64(const unsigned char* bytes) {
  uint64_t word = 0;
  for (int i = 7; i >= 0; --i) word = (word << 8) | bytes[i];
  return word;
}

}  // namespace

HashKey HashKey::random() {
  std::random_device device;
  const auto word = [&device] { return (uint64_t{device()} << 32) | device(); };
  const uint64_t k0 = word();
  return {k0, word()};
}

uint64_t siphash24(HashKey key, const void* data, size_t size) {
  SipState state(key);
  const auto* bytes = static_cast<const unsigned char*>(data);
  const size_t whole = size / 8 * 8;
  for (size_t i = 0; i < whole; i += 8) state.add(load_le64(bytes + i));
  unsigned char tail[8] = {};
  if (size > whole) std::memcpy(tail, bytes + whole, size - whole);
  tail[7] = static_cast<unsigned char>(size);
  state.add(load_le64(tail));
  state.v2 ^= 0xff;
  for (int i = 0; i < 4; ++i) state.round();
  return state.v0 ^ state.v1 ^ state.v2 ^ state.v3;
}

uint64_t PrefixHasher::root(std::string_view salt) const {
  return siphash24(key_, salt.data(), salt.size()) & mask_;
}

uint64_t PrefixHasher::block(uint64_t parent, std::span<const int32_t> ids) const {
  // The parent goes in through the key: one pass over the ids, no copy.
  return siphash24({key_.k0 ^ parent, key_.k1}, ids.data(), ids.size_bytes()) & mask_;
}

std::vector<uint64_t> PrefixHasher::chain(std::string_view salt, std::span<const int32_t> ids) const {
  std::vector<uint64_t> hashes;
  const size_t block = static_cast<size_t>(block_tokens_);
  hashes.reserve(ids.size() / block);
  uint64_t parent = root(salt);
  for (size_t start = 0; start + block <= ids.size(); start += block) {
    parent = this->block(parent, ids.subspan(start, block));
    hashes.push_back(parent);
  }
  return hashes;
}

}  // namespace dsv3::scheduling
