#include "tokenizer_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "dsv3/base/json.h"
#include "file_checks.h"
#include "pipeline_check.h"
#include "utf8.h"

namespace dsv3 {
namespace {

using tokenizer_file::flag_member;
using tokenizer_file::member;
using tokenizer_file::shown;
using tokenizer_file::shown_value;

constexpr std::string_view kFile = "tokenizer.json";

Status bad(std::string message) {
  return tokenizer_file::bad(kFile, std::move(message));
}

// The 256 printable characters that a vocabulary spells bytes with: a byte that is printable in Latin-1 stands for
// itself, the others are U+0100 and up, in order.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    uint32_t next = 0x100;
    bytes_.fill(-1);
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const uint32_t code_point = printable ? byte : next++;
      bytes_[code_point] = static_cast<int16_t>(byte);
      append_utf8(code_point, names_[byte]);
    }
  }

  std::string_view name(size_t byte) const { return names_[byte]; }

  /// Appends the bytes that `text` spells. A text with any other character stands for itself.
  void append_bytes(std::string_view text, std::string& out) const {
    const size_t before = out.size();
    for (size_t at = 0; at < text.size();) {
      const DecodedChar c = decode_valid_utf8(text, at);
      if (c.code_point >= bytes_.size() || bytes_[c.code_point] < 0) {
        out.resize(before);
        out.append(text);
        return;
      }
      out.push_back(static_cast<char>(bytes_[c.code_point]));
      at += c.bytes;
    }
  }

 private:
  std::array<int16_t, 0x144> bytes_{};  // [code point], -1 where it is no byte
  std::array<std::string, 256> names_;
};

using Vocabulary = std::unordered_map<std::string_view, int32_t>;  // views into the JSON document

bool is_id(const Json& value) {
  return value.is_number_unsigned() && value.get<uint64_t>() < static_cast<uint64_t>(kMaxTokens);
}

Status bad_id(const std::string& where, const Json& value) {
  return bad(where + " is " + shown_value(value) + ", must be an id from 0 to " + std::to_string(kMaxTokens - 1));
}

Status check_token_text(std::string_view text, const std::string& where) {
  if (text.empty()) return bad(where + " is empty");
  if (text.size() > kMaxTokenBytes) {
    return bad(where + " is " + std::to_string(text.size()) + " bytes, allowed " + std::to_string(kMaxTokenBytes));
  }
  return {};
}

class Reader {
 public:
  Result<TokenizerFile> read(const Json& root) {
    if (!root.is_object()) return bad("not a JSON object");
    DSV3_TRY(check_pipeline(root));
    const Json* model = member(root, "model");
    if (model == nullptr) return bad("model is missing");
    DSV3_TRY(check_model(*model));
    DSV3_TRY(read_vocabulary(*model));
    DSV3_TRY(read_byte_ids());
    if (const Json* added = member(root, "added_tokens"); added != nullptr) DSV3_TRY(read_added(*added));
    DSV3_TRY(check_dense());
    DSV3_TRY(read_merges(*model));
    DSV3_TRY(check_added_out_of_reach());
    write_bytes();
    return std::move(file_);
  }

 private:
  Status read_vocabulary(const Json& model) {
    const Json* vocab = member(model, "vocab");
    if (vocab == nullptr || !vocab->is_object()) return bad("model.vocab must be an object");
    if (vocab->size() > static_cast<size_t>(kMaxTokens)) {
      return bad("model.vocab has " + std::to_string(vocab->size()) + " entries, allowed " +
                 std::to_string(kMaxTokens));
    }
    vocabulary_.reserve(vocab->size());
    for (const auto& [text, value] : vocab->get_ref<const Json::object_t&>()) {
      DSV3_TRY(check_token_text(text, "a key of model.vocab"));
      if (!is_id(value)) return bad_id("model.vocab[" + shown(text) + "]", value);
      const auto id = value.get<int32_t>();
      DSV3_TRY(claim(id, text, "model.vocab"));
      vocabulary_.emplace(text, id);
    }
    return {};
  }

