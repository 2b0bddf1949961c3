// The list of flags. Simple ones write into ServerOptions; those that need rules across flags leave their values here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flag_table.h"
#include "options.h"

namespace dsv3 {

struct CacheFraction {
  std::string flag;
  CacheRule rule = CacheRule::kDefault;
  double fraction = 0;
};

struct FlagValues {
  std::string device = "auto";
  bool expert_parallel = false, dp_attention = false;
  std::vector<std::string> graph_flags;  ///< those about CUDA graphs that were given
  bool deterministic = false;
  int32_t node_rank = 0;
  bool gpu_memory_given = false;
  std::vector<CacheFraction> fractions;
  int64_t num_blocks = 0;
  bool enable_prefix = false, disable_prefix = false;
  int32_t lookahead = -1;       ///< -1: the device decides
  int64_t chunked_prefill = 0;  ///< -1: whole prompts in one step
  std::string speculative = "unset";
  int64_t num_steps = -1, mtp_step = -1, config_steps = -1, draft_tokens = -1;
  std::string key_file;
  std::string ignored;  ///< words that are checked and change nothing
};

/// `options` and `values` must outlive the table.
void add_flags(FlagTable& table, ServerOptions& options, FlagValues& values);

}  // namespace dsv3
