// libFuzzer target for the request parser. The first byte says how the rest is cut; whole and cut input must give the
// same requests, and nothing that the parser accepts may break what handlers rely on.
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "dsv3/base/status.h"
#include "http_parser.h"

namespace {

using dsv3::HttpLimits;
using dsv3::HttpMessage;
using dsv3::HttpParser;

constexpr HttpLimits kLimits{2048, 20, 8192};

struct Reading {
  std::vector<HttpMessage> requests;
  HttpParser::State end = HttpParser::State::kIdle;
};

Reading read_all(std::string_view bytes, size_t piece_bytes) {
  Reading out;
  HttpParser parser(kLimits);
  while (!bytes.empty() && parser.state() != HttpParser::State::kFailed) {
    const size_t used = parser.feed(bytes.substr(0, piece_bytes));
    DSV3_CHECK(used > 0, "the parser must make progress");
    bytes.remove_prefix(used);
    DSV3_CHECK(parser.body_bytes() <= kLimits.max_body_bytes, "the body limit holds at any moment");
    if (parser.state() == HttpParser::State::kComplete) out.requests.push_back(parser.take());
  }
  out.end = parser.state();
  return out;
}

void check(const HttpMessage& message) {
  DSV3_CHECK(message.headers.size() <= kLimits.max_headers, "the header count holds");
  DSV3_CHECK(!message.path.empty() && (message.path[0] == '/' || message.path == "*"), "a path is a path");
  for (const unsigned char c : message.path) DSV3_CHECK(c >= 0x20 && c != 0x7f, "no control character in a path");
  for (const auto& [name, value] : message.headers) {
    for (const unsigned char c : name)
      DSV3_CHECK(c > 0x20 && c < 0x7f && !(c >= 'A' && c <= 'Z'), "names are lower-case tokens");
    for (const unsigned char c : value)
      DSV3_CHECK(c == '\t' || (c >= 0x20 && c != 0x7f), "no control character in a value");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Reading whole = read_all(bytes, SIZE_MAX);
  const Reading cut = read_all(bytes, 1 + data[0] % 16);
  DSV3_CHECK(whole.end == cut.end && whole.requests.size() == cut.requests.size(), "how input is cut must not matter");
  for (size_t i = 0; i < whole.requests.size(); ++i) {
    check(whole.requests[i]);
    DSV3_CHECK(whole.requests[i].headers == cut.requests[i].headers && whole.requests[i].body == cut.requests[i].body &&
                   whole.requests[i].path == cut.requests[i].path,
               "how input is cut must not matter");
  }
  return 0;
}
