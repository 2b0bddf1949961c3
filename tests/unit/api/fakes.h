// Stand-ins for what the API stands on: a byte tokenizer, a visible chat template, a scripted engine, and an exchange
// that keeps what was written. Harness puts them together.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "dsv3/api/service.h"
#include "dsv3/base/log.h"

namespace dsv3::test {

/// Ids 0..255 are bytes; added tokens follow, with the texts that DeepSeek's vocabulary has.
class FakeTokenizer final : public Tokenizer {
 public:
  FakeTokenizer() {
    const std::pair<const char*, bool> added[] = {
        {"<｜begin▁of▁sentence｜>", true}, {"<｜end▁of▁sentence｜>", true}, {"<think>", false}, {"</think>", false},
        {"<｜tool▁calls▁begin｜>", false}, {"<｜tool▁calls▁end｜>", false}, {"<｜tool▁call▁begin｜>", false},
        {"<｜tool▁call▁end｜>", false},    {"<｜tool▁sep｜>", false},       {"<｜User｜>", false},
        {"<｜Assistant｜>", false}};
    for (const auto& [text, special] : added) {
      added_.push_back({256 + static_cast<int32_t>(added_.size()), text, special});
    }
    for (int i = 0; i < 256; ++i) bytes_[static_cast<size_t>(i)] = static_cast<char>(i);
  }
  static constexpr int32_t kBos = 256, kEos = 257, kThink = 258, kEndThink = 259;

  std::vector<int32_t> encode(std::string_view text, bool add_bos,
                              std::span<const ByteRange> untrusted = {}) const override {
    std::vector<int32_t> ids;
    if (add_bos) ids.push_back(kBos);
    for (size_t i = 0; i < text.size();) {
      const AddedToken* match = nullptr;
      for (const auto& token : added_) {
        const bool here = text.substr(i).starts_with(token.text);
        const bool touched = std::any_of(untrusted.begin(), untrusted.end(), [&](const ByteRange& r) {
          return r.begin < i + token.text.size() && i < r.end;
        });
        if (here && !touched) match = &token;
      }
      if (match != nullptr) {
        ids.push_back(match->id);
        i += match->text.size();
      } else {
        ids.push_back(static_cast<unsigned char>(text[i++]));
      }
    }
    return ids;
  }
  std::string_view token_bytes(int32_t id) const override {
    if (id >= 0 && id < 256) return {&bytes_[static_cast<size_t>(id)], 1};
    if (is_added(id)) return added_[static_cast<size_t>(id - 256)].text;
    return {};
  }
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    IncrementalDetokenizer detokenizer(*this, skip_special_tokens);
    std::string out;
    for (const int32_t id : ids) out += detokenizer.push(id);
    return out + detokenizer.finish();
  }
  bool is_known(int32_t id) const override { return id >= 0 && id < vocab_size(); }
  bool is_added(int32_t id) const override { return id >= 256 && id < vocab_size(); }
  bool is_special(int32_t id) const override { return is_added(id) && added_[static_cast<size_t>(id - 256)].special; }
  int32_t find_added(std::string_view text) const override {
    for (const auto& token : added_) {
      if (token.text == text) return token.id;
    }
    return -1;
  }
  std::span<const AddedToken> added_tokens() const override { return added_; }
  int32_t vocab_size() const override { return 256 + static_cast<int32_t>(added_.size()); }
  int32_t bos_id() const override { return kBos; }
  int32_t eos_id() const override { return kEos; }
  bool adds_bos() const override { return true; }

 private:
  std::vector<AddedToken> added_;
  std::array<char, 256> bytes_{};
};

/// BOS, then <role>content for each message (assistants end with EOS), tools' names, kwargs as they came in `seen`.
class FakeChatTemplate final : public ChatTemplate {
 public:
  Result<RenderedPrompt> render(const ChatRequestView& request) const override {
    std::lock_guard lock(mutex);
    messages = request.messages;
    tools = request.tools;
    kwargs = request.kwargs;
    RenderedPrompt out;
    out.text = "<｜begin▁of▁sentence｜>";
    for (const auto& message : request.messages) {
      if (message["content"] == "raise") return Status(Code::kInvalidArgument, "messages: the template said no", "messages");
      out.text.append("<").append(message["role"].get<std::string>()).append(">");
      const size_t begin = out.text.size();
      if (message["content"].is_string()) out.text += message["content"].get<std::string>();
      if (out.text.size() > begin) out.untrusted.push_back({begin, out.text.size()});
      const bool goes_on = request.continue_final_message && &message == &request.messages.back();
      if (message["role"] == "assistant" && !goes_on) out.text += "<｜end▁of▁sentence｜>";
    }
    if (request.add_generation_prompt && !request.continue_final_message) out.text += "<｜Assistant｜>";
    if (request.kwargs.contains("thinking") && request.kwargs["thinking"] == true) out.text += "<think>";
    text = out.text;
    return out;
  }
  mutable std::mutex mutex;
  mutable Json messages, tools, kwargs;  // of the last call
  mutable std::string text;
};

