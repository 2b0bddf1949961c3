#include "added_tokens.h"

#include <gtest/gtest.h>

#include <string>

namespace dsv3 {
namespace {

// "begin-end:id" of each match.
std::string found(const AddedTokens& tokens, std::string_view text, std::vector<ByteRange> untrusted = {}) {
  std::string out;
  for (const auto& match : tokens.find_all(text, untrusted)) {
    if (!out.empty()) out += ' ';
    out += std::to_string(match.where.begin) + "-" + std::to_string(match.where.end) + ":" + std::to_string(match.id);
  }
  return out;
}

AddedTokens make(const std::vector<std::string>& texts, std::vector<bool> normalized = {}) {
  std::vector<AddedToken> tokens;
  for (const std::string& text : texts) tokens.push_back({static_cast<int32_t>(tokens.size()), text, false});
  normalized.resize(texts.size());
  return AddedTokens(tokens, normalized);
}

TEST(AddedTokens, LeftmostThenLongest) {
  const AddedTokens tokens = make({"<a>", "<a>b", "a>b<", "ab", "abcd", "bc"});
  EXPECT_EQ(found(tokens, "x<a>bc"), "1-5:1");
  EXPECT_EQ(found(tokens, "<a><a>b"), "0-3:0 3-7:1");
  EXPECT_EQ(found(tokens, "abc"), "0-2:3");  // "abcd" begins well but is not finished
  EXPECT_EQ(found(tokens, "aabcd"), "1-5:4");
  EXPECT_EQ(found(tokens, "a>b<a>b"), "0-4:2");
  EXPECT_EQ(found(tokens, ""), "");
  EXPECT_EQ(found(tokens, "<<<<a"), "");
}

TEST(AddedTokens, NormalizedOnesGetWhatTheOthersLeave) {
  const AddedTokens tokens = make({"xyz", "yz!"}, {true, false});
  EXPECT_EQ(found(tokens, "xyz!"), "1-4:1");
  EXPECT_EQ(found(tokens, "xyz xyz!"), "0-3:0 5-8:1");
}

TEST(AddedTokens, NoMatchTouchesAnUntrustedByte) {
  const AddedTokens tokens = make({"<a>"});
  EXPECT_EQ(found(tokens, "<a><a><a>", {{3, 6}}), "0-3:0 6-9:0");
  for (size_t at = 0; at < 3; ++at) EXPECT_EQ(found(tokens, "<a>", {{at, at + 1}}), "");
  EXPECT_EQ(found(tokens, "<a>", {{0, 0}, {1, 1}, {3, 3}}), "0-3:0");  // empty ranges touch nothing
  EXPECT_EQ(found(tokens, "<a><a>", {{0, 1}, {1, 2}}), "3-6:0");
  EXPECT_EQ(found(tokens, "<a><a>", {{0, 2}, {1, 2}}), "3-6:0");
}

TEST(AddedTokens, UntrustedTextCannotHideATrustedToken) {
  const AddedTokens tokens = make({"<a>", "<a>b", "b<a"});
  EXPECT_EQ(found(tokens, "<a>b", {{3, 4}}), "0-3:0");  // the longer one is out of reach, the shorter is not
  EXPECT_EQ(found(tokens, "b<a>", {{0, 1}}), "1-4:0");  // one that begins earlier is out of reach
}

TEST(AddedTokens, FindsIdsOfWholeTexts) {
  const AddedTokens tokens = make({"<a>", "<ab>"}, {true, false});
  EXPECT_EQ(tokens.id_of("<a>"), 0);
  EXPECT_EQ(tokens.id_of("<ab>"), 1);
  EXPECT_EQ(tokens.id_of("<a"), -1);
  EXPECT_EQ(tokens.id_of("<a>x"), -1);
}

}  // namespace
}  // namespace dsv3
