#include "chat/stop_matcher.h"

#include <gtest/gtest.h>

namespace dsv3 {
namespace {

std::string run(StopMatcher& matcher, std::string_view text, size_t piece) {
  std::string out;
  for (size_t i = 0; i < text.size(); i += piece) out += matcher.push(text.substr(i, piece));
  if (!matcher.matched()) out += matcher.flush();
  return out;
}

TEST(StopMatcher, CutsAtTheStringThatIsCompleteFirstWhateverThePieces) {
  struct Case {
    std::vector<std::string> stops;
    std::string text, want, match;
  };
  const Case cases[] = {{{"END"}, "abcENDdef", "abc", "END"},  {{"abcd", "bc"}, "xabcd", "xa", "bc"},
                        {{"bc", "abc"}, "xabcd", "x", "abc"},  {{"aab"}, "aaaab", "aa", "aab"},
                        {{"漢字"}, "a漢漢字b", "a漢", "漢字"}, {{"x", ""}, "aaa", "aaa", ""},
                        {{"\n\n"}, "a\n", "a\n", ""},          {{}, "abc", "abc", ""}};
  for (const Case& c : cases) {
    for (size_t piece = 1; piece <= c.text.size(); ++piece) {
      StopMatcher matcher(c.stops, false);
      EXPECT_EQ(run(matcher, c.text, piece), c.want) << c.text << " in pieces of " << piece;
      EXPECT_EQ(matcher.match(), c.match);
    }
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBeginAStop) {
  StopMatcher matcher({"STOP", "\nUser"}, false);
  EXPECT_EQ(matcher.push("hello "), "hello ");
  EXPECT_EQ(matcher.push("ST"), "");
  EXPECT_EQ(matcher.push("A"), "STA");
  EXPECT_EQ(matcher.push("\nUs"), "");
  EXPECT_EQ(matcher.push("e\nUse"), "\nUse");
  EXPECT_EQ(matcher.push("r!"), "");
  EXPECT_EQ(matcher.match(), "\nUser");
  EXPECT_EQ(matcher.push("more"), "");
}

TEST(StopMatcher, KeepsTheStopWhereAsked) {
  StopMatcher matcher({"bc"}, true);
  EXPECT_EQ(matcher.push("ab"), "a");
  EXPECT_EQ(matcher.push("cd"), "bc");
}

}  // namespace
}  // namespace dsv3
