// Turns the SIGBUS of a mapped file that shrank, or whose disk failed, into a return value.
#pragma once

#include <cstddef>

namespace dsv3::weights {

/// Installs the process-wide SIGBUS handler once. Faults outside a guarded range go on to the handler that was there
/// before, or end the process as they would have.
void install_fault_guard();

/// Calls body(context). False if it touched [begin, begin + bytes) and the kernel answered with SIGBUS; `body` is then
/// left in the middle, so it must own nothing. Thread safe, not reentrant.
bool run_with_fault_guard(const void* begin, size_t bytes, void (*body)(void*), void* context);

}  // namespace dsv3::weights
