// Finds added tokens in text, leftmost first and the longest where several begin at one place. Immutable after
// construction, thread safe. Knows nothing of ids other than the added ones.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dsv3/tokenizer/tokenizer.h"

namespace dsv3 {

/// A trie over some texts; an edge list per node, as nodes with many children are rare.
class TokenTrie {
 public:
  struct Match {
    ByteRange where;
    int32_t id = -1;
  };

  TokenTrie();

  void add(std::string_view text, int32_t id);

  /// The first match that lies in text[within], longest at its place. False if there is none.
  bool find(std::string_view text, ByteRange within, Match& match) const;

  /// Id of a whole text, -1 if it was not added.
  int32_t id_of(std::string_view text) const;

 private:
  struct Node {
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t id = -1;
    unsigned char byte = 0;
  };

  int32_t child(int32_t node, char byte) const;

  std::vector<Node> nodes_;                   // [0] is the root
  std::array<int32_t, 256> root_children_{};  // -1 where no text begins so: most places are passed over by this
};

class AddedTokens {
 public:
  /// `normalized[i]` of tokens[i]: found only in what the others leave, as the reference does it.
  AddedTokens(std::span<const AddedToken> tokens, const std::vector<bool>& normalized);

  /// Matches in order of place. None touches a byte of `untrusted` (ascending; may touch or overlap).
  std::vector<TokenTrie::Match> find_all(std::string_view text, std::span<const ByteRange> untrusted) const;

  int32_t id_of(std::string_view text) const;

 private:
  TokenTrie raw_;
  TokenTrie normalized_;
};

}  // namespace dsv3
