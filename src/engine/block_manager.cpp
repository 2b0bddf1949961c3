// Book-keeping of the block pool; see block_manager.h for the states of a block.
#include "block_manager.h"

#include <numeric>
#include <string>

namespace dsv3::scheduling {

BlockManager::BlockManager(int32_t num_blocks, int32_t block_tokens, bool keep_unused)
    : num_blocks_(num_blocks),
      block_tokens_(block_tokens),
      keep_unused_(keep_unused),
      index_(num_blocks, block_tokens),
      references_(static_cast<size_t>(num_blocks)),
      free_(static_cast<size_t>(num_blocks)),
      lru_next_(static_cast<size_t>(num_blocks) + 1, num_blocks),
      lru_previous_(static_cast<size_t>(num_blocks) + 1, num_blocks) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

BlockCounts BlockManager::counts() const {
  return {num_blocks_, num_blocks_ - num_free() - num_cached_, num_cached_, num_free()};
}

void BlockManager::lru_push(int32_t block) {
  const auto b = static_cast<size_t>(block), head = static_cast<size_t>(num_blocks_);
  const int32_t last = lru_previous_[head];
  lru_next_[static_cast<size_t>(last)] = block;
  lru_previous_[b] = last;
  lru_next_[b] = num_blocks_;
  lru_previous_[head] = block;
  ++num_cached_;
}

void BlockManager::lru_remove(int32_t block) {
  const auto b = static_cast<size_t>(block);
  lru_next_[static_cast<size_t>(lru_previous_[b])] = lru_next_[b];
  lru_previous_[static_cast<size_t>(lru_next_[b])] = lru_previous_[b];
  --num_cached_;
}

void BlockManager::evict_oldest() {
  const int32_t block = lru_next_[static_cast<size_t>(num_blocks_)];
  DSV3_CHECK(block != num_blocks_, "there is a cached block to evict");
  lru_remove(block);
  index_.erase(block);
  free_.push_back(block);
  ++generation_;
}

bool BlockManager::allocate(int32_t count, std::vector<int32_t>* table) {
  if (count > available()) return false;
  for (int32_t i = 0; i < count; ++i) {
    if (free_.empty()) evict_oldest();
    const int32_t block = free_.back();
    free_.pop_back();
    references_[static_cast<size_t>(block)] = 1;
    table->push_back(block);
  }
  return true;
}

void BlockManager::acquire(std::span<const int32_t> path) {
  for (int32_t block : path) {
    DSV3_CHECK(index_.contains(block), "only published blocks are shared");
    if (references_[static_cast<size_t>(block)]++ == 0) lru_remove(block);
  }
}

void BlockManager::release(std::vector<int32_t>* table) {
  for (size_t i = table->size(); i-- > 0;) {
    const int32_t block = (*table)[i];
    int32_t& count = references_[static_cast<size_t>(block)];
    DSV3_CHECK(count > 0, "a block is released as often as it was taken");
    if (--count > 0) continue;
    if (!index_.contains(block)) {
      free_.push_back(block);
    } else if (keep_unused_) {
      lru_push(block);
    } else {
      index_.erase(block);
      free_.push_back(block);
      ++generation_;
    }
  }
  table->clear();
}

bool BlockManager::publish(int32_t block, int32_t parent, std::string_view salt, uint64_t hash,
                           std::span<const int32_t> ids) {
  DSV3_CHECK(referenced(block), "only a holder publishes a block");
  if (parent != PrefixCache::kRoot && !index_.contains(parent)) return false;
  if (index_.find(parent, salt, hash, ids) != PrefixCache::kNone) return false;
  index_.insert(block, parent, salt, hash, ids);
  ++generation_;
  return true;
}

void BlockManager::forget(int32_t block) {
  for (int32_t node : index_.subtree(block)) {
    index_.erase(node);
    if (referenced(node)) continue;  // its holders free it
    lru_remove(node);
    free_.push_back(node);
  }
  ++generation_;
}

int32_t BlockManager::flush() {
  const int32_t flushed = num_cached_;
  while (num_cached_ > 0) evict_oldest();
  return flushed;
}

Status BlockManager::check_books(std::span<const std::vector<int32_t>* const> tables) const {
  const auto wrong = [](int32_t block, const char* what) {
    return Status(Code::kInternal, "block " + std::to_string(block) + ": " + what);
  };
  std::vector<int32_t> held(references_.size());
  for (const auto* table : tables) {
    for (int32_t block : *table) ++held[static_cast<size_t>(block)];
  }
  std::vector<int32_t> places(references_.size());
  int32_t used = 0;
  for (int32_t block = 0; block < num_blocks_; ++block) {
    const auto b = static_cast<size_t>(block);
    if (held[b] != references_[b]) return wrong(block, "its reference count is not the number of its holders");
    if (held[b] > 0) ++used, ++places[b];
  }
  for (int32_t block : free_) {
    ++places[static_cast<size_t>(block)];
    if (index_.contains(block)) return wrong(block, "free and published");
  }
  int32_t cached = 0;
  std::vector<bool> passed(references_.size());
  for (int32_t block = lru_next_[static_cast<size_t>(num_blocks_)]; block != num_blocks_;
       block = lru_next_[static_cast<size_t>(block)]) {
    ++places[static_cast<size_t>(block)], ++cached;
    if (!index_.contains(block)) return wrong(block, "cached, but not published");
    passed[static_cast<size_t>(block)] = true;
    const int32_t above = index_.parent(block);
    if (above != PrefixCache::kRoot && passed[static_cast<size_t>(above)]) {
      return wrong(block, "would be evicted after its parent");
    }
  }
  for (int32_t block = 0; block < num_blocks_; ++block) {
    if (places[static_cast<size_t>(block)] != 1) return wrong(block, "not exactly one of used, cached, free");
    const int32_t above = index_.contains(block) ? index_.parent(block) : PrefixCache::kRoot;
    if (above == PrefixCache::kRoot) continue;
    if (!index_.contains(above)) return wrong(block, "its parent is not published");
    if (referenced(block) && !referenced(above)) return wrong(block, "held, but not its parent");
  }
  const BlockCounts now = counts();
  if (used != now.used || cached != now.cached || used + cached + num_free() != num_blocks_) {
    return Status(Code::kInternal, "used + cached + free is not the pool");
  }
  return {};
}

}  // namespace dsv3::scheduling
