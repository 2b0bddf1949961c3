// Splits what a chat model generates into reasoning, content and tool calls, on token ids, as the tokens come.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/tokenizer/tokenizer.h"

namespace dsv3 {

/// One thing to tell the client. Events in order, concatenated per kind, equal the non-stream answer exactly.
struct OutputEvent {
  enum class Kind { kReasoning, kContent, kToolCallBegin, kToolCallArguments };
  Kind kind = Kind::kContent;
  std::string text;     ///< reasoning/content/arguments fragment; for kToolCallBegin the function's name
  int tool_index = -1;  ///< which call, for the tool kinds
};

enum class ReasoningStart {
  kNone,       ///< v3: no splitting at all
  kInside,     ///< r1, v3.1 thinking: the prompt ended with the opening tag
  kUndecided,  ///< r1-0528: `<think>` may come first
};

struct OutputParserOptions {
  ReasoningStart reasoning = ReasoningStart::kNone;
  bool separate_reasoning = true;   ///< false: everything is content, tags kept
  bool stream_reasoning = true;     ///< false: reasoning is one event when it ends
  bool parse_tools = false;         ///< the request has tools and tool_choice is not none
  bool parallel_tool_calls = true;  ///< false: `wants_stop` after the first complete call
  bool skip_special_tokens = true;
  std::vector<std::string> stop;    ///< stop strings; matched over content only when reasoning is split
  bool include_stop = false;        ///< leave the matched stop string in the output
};

/// State machine for one choice. Feed every generated token once, then finish(). Text that could be the beginning
/// of a stop string or of half a character is held back until decided. Malformed tool calls come out as content.
class OutputParser {
 public:
  virtual ~OutputParser() = default;
  static std::unique_ptr<OutputParser> create(const Tokenizer& tokenizer, OutputParserOptions options);

  /// Events that this token completed. EOS and other stop ids must not be pushed.
  virtual std::vector<OutputEvent> push(int32_t token_id) = 0;
  virtual std::vector<OutputEvent> finish() = 0;

  virtual bool wants_stop() const = 0;  ///< a stop string matched, or one call was enough: cancel the sequence
  virtual const std::string& matched_stop() const = 0;  ///< the stop string, or empty
  virtual bool has_tool_calls() const = 0;
  virtual int reasoning_tokens() const = 0;  ///< generated tokens up to and with the closing tag
};

/// Which state the output starts in, read from the rendered prompt's last tokens (`<think>` open or not) and the
/// tokenizer (kUndecided only where `reasoning_parser` names a model that opens the tag itself).
ReasoningStart reasoning_start(const Tokenizer& tokenizer, std::span<const int32_t> prompt_ids,
                               std::string_view reasoning_parser);

}  // namespace dsv3
