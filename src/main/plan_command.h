// `dsv3-serve plan`: memory per rank from config.json alone, on any machine. Also what `serve` prints at start.
#pragma once

#include <string>

#include "dsv3/base/status.h"
#include "dsv3/model/memory_plan.h"
#include "dsv3/weights/model_config.h"
#include "options.h"

namespace dsv3 {

/// config.json of a model folder, or the file itself.
Result<ModelConfig> load_config(const ServerOptions& options);

/// Memory of one rank on this machine (CPU) or of one GPU as --gpu-memory-gib says.
Result<int64_t> rank_memory_bytes(const ServerOptions& options);

/// Settles `options` against the model and plans.
Result<MemoryPlan> make_plan(ServerOptions& options, const ModelConfig& config);

std::string plan_as_text(const ServerOptions& options, const MemoryPlan& plan);
std::string plan_as_json(const ServerOptions& options, const MemoryPlan& plan);

/// The limits that the server will keep to, for the start-up table. Never shows a key.
std::string limits_as_text(const ServerOptions& options);

/// Prints the plan. kOutOfMemory when it does not fit.
Status run_plan(ServerOptions& options);

}  // namespace dsv3
