// Checks that the stages around the vocabulary are the ones that this module is written for.
#pragma once

#include "dsv3/base/json.h"
#include "dsv3/base/status.h"

namespace dsv3 {

/// normalizer, pre_tokenizer, post_processor and decoder of tokenizer.json. kBadModelFile names what is different.
Status check_pipeline(const Json& root);

/// The switches of `model` other than its vocabulary and merges.
Status check_model(const Json& model);

}  // namespace dsv3
