// The fixed pool of KV blocks: who holds which, what is cached, what is free. Scheduler thread only. Never talks to
// the executor.
//
// Every block is in exactly one state:
//   used    at least one running sequence holds it (reference count > 0); it may be published in the prefix tree
//   cached  published, held by nobody; evicted, least recently used first, when the free list is empty
//   free    neither
//
// Blocks are handed out as soon as they are released, although a step that is still running may read or write them.
// That is safe because steps execute in the order of their plans: the plan that gives a block to somebody else comes
// after the one that may still touch it, and it, or an earlier one, ends the previous holder's slot. And a published
// block is never written again: a sequence writes at its confirmed length or behind it, and publishes only blocks in
// front of it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"
#include "prefix_cache.h"

namespace dsv3::scheduling {

struct BlockCounts {
  int32_t total = 0, used = 0, cached = 0, free = 0;
};

class BlockManager {
 public:
  /// `keep_unused` false: a published block is freed with its last holder instead of being cached.
  BlockManager(int32_t num_blocks, int32_t block_tokens, bool keep_unused);

  int32_t block_tokens() const { return block_tokens_; }
  int32_t blocks_for(int64_t rows) const { return static_cast<int32_t>((rows + block_tokens_ - 1) / block_tokens_); }
  int32_t available() const { return num_free() + num_cached_; }  ///< what allocate() can give
  BlockCounts counts() const;
  uint64_t generation() const { return generation_; }  ///< changes whenever a match could

  /// Appends `count` unpublished blocks to `table`, one reference each; evicts as needed. All or nothing.
  [[nodiscard]] bool allocate(int32_t count, std::vector<int32_t>* table);

  /// Takes a reference on each block of a path found with child().
  void acquire(std::span<const int32_t> path);

  /// Drops one reference on each block of a sequence's table and clears it. Deepest first, so that children always
  /// precede their parents in the eviction order.
  void release(std::vector<int32_t>* table);

  bool referenced(int32_t block) const { return references_[static_cast<size_t>(block)] > 0; }

  /// See PrefixCache::find.
  int32_t child(int32_t parent, std::string_view salt, uint64_t hash, std::span<const int32_t> ids) const {
    return index_.find(parent, salt, hash, ids);
  }

  /// Makes a held block findable. False when an equal one is there already or the parent is not published (any
  /// more): the caller keeps its block private and publishes nothing behind it, so that whoever holds a node holds
  /// its ancestors, too, and every cached node can be evicted.
  [[nodiscard]] bool publish(int32_t block, int32_t parent, std::string_view salt, uint64_t hash,
                             std::span<const int32_t> ids);

  void forget(int32_t block);  ///< takes a node and all behind it out of the tree, held or not (its rows are bad)
  int32_t flush();             ///< frees every cached block; returns how many

  /// Proves the books against the tables of all who hold blocks. For debug builds and tests.
  Status check_books(std::span<const std::vector<int32_t>* const> tables) const;

 private:
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  void lru_push(int32_t block);
  void lru_remove(int32_t block);
  void evict_oldest();

  int32_t num_blocks_;
  int32_t block_tokens_;
  bool keep_unused_;
  uint64_t generation_ = 0;
  PrefixCache index_;
  std::vector<int32_t> references_;  // [num_blocks]
  std::vector<int32_t> free_;        // a stack
  // Cached blocks, least recently used first: a ring of links with block number num_blocks as its head.
  std::vector<int32_t> lru_next_, lru_previous_;
  int32_t num_cached_ = 0;
};

}  // namespace dsv3::scheduling
