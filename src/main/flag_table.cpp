// CLI11 splits the arguments and gives the command line precedence over the config file; conversions, ranges and
// messages are ours.
#include "flag_table.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <fmt/format.h>

#include "toml.h"

namespace dsv3 {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> out;
  while (true) {
    const size_t at = text.find(separator);
    out.emplace_back(text.substr(0, at));
    if (at == std::string_view::npos) return out;
    text.remove_prefix(at + 1);
  }
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t up = row[j];
      row[j] = std::min({up + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = up;
    }
  }
  return row[b.size()];
}

/// Keys of the file as CLI11 wants them. Throws CLI::ParseError, as CLI11's own readers do.
class ConfigReader : public CLI::Config {
 public:
  /// `check_key` says what is wrong with a key, or nothing.
  explicit ConfigReader(std::function<std::string(const std::string&)> check_key) : check_key_(std::move(check_key)) {}

  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return {}; }

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    constexpr std::streamsize kMaxBytes = 1 << 20;
    std::string text(kMaxBytes + 1, '\0');
    input.read(text.data(), kMaxBytes + 1);
    if (input.bad()) throw CLI::FileError("--config: cannot read the file", CLI::ExitCodes::FileError);
    if (input.gcount() > kMaxBytes) throw CLI::FileError("--config: the file is larger than 1 MiB", CLI::ExitCodes::FileError);
    text.resize(static_cast<size_t>(input.gcount()));
    auto entries = parse_toml(text);
    if (!entries.ok()) throw CLI::ConfigError("--config: " + entries.status().message(), CLI::ExitCodes::ConfigError);
    std::vector<CLI::ConfigItem> keys;
    for (const TomlEntry& entry : *entries) {
      CLI::ConfigItem item;
      item.name = normal_word(entry.key);
      item.inputs = entry.values;
      if (const std::string wrong = check_key_(item.name); !wrong.empty()) {
        throw CLI::ConfigError("--config: '" + entry.key + "' " + wrong, CLI::ExitCodes::ConfigError);
      }
      keys.push_back(std::move(item));
    }
    return keys;
  }

 private:
  std::function<std::string(const std::string&)> check_key_;
};

std::string wrap(const std::string& text, size_t indent, size_t width) {
  std::string out, line;
  for (const std::string& word : split(text, ' ')) {
    if (!line.empty() && indent + line.size() + 1 + word.size() > width) {
      out += line + "\n" + std::string(indent, ' ');
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
  }
  return out + line;
}

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  for (const char c : text.substr(0, max_bytes)) out += (c >= 0x20 && c < 0x7f) ? c : '?';
  return out + (text.size() > max_bytes ? "..." : "");
}

Status flag_error(const std::string& flag, const std::string& what) {
  return {Code::kInvalidArgument, flag + ": " + what, flag};
}

Result<int64_t> parse_integer(const std::string& flag, const std::string& value, int64_t min, int64_t max) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (value.empty() || error != std::errc() || end != value.data() + value.size() || number < min || number > max) {
    return flag_error(flag, fmt::format("'{}' is not an integer from {} to {}", printable(value), min, max));
  }
  return number;
}

Result<double> parse_number(const std::string& flag, const std::string& value, double min, double max) {
  double number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (value.empty() || error != std::errc() || end != value.data() + value.size() || !(number >= min && number <= max)) {
    return flag_error(flag, fmt::format("'{}' is not a number from {} to {}", printable(value), min, max));
  }
  return number;
}

Result<bool> parse_switch(const std::string& flag, const std::string& value) {
  const std::string word = normal_word(value);
  if (word == "true" || word == "1" || word == "on" || word == "yes") return true;
  if (word == "false" || word == "0" || word == "off" || word == "no") return false;
  return flag_error(flag, fmt::format("'{}' is not true or false", printable(value)));
}

std::string normal_word(std::string_view word) {
  std::string out(word);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '_') c = '-';
  }
  return out;
}

void FlagTable::group(std::string title) { group_ = std::move(title); }

void FlagTable::add(const std::string& names, const std::string& metavar, const std::string& help, Arity arity, Apply apply) {
  Flag flag;
  flag.names = split(names, ',');
  for (const std::string& name : flag.names) DSV3_CHECK(find(name) == nullptr, "two flags share a name");
  flag.group = group_;
  flag.metavar = metavar;
  flag.help = help;
  flag.arity = arity;
  flag.apply = std::move(apply);
  flags_.push_back(std::move(flag));
}

