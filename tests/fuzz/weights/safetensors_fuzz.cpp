// libFuzzer target for the safetensors header: the input is a file.
#include <cstddef>
#include <cstdint>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  dsv3::fuzz::check_safetensors(input);
  dsv3::fuzz::check_header_over_any_data(input);
  return 0;
}
