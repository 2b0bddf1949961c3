// Recognises tool calls in the content part of an answer, in both forms of the DeepSeek family:
//   V3, R1:  TCS tcb function SEP NAME \n```json\n ARGS \n``` tce ... TCE
//   V3.1:    TCS tcb NAME SEP ARGS tce ... TCE
// where the capitals' neighbours are control tokens. Holds a call back until its name is known; from then on the
// arguments stream. What turns out not to be a call is handed on as the text that it was.
#pragma once

#include <string>
#include <string_view>

#include "dsv3/tokenizer/tokenizer.h"

namespace dsv3 {

/// Where the parser puts what it found.
class ToolCallSink {
 public:
  virtual ~ToolCallSink() = default;
  virtual void content(std::string_view text) = 0;
  virtual void call_begin(int index, std::string_view name) = 0;
  virtual void call_arguments(int index, std::string_view text) = 0;
  virtual void call_end(int index) = 0;
};

/// The control tokens of calls; kText is every other token.
enum class ToolMark { kText, kCallsBegin, kCallsEnd, kCallBegin, kCallEnd, kSep };

/// Ids of the control tokens in one tokenizer.
class ToolTokens {
 public:
  explicit ToolTokens(const Tokenizer& tokenizer);
  bool complete() const;  ///< false: this tokenizer cannot write calls
  ToolMark mark(int32_t id) const;

 private:
  int32_t calls_begin_, calls_end_, call_begin_, call_end_, sep_;
};

class ToolCallParser {
 public:
  explicit ToolCallParser(ToolCallSink& sink) : sink_(sink) {}

  void push_text(std::string_view text);
  /// `text` is what the token shows where it is not part of a call.
  void push_mark(ToolMark mark, std::string_view text);
  void finish();

 private:
  enum class State {
    kOutside,
    kBetween,  // behind TCS or tce
    kHead,     // behind tcb: the name, or the type
    kBody,     // behind SEP, after the type "function": the name and fence, or the arguments of a function "function"
    kArguments,
  };

  void give_up();
  void begin_call(std::string_view name, bool fenced);
  void end_call();
  void arguments(std::string_view text);
  void decide_body();
  void mark_between(ToolMark mark, std::string_view text);

  ToolCallSink& sink_;
  State state_ = State::kOutside;
  std::string raw_;    // everything since the last point that is settled
  std::string head_;   // kHead: the text behind tcb; kBody: the text behind SEP
  std::string fence_;  // kArguments of the fenced form: what may be the closing fence
  bool fenced_ = false;
  int calls_ = 0;           // begun so far
  int calls_in_block_ = 0;  // ended since TCS
};

}  // namespace dsv3
