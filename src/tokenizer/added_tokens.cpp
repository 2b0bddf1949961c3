#include "added_tokens.h"

#include <algorithm>

namespace dsv3 {
namespace {

// The stretches between the untrusted ones. A match is looked for within one stretch at a time, so it cannot touch
// what is outside, and bytes outside cannot hide a shorter match inside.
std::vector<ByteRange> trusted_stretches(size_t text_bytes, std::span<const ByteRange> untrusted) {
  std::vector<ByteRange> stretches;
  size_t at = 0;
  for (const ByteRange& range : untrusted) {
    if (range.begin >= range.end) continue;
    if (range.begin > at) stretches.push_back({at, range.begin});
    at = std::max(at, range.end);
  }
  if (at < text_bytes) stretches.push_back({at, text_bytes});
  return stretches;
}

// Appends the matches in `stretches` and returns what lies between them.
std::vector<ByteRange> take_matches(const TokenTrie& trie, std::string_view text, std::span<const ByteRange> stretches,
                                    std::vector<TokenTrie::Match>& matches) {
  std::vector<ByteRange> rest;
  for (ByteRange stretch : stretches) {
    TokenTrie::Match match;
    while (trie.find(text, stretch, match)) {
      matches.push_back(match);
      if (match.where.begin > stretch.begin) rest.push_back({stretch.begin, match.where.begin});
      stretch.begin = match.where.end;
    }
    if (stretch.begin < stretch.end) rest.push_back(stretch);
  }
  return rest;
}

}  // namespace

TokenTrie::TokenTrie() : nodes_(1) {
  root_children_.fill(-1);
}

int32_t TokenTrie::child(int32_t node, char byte) const {
  const auto wanted = static_cast<unsigned char>(byte);
  if (node == 0) return root_children_[wanted];
  int32_t at = nodes_[static_cast<size_t>(node)].first_child;
  while (at >= 0 && nodes_[static_cast<size_t>(at)].byte != wanted) at = nodes_[static_cast<size_t>(at)].next_sibling;
  return at;
}

void TokenTrie::add(std::string_view text, int32_t id) {
  int32_t node = 0;
  for (const char byte : text) {
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      Node made;
      made.byte = static_cast<unsigned char>(byte);
      if (node == 0) {
        root_children_[made.byte] = next;
      } else {
        made.next_sibling = nodes_[static_cast<size_t>(node)].first_child;
        nodes_[static_cast<size_t>(node)].first_child = next;
      }
      nodes_.push_back(made);
    }
    node = next;
  }
  nodes_[static_cast<size_t>(node)].id = id;
}

bool TokenTrie::find(std::string_view text, ByteRange within, Match& match) const {
  for (size_t begin = within.begin; begin < within.end; ++begin) {
    int32_t node = root_children_[static_cast<unsigned char>(text[begin])];
    size_t longest_end = 0;
    for (size_t end = begin + 1; node >= 0; ++end) {
      if (const int32_t id = nodes_[static_cast<size_t>(node)].id; id >= 0) {
        longest_end = end;
        match.id = id;
      }
      if (end == within.end) break;
      node = child(node, text[end]);
    }
    if (longest_end > 0) {
      match.where = {begin, longest_end};
      return true;
    }
  }
  return false;
}

int32_t TokenTrie::id_of(std::string_view text) const {
  int32_t node = 0;
  for (const char byte : text) {
    node = child(node, byte);
    if (node < 0) return -1;
  }
  return nodes_[static_cast<size_t>(node)].id;
}

AddedTokens::AddedTokens(std::span<const AddedToken> tokens, const std::vector<bool>& normalized) {
  for (size_t i = 0; i < tokens.size(); ++i) (normalized[i] ? normalized_ : raw_).add(tokens[i].text, tokens[i].id);
}

std::vector<TokenTrie::Match> AddedTokens::find_all(std::string_view text, std::span<const ByteRange> untrusted) const {
  std::vector<TokenTrie::Match> matches;
  const std::vector<ByteRange> rest = take_matches(raw_, text, trusted_stretches(text.size(), untrusted), matches);
  take_matches(normalized_, text, rest, matches);
  std::sort(matches.begin(), matches.end(), [](const auto& a, const auto& b) { return a.where.begin < b.where.begin; });
  return matches;
}

int32_t AddedTokens::id_of(std::string_view text) const {
  const int32_t id = raw_.id_of(text);
  return id >= 0 ? id : normalized_.id_of(text);
}

}  // namespace dsv3
