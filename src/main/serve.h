// One server from start to stop.
#pragma once

#include "dsv3/base/status.h"
#include "options.h"

namespace dsv3 {

/// Loads, serves until SIGINT or SIGTERM, drains. Ok after a drain; otherwise why it could not start or go on.
Status serve(ServerOptions options);

}  // namespace dsv3
