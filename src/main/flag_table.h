// The table of command-line flags: names, aliases, help, and what to do with a value. Parses argv and a config file
// through CLI11; never prints, never exits, never throws out.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dsv3/base/status.h"

namespace dsv3 {

/// One line of printable ASCII, cut at `max_bytes`, for messages that quote what a user gave.
std::string printable(std::string_view text, size_t max_bytes = 200);

Status flag_error(const std::string& flag, const std::string& what);
Result<int64_t> parse_integer(const std::string& flag, const std::string& value, int64_t min, int64_t max);
Result<double> parse_number(const std::string& flag, const std::string& value, double min, double max);
Result<bool> parse_switch(const std::string& flag, const std::string& value);
/// Lower case, '_' as '-'.
std::string normal_word(std::string_view word);

class FlagTable {
 public:
  using Values = std::vector<std::string>;
  /// Gets the flag as "--name" and all its values; a switch gets "true" or "false".
  using Apply = std::function<Status(const std::string& flag, const Values& values)>;

  enum class Arity { kSwitch, kOne, kRepeated, kMany };  ///< kMany: `--flag a b c`

  /// Starts a group of the help text.
  void group(std::string title);

  /// `names`: "tp,tp-size,tensor-parallel-size", the main one first, without dashes.
  void add(const std::string& names, const std::string& metavar, const std::string& help, Arity arity, Apply apply);

  void integer(const std::string& names, const std::string& metavar, const std::string& help, int64_t* out, int64_t min,
               int64_t max);
  void integer(const std::string& names, const std::string& metavar, const std::string& help, int32_t* out, int64_t min,
               int64_t max);
  void number(const std::string& names, const std::string& metavar, const std::string& help, double* out, double min,
              double max);
  void seconds(const std::string& names, const std::string& help, int64_t* out_us, double min, double max);
  void text(const std::string& names, const std::string& metavar, const std::string& help, std::string* out);
  void on(const std::string& names, const std::string& help, bool* out);
  /// Words and what each stands for; hyphen and underscore are the same, case is not looked at.
  template <class T, class U>
  void choice(const std::string& names, const std::string& metavar, const std::string& help,
              std::vector<std::pair<std::string, T>> words, U* out) {
    add(names, metavar, help, Arity::kOne, [=](const std::string& flag, const Values& values) -> Status {
      std::string allowed;
      for (const auto& [word, meaning] : words) {
        if (word == normal_word(values.back())) {
          *out = meaning;
          return {};
        }
        allowed += (allowed.empty() ? "" : ", ") + word;
      }
      return flag_error(flag, "'" + printable(values.back()) + "' is not known here, allowed: " + allowed);
    });
  }

  /// Accepted, without effect: `why` is handed out once through `notes`.
  void no_effect(const std::string& names, Arity arity, const std::string& why, std::vector<std::string>* notes);
  /// Refused unless its value is one of `neutral` (a switch: unless false).
  void refused(const std::string& names, Arity arity, const std::string& why, std::vector<std::string> neutral = {});

  struct Parsed {
    std::vector<std::string> positional;
    std::vector<std::pair<size_t, Values>> given;  ///< flag index and values, in table order
    bool has(const FlagTable& table, std::string_view name) const;
  };

  /// Splits `args` (without the program's name). `--config FILE` is read here: its keys are flags that the command
  /// line beats. Every error is one line that names the flag.
  Result<Parsed> parse(const std::vector<std::string>& args) const;
  Status apply(const Parsed& parsed) const;

  std::string help() const;

 private:
  struct Flag {
    std::vector<std::string> names;
    std::string group, metavar, help;
    Arity arity = Arity::kOne;
    Apply apply;
    bool listed = true;  // with its own help line
  };

  const Flag* find(std::string_view name) const;
  std::vector<std::string> normalise(const std::vector<std::string>& args) const;
  std::string nearest(std::string_view name) const;

  std::string group_;
  std::vector<Flag> flags_;
};

}  // namespace dsv3
