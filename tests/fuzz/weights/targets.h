// What the fuzzers do with one input, shared with the test that replays the corpus. Aborts on a broken promise.
#pragma once

#include <cmath>
#include <string>
#include <string_view>

#include "dsv3/weights/model_config.h"
#include "dsv3/weights/weight_source.h"
#include "safetensors_header.h"
#include "shards.h"

namespace dsv3::fuzz {

inline void check_refusal(const Status& status) {
  DSV3_CHECK(!status.message().empty(), "a refusal says why");
  DSV3_CHECK(status.message().size() < 4096, "a refusal is short");
  DSV3_CHECK(status.message().find('\n') == std::string::npos, "a refusal is one line");
}

/// Tensors tile the data, sizes fit, every name is found again.
inline bool check_header(std::string text, uint64_t data_bytes) {
  const auto header = weights::SafetensorsHeader::parse(std::move(text), data_bytes);
  if (!header.ok()) {
    DSV3_CHECK(header.status().code() == Code::kBadModelFile, "refused as a bad file");
    check_refusal(header.status());
    return false;
  }
  uint64_t covered = 0;
  for (size_t i = 0; i < header->size(); ++i) {
    const auto tensor = header->tensor(i);
    DSV3_CHECK(tensor.begin == covered && tensor.end >= tensor.begin, "tensors tile the data");
    covered = tensor.end;
    if (tensor.dtype) {
      uint64_t bytes = dtype_bytes(*tensor.dtype);
      for (const int64_t dim : tensor.shape) {
        DSV3_CHECK(dim >= 0, "dimensions are not negative");
        bytes *= static_cast<uint64_t>(dim);
      }
      DSV3_CHECK(bytes == tensor.end - tensor.begin, "shape, dtype and range agree");
    }
    const auto found = header->find(tensor.name);
    DSV3_CHECK(found && found->begin == tensor.begin && found->end == tensor.end, "names are found again");
  }
  DSV3_CHECK(covered == data_bytes, "tensors cover the data");
  return true;
}

/// `input` is taken as a whole file. True if it is a good one.
inline bool check_safetensors(std::string_view input) {
  const auto length = weights::safetensors_header_bytes(input.substr(0, weights::kLengthBytes), input.size());
  if (length.ok()) {
    DSV3_CHECK(*length <= input.size() - weights::kLengthBytes, "the header lies inside the file");
    return check_header(std::string(input.substr(weights::kLengthBytes, *length)),
                        input.size() - weights::kLengthBytes - *length);
  }
  check_refusal(length.status());
  return false;
}

/// The same header over as many bytes of data as its first 8 bytes say, so that sizes beyond the input are reached.
inline void check_header_over_any_data(std::string_view input) {
  if (input.size() < 8) return;
  uint64_t data_bytes = 0;
  for (size_t i = 0; i < 8; ++i) data_bytes |= static_cast<uint64_t>(static_cast<unsigned char>(input[i])) << (8 * i);
  check_header(std::string(input.substr(8)), data_bytes);
}

/// A config, or a config and overrides with a NUL between. True if it is a good one.
inline bool check_config(std::string_view input) {
  if (const auto index = weights::parse_checkpoint_index(input); !index.ok()) check_refusal(index.status());
  const size_t cut = input.find('\0');
  const auto config =
      parse_model_config(input.substr(0, cut), cut == std::string_view::npos ? "" : input.substr(cut + 1));
  if (!config.ok()) {
    check_refusal(config.status());
    return false;
  }
  DSV3_CHECK(std::isfinite(config->softmax_scale()) && config->softmax_scale() > 0, "the softmax scale is a number");
  DSV3_CHECK(std::isfinite(config->rope_cos_factor()), "the cosine factor is a number");
  for (const double frequency : config->rope_frequencies())
    DSV3_CHECK(std::isfinite(frequency), "frequencies are numbers");
  if (config->n_routed_experts * config->num_hidden_layers < 4096) {
    for (const auto& tensor : expected_tensors(*config)) {
      int64_t elements = 1;
      for (const int64_t dim : tensor.shape) {
        DSV3_CHECK(dim > 0 && !__builtin_mul_overflow(elements, dim, &elements), "tensor sizes do not overflow");
      }
      DSV3_CHECK(elements < INT64_MAX / 8, "nor do their bytes");
    }
  }
  return true;
}

}  // namespace dsv3::fuzz
