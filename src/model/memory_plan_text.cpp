// The memory plan as text for a terminal.
#include <fmt/format.h>

#include "dsv3/model/memory_plan.h"

namespace dsv3 {
namespace {

std::string human(int64_t bytes) {
  const double value = static_cast<double>(bytes);
  if (bytes >= int64_t{1} << 30) return fmt::format("{:.2f} GiB", value / (1 << 30));
  if (bytes >= int64_t{1} << 20) return fmt::format("{:.2f} MiB", value / (1 << 20));
  return fmt::format("{:.2f} KiB", value / 1024);
}

}  // namespace

std::string format_plan(const MemoryPlan& plan) {
  std::string out = "Memory of one rank\n";
  for (const MemoryLine& line : plan.lines) out += fmt::format("  {:<20}{:>14}\n", line.name, human(line.bytes));
  out += fmt::format("  {:<20}{:>14}\n  {:<20}{:>14}\n", "total", human(plan.total_bytes), "available",
                     human(plan.available_bytes));
  out += fmt::format("KV cache: {} tokens in {} blocks of {}, {} bytes a token\n", plan.cache_tokens(), plan.num_blocks,
                     kBlockTokens, plan.cache_bytes_per_token);
  if (!plan.fits) {
    out += fmt::format("Does not fit: one sequence of full context needs {} more on each rank.\n", human(plan.short_bytes));
    for (size_t i = 0; i < plan.suggestions.size(); ++i) {
      out += fmt::format("{}{}\n", i == 0 ? "Would fit:  " : "        or  ", plan.suggestions[i]);
    }
    if (plan.suggestions.empty()) out += "No smaller setting fits: it takes more memory, or more ranks.\n";
    return out;
  }
  out += "Context x sequences that fit at once\n";
  for (const Concurrency& row : plan.concurrency) {
    out += fmt::format("  {:>10} tokens{:>10}\n", row.context_tokens, row.sequences);
  }
  return out;
}

}  // namespace dsv3
