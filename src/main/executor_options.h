// From the server's options and its memory plan to the executor's.
#pragma once

#include "dsv3/model/memory_plan.h"
#include "dsv3/model/model_executor.h"
#include "options.h"

namespace dsv3 {

/// `known_vocab`: ids from here on are never sampled.
ExecutorOptions make_executor_options(const ServerOptions& options, const MemoryPlan& plan, int32_t known_vocab);

}  // namespace dsv3
