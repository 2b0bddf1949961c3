// Replays the fuzzers' corpus in every build. Files named good-* must be accepted, bad-* refused, others only survive.
#include <gtest/gtest.h>

#include <filesystem>

#include "../../fuzz/weights/targets.h"
#include "checkpoint_files.h"

namespace dsv3 {
namespace {

void replay(const std::string& folder, const std::function<bool(std::string_view)>& accepts) {
  int good = 0, bad = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const bool accepted = accepts(test::read_file(entry.path().string()));
    if (name.starts_with("good-")) {
      EXPECT_TRUE(accepted) << name;
      ++good;
    } else if (name.starts_with("bad-")) {
      EXPECT_FALSE(accepted) << name;
      ++bad;
    }
  }
  EXPECT_GE(good, 5);
  EXPECT_GE(bad, 12);
}

TEST(Corpus, Safetensors) {
  replay(DSV3_WEIGHTS_CORPUS "/safetensors", [](std::string_view input) {
    fuzz::check_header_over_any_data(input);
    return fuzz::check_safetensors(input);
  });
}

TEST(Corpus, Config) {
  replay(DSV3_WEIGHTS_CORPUS "/config", fuzz::check_config);
}

}  // namespace
}  // namespace dsv3
