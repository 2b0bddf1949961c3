// Any text with any untrusted ranges. What must hold: the ids spell the text (invalid bytes replaced), no added token
// touches an untrusted byte, decoding id by id equals decoding at once, and any ids can be decoded.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "clean_text.h"
#include "unit/tokenizer/tokenizer_files.h"

namespace dsv3 {
namespace {

const Tokenizer& small_tokenizer() {
  static const auto tokenizer = test::parse_or_die(test::small_file(
      {"a b", "ab c", "Ġ a", "ĠĠ Ġ", "Ġ Ġ", "a a", "aa aa", "b aa", "Ã ©", "ä ¸", "ä¸ Ń", "Ċ Ċ", "< a", "c <a", "1 2"},
      {"<a>", "<a>b", "a>b<", "b<a", "<a>bc", "\n\n\n", "12345", "é<"}));
  return *tokenizer;
}

void check_decoding(const Tokenizer& tokenizer, std::span<const int32_t> ids, bool skip_special) {
  IncrementalDetokenizer detokenizer(tokenizer, skip_special);
  std::string joined;
  for (const int32_t id : ids) {
    const std::string part = detokenizer.push(id);
    DSV3_CHECK(valid_utf8_prefix(part) == part.size(), "half a character");
    joined += part;
  }
  joined += detokenizer.finish();
  DSV3_CHECK(joined == tokenizer.decode(ids, skip_special), "decoding by parts differs");
}

void check_text(const Tokenizer& tokenizer, std::string_view text, std::span<const ByteRange> untrusted) {
  const std::vector<int32_t> ids = tokenizer.encode(text, false, untrusted);
  const CleanText clean(text, untrusted);
  DSV3_CHECK(tokenizer.decode(ids, false) == clean.text(), "the ids spell another text");
  size_t at = 0;
  for (const int32_t id : ids) {
    const size_t end = at + tokenizer.token_bytes(id).size();
    if (tokenizer.is_added(id)) {
      for (const ByteRange& range : clean.untrusted()) {
        const bool apart = range.end <= at || range.begin >= end || range.begin >= range.end;
        DSV3_CHECK(apart, "a control token from untrusted text");
      }
    }
    at = end;
  }
  check_decoding(tokenizer, ids, false);
}

}  // namespace
}  // namespace dsv3

// The first byte: how many ranges (0 to 7), and what to do with the rest. Then two bytes a range: gap and length.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsv3;
  if (size == 0) return 0;
  const size_t num_ranges = data[0] & 7u;
  const bool as_ids = (data[0] & 8u) != 0;
  const Tokenizer& tokenizer = (data[0] & 16u) != 0 ? test::tiny_tokenizer() : small_tokenizer();
  if (1 + 2 * num_ranges > size) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1 + 2 * num_ranges, size - 1 - 2 * num_ranges);

  if (as_ids) {
    std::vector<int32_t> ids;
    for (size_t at = 0; at + 2 <= text.size(); at += 2) {
      int16_t id = 0;
      std::memcpy(&id, text.data() + at, 2);
      ids.push_back(id);
    }
    check_decoding(tokenizer, ids, num_ranges % 2 == 1);
    return 0;
  }
  std::vector<ByteRange> untrusted;
  size_t at = 0;
  for (size_t i = 0; i < num_ranges; ++i) {
    const size_t begin = std::min(text.size(), at + data[1 + 2 * i]);
    at = std::min(text.size(), begin + data[2 + 2 * i]);
    untrusted.push_back({begin, at});
  }
  check_text(tokenizer, text, untrusted);
  return 0;
}
