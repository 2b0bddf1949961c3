// Chat templates: messages in, prompt text out, with every byte that came from a client marked as such.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "dsv3/base/json.h"
#include "dsv3/base/status.h"
#include "dsv3/tokenizer/tokenizer.h"

namespace dsv3 {

/// A rendered prompt. `untrusted` are the bytes that messages, tools or kwargs brought in; control tokens are not
/// recognised there (Tokenizer::encode).
struct RenderedPrompt {
  std::string text;
  std::vector<ByteRange> untrusted;  ///< sorted, disjoint, merged
};

struct ChatRequestView {
  const Json& messages;               ///< array of objects, already validated and normalised (api/chat_request)
  const Json& tools;                  ///< array, or null when there are none
  const Json& kwargs;                 ///< chat_template_kwargs: an object; may hold `thinking`
  bool add_generation_prompt = true;
  /// The prompt ends with the last message's content, so that the model goes on with that message: what the template
  /// writes behind it is cut off, and add_generation_prompt counts as false.
  bool continue_final_message = false;
};

struct TemplateLimits {
  int64_t max_steps = 2'000'000;          ///< evaluated nodes and loop turns
  int max_depth = 64;                     ///< nested expressions, blocks, macro calls
  size_t max_output_bytes = 64ull << 20;  ///< of the result and of any intermediate string
};

/// An immutable, compiled template. Thread safe.
class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;

  /// Compiles the checkpoint's own Jinja source. kBadModelFile with line and reason if it cannot be.
  static Result<std::shared_ptr<const ChatTemplate>> compile(std::string_view jinja, std::string bos_token,
                                                             std::string eos_token, TemplateLimits limits = {});

  /// Built-in renderings: deepseek-v3, deepseek-v3-0324, deepseek-r1, deepseek-r1-0528, deepseek-v3.1.
  static Result<std::shared_ptr<const ChatTemplate>> builtin(std::string_view name);
  static std::vector<std::string> builtin_names();

  /// The template of a model folder: `--chat-template` (a file or a built-in name) if given, else
  /// chat_template.jinja, else tokenizer_config.json's `chat_template` (a string, or a list of {name, template} of
  /// which "default" is taken), else deepseek-v3. Says which in `chosen`.
  static Result<std::shared_ptr<const ChatTemplate>> load(const std::string& model_dir, const std::string& override_name,
                                                          const Tokenizer& tokenizer, std::string* chosen);

  /// kInvalidArgument (param "messages") when the template raises or a limit is hit.
  virtual Result<RenderedPrompt> render(const ChatRequestView& request) const = 0;
};

}  // namespace dsv3
