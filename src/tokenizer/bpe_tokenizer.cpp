#include "bpe_tokenizer.h"

#include "clean_text.h"
#include "file_checks.h"
#include "piece_scanner.h"
#include "utf8.h"

namespace dsv3 {
namespace {

// The ranges keep control tokens out of a user's text: a caller that gets them wrong must not go on.
void check_ranges(size_t text_bytes, std::span<const ByteRange> ranges) {
  size_t at = 0;
  for (const ByteRange& range : ranges) {
    DSV3_CHECK(range.begin >= at && range.begin <= range.end && range.end <= text_bytes,
               "untrusted ranges must be sorted, disjoint and inside the text");
    at = range.end;
  }
}

Result<int32_t> find_named(const AddedTokens& added, const char* name, std::string_view text) {
  if (text.empty()) return -1;
  const int32_t id = added.id_of(text);
  if (id >= 0) return id;
  return tokenizer_file::bad("tokenizer_config.json", std::string(name) + " " + tokenizer_file::shown(text) +
                                                          " is not an added token of tokenizer.json");
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> BpeTokenizer::make(TokenizerFile file, const TokenizerConfigFile& config) {
  DSV3_ASSIGN(Merges merges, Merges::build(file.byte_ids, file.merges));
  const auto made = std::shared_ptr<BpeTokenizer>(new BpeTokenizer(std::move(file), std::move(merges)));
  DSV3_ASSIGN(made->bos_id_, find_named(made->added_finder_, "bos_token", config.bos_token));
  DSV3_ASSIGN(made->eos_id_, find_named(made->added_finder_, "eos_token", config.eos_token));
  made->adds_bos_ = config.add_bos_token;
  return std::shared_ptr<const Tokenizer>(made);
}

BpeTokenizer::BpeTokenizer(TokenizerFile file, Merges merges)
    : bytes_(std::move(file.bytes)),
      begins_(std::move(file.begins)),
      kinds_(begins_.size() - 1, TokenKind::kText),
      added_(std::move(file.added)),
      added_finder_(added_, file.added_normalized),
      merges_(std::move(merges)) {
  for (const AddedToken& token : added_) {
    kinds_[static_cast<size_t>(token.id)] = token.special ? TokenKind::kSpecial : TokenKind::kAdded;
  }
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, bool add_bos,
                                          std::span<const ByteRange> untrusted) const {
  check_ranges(text.size(), untrusted);
  const CleanText clean(text, untrusted);
  std::vector<int32_t> ids;
  ids.reserve(clean.text().size() / 4 + 8);
  if (add_bos && bos_id_ >= 0) ids.push_back(bos_id_);

  Merges::Scratch scratch;
  const auto encode_text = [&](size_t begin, size_t end) {
    PieceScanner pieces(classes_, clean.text().substr(begin, end - begin));
    for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
      merges_.encode(piece, scratch, ids);
    }
  };

  size_t at = 0;
  for (const TokenTrie::Match& match : added_finder_.find_all(clean.text(), clean.untrusted())) {
    encode_text(at, match.where.begin);
    ids.push_back(match.id);
    at = match.where.end;
  }
  encode_text(at, clean.text().size());
  return ids;
}

std::string_view BpeTokenizer::token_bytes(int32_t id) const {
  if (!is_known(id)) return {};
  const auto index = static_cast<size_t>(id);
  return std::string_view(bytes_).substr(begins_[index], begins_[index + 1] - begins_[index]);
}

std::string BpeTokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  bytes.reserve(ids.size() * 4);
  for (const int32_t id : ids) {
    if (!(skip_special_tokens && is_special(id))) bytes.append(token_bytes(id));
  }
  if (valid_utf8_prefix(bytes) == bytes.size()) return bytes;
  std::string text;
  if (append_replacing_invalid(bytes, text) < bytes.size()) text.append(kReplacementCharacter);
  return text;
}

bool BpeTokenizer::is_known(int32_t id) const {
  return id >= 0 && id < vocab_size();
}

bool BpeTokenizer::is_added(int32_t id) const {
  return is_known(id) && kinds_[static_cast<size_t>(id)] != TokenKind::kText;
}

bool BpeTokenizer::is_special(int32_t id) const {
  return is_known(id) && kinds_[static_cast<size_t>(id)] == TokenKind::kSpecial;
}

int32_t BpeTokenizer::find_added(std::string_view text) const {
  return text.empty() ? -1 : added_finder_.id_of(text);
}

}  // namespace dsv3
