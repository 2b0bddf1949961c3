// Reads and checks tokenizer.json and tokenizer_config.json. The files count as hostile: whatever is not exactly a
// DeepSeek-style byte-level BPE is refused with the member that is wrong. Stateless; builds no lookup structures.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"
#include "dsv3/tokenizer/tokenizer.h"
#include "merges.h"

namespace dsv3 {

inline constexpr size_t kMaxTokenizerFileBytes = 64u << 20;
inline constexpr size_t kMaxTokenizerConfigBytes = 16u << 20;
inline constexpr size_t kMaxTokenBytes = 1024;

/// tokenizer.json, checked: ids are dense from 0, every merge's ids exist, and no text that is not an added token
/// can become one by merging.
struct TokenizerFile {
  std::string bytes;             ///< what the tokens stand for, one after the other
  std::vector<uint32_t> begins;  ///< [tokens + 1] where each one begins in `bytes`
  std::array<int32_t, 256> byte_ids{};
  std::vector<Merge> merges;           ///< in the order of their rank
  std::vector<AddedToken> added;       ///< sorted by id
  std::vector<bool> added_normalized;  ///< like `added`: matched after those that are not

  int32_t tokens() const { return static_cast<int32_t>(begins.size()) - 1; }
};

struct TokenizerConfigFile {
  std::string bos_token;  ///< empty if there is none
  std::string eos_token;
  bool add_bos_token = false;
};

/// kBadModelFile with the member at fault.
Result<TokenizerFile> parse_tokenizer_file(std::string_view json);

/// The same for tokenizer_config.json; an empty text is an empty configuration.
Result<TokenizerConfigFile> parse_tokenizer_config_file(std::string_view json);

}  // namespace dsv3
