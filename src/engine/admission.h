// Which requests may ever run. Pure functions; any thread.
#pragma once

#include "dsv3/engine/engine.h"

namespace dsv3::scheduling {

/// Settings against each other and against what the executor was built with: kInvalidArgument naming the field.
Status check_config(const EngineConfig& config, const ExecutorLimits& limits);

/// Refuses what could not run even alone (kContextLength) or would break a promise of the engine (kInvalidArgument).
///
/// The proof behind it: a sequence never needs rows for more than prompt + max_new_tokens positions, drafts and
/// lookahead included (see Scheduler); when it runs alone every block of the pool is its own, free or evictable. So
/// what passes here can finish, whatever else was admitted.
Status check_request(const GenerationRequest& request, const ExecutorLimits& limits);

}  // namespace dsv3::scheduling
