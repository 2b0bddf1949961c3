#include "piece_scanner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "utf8.h"

namespace dsv3 {
namespace {

using testing::ElementsAre;

std::vector<std::string> pieces_of(std::string_view text) {
  static const CharClasses classes;
  PieceScanner scanner(classes, text);
  std::vector<std::string> pieces;
  for (std::string_view piece = scanner.next(); !piece.empty(); piece = scanner.next()) pieces.emplace_back(piece);
  return pieces;
}

TEST(PieceScanner, WordsTakeOneCharacterInFront) {
  EXPECT_THAT(pieces_of("The quick  fox"), ElementsAre("The", " quick", " ", " fox"));
  EXPECT_THAT(pieces_of("\tword\u00A0x\u200By"), ElementsAre("\tword", "\u00A0x", "\u200By"));
  EXPECT_THAT(pieces_of("don't 'naïve"), ElementsAre("don", "'t", " '", "naïve"));
  EXPECT_THAT(pieces_of("'naïve"), ElementsAre("'na", "ïve"));  // only ASCII letters belong to the sign
}

TEST(PieceScanner, DigitsGoInThrees) {
  EXPECT_THAT(pieces_of("1234567"), ElementsAre("123", "456", "7"));
  EXPECT_THAT(pieces_of(" 12 34"), ElementsAre(" ", "12", " ", "34"));
  EXPECT_THAT(pieces_of("a1b2"), ElementsAre("a", "1", "b", "2"));
  EXPECT_THAT(pieces_of("½٣Ⅷ④"), ElementsAre("½٣Ⅷ", "④"));
  EXPECT_THAT(pieces_of("x  1"), ElementsAre("x", "  ", "1"));  // nothing follows within the section
}

TEST(PieceScanner, CjkStandsAlone) {
  EXPECT_THAT(pieces_of("a中文b"), ElementsAre("a", "中文", "b"));
  EXPECT_THAT(pieces_of(" 中"), ElementsAre(" ", "中"));
  EXPECT_THAT(pieces_of("ア・イ"), ElementsAre("ア", "・", "イ"));
  EXPECT_THAT(pieces_of("あ\u3040い"), ElementsAre("あ", "\u3040い"));  // unassigned, inside the class
  EXPECT_THAT(pieces_of("한中"), ElementsAre("한", "中"));
  EXPECT_THAT(pieces_of("\u9FA5\u9FA6"), ElementsAre("\u9FA5", "\u9FA6"));
}

TEST(PieceScanner, PunctuationTakesASpaceAndLineEnds) {
  EXPECT_THAT(pieces_of("a, b"), ElementsAre("a", ",", " b"));
  EXPECT_THAT(pieces_of("x ...\r\n\ny"), ElementsAre("x", " ...\r\n\n", "y"));
  EXPECT_THAT(pieces_of("\t--"), ElementsAre("\t", "--"));
  EXPECT_THAT(pieces_of("+-=x"), ElementsAre("+-=", "x"));
  EXPECT_THAT(pieces_of("=x"), ElementsAre("=x"));
}

TEST(PieceScanner, WhiteSpace) {
  EXPECT_THAT(pieces_of("   "), ElementsAre("   "));
  EXPECT_THAT(pieces_of("a   b"), ElementsAre("a", "  ", " b"));
  EXPECT_THAT(pieces_of("a \n \n  b"), ElementsAre("a", " \n \n", " ", " b"));
  EXPECT_THAT(pieces_of("\n\nb"), ElementsAre("\n\n", "b"));
  EXPECT_THAT(pieces_of(" \u3000\u3000."), ElementsAre(" \u3000", "\u3000", "."));
  EXPECT_THAT(pieces_of("  ."), ElementsAre(" ", " ."));
  EXPECT_THAT(pieces_of("\u0085x\u2028\u2029"), ElementsAre("\u0085x", "\u2028\u2029"));
}

TEST(PieceScanner, WhatMatchesNothingStaysTogetherUpToTheNextMatch) {
  EXPECT_THAT(pieces_of("\x01\x02\x03"), ElementsAre("\x01\x02\x03"));
  EXPECT_THAT(pieces_of("\x01\x02\x03z"), ElementsAre("\x01\x02", "\x03z"));
  EXPECT_THAT(pieces_of("\x01 a"), ElementsAre("\x01", " a"));
  EXPECT_THAT(pieces_of("\x01"
                        "1"),
              ElementsAre("\x01", "1"));
  EXPECT_THAT(pieces_of("\x01中"), ElementsAre("\x01", "中"));
  EXPECT_THAT(pieces_of(std::string_view("\0\0", 2)), ElementsAre(std::string(2, '\0')));
}

TEST(PieceScanner, MarksGoWithLetters) {
  EXPECT_THAT(pieces_of("e\u0301a"), ElementsAre("e\u0301a"));
  EXPECT_THAT(pieces_of(".\u0301"), ElementsAre(".", "\u0301"));
  EXPECT_THAT(pieces_of(" \u0301"), ElementsAre(" \u0301"));
}

TEST(PieceScanner, PiecesJoinedAreTheText) {
  const std::vector<std::string> parts = {"a", "Z", "é", "1",    "½",  " ",  "\n",     "\r",     "\t",   "\u3000",
                                          ".", "'", "€", "\x01", "中", "・", "\u3040", "\u0301", "🙂", "\u200D"};
  uint64_t state = 7;
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (int j = 0; j < 8; ++j) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      text += parts[(state >> 33) % parts.size()];
    }
    std::string joined;
    for (const std::string& piece : pieces_of(text)) {
      EXPECT_EQ(valid_utf8_prefix(piece), piece.size());
      joined += piece;
    }
    ASSERT_EQ(joined, text);
  }
}

}  // namespace
}  // namespace dsv3
