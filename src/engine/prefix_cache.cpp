// The prefix tree: nodes in one array, chained in hash buckets. No allocation after construction but for long salts.
#include "prefix_cache.h"

#include <algorithm>
#include <bit>

#include "dsv3/base/status.h"

namespace dsv3::scheduling {

PrefixCache::PrefixCache(int32_t num_blocks, int32_t block_tokens)
    : block_tokens_(block_tokens),
      nodes_(static_cast<size_t>(num_blocks)),
      ids_(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_tokens)),
      buckets_(std::bit_ceil(static_cast<size_t>(std::max(num_blocks, 1))), kNone) {}

int32_t PrefixCache::find(int32_t parent, std::string_view salt, uint64_t hash, std::span<const int32_t> ids) const {
  for (int32_t block = buckets_[bucket(hash)]; block != kNone; block = nodes_[static_cast<size_t>(block)].next) {
    const Node& node = nodes_[static_cast<size_t>(block)];
    if (node.hash != hash || node.parent != parent) continue;
    if (parent == kRoot && node.salt != salt) continue;
    const auto* stored = ids_.data() + static_cast<size_t>(block) * static_cast<size_t>(block_tokens_);
    if (std::equal(ids.begin(), ids.end(), stored)) return block;
  }
  return kNone;
}

void PrefixCache::insert(int32_t block, int32_t parent, std::string_view salt, uint64_t hash,
                         std::span<const int32_t> ids) {
  Node& node = nodes_[static_cast<size_t>(block)];
  DSV3_CHECK(!node.present, "a block is published once");
  DSV3_CHECK(static_cast<int32_t>(ids.size()) == block_tokens_, "only full blocks are published");
  node.hash = hash;
  node.parent = parent;
  node.depth = 0;
  node.children = 0;
  node.present = true;
  if (parent == kRoot) {
    node.salt = salt;
  } else {
    Node& above = nodes_[static_cast<size_t>(parent)];
    DSV3_CHECK(above.present, "a published block has a published parent");
    ++above.children;
    node.depth = above.depth + 1;
  }
  std::copy(ids.begin(), ids.end(), ids_.begin() + static_cast<ptrdiff_t>(block) * block_tokens_);
  int32_t& first = buckets_[bucket(hash)];
  node.next = first;
  first = block;
  ++size_;
}

void PrefixCache::erase(int32_t block) {
  Node& node = nodes_[static_cast<size_t>(block)];
  DSV3_CHECK(node.present && node.children == 0, "only leaves leave the prefix tree");
  int32_t* link = &buckets_[bucket(node.hash)];
  while (*link != block) link = &nodes_[static_cast<size_t>(*link)].next;
  *link = node.next;
  if (node.parent != kRoot) --nodes_[static_cast<size_t>(node.parent)].children;
  node.present = false;
  node.salt.clear();
  --size_;
}

std::vector<int32_t> PrefixCache::subtree(int32_t block) const {
  std::vector<int32_t> by_depth;
  for (int32_t i = 0; i < static_cast<int32_t>(nodes_.size()); ++i) {
    if (nodes_[static_cast<size_t>(i)].present) by_depth.push_back(i);
  }
  const auto depth = [this](int32_t b) { return nodes_[static_cast<size_t>(b)].depth; };
  std::stable_sort(by_depth.begin(), by_depth.end(), [&](int32_t a, int32_t b) { return depth(a) < depth(b); });
  std::vector<bool> below(nodes_.size());
  std::vector<int32_t> found;
  for (int32_t i : by_depth) {
    const int32_t above = parent(i);
    if (i != block && (above == kRoot || !below[static_cast<size_t>(above)])) continue;
    below[static_cast<size_t>(i)] = true;
    found.push_back(i);
  }
  std::reverse(found.begin(), found.end());
  return found;
}

}  // namespace dsv3::scheduling
