#include "auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

namespace dsv3 {
namespace {

constexpr std::string_view kScheme = "bearer ";

std::array<uint8_t, 32> sha256(std::string_view text) {
  std::array<uint8_t, 32> digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

}  // namespace

KeyRing::KeyRing(const std::vector<std::string>& keys) {
  for (const auto& key : keys) digests_.push_back(sha256(key));
}

bool KeyRing::admits(const std::string* authorization) const {
  if (digests_.empty()) return true;
  if (authorization == nullptr || authorization->size() < kScheme.size()) return false;
  std::string_view value = *authorization;
  const bool bearer = std::equal(kScheme.begin(), kScheme.end(), value.begin(), [](char want, char got) {
    return want == (got >= 'A' && got <= 'Z' ? static_cast<char>(got - 'A' + 'a') : got);
  });
  if (!bearer) return false;
  value.remove_prefix(kScheme.size());
  while (!value.empty() && value.front() == ' ') value.remove_prefix(1);
  const Digest digest = sha256(value);
  int matches = 0;
  for (const auto& known : digests_) matches |= CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0 ? 1 : 0;
  return matches != 0;
}

bool is_open_path(std::string_view path) {
  constexpr std::string_view kOpen[] = {"/health", "/healthz",   "/livez",  "/liveness",
                                        "/readyz", "/readiness", "/metrics"};
  return std::find(std::begin(kOpen), std::end(kOpen), path) != std::end(kOpen);
}

}  // namespace dsv3
