// Encodes what compare_tokenizers.py sends, so that the two implementations see the same bytes.
//
//   tokenize_cli TOKENIZER_JSON encode|decode
//
// stdin: records of a 32-bit little-endian byte count and that many bytes: UTF-8 text to encode, or 32-bit ids to
// decode. stdout: records of the same form, ids or text.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "dsv3/tokenizer/tokenizer.h"

namespace {

bool read_record(std::string& record) {
  uint32_t bytes = 0;
  if (std::fread(&bytes, sizeof bytes, 1, stdin) != 1) return false;
  record.resize(bytes);
  return std::fread(record.data(), 1, bytes, stdin) == bytes;
}

void write_record(const void* data, size_t size) {
  const auto bytes = static_cast<uint32_t>(size);
  std::fwrite(&bytes, sizeof bytes, 1, stdout);
  std::fwrite(data, 1, size, stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 3 ? argv[2] : "";
  if (mode != "encode" && mode != "decode") {
    std::fprintf(stderr, "usage: tokenize_cli TOKENIZER_JSON encode|decode\n");
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  const auto tokenizer = dsv3::Tokenizer::parse(json, {});
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().message().c_str());
    return 1;
  }
  for (std::string record; read_record(record);) {
    if (mode == "encode") {
      const std::vector<int32_t> ids = (*tokenizer)->encode(record, false);
      write_record(ids.data(), ids.size() * sizeof(int32_t));
    } else {
      std::vector<int32_t> ids(record.size() / sizeof(int32_t));
      if (!ids.empty()) std::memcpy(ids.data(), record.data(), ids.size() * sizeof(int32_t));
      const std::string text = (*tokenizer)->decode(ids, false);
      write_record(text.data(), text.size());
    }
  }
  return 0;
}
