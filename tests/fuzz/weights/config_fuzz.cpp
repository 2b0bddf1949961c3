// libFuzzer target for config.json, overrides and the index of a checkpoint.
#include <cstddef>
#include <cstdint>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  dsv3::fuzz::check_config(std::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