void FlagTable::integer(const std::string& names, const std::string& metavar, const std::string& help, int64_t* out,
                        int64_t min, int64_t max) {
  add(names, metavar, help, Arity::kOne, [=](const std::string& flag, const Values& values) -> Status {
    DSV3_ASSIGN(*out, parse_integer(flag, values.back(), min, max));
    return {};
  });
}

void FlagTable::integer(const std::string& names, const std::string& metavar, const std::string& help, int32_t* out,
                        int64_t min, int64_t max) {
  add(names, metavar, help, Arity::kOne, [=](const std::string& flag, const Values& values) -> Status {
    DSV3_ASSIGN(const int64_t number, parse_integer(flag, values.back(), min, max));
    *out = static_cast<int32_t>(number);
    return {};
  });
}

void FlagTable::number(const std::string& names, const std::string& metavar, const std::string& help, double* out, double min,
                       double max) {
  add(names, metavar, help, Arity::kOne, [=](const std::string& flag, const Values& values) -> Status {
    DSV3_ASSIGN(*out, parse_number(flag, values.back(), min, max));
    return {};
  });
}

void FlagTable::seconds(const std::string& names, const std::string& help, int64_t* out_us, double min, double max) {
  add(names, "SECONDS", help, Arity::kOne, [=](const std::string& flag, const Values& values) -> Status {
    DSV3_ASSIGN(const double number, parse_number(flag, values.back(), min, max));
    *out_us = std::llround(number * 1e6);
    return {};
  });
}

void FlagTable::text(const std::string& names, const std::string& metavar, const std::string& help, std::string* out) {
  add(names, metavar, help, Arity::kOne, [=](const std::string& flag, const Values& values) -> Status {
    if (values.back().empty()) return flag_error(flag, "is empty");
    *out = values.back();
    return {};
  });
}

void FlagTable::on(const std::string& names, const std::string& help, bool* out) {
  add(names, "", help, Arity::kSwitch, [=](const std::string& flag, const Values& values) -> Status {
    DSV3_ASSIGN(*out, parse_switch(flag, values.back()));
    return {};
  });
}

void FlagTable::no_effect(const std::string& names, Arity arity, const std::string& why, std::vector<std::string>* notes) {
  add(names, "", why, arity, [=](const std::string& flag, const Values&) -> Status {
    notes->push_back(flag + ": " + why);
    return {};
  });
  flags_.back().listed = false;
}

void FlagTable::refused(const std::string& names, Arity arity, const std::string& why, std::vector<std::string> neutral) {
  if (arity == Arity::kSwitch) neutral = {"false"};
  add(names, "", why, arity, [=](const std::string& flag, const Values& values) -> Status {
    for (const std::string& value : values) {
      if (std::find(neutral.begin(), neutral.end(), normal_word(value)) == neutral.end()) {
        return Status(Code::kUnsupported, flag + ": " + why, flag);
      }
    }
    return {};
  });
  flags_.back().listed = false;
}

const FlagTable::Flag* FlagTable::find(std::string_view name) const {
  for (const Flag& flag : flags_) {
    if (std::find(flag.names.begin(), flag.names.end(), name) != flag.names.end()) return &flag;
  }
  return nullptr;
}

bool FlagTable::Parsed::has(const FlagTable& table, std::string_view name) const {
  const Flag* flag = table.find(name);
  for (const auto& [index, values] : given) {
    if (&table.flags_[index] == flag) return true;
  }
  return false;
}

/// `--tp_size=8` and vLLM's `-tp 8` as `--tp-size=8`. Only names that the table knows are touched: values stay whole.
std::vector<std::string> FlagTable::normalise(const std::vector<std::string>& args) const {
  std::vector<std::string> out = args;
  for (std::string& arg : out) {
    if (arg == "--") break;
    if (arg.size() < 2 || arg[0] != '-') continue;
    const bool one_dash = arg[1] != '-';
    const size_t begin = one_dash ? 1 : 2, equals = arg.find('=');
    const std::string name = normal_word(arg.substr(begin, equals == std::string::npos ? equals : equals - begin));
    if (name == "h" || name.size() < 2 || find(name) == nullptr) continue;
    arg = "--" + name + (equals == std::string::npos ? "" : arg.substr(equals));
  }
  return out;
}