class FakeExchange final : public Exchange {
 public:
  void respond(HttpResponse r) override {
    std::lock_guard lock(mutex_);
    EXPECT_EQ(answers_++, 0) << "answered twice";
    response = std::move(r);
    done_ = true;
    changed_.notify_all();
  }
  void begin_stream(std::string content_type) override {
    std::lock_guard lock(mutex_);
    EXPECT_EQ(answers_++, 0) << "answered twice";
    streaming = true;
    response.content_type = std::move(content_type);
    changed_.notify_all();
  }
  void send(std::string bytes) override {
    std::lock_guard lock(mutex_);
    EXPECT_TRUE(streaming && !done_);
    chunks.push_back(std::move(bytes));
    changed_.notify_all();
  }
  void end() override {
    std::lock_guard lock(mutex_);
    EXPECT_TRUE(streaming && !done_);
    done_ = true;
    changed_.notify_all();
  }
  void on_disconnect(std::function<void()> callback) override {
    std::lock_guard lock(mutex_);
    disconnect_ = std::move(callback);
  }

  void leave() {
    std::function<void()> callback;
    {
      std::lock_guard lock(mutex_);
      callback = std::move(disconnect_);
    }
    if (callback) callback();
  }
  bool wait() { return wait_for([this] { return done_; }); }
  bool wait_chunks(size_t n) { return wait_for([this, n] { return chunks.size() >= n; }); }
  bool done() {
    std::lock_guard lock(mutex_);
    return done_;
  }
  Json json() const { return Json::parse(response.body); }

  /// Payloads of `data: ` events but [DONE]; checks their framing.
  std::vector<Json> events(const std::string& prefix = "data: ", bool with_done = true) const {
    std::vector<Json> out;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const std::string& chunk = chunks[i];
      EXPECT_TRUE(chunk.starts_with(prefix)) << chunk;
      EXPECT_TRUE(chunk.ends_with("\n\n")) << chunk;
      EXPECT_EQ(std::count(chunk.begin(), chunk.end(), '\n'), 2) << chunk;
      const std::string payload = chunk.substr(prefix.size(), chunk.size() - prefix.size() - 2);
      if (with_done && i + 1 == chunks.size()) {
        EXPECT_EQ(payload, "[DONE]");
        break;
      }
      out.push_back(Json::parse(payload));
    }
    return out;
  }

  HttpResponse response;
  bool streaming = false;
  std::vector<std::string> chunks;

 private:
  template <class Condition>
  bool wait_for(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), condition);
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> disconnect_;
  int answers_ = 0;
  bool done_ = false;
};

/// Plays a script: every choice of every request generates `output` (or what `script` says), then EOS. With `manual`
/// nothing happens by itself.
class FakeEngine final : public Engine {
 public:
  struct Submitted {
    uint64_t id = 0;
    GenerationRequest request;
    std::shared_ptr<GenerationSink> sink;
    std::set<int32_t> running;
  };
  FakeEngine() {
    limits_.max_slots = 8;
    limits_.num_blocks = 64;
    limits_.block_tokens = 64;
    limits_.max_context_tokens = 2048;
    limits_.vocab_size = 300;
  }

  Result<uint64_t> submit(GenerationRequest request, std::shared_ptr<GenerationSink> sink) override {
    uint64_t id = 0;
    {
      std::lock_guard lock(mutex);
      if (refuse_from >= 0 && static_cast<int>(submitted.size()) >= refuse_from) return refusal;
      id = 100 + submitted.size();
      Submitted entry{id, request, sink, {}};
      for (int32_t i = 0; i < request.n; ++i) entry.running.insert(i);
      submitted.push_back(entry);
      changed.notify_all();
    }
    if (!manual) {
      for (int32_t choice = 0; choice < request.n; ++choice) play(id, choice);
    }
    return id;
  }

