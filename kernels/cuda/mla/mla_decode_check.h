// What every launcher of MLA decode demands of its arguments.
#pragma once

#include <string>

#include "mla.h"

namespace dsv3::cuda {

inline Status check_mla_decode(const MlaDecode& p) {
  const auto wrong = [](const std::string& what) { return Status(Code::kInternal, "mla_decode: " + what); };
  if (p.num_groups < 0 || p.num_groups > 1024)
    return wrong(std::to_string(p.num_groups) + " groups, allowed 0 to 1024");
  if (p.heads < 1 || p.heads > 128) return wrong(std::to_string(p.heads) + " heads, allowed 1 to 128");
  if (p.max_group_rows < 1 || p.max_group_rows > kMaxGroupRows)
    return wrong("max_group_rows is " + std::to_string(p.max_group_rows));
  if (p.num_groups == 0) return {};
  if (!(p.softmax_scale > 0)) return wrong("softmax_scale is not positive");
  if (p.q == nullptr || p.out == nullptr || p.pages.data == nullptr || p.block_tables == nullptr ||
      p.groups == nullptr) {
    return wrong("a null pointer");
  }
  if (p.max_blocks < 1 || p.pages.num_blocks < 1) return wrong("no KV blocks");
  for (const void* pointer :
       {static_cast<const void*>(p.q), static_cast<const void*>(p.out), static_cast<const void*>(p.pages.data), static_cast<const void*>(p.groups)}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return wrong("q, out, pages or groups not on 16 bytes");
  }
  return {};
}

}  // namespace dsv3::cuda
