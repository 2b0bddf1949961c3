// How much memory this process may still take, by the kernel's books.
#pragma once

#include <cstdint>
#include <string>

namespace dsv3 {

/// The smallest of MemAvailable and what each enclosing memory cgroup (v2 or v1) leaves; page cache that can be dropped
/// counts as free. 0 if nothing could be read. `root` is "" but in tests.
int64_t available_memory_bytes(const std::string& root = "");

}  // namespace dsv3