std::string FlagTable::nearest(std::string_view name) const {
  std::string best;
  size_t least = std::max<size_t>(2, name.size() / 3) + 1;
  for (const Flag& flag : flags_) {
    for (const std::string& known : flag.names) {
      const size_t distance = edit_distance(name.substr(0, 64), known);
      if (distance < least) {
        least = distance;
        best = known;
      }
    }
  }
  return best;
}

Result<FlagTable::Parsed> FlagTable::parse(const std::vector<std::string>& args) const {
  Parsed parsed;
  std::vector<std::string> extras;
  try {
    CLI::App app;
    app.set_help_flag();
    app.allow_extras();
    app.allow_config_extras(CLI::config_extras_mode::error);
    app.config_formatter(std::make_shared<ConfigReader>([this](const std::string& key) -> std::string {
      if (find(key) != nullptr) return "";
      const std::string known = nearest(key);
      return known.empty() ? "is not a setting" : "is not a setting; did you mean " + known + "?";
    }));
    std::vector<CLI::Option*> options;
    for (const Flag& flag : flags_) {
      std::string names;
      for (const std::string& name : flag.names) names += (names.empty() ? "--" : ",--") + name;
      CLI::Option* option = nullptr;
      if (flag.names.front() == "config") {
        option = app.set_config(names);
      } else if (flag.arity == Arity::kSwitch) {
        option = app.add_flag(names);
      } else {
        option = app.add_option(names, [](const CLI::results_t&) { return true; });
      }
      option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
      if (flag.arity == Arity::kMany) option->expected(1, 4096);
      options.push_back(option);
    }
    std::vector<std::string> reversed = normalise(args);
    std::reverse(reversed.begin(), reversed.end());  // CLI11 takes arguments from the back
    app.parse(reversed);
    for (size_t i = 0; i < options.size(); ++i) {
      if (options[i]->count() > 0) parsed.given.emplace_back(i, options[i]->results());
    }
    extras = app.remaining();
  } catch (const CLI::ConfigError& error) {
    return Status(Code::kInvalidArgument, printable(error.what()), "--config");
  } catch (const std::exception& error) {
    return Status(Code::kInvalidArgument, printable(error.what()));
  }
  for (const std::string& extra : extras) {
    if (extra.size() < 2 || extra[0] != '-') continue;
    const std::string name = normal_word(extra.substr(extra[1] == '-' ? 2 : 1));
    const std::string known = nearest(name.substr(0, name.find('=')));
    return flag_error(printable(extra.substr(0, extra.find('='))),
                      known.empty() ? "is not a flag; --help lists them" : "is not a flag; did you mean --" + known + "?");
  }
  parsed.positional = std::move(extras);
  return parsed;
}

Status FlagTable::apply(const Parsed& parsed) const {
  for (const auto& [index, values] : parsed.given) {
    const Flag& flag = flags_[index];
    if (flag.apply) DSV3_TRY(flag.apply("--" + flag.names.front(), values));
  }
  return {};
}

std::string FlagTable::help() const {
  constexpr size_t kIndent = 34, kWidth = 118;
  std::string out, group, silent;
  for (const Flag& flag : flags_) {
    if (flag.group != group) {
      if (!silent.empty()) out += "  " + wrap(silent, 2, kWidth) + "\n";
      silent.clear();
      group = flag.group;
      out += "\n" + group + "\n";
    }
    if (!flag.listed) {
      for (const std::string& name : flag.names) silent += (silent.empty() ? "--" : " --") + name;
      continue;
    }
    std::string left = "  --" + flag.names.front() + (flag.metavar.empty() ? "" : " " + flag.metavar);
    left += left.size() + 2 > kIndent ? "\n" + std::string(kIndent, ' ') : std::string(kIndent - left.size(), ' ');
    std::string text = flag.help;
    for (size_t i = 1; i < flag.names.size(); ++i) text += (i == 1 ? " (also --" : " --") + flag.names[i];
    if (flag.names.size() > 1) text += ")";
    out += left + wrap(text, kIndent, kWidth) + "\n";
  }
  if (!silent.empty()) out += "  " + wrap(silent, 2, kWidth) + "\n";
  return out;
}

}  // namespace dsv3
