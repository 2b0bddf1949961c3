// The sampling fields of the native forms, whose names and ranges differ from OpenAI's.
#pragma once

#include "context.h"
#include "field_reader.h"
#include "sampling_fields.h"

namespace dsv3::api {

/// SGLang's sampling_params (api.md 14.1). Unknown keys are ignored.
SamplingFields read_sglang_sampling(FieldReader& reader, const ApiContext& context);
/// LMDeploy's top-level fields (api.md 17.1).
SamplingFields read_lmdeploy_sampling(FieldReader& reader, const ApiContext& context);
/// LightLLM's parameters (api.md 15.1): greedy unless do_sample.
SamplingFields read_lightllm_sampling(FieldReader& reader, const ApiContext& context);

}  // namespace dsv3::api
