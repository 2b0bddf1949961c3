// What every handler of the API shares: configuration, the parts it stands on, and the table of live requests.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/api/service.h"

namespace dsv3::api {

/// Makes ids that clients see. Unique, hard to guess, no meaning. Thread safe.
class IdMaker {
 public:
  IdMaker();
  std::string hex(size_t digits);  ///< lower case

 private:
  std::mutex mutex_;
  std::mt19937_64 random_;  // guarded by mutex_
};

/// Client-chosen and own ids of the requests that run now, for /abort_request. Thread safe.
class LiveRequests {
 public:
  /// kInvalidArgument (param rid) when one of the ids is live already; then nothing is added.
  Status add(const std::vector<std::pair<std::string, std::function<void()>>>& aborts);
  void remove(const std::vector<std::string>& ids);
  void abort(const std::string& id);  ///< unknown: no effect

 private:
  std::mutex mutex_;
  std::map<std::string, std::function<void()>, std::less<>> aborts_;  // guarded by mutex_
};

/// Shared by the service and by every running generation, so that the last one may outlive the service object.
struct ApiContext {
  ApiContext(ApiConfig config_in, ApiService::Dependencies dependencies);

  const ApiConfig config;
  Engine& engine;
  const std::shared_ptr<const Tokenizer> tokenizer;
  const std::shared_ptr<const ChatTemplate> chat_template;
  TaskPool& pool;
  const std::string model_name;        ///< what answers call the model
  const std::vector<int32_t> eos_ids;  ///< of config, generation config and tokenizer; sorted
  const int32_t vocab_size;            ///< ids below it may be sent
  const int64_t context_tokens;        ///< longest prompt + output: the context, or the cache if that is smaller
  const int64_t started_unix_s;

  IdMaker ids;
  LiveRequests live;
  std::atomic<bool> draining{false};
  std::atomic<bool> flushing{false};  ///< one request waits in /flush_cache

  bool serves_model(std::string_view name) const;
  /// kNotFound for a name that is not served. Says what would be, without the folder that the model lies in.
  Status unknown_model(std::string_view name) const;
};

}  // namespace dsv3::api
