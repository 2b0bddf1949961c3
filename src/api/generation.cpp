// See the header. The engine's callbacks only post; cancelling and everything else that calls the engine runs on the
// strand, never on the scheduler's thread.
#include "generation.h"

#include "dsv3/base/clock.h"
#include "dsv3/base/log.h"

namespace dsv3::api {
namespace {

const char* finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "none";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kAbort: return "abort";
    case FinishReason::kError: return "error";
  }
  return "?";
}

/// Shared by the engine (through sinks), the strand's tasks and nobody else: it lives exactly as long as news can come.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(std::shared_ptr<ApiContext> context, GenerationJob job, std::unique_ptr<Answer> answer,
             std::shared_ptr<Exchange> exchange)
      : context_(std::move(context)),
        answer_(std::move(answer)),
        exchange_(std::move(exchange)),
        strand_(std::make_shared<Strand>(context_->pool)) {
    state_.job = std::move(job);
    state_.started_us = now_us();
    state_.created_unix_s = unix_seconds();
  }

  ~Generation() { context_->live.remove(live_ids_); }

  void start() {
    // A weak reference: the exchange keeps the callback, and this keeps the exchange.
    exchange_->on_disconnect([weak = weak_from_this()] {
      if (auto self = weak.lock()) {
        self->client_left_.store(true);
        self->post([](Generation& g) { g.client_left(); });
      }
    });
    // Submitting happens on the strand as well, so that no update is handled before its request's id is known.
    post([](Generation& g) { g.submit_all(); });
  }

 private:
  class Sink final : public GenerationSink {
   public:
    Sink(std::shared_ptr<Generation> owner, size_t prompt) : owner_(std::move(owner)), prompt_(prompt) {}
    void on_update(TokenUpdate update) override {
      // std::function must be copyable: the update travels in a shared_ptr.
      auto shared = std::make_shared<TokenUpdate>(std::move(update));
      owner_->post([prompt = prompt_, shared](Generation& g) { g.on_update(prompt, std::move(*shared)); });
    }

   private:
    const std::shared_ptr<Generation> owner_;
    const size_t prompt_;
  };

  template <class Task>
  void post(Task task) {
    strand_->post([self = shared_from_this(), task = std::move(task)] {
      try {
        if (!self->done_) task(*self);
      } catch (const std::bad_alloc&) {
        self->fail({Code::kOutOfMemory, "bad_alloc in a generation"});
      } catch (const std::exception& e) {
        self->fail({Code::kInternal, e.what()});
      }
    });
  }

  Status register_ids() {
    const std::weak_ptr<Generation> weak = weak_from_this();
    const auto abort_prompt = [weak](int64_t prompt) {
      return [weak, prompt] {
        if (auto self = weak.lock()) self->post([prompt](Generation& g) { g.cancel_prompts(prompt); });
      };
    };
    std::vector<std::pair<std::string, std::function<void()>>> aborts;
    aborts.emplace_back(state_.job.id, abort_prompt(-1));
    bool one_rid = true;
    for (const auto& prompt : state_.job.prompts) one_rid = one_rid && prompt.client_rid == state_.job.prompts[0].client_rid;
    for (size_t i = 0; i < state_.job.prompts.size(); ++i) {
      const std::string& rid = state_.job.prompts[i].client_rid;
      if (rid.empty() || rid == state_.job.id || (one_rid && i > 0)) continue;
      aborts.emplace_back(rid, abort_prompt(one_rid ? -1 : static_cast<int64_t>(i)));
    }
    DSV3_TRY(context_->live.add(aborts));
    for (auto& [id, abort] : aborts) live_ids_.push_back(id);
    return {};
  }

  void submit_all() {
    if (client_left_.load()) return end("client_left");
    if (const Status status = register_ids(); !status.ok()) return fail(status);
    int32_t index = 0;
    auto& prompts = state_.job.prompts;
    state_.prompts.resize(prompts.size());
    for (size_t p = 0; p < prompts.size(); ++p) {
      first_choice_.push_back(state_.choices.size());
      for (int32_t i = 0; i < prompts[p].request.n; ++i) {
        Choice choice;
        choice.index = index++;
        choice.prompt = p;
        choice.parser = OutputParser::create(*context_->tokenizer, prompts[p].parser);
        state_.choices.push_back(std::move(choice));
      }
    }
    unfinished_ = state_.choices.size();
    for (size_t p = 0; p < prompts.size(); ++p) {
      auto id = context_->engine.submit(prompts[p].request, std::make_shared<Sink>(shared_from_this(), p));
      if (!id.ok()) return fail(id.status());
      engine_ids_.push_back(*id);
    }
    answer_->accepted(state_);
  }

  void on_update(size_t prompt, TokenUpdate update) {
    PromptState& prompt_state = state_.prompts[prompt];
    prompt_state.cached_tokens = std::max(prompt_state.cached_tokens, update.cached_tokens);
    if (!update.prompt_logprobs.empty()) prompt_state.prompt_logprobs = std::move(update.prompt_logprobs);
    const int32_t n = state_.job.prompts[prompt].request.n;
    if (update.choice < 0 || update.choice >= n) return;
    Choice& choice = state_.choices[first_choice_[prompt] + static_cast<size_t>(update.choice)];
    if (choice.finished()) return;  // cancelled here already: what the engine still had under way
    if (update.finish == FinishReason::kError ||
        (update.finish == FinishReason::kAbort && !update.error.ok() && update.error.code() != Code::kCancelled)) {
      return fail(update.error.ok() ? Status(Code::kInternal, "the engine gave no reason") : update.error);
    }
    advance(prompt, choice, update);
  }

  /// Feeds the new tokens to the choice's parser and tells the answer.
  void advance(size_t prompt, Choice& choice, TokenUpdate& update) {
    const size_t first = choice.tokens.size();
    bool parser_finished = false;
    std::vector<TimedEvent> events;
    const auto keep = [&](std::vector<OutputEvent> fresh) {
      const size_t token = choice.tokens.empty() ? 0 : choice.tokens.size() - 1;
      for (auto& event : fresh) {
        apply(choice, event);
        events.push_back({token, std::move(event)});
      }
    };
    for (size_t i = 0; i < update.tokens.size(); ++i) {
      choice.tokens.push_back(std::move(update.tokens[i]));
      const int32_t id = choice.tokens.back().id;
      const bool is_stop_id =
          update.finish == FinishReason::kStop && i + 1 == update.tokens.size() && id == update.matched_id;
      if (is_stop_id) {
        if (keeps_text_of_stop(state_.job.prompts[prompt].parser, id)) {
          keep(choice.parser->finish());
          parser_finished = true;
          keep({OutputEvent{OutputEvent::Kind::kContent, context_->tokenizer->decode({&id, 1}, false), -1}});
        }
        break;
      }
      keep(choice.parser->push(id));
      if (choice.parser->wants_stop()) break;
    }
    if (choice.parser->wants_stop()) {
      choice.finish = FinishReason::kStop;
      choice.matched_stop = choice.parser->matched_stop();
      if (update.finish == FinishReason::kNone) context_->engine.cancel(engine_ids_[prompt], update.choice);
    } else if (update.finish != FinishReason::kNone) {
      choice.finish = update.finish;
      choice.matched_id = update.finish == FinishReason::kStop ? update.matched_id : -1;
    }
    if (choice.finished() && !parser_finished) keep(choice.parser->finish());
    if (choice.finish == FinishReason::kLength && choice.parser->wants_stop()) {
      choice.finish = FinishReason::kStop;  // text that was held back until the end held a stop string: stop wins
      choice.matched_stop = choice.parser->matched_stop();
    }
    if (first_token_us_ == 0 && !choice.tokens.empty()) first_token_us_ = now_us();
    if (choice.tokens.size() == first && !choice.finished()) return;
    answer_->progress(state_, {choice, first, events});
    if (choice.finished() && --unfinished_ == 0) complete();
  }

  /// With include_stop the text of a stop token stays, unless it is a special token that is skipped anyway.
  bool keeps_text_of_stop(const OutputParserOptions& options, int32_t id) const {
    return options.include_stop && !(options.skip_special_tokens && context_->tokenizer->is_special(id));
  }

  void apply(Choice& choice, const OutputEvent& event) {
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning: choice.reasoning += event.text; break;
      case OutputEvent::Kind::kContent: choice.content += event.text; break;
      case OutputEvent::Kind::kToolCallBegin:
        choice.tool_calls.push_back({"call_" + context_->ids.hex(24), event.text, ""});
        break;
      case OutputEvent::Kind::kToolCallArguments:
        if (!choice.tool_calls.empty()) choice.tool_calls.back().arguments += event.text;
        break;
    }
  }

  void cancel_prompts(int64_t prompt) {
    for (size_t p = 0; p < engine_ids_.size(); ++p) {
      if (prompt < 0 || static_cast<size_t>(prompt) == p) context_->engine.cancel(engine_ids_[p]);
    }
  }

  void client_left() {
    cancel_prompts(-1);
    end("client_left");
  }

  // The ids are free before the client can see the answer and use them again.
  void complete() {
    context_->live.remove(live_ids_);
    live_ids_.clear();
    answer_->complete(state_);
    end(nullptr);
  }

  void fail(Status status) {
    if (done_) return;
    cancel_prompts(-1);
    context_->live.remove(live_ids_);
    live_ids_.clear();
    const bool about_prompt = status.code() == Code::kContextLength || status.code() == Code::kInvalidArgument;
    if (about_prompt && status.param().empty()) {
      status = Status(status.code(), status.message(), state_.job.param, status.reason());
    }
    answer_->failed(status);
    error_ = std::move(status);
    end("failed");
  }

  /// Nothing is handled after this. One log line per request.
  void end(const char* outcome) {
    done_ = true;
    context_->live.remove(live_ids_);
    live_ids_.clear();
    int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
    for (const auto& prompt : state_.job.prompts) prompt_tokens += static_cast<int64_t>(prompt.request.prompt_ids.size());
    for (const auto& choice : state_.choices) completion_tokens += static_cast<int64_t>(choice.tokens.size());
    for (const auto& prompt : state_.prompts) cached_tokens += prompt.cached_tokens;
    const FinishReason finish = state_.choices.empty() ? FinishReason::kNone : state_.choices[0].finish;
    const int status = outcome == nullptr ? 200 : error_.ok() ? 499 : http_status(error_.code());
    log_event(status >= 500 ? LogLevel::kError : LogLevel::kInfo, "request",
              {{"request_id", state_.job.request_id},
               {"id", state_.job.id},
               {"route", state_.job.route},
               {"status", status},
               {"stream", state_.job.stream},
               {"prompt_tokens", prompt_tokens},
               {"cached_tokens", cached_tokens},
               {"completion_tokens", completion_tokens},
               {"choices", state_.choices.size()},
               {"finish", outcome != nullptr ? outcome : finish_name(finish)},
               {"ttft_us", first_token_us_ == 0 ? int64_t{-1} : first_token_us_ - state_.started_us},
               {"e2e_us", now_us() - state_.started_us},
               {"why", error_.message()}});
    if (context_->config.log_requests) {
      log_event(LogLevel::kInfo, "prompt", {{"id", state_.job.id}, {"text", state_.job.prompts[0].text}});
    }
  }

  const std::shared_ptr<ApiContext> context_;
  const std::unique_ptr<Answer> answer_;
  const std::shared_ptr<Exchange> exchange_;
  const std::shared_ptr<Strand> strand_;
  std::atomic<bool> client_left_{false};
  // Below: touched on the strand only.
  GenerationState state_;
  std::vector<size_t> first_choice_;   // per prompt, in state_.choices
  std::vector<uint64_t> engine_ids_;   // per prompt
  std::vector<std::string> live_ids_;  // in context_->live
  size_t unfinished_ = 0;              // choices
  int64_t first_token_us_ = 0;
  bool done_ = false;
  Status error_;
};

}  // namespace

void start_generation(std::shared_ptr<ApiContext> context, GenerationJob job, std::unique_ptr<Answer> answer,
                      std::shared_ptr<Exchange> exchange) {
  std::make_shared<Generation>(std::move(context), std::move(job), std::move(answer), std::move(exchange))->start();
}

Status check_not_draining(const ApiContext& context) {
  if (context.draining.load()) return {Code::kUnavailable, "the server is shutting down"};
  return {};
}

}  // namespace dsv3::api