  /// All updates of one choice.
  void play(uint64_t id, int32_t choice) {
    const Submitted entry = find(id);
    const std::vector<int32_t> text = script ? script(entry.request, choice) : output;
    std::vector<SampledToken> tokens;
    FinishReason finish = FinishReason::kNone;
    int32_t matched = -1;
    for (size_t i = 0; finish == FinishReason::kNone; ++i) {
      if (static_cast<int64_t>(i) >= entry.request.max_new_tokens) {
        finish = FinishReason::kLength;
        break;
      }
      // Behind the text: EOS, and where that does not stop, dots.
      int32_t token = i < text.size() ? text[i] : i == text.size() ? FakeTokenizer::kEos : '.';
      const auto& hidden = entry.request.sampling.suppressed_ids;
      if (static_cast<int32_t>(i) < entry.request.sampling.min_tokens &&
          std::find(hidden.begin(), hidden.end(), token) != hidden.end()) {
        token = '_';
      }
      tokens.push_back(sampled(token, entry.request.sampling.num_logprobs));
      const auto& stops = entry.request.stop_ids;
      if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
        finish = FinishReason::kStop;
        matched = token;
      }
    }
    std::vector<SampledToken> prompt_logprobs;
    if (entry.request.prompt_logprobs_from >= 0 && choice == 0) {
      for (size_t i = static_cast<size_t>(entry.request.prompt_logprobs_from) + 1; i < entry.request.prompt_ids.size(); ++i) {
        prompt_logprobs.push_back(sampled(entry.request.prompt_ids[i], entry.request.sampling.num_logprobs));
      }
    }
    size_t sent = 0;
    do {
      TokenUpdate update;
      update.choice = choice;
      update.cached_tokens = cached_tokens;
      update.prompt_logprobs = std::exchange(prompt_logprobs, {});
      const size_t end = std::min(tokens.size(), sent + tokens_per_update);
      update.tokens.assign(tokens.begin() + static_cast<ptrdiff_t>(sent), tokens.begin() + static_cast<ptrdiff_t>(end));
      sent = end;
      if (sent == tokens.size()) {
        update.finish = finish;
        update.matched_id = matched;
      }
      if (!emit(id, std::move(update))) return;
    } while (sent < tokens.size());
  }

  /// false when the choice runs no more.
  bool emit(uint64_t id, TokenUpdate update) {
    std::shared_ptr<GenerationSink> sink;
    {
      std::lock_guard lock(mutex);
      for (auto& entry : submitted) {
        if (entry.id != id || !entry.running.contains(update.choice)) continue;
        sink = entry.sink;
        if (update.finish != FinishReason::kNone) entry.running.erase(update.choice);
        if (entry.running.empty()) entry.sink.reset();
      }
    }
    if (sink == nullptr) return false;
    sink->on_update(std::move(update));
    return true;
  }

  void cancel(uint64_t id, int32_t choice = -1) override {
    std::set<int32_t> running;
    {
      std::lock_guard lock(mutex);
      cancelled.emplace_back(id, choice);
      for (const auto& entry : submitted) {
        if (entry.id == id) running = entry.running;
      }
      changed.notify_all();
    }
    for (const int32_t i : running) {
      if (choice >= 0 && choice != i) continue;
      TokenUpdate update;
      update.choice = i;
      update.finish = FinishReason::kAbort;
      update.error = Status(Code::kCancelled, "cancelled");
      emit(id, std::move(update));
    }
  }
  void cancel_all() override {
    std::vector<uint64_t> ids;
    {
      std::lock_guard lock(mutex);
      for (const auto& entry : submitted) ids.push_back(entry.id);
    }
    for (const uint64_t id : ids) cancel(id);
  }
  bool drain(int64_t) override { return true; }
  Status flush_cache() override { return flush_status; }
  EngineStats stats() const override { return stats_; }
  Status health() const override { return health_status; }
  const ExecutorLimits& limits() const override { return limits_; }

  bool wait_submitted(size_t n) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(20), [&] { return submitted.size() >= n; });
  }
  bool wait_cancelled(size_t n) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(20), [&] { return cancelled.size() >= n; });
  }
  Submitted find(uint64_t id) {
    std::lock_guard lock(mutex);
    for (const auto& entry : submitted) {
      if (entry.id == id) return entry;
    }
    return {};
  }
  GenerationRequest request(size_t i) {
    std::lock_guard lock(mutex);
    return submitted.at(i).request;
  }
  size_t num_running() {
    std::lock_guard lock(mutex);
    size_t n = 0;
    for (const auto& entry : submitted) n += entry.running.size();
    return n;
  }
  void forget() {
    std::lock_guard lock(mutex);
    submitted.clear();
    cancelled.clear();
  }

  static SampledToken sampled(int32_t id, int32_t num_logprobs) {
    SampledToken out;
    out.id = id;
    if (num_logprobs < 0) return out;
    out.logprob = -0.1f * static_cast<float>(1 + id % 7);
    for (int32_t k = 0; k < num_logprobs; ++k) out.top.push_back({(id + k) % 256, out.logprob - static_cast<float>(k)});
    return out;
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Submitted> submitted;
  std::vector<std::pair<uint64_t, int32_t>> cancelled;
  bool manual = false;
  std::vector<int32_t> output{'h', 'e', 'l', 'l', 'o'};
  std::function<std::vector<int32_t>(const GenerationRequest&, int32_t)> script;
  size_t tokens_per_update = 1;
  int32_t cached_tokens = 0;
  int refuse_from = -1;
  Status refusal{Code::kOverloaded, "the queue is full"};
  Status health_status, flush_status;
  EngineStats stats_;
  ExecutorLimits limits_;
};

