// Long runs of one class, which overflow the stacks of recursive matchers and the patience of quadratic mergers.
#include <gtest/gtest.h>
#include <pthread.h>
#include <time.h>

#include <random>

#include "tokenizer_files.h"

namespace dsv3 {
namespace {

constexpr size_t kStackBytes = 256 << 10;

struct Task {
  std::function<void()> run;
};

void* run_task(void* task) {
  static_cast<Task*>(task)->run();
  return nullptr;
}

void on_small_stack(std::function<void()> run) {
  Task task{std::move(run)};
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kStackBytes), 0);
  pthread_t thread{};
  ASSERT_EQ(pthread_create(&thread, &attributes, run_task, &task), 0);
  ASSERT_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
}

std::string run_of(std::string_view unit, size_t bytes) {
  std::string text;
  text.reserve(bytes);
  while (text.size() + unit.size() <= bytes) text += unit;
  return text;
}

std::string random_letters(size_t bytes) {
  std::mt19937 random(5);
  std::string text(bytes, ' ');
  for (char& c : text) c = static_cast<char>('a' + random() % 26);
  return text;
}

const std::string_view kUnits[] = {"a",      "7",      " ",  "\n", "-",      "_",    "^",      "中",      "\u3042",
                                   "\u0301", "\u3000", "a ", "<",  "\u200B", "\xFF", "<think", "e\u0301", "🙂"};

TEST(LongText, RunsOfOneClassOnASmallStack) {
  on_small_stack([] {
    for (const std::string_view unit : kUnits) {
      for (const size_t bytes : {size_t{64} << 10, size_t{1} << 20}) {
        const std::string text = run_of(unit, bytes);
        const auto ids = test::real_tokenizer().encode(text, false);
        const bool valid = unit != "\xFF";
        ASSERT_EQ(test::real_tokenizer().decode(ids, false), valid ? text : run_of("\uFFFD", 3 * text.size())) << unit;
        ASSERT_LT(ids.size(), text.size() + 1);
      }
    }
  });
}

TEST(LongText, FourMebibytesOnASmallStack) {
  on_small_stack([] {
    for (const std::string& text : {run_of("a", 4 << 20), run_of(" ", 4 << 20), random_letters(4 << 20)}) {
      ASSERT_EQ(test::real_tokenizer().decode(test::real_tokenizer().encode(text, false), false), text);
    }
  });
}

// A run merges like its beginning: long ones consist of the longest token that a run has.
TEST(LongText, ALongRunRepeatsOneToken) {
  const auto ids = test::real_tokenizer().encode(std::string(1 << 20, ' '), false);
  for (size_t i = 1; i + 8 < ids.size(); ++i) ASSERT_EQ(ids[i], ids[0]);
}

int64_t thread_time_us(const std::function<void()>& run) {
  const auto now_us = [] {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * int64_t{1'000'000} + now.tv_nsec / 1'000;
  };
  const int64_t begin = now_us();
  run();
  return now_us() - begin;
}

// Sixteen times the text must take far less than 256 times the time: linear is 16, and 80 leaves room for caches and a
// busy machine.
TEST(LongText, TimeGrowsLinearly) {
  constexpr int kTries = 4;
  constexpr double kMaxRatio = 80;
  for (const std::string_view unit : {"a", " ", "\n", "-", "中", "", "<", "\x01"}) {
    double best = 1e9;
    for (int i = 0; i < kTries && best > kMaxRatio; ++i) {
      const auto time_of = [&](size_t bytes) {
        const std::string text = unit.empty() ? random_letters(bytes) : run_of(unit, bytes);
        return thread_time_us([&] { ASSERT_FALSE(test::real_tokenizer().encode(text, false).empty()); });
      };
      const auto small = static_cast<double>(std::max<int64_t>(1, time_of(64 << 10)));
      best = std::min(best, static_cast<double>(time_of(1 << 20)) / small);
    }
    EXPECT_LE(best, kMaxRatio) << "run of \"" << unit << "\"";
  }
}

}  // namespace
}  // namespace dsv3
