// Which requests carry a valid API key. Immutable after construction; thread safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsv3 {

class KeyRing {
 public:
  /// Empty: every request is let in and the Authorization header is not looked at.
  explicit KeyRing(const std::vector<std::string>& keys);

  /// `authorization` is the header's value or null. Takes the same time whichever key matches, and however many bytes
  /// of a wrong one are right: SHA-256 digests are compared, all of them, in constant time.
  bool admits(const std::string* authorization) const;

 private:
  using Digest = std::array<uint8_t, 32>;
  std::vector<Digest> digests_;  // the keys themselves are not kept
};

/// Probes and monitoring, which carry no key: liveness, readiness, metrics.
bool is_open_path(std::string_view path);

}  // namespace dsv3
