// Prints load time, throughput on a text, and the time of long runs of one class, each the best of a few tries, in
// processor time: other work on the machine counts little.
//
//   tokenizer_speed MODEL_DIR TEXT_FILE
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>

#include "dsv3/tokenizer/tokenizer.h"

namespace {

constexpr int kTries = 5;

template <class F>
double best_ms(F&& run) {
  double best = 1e300;
  for (int i = 0; i < kTries; ++i) {
    const std::clock_t begin = std::clock();
    run();
    best = std::min(best, static_cast<double>(std::clock() - begin) * 1e3 / CLOCKS_PER_SEC);
  }
  return best;
}

std::string repeated(const std::string& unit, size_t bytes) {
  std::string text;
  while (text.size() + unit.size() <= bytes) text += unit;
  return text;
}

// Letters without any order: nothing repeats, so every merge is a surprise to the caches.
std::string random_letters(size_t bytes) {
  std::string text;
  uint64_t state = 1;
  while (text.size() < bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    text += static_cast<char>('a' + (state >> 33) % 26);
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_speed MODEL_DIR TEXT_FILE\n");
    return 2;
  }
  std::printf("%-28s %10.1f ms\n", "load", best_ms([&] { (void)dsv3::Tokenizer::load(argv[1]); }));
  const auto loaded = dsv3::Tokenizer::load(argv[1]);
  if (!loaded.ok()) {
    std::fprintf(stderr, "%s\n", loaded.status().message().c_str());
    return 1;
  }
  const dsv3::Tokenizer& tokenizer = **loaded;
  std::ifstream file(argv[2], std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const double text_ms = best_ms([&] { (void)tokenizer.encode(text, false); });
  const auto ids = tokenizer.encode(text, false);
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  std::printf("%-28s %10.1f MB/s, %.2f M tokens/s\n", "encode text", megabytes / text_ms * 1e3,
              static_cast<double>(ids.size()) / text_ms / 1e3);
  std::printf("%-28s %10.1f MB/s\n", "decode text",
              megabytes / best_ms([&] { (void)tokenizer.decode(ids, false); }) * 1e3);
  const std::pair<const char*, std::string> runs[] = {
      {"one letter", "a"},
      {"random letters", ""},
      {"digits", "7"},
      {"spaces", " "},
      {"line ends", "\n"},
      {"hyphens", "-"},
      {"underscores", "_"},
      {"carets", "^"},
      {"CJK", "\u4E2D\u6587"},
      {"kana", "\u3042"},
      {"combining marks", "\u0301"},
      {"NUL", std::string(1, '\0')},
  };
  for (const auto& [name, unit] : runs) {
    const std::string one = unit.empty() ? random_letters(1u << 20) : repeated(unit, 1u << 20);
    const std::string two = unit.empty() ? random_letters(2u << 20) : repeated(unit, 2u << 20);
    const double one_ms = best_ms([&] { (void)tokenizer.encode(one, false); });
    const double two_ms = best_ms([&] { (void)tokenizer.encode(two, false); });
    std::printf("1 MiB of %-19s %10.1f ms, t(2n)/t(n) %.2f\n", name, one_ms, two_ms / one_ms);
  }
  return 0;
}
