// POST /v1/chat/completions: from body to generation, and the two forms of the answer.
#include "body.h"
#include "chat_request.h"
#include "openai_responses.h"
#include "routes.h"

namespace dsv3::api {
namespace {

struct ChatFormat {
  bool logprobs = false;
  bool legacy_functions = false;
  bool reasoning_both = false;  ///< `reasoning` beside `reasoning_content`
  bool return_token_ids = false;
};

Json tool_calls_json(const Choice& choice) {
  Json calls = Json::array();
  for (const auto& call : choice.tool_calls) {
    Json function;
    function["name"] = call.name;
    function["arguments"] = call.arguments;
    Json entry;
    entry["id"] = call.id;
    entry["type"] = "function";
    entry["function"] = std::move(function);
    calls.push_back(std::move(entry));
  }
  return calls;
}

Json token_ids_json(std::span<const SampledToken> tokens) {
  Json ids = Json::array();
  for (const auto& token : tokens) ids.push_back(token.id);
  return ids;
}

class WholeChatAnswer final : public Answer {
 public:
  WholeChatAnswer(std::shared_ptr<ApiContext> context, std::shared_ptr<Exchange> exchange, ChatFormat format)
      : context_(std::move(context)), exchange_(std::move(exchange)), format_(format) {}

  void complete(const GenerationState& state) override {
    Json body = answer_head(state, *context_, "chat.completion");
    Json choices = Json::array();
    for (const auto& choice : state.choices) choices.push_back(choice_json(choice));
    body["choices"] = std::move(choices);
    body["usage"] = usage_json(state);
    if (format_.return_token_ids) body["prompt_token_ids"] = state.job.prompts[0].request.prompt_ids;
    respond_json(*exchange_, body);
  }

  void failed(const Status& status) override { exchange_->respond(error_response(status, ErrorShape::kOpenAi)); }

 private:
  Json choice_json(const Choice& choice) const {
    Json message;
    message["role"] = "assistant";
    const bool only_others = choice.content.empty() && (!choice.tool_calls.empty() || !choice.reasoning.empty());
    message["content"] = only_others ? Json(nullptr) : Json(choice.content);
    const Json reasoning = choice.reasoning.empty() ? Json(nullptr) : Json(choice.reasoning);
    message["reasoning_content"] = reasoning;
    if (format_.reasoning_both) message["reasoning"] = reasoning;
    if (!choice.tool_calls.empty()) {
      Json calls = tool_calls_json(choice);
      if (format_.legacy_functions) {
        message["function_call"] = calls[0]["function"];
      } else {
        message["tool_calls"] = std::move(calls);
      }
    }
    message["refusal"] = nullptr;
    Json out;
    out["index"] = choice.index;
    out["message"] = std::move(message);
    out["logprobs"] = format_.logprobs ? chat_logprobs_json(*context_->tokenizer, choice.tokens) : Json(nullptr);
    out["finish_reason"] = finish_reason_json(choice, format_.legacy_functions);
    out["matched_stop"] = matched_stop_json(choice);
    if (format_.return_token_ids) out["token_ids"] = token_ids_json(choice.tokens);
    return out;
  }

  const std::shared_ptr<ApiContext> context_;
  const std::shared_ptr<Exchange> exchange_;
  const ChatFormat format_;
};

class ChatStream final : public Answer {
 public:
  ChatStream(std::shared_ptr<ApiContext> context, ChunkWriter writer, ChatFormat format)
      : context_(std::move(context)), writer_(std::move(writer)), format_(format) {}

  void accepted(const GenerationState& state) override {
    per_choice_.resize(state.choices.size());
    writer_.begin(state, *context_, "chat.completion.chunk");
  }

  void progress(const GenerationState& state, const Progress& progress) override {
    const Choice& choice = progress.choice;
    Sent& sent = per_choice_[static_cast<size_t>(choice.index)];
    if (!sent.role) {  // with the first token, not before: load generators take it for one
      sent.role = true;
      send(state, choice, {{"role", "assistant"}, {"content", ""}}, choice_tokens(choice, sent, sent.tokens));
    }
    for (size_t i = 0; i < progress.events.size();) {
      // One delta for neighbours of a kind: several tokens of one update travel together.
      const OutputEvent& first = progress.events[i].event;
      std::string text = first.text;
      size_t last = i;
      if (first.kind != OutputEvent::Kind::kToolCallBegin) {
        while (last + 1 < progress.events.size() && progress.events[last + 1].event.kind == first.kind &&
               progress.events[last + 1].event.tool_index == first.tool_index) {
          text += progress.events[++last].event.text;
        }
      }
      const size_t end = std::min(progress.events[last].token + 1, choice.tokens.size());
      send(state, choice, delta_json(choice, first, text), choice_tokens(choice, sent, end));
      i = last + 1;
    }
    if (choice.finished()) send(state, choice, Json::object(), choice_tokens(choice, sent, choice.tokens.size()));
  }

