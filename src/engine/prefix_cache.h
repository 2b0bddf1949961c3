// The index of KV blocks by content: a tree whose nodes are full blocks. Scheduler thread only. Knows nothing of
// reference counts or eviction; BlockManager owns those.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsv3::scheduling {

/// A node is named by the block that holds its rows. Two nodes are the same prefix when parent (recursively), token
/// ids and, at the root, the salt are equal; the hash only says where to look. All memory is taken at construction,
/// except long salts.
class PrefixCache {
 public:
  static constexpr int32_t kRoot = -1;  ///< parent of a first block
  static constexpr int32_t kNone = -1;  ///< "no such node"

  PrefixCache(int32_t num_blocks, int32_t block_tokens);

  /// The child of `parent` with these ids, or kNone. `salt` counts below the root only.
  int32_t find(int32_t parent, std::string_view salt, uint64_t hash, std::span<const int32_t> ids) const;

  /// `block` is not in the tree, `parent` is (or kRoot), and find() with the same arguments gave kNone.
  void insert(int32_t block, int32_t parent, std::string_view salt, uint64_t hash, std::span<const int32_t> ids);

  void erase(int32_t block);  ///< `block` is a leaf

  bool contains(int32_t block) const { return nodes_[static_cast<size_t>(block)].present; }
  int32_t parent(int32_t block) const { return nodes_[static_cast<size_t>(block)].parent; }
  bool leaf(int32_t block) const { return nodes_[static_cast<size_t>(block)].children == 0; }
  int32_t size() const { return size_; }

  /// `block` and all its descendants, children before their parents. Takes time linear in the pool: for faults only.
  std::vector<int32_t> subtree(int32_t block) const;

 private:
  struct Node {
    uint64_t hash = 0;
    int32_t parent = kRoot;
    int32_t next = kNone;  // in the same bucket
    int32_t children = 0;
    int32_t depth = 0;
    bool present = false;
    std::string salt;  // of first blocks
  };

  size_t bucket(uint64_t hash) const { return static_cast<size_t>(hash) & (buckets_.size() - 1); }

  int32_t block_tokens_;
  int32_t size_ = 0;
  std::vector<Node> nodes_;       // [num_blocks]
  std::vector<int32_t> ids_;      // [num_blocks, block_tokens]
  std::vector<int32_t> buckets_;  // a power of two; first node of each chain
};

}  // namespace dsv3::scheduling