inline std::vector<int32_t> bytes_of(std::string_view text) { return FakeTokenizer().encode(text, false); }

class Harness {
 public:
  explicit Harness(ApiConfig config_in = {}) : config(std::move(config_in)) {
    set_log_level(LogLevel::kOff);
    if (config.model_path.empty()) config.model_path = "/models/tiny-v3";
    model.vocab_size = 300;
    model.eos_token_ids = {FakeTokenizer::kEos};
    service = ApiService::create(config, {engine, tokenizer, chat_template, model, pool});
  }
  ~Harness() { engine.cancel_all(); }

  std::shared_ptr<FakeExchange> start(std::string method, std::string path, std::string body,
                                      std::string content_type = "application/json") {
    auto exchange = std::make_shared<FakeExchange>();
    HttpRequest request;
    request.method = std::move(method);
    const size_t query = path.find('?');
    request.path = path.substr(0, query);
    if (query != std::string::npos) request.query = path.substr(query + 1);
    if (!content_type.empty()) request.headers.emplace_back("content-type", std::move(content_type));
    request.body = std::move(body);
    request.request_id = "req-1";
    service->handle(std::move(request), exchange);
    return exchange;
  }
  std::shared_ptr<FakeExchange> post(const std::string& path, const Json& body) {
    auto exchange = start("POST", path, body.dump());
    EXPECT_TRUE(exchange->wait()) << "no answer to " << path << " " << body.dump();
    return exchange;
  }
  std::shared_ptr<FakeExchange> get(const std::string& path) {
    auto exchange = start("GET", path, "", "");
    EXPECT_TRUE(exchange->wait());
    return exchange;
  }

  ApiConfig config;
  FakeEngine engine;
  std::shared_ptr<FakeTokenizer> tokenizer = std::make_shared<FakeTokenizer>();
  std::shared_ptr<FakeChatTemplate> chat_template = std::make_shared<FakeChatTemplate>();
  ModelConfig model;
  TaskPool pool{3, "api-test"};  // its end runs what is queued, so it goes before the rest
  std::unique_ptr<ApiService> service;
};

/// An ApiConfig with some fields set.
template <class Change>
ApiConfig config_with(Change change) {
  ApiConfig config;
  change(config);
  return config;
}

inline Json user_chat(const std::string& text = "hi") {
  Json body;
  body["messages"] = Json::array({{{"role", "user"}, {"content", text}}});
  return body;
}

/// The error object of an OpenAI route, checked for its four keys.
inline Json openai_error(const FakeExchange& exchange) {
  const Json body = exchange.json();
  EXPECT_TRUE(body.contains("error")) << body.dump();
  if (!body.contains("error")) return Json::object();
  for (const char* key : {"message", "type", "param", "code"}) EXPECT_TRUE(body["error"].contains(key)) << body.dump();
  return body["error"];
}

}  // namespace dsv3::test
