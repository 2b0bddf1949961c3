// The loader against any bytes. The first byte chooses: the rest is a tokenizer.json as it is, or a
// tokenizer_config.json, or a list of changes to a sound small file, which reach further than bytes that are seldom
// JSON.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "unit/tokenizer/tokenizer_files.h"

namespace dsv3 {
namespace {

const char* const kPlaces[] = {
    "",
    "/version",
    "/normalizer",
    "/pre_tokenizer",
    "/pre_tokenizer/pretokenizers",
    "/pre_tokenizer/pretokenizers/0",
    "/pre_tokenizer/pretokenizers/1/pattern",
    "/pre_tokenizer/pretokenizers/2/pattern/Regex",
    "/pre_tokenizer/pretokenizers/3/use_regex",
    "/post_processor",
    "/decoder",
    "/model",
    "/model/type",
    "/model/vocab",
    "/model/vocab/a",
    "/model/vocab/ab",
    "/model/vocab/new",
    "/model/merges",
    "/model/merges/0",
    "/model/merges/-",
    "/model/ignore_merges",
    "/added_tokens",
    "/added_tokens/0",
    "/added_tokens/0/id",
    "/added_tokens/0/content",
    "/added_tokens/1/special",
    "/added_tokens/-",
};

constexpr std::string_view kProbe = "abc ab<x> <y>12 \xE4\xB8\xAD\n\xFF";

const Json& sound_file() {
  static const Json file = test::small_file({"a b", "ab c"}, {"<x>", "<y>"});
  return file;
}

// What is accepted must also work.
void use(const Result<std::shared_ptr<const Tokenizer>>& parsed) {
  if (!parsed.ok()) {
    DSV3_CHECK(parsed.status().code() == Code::kBadModelFile && !parsed.status().message().empty(), "refused badly");
    return;
  }
  const Tokenizer& tokenizer = **parsed;
  const std::vector<int32_t> ids = tokenizer.encode(kProbe, true);
  for (const int32_t id : ids) DSV3_CHECK(tokenizer.is_known(id), "unknown id");
  for (const AddedToken& token : tokenizer.added_tokens()) {
    DSV3_CHECK(tokenizer.find_added(token.text) == token.id, "added token not found");
    const std::vector<ByteRange> whole = {{0, token.text.size()}};
    for (const int32_t id : tokenizer.encode(token.text, false, whole)) {
      DSV3_CHECK(!tokenizer.is_added(id), "control token from untrusted text");
    }
  }
  (void)tokenizer.decode(ids, true);
}

// Each change is a place (one byte), a length (one byte) and that many bytes of JSON.
void apply_changes(std::string_view bytes, Json& file) {
  while (bytes.size() >= 2) {
    const char* place = kPlaces[static_cast<unsigned char>(bytes[0]) % std::size(kPlaces)];
    const std::string_view text = bytes.substr(2, static_cast<unsigned char>(bytes[1]));
    bytes.remove_prefix(2 + text.size());
    const auto value = parse_json(text);
    const bool removes = !value.ok();
    try {
      const Json change = {{"op", removes ? "remove" : "add"}, {"path", place}, {"value", removes ? Json() : *value}};
      file.patch_inplace(Json::array({change}));
    } catch (const Json::exception&) {
      continue;  // no such place in this file
    }
  }
}

}  // namespace
}  // namespace dsv3

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsv3;
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 3 == 0) {
    use(Tokenizer::parse(rest, {}));
  } else if (data[0] % 3 == 1) {
    static const std::string json = dump_json(sound_file());
    use(Tokenizer::parse(json, rest));
  } else {
    Json file = sound_file();
    apply_changes(rest, file);
    use(Tokenizer::parse(dump_json(file), {}));
  }
  return 0;
}