  void complete(const GenerationState& state) override { writer_.finish(state); }
  void failed(const Status& status) override { writer_.fail(status); }

 private:
  struct Sent {
    bool role = false;
    size_t tokens = 0;  ///< whose log probabilities and ids have left
  };

  /// Tokens not yet told of, up to `end`.
  static std::span<const SampledToken> choice_tokens(const Choice& choice, Sent& sent, size_t end) {
    const size_t begin = sent.tokens;
    if (end <= begin) return {};
    sent.tokens = end;
    return std::span(choice.tokens).subspan(begin, end - begin);
  }

  Json delta_json(const Choice& choice, const OutputEvent& event, const std::string& text) const {
    Json delta;
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
        delta["reasoning_content"] = text;
        if (format_.reasoning_both) delta["reasoning"] = text;
        return delta;
      case OutputEvent::Kind::kContent: delta["content"] = text; return delta;
      case OutputEvent::Kind::kToolCallBegin:
      case OutputEvent::Kind::kToolCallArguments: break;
    }
    const bool begin = event.kind == OutputEvent::Kind::kToolCallBegin;
    Json function;
    if (begin) function["name"] = text;
    function["arguments"] = begin ? "" : text;
    if (format_.legacy_functions) {
      delta["function_call"] = std::move(function);
      return delta;
    }
    Json call;
    call["index"] = event.tool_index;
    if (begin) {
      call["id"] = choice.tool_calls.at(static_cast<size_t>(event.tool_index)).id;
      call["type"] = "function";
    }
    call["function"] = std::move(function);
    delta["tool_calls"] = Json::array({std::move(call)});
    return delta;
  }

  void send(const GenerationState& state, const Choice& choice, Json delta, std::span<const SampledToken> tokens) {
    const bool closing = choice.finished() && delta.empty();
    Json out;
    out["index"] = choice.index;
    out["delta"] = std::move(delta);
    out["logprobs"] =
        format_.logprobs && !tokens.empty() ? chat_logprobs_json(*context_->tokenizer, tokens) : Json(nullptr);
    out["finish_reason"] = closing ? finish_reason_json(choice, format_.legacy_functions) : Json(nullptr);
    if (closing) out["matched_stop"] = matched_stop_json(choice);
    if (format_.return_token_ids && !tokens.empty()) out["token_ids"] = token_ids_json(tokens);
    writer_.send(state, out);
  }

  const std::shared_ptr<ApiContext> context_;
  ChunkWriter writer_;
  const ChatFormat format_;
  std::vector<Sent> per_choice_;
};

}  // namespace

Status handle_chat_completions(Call& call) {
  const ApiContext& context = *call.context;
  DSV3_TRY(check_not_draining(context));
  DSV3_ASSIGN(const Json body, parse_body(call.request));
  DSV3_ASSIGN(ChatRequest request, parse_chat_request(body, context));
  DSV3_ASSIGN(EncodedChat prompt, encode_chat(request, context));
  const ReasoningStart reasoning = reasoning_start(*context.tokenizer, prompt.ids, context.config.reasoning_parser);
  const char* prompt_field = request.input_ids ? "input_ids" : "messages";
  const bool new_name = body.contains("max_completion_tokens") && !body["max_completion_tokens"].is_null();
  DSV3_ASSIGN(PromptJob job,
              make_prompt_job(context, request.common.sampling, std::move(prompt.ids),
                              {prompt_field, new_name ? "max_completion_tokens" : "max_tokens", "min_tokens"}));
  apply_openai_fields(request.common, job);
  job.text = std::move(prompt.text);
  if (request.logprobs) job.request.sampling.num_logprobs = request.top_logprobs;
  job.parser.reasoning = reasoning;
  job.parser.separate_reasoning = request.separate_reasoning;
  job.parser.stream_reasoning = request.stream_reasoning;
  job.parser.parse_tools = !request.tools.empty();
  job.parser.parallel_tool_calls = request.parallel_tool_calls;

  GenerationJob generation;
  generation.id = "chatcmpl-" + call.context->ids.hex(32);
  generation.route = call.request.path;
  generation.param = prompt_field;
  generation.request_id = call.request.request_id;
  generation.stream = request.common.stream;
  generation.prompts.push_back(std::move(job));

  const ChatFormat format{request.logprobs, request.legacy_functions, context.config.reasoning_field_both,
                          request.common.return_token_ids};
  std::unique_ptr<Answer> answer;
  if (request.common.stream) {
    answer = std::make_unique<ChatStream>(
        call.context, ChunkWriter(call.exchange, request.common.include_usage, request.common.continuous_usage), format);
  } else {
    answer = std::make_unique<WholeChatAnswer>(call.context, call.exchange, format);
  }
  start_generation(call.context, std::move(generation), std::move(answer), call.exchange);
  return {};
}

}  // namespace dsv3::api
