// The shipped model and the reference outputs that were computed from it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dsv3/weights/model_config.h"
#include "dsv3/weights/weight_source.h"

namespace dsv3::testing {

struct GoldenPrompt {
  std::string kind;
  std::vector<int32_t> ids;         ///< begin-of-sentence included
  std::vector<int32_t> greedy;      ///< ends with EOS, or is 64 long
  std::vector<double> greedy_gaps;  ///< of each: logprob of the best token minus that of the second
  int32_t first_row = 0;            ///< position of the first row of `logits`
  std::vector<float> logits;        ///< [ids.size() - first_row, vocab]
  std::vector<float> logits_w8a8;   ///< the same, inputs of FP8 linears rounded
  std::vector<float> mtp;           ///< [rows, vocab] of the MTP module
  int32_t first_mtp_row = 0;        ///< position of its first row
};

struct GoldenModel {
  ModelConfig config;
  std::shared_ptr<const WeightSource> weights;
  std::vector<GoldenPrompt> prompts;
};

/// Loads everything once; a test that cannot read its data fails.
const GoldenModel& golden();

}  // namespace dsv3::testing
