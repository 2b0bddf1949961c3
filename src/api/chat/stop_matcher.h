// Finds stop strings in text that comes in pieces. Holds back what may be the beginning of one, and nothing else.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dsv3 {

/// The stop string that is complete first wins, whatever the pieces; of those that end at the same byte, the longest.
/// Text and stop strings are valid UTF-8, so no cut falls into a character.
class StopMatcher {
 public:
  StopMatcher(std::vector<std::string> stops, bool include_stop);

  std::string push(std::string_view text);  ///< text that is decided now; nothing after a match
  std::string flush();                      ///< what is held, which is no stop string

  bool matched() const { return !match_.empty(); }
  const std::string& match() const { return match_; }

 private:
  size_t undecided_bytes() const;

  const std::vector<std::string> stops_;
  const bool include_stop_;
  std::string held_;
  std::string match_;
};

}  // namespace dsv3
