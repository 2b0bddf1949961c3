// See the header.
#include "context.h"

#include <algorithm>

#include "dsv3/base/clock.h"
#include "errors.h"

namespace dsv3::api {
namespace {

std::vector<int32_t> collect_eos_ids(const ApiConfig& config, const ModelConfig& model, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids = model.eos_token_ids;
  ids.insert(ids.end(), config.generation_defaults.eos_token_ids.begin(),
             config.generation_defaults.eos_token_ids.end());
  ids.push_back(tokenizer.eos_id());
  std::erase_if(ids, [](int32_t id) { return id < 0; });
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

int64_t longest_sequence(const ExecutorLimits& limits) {
  return std::min<int64_t>(limits.max_context_tokens, int64_t{limits.num_blocks} * limits.block_tokens);
}

std::string_view base_name(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

}  // namespace

IdMaker::IdMaker() {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device(), device(), device(), device(), device()};
  random_.seed(seed);
}

std::string IdMaker::hex(size_t digits) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(digits + 16);
  std::lock_guard lock(mutex_);
  while (out.size() < digits) {
    uint64_t bits = random_();
    for (int i = 0; i < 16; ++i, bits >>= 4) out.push_back(kDigits[bits & 15]);
  }
  out.resize(digits);
  return out;
}

Status LiveRequests::add(const std::vector<std::pair<std::string, std::function<void()>>>& aborts) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < aborts.size(); ++i) {
    if (!aborts_.emplace(aborts[i]).second) {
      for (size_t j = 0; j < i; ++j) aborts_.erase(aborts[j].first);
      return {Code::kInvalidArgument, "rid is in use by a request that still runs", "rid", "invalid_value"};
    }
  }
  return {};
}

void LiveRequests::remove(const std::vector<std::string>& ids) {
  std::lock_guard lock(mutex_);
  for (const auto& id : ids) aborts_.erase(id);
}

void LiveRequests::abort(const std::string& id) {
  std::function<void()> abort;
  {
    std::lock_guard lock(mutex_);
    const auto found = aborts_.find(id);
    if (found == aborts_.end()) return;
    abort = found->second;
  }
  abort();  // outside the lock: it reaches into the engine
}

ApiContext::ApiContext(ApiConfig config_in, ApiService::Dependencies d)
    : config(std::move(config_in)),
      engine(d.engine),
      tokenizer(std::move(d.tokenizer)),
      chat_template(std::move(d.chat_template)),
      pool(d.pool),
      model_name(config.served_model_name.empty() ? config.model_path : config.served_model_name),
      eos_ids(collect_eos_ids(config, d.model_config, *tokenizer)),
      vocab_size(d.engine.limits().vocab_size > 0 ? d.engine.limits().vocab_size
                                                  : static_cast<int32_t>(d.model_config.vocab_size)),
      context_tokens(longest_sequence(d.engine.limits())),
      started_unix_s(unix_seconds()) {}

bool ApiContext::serves_model(std::string_view name) const {
  return config.accept_any_model || name == model_name || name == config.model_path ||
         name == base_name(config.model_path) || name == "default";
}

Status ApiContext::unknown_model(std::string_view name) const {
  return {Code::kNotFound,
          "model " + describe(Json(name)) + " is not served here, allowed " +
              describe(Json(config.served_model_name.empty() ? base_name(config.model_path) : model_name)) +
              " and \"default\"",
          "model", "model_not_found"};
}

}  // namespace dsv3::api