  // Ids may come in any order; a gap shows once all are read.
  Status claim(int32_t id, std::string_view text, const char* where) {
    const auto index = static_cast<size_t>(id);
    if (index >= texts_.size()) texts_.resize(std::max(index + 1, texts_.size() + texts_.size() / 2));
    if (!texts_[index].empty()) {
      return bad(std::string(where) + ": id " + std::to_string(id) + " is both " + shown(texts_[index]) + " and " +
                 shown(text));
    }
    texts_[index] = text;
    ++tokens_;
    largest_id_ = std::max(largest_id_, id);
    return {};
  }

  Status read_byte_ids() {
    for (size_t byte = 0; byte < 256; ++byte) {
      const auto found = vocabulary_.find(alphabet_.name(byte));
      if (found == vocabulary_.end()) {
        return bad("model.vocab has no entry for byte " + std::to_string(byte) + " (" + shown(alphabet_.name(byte)) +
                   "): not a byte-level vocabulary");
      }
      file_.byte_ids[byte] = found->second;
    }
    return {};
  }

  Status read_added(const Json& list) {
    if (!list.is_array()) return bad("added_tokens must be an array");
    if (list.size() > static_cast<size_t>(kMaxTokens)) return bad("added_tokens has too many entries");
    struct Entry {
      AddedToken token;
      bool normalized = false;
    };
    std::vector<Entry> entries;
    std::unordered_map<std::string_view, size_t> seen;
    for (size_t i = 0; i < list.size(); ++i) {
      const Json& item = list[i];
      const std::string where = "added_tokens[" + std::to_string(i) + "]";
      if (!item.is_object()) return bad(where + " must be an object");
      const Json* id_value = member(item, "id");
      if (id_value == nullptr) return bad(where + ".id is missing");
      if (!is_id(*id_value)) return bad_id(where + ".id", *id_value);
      const auto id = id_value->get<int32_t>();
      const std::string_view text = tokenizer_file::string_member(item, "content");
      DSV3_TRY(check_token_text(text, where + ".content"));
      for (const char* name : {"single_word", "lstrip", "rstrip"}) {
        DSV3_ASSIGN(const bool set, flag_member(item, name, false, kFile, where + "."));
        if (set) return bad(where + "." + name + " is true, only false is supported");
      }
      DSV3_ASSIGN(const bool special, flag_member(item, "special", false, kFile, where + "."));
      DSV3_ASSIGN(const bool normalized, flag_member(item, "normalized", !special, kFile, where + "."));
      if (!seen.emplace(text, i).second) return bad(where + ".content " + shown(text) + " stands there twice");

      const auto in_vocabulary = vocabulary_.find(text);
      if (in_vocabulary == vocabulary_.end()) {
        DSV3_TRY(claim(id, text, "added_tokens"));
      } else if (in_vocabulary->second != id) {
        return bad(where + ": " + shown(text) + " has id " + std::to_string(id) + ", but model.vocab says " +
                   std::to_string(in_vocabulary->second));
      }
      entries.push_back({{id, std::string(text), special}, normalized});
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.token.id < b.token.id; });
    for (Entry& entry : entries) {
      file_.added.push_back(std::move(entry.token));
      file_.added_normalized.push_back(entry.normalized);
    }
    return {};
  }

  Status check_dense() {
    texts_.resize(static_cast<size_t>(largest_id_) + 1);
    if (tokens_ == texts_.size()) return {};
    const auto hole = std::find_if(texts_.begin(), texts_.end(), [](std::string_view text) { return text.empty(); });
    return bad("no token has id " + std::to_string(hole - texts_.begin()) + ", but ids go up to " +
               std::to_string(largest_id_));
  }

  Status read_merges(const Json& model) {
    const Json* merges = member(model, "merges");
    if (merges == nullptr || !merges->is_array()) return bad("model.merges must be an array");
    if (merges->size() > kMaxMerges) {
      return bad("model.merges has " + std::to_string(merges->size()) + " entries, allowed " +
                 std::to_string(kMaxMerges));
    }
    file_.merges.reserve(merges->size());
    std::string joined;
    for (size_t i = 0; i < merges->size(); ++i) {
      const auto where = [i] { return "model.merges[" + std::to_string(i) + "]"; };
      std::string_view left;
      std::string_view right;
      if (!split_merge((*merges)[i], left, right)) {
        return bad(where() + " is " + shown_value((*merges)[i]) + ", must be \"left right\" or [\"left\", \"right\"]");
      }
      joined.assign(left).append(right);
      Merge merge;
      for (const auto& [text, id] :
           {std::pair<std::string_view, int32_t*>{left, &merge.left}, {right, &merge.right}, {joined, &merge.merged}}) {
        const auto found = vocabulary_.find(text);
        if (found == vocabulary_.end()) return bad(where() + ": " + shown(text) + " is not in model.vocab");
        *id = found->second;
      }
      file_.merges.push_back(merge);
    }
    return {};
  }

  static bool split_merge(const Json& value, std::string_view& left, std::string_view& right) {
    if (value.is_string()) {
      const std::string_view text = value.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) return false;
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
      left = value[0].get_ref<const std::string&>();
      right = value[1].get_ref<const std::string&>();
    }
    return !left.empty() && !right.empty();
  }

  // Text that may not become an added token (a user's) goes through byte tokens and merges. If those could yield an
  // added token's id, keeping the match from it would be in vain.
  Status check_added_out_of_reach() {
    std::vector<bool> is_added(texts_.size());
    for (const AddedToken& token : file_.added) is_added[static_cast<size_t>(token.id)] = true;
    const auto refuse = [&](int32_t id, const char* how) {
      return bad("added token " + shown(texts_[static_cast<size_t>(id)]) + " is also " + how +
                 ": ordinary text could become a control token");
    };
    for (const int32_t id : file_.byte_ids) {
      if (is_added[static_cast<size_t>(id)]) return refuse(id, "a byte of the vocabulary");
    }
    for (const Merge& merge : file_.merges) {
      if (is_added[static_cast<size_t>(merge.merged)]) return refuse(merge.merged, "the result of a merge");
    }
    return {};
  }

  // Added tokens stand for their text as it is, the others for the bytes that they spell. (The reference also reads
  // an added token as spelled bytes if all its characters happen to be in the alphabet, and so garbles one like "é".)
  void write_bytes() {
    file_.begins.reserve(texts_.size() + 1);
    auto next_added = file_.added.begin();
    for (size_t id = 0; id < texts_.size(); ++id) {
      file_.begins.push_back(static_cast<uint32_t>(file_.bytes.size()));
      if (next_added != file_.added.end() && next_added->id == static_cast<int32_t>(id)) {
        file_.bytes.append(next_added->text);
        ++next_added;
      } else {
        alphabet_.append_bytes(texts_[id], file_.bytes);
      }
    }
    file_.begins.push_back(static_cast<uint32_t>(file_.bytes.size()));
  }

  ByteAlphabet alphabet_;
  TokenizerFile file_;
  Vocabulary vocabulary_;
  std::vector<std::string_view> texts_;  // [id] as the file writes it, empty where no token has that id
  size_t tokens_ = 0;
  int32_t largest_id_ = -1;
};

}  // namespace

Result<TokenizerFile> parse_tokenizer_file(std::string_view json) {
  const auto root = parse_json(json, {.max_depth = 32, .max_bytes = kMaxTokenizerFileBytes, .max_values = 8'000'000});
  if (!root.ok()) return bad(root.status().message());
  return Reader().read(*root);
}

}  // namespace dsv3
