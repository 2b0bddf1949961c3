// Each source follows the template that was published with the model, quirks included where the published one renders
// at all (a lone call of deepseek-v3 is never closed, first-call flags of deepseek-v3 and deepseek-r1 are not reset):
// the model should see what every other engine shows it. Ours add tool definitions to the system text, and take
// absent content, absent fields of a tool, and arguments that are an object instead of a string.
#include "chat/builtin_templates.h"

#include <array>

namespace dsv3 {
namespace {

// Joins the system messages.
constexpr std::string_view kSystemText =
    R"jinja({%- set ns = namespace(system='', first_system=true, is_tool=false, first_call=true, first_output=true, last_user=false, after_user=false) -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = ns.system + ('' if ns.first_system else '\n\n') + (message['content'] or '') -%}
  {%- set ns.first_system = false -%}
{%- endfor -%}
)jinja";

// The tools, for V3 and R1: with the pattern of calls that those models were trained on.
constexpr std::string_view kJsonTools = R"jinja({%- if tools -%}
  {%- set ns.system = ns.system + '\n\nYou can call functions. When a function helps to answer, call it in exactly this form:\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION_NAME\n```json\n{"parameter": "value"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\nThe arguments must be one valid JSON object for the schema of the function. To call several functions, write further <｜tool▁call▁begin｜> ... <｜tool▁call▁end｜> parts on new lines before <｜tool▁calls▁end｜>.\n\n## Tools\n' -%}
  {%- for tool in tools -%}
    {%- set ns.system = ns.system + '\n### Function\n\n```json\n' + (tool | tojson) + '\n```\n' -%}
  {%- endfor -%}
{%- endif -%}
)jinja";

// The tools, as V3.1 knows them.
constexpr std::string_view kNamedTools = R"jinja({%- if tools -%}
  {%- set ns.system = ns.system + '\n\n## Tools\nYou have access to the following tools:\n' -%}
  {%- for tool in tools -%}
    {%- set function = tool['function'] -%}
    {%- set ns.system = ns.system + '\n### ' + function['name'] + '\nDescription: ' + (function['description'] or '') + '\n\nParameters: ' + ((function['parameters'] or {'type': 'object', 'properties': {}}) | tojson) + '\n' -%}
  {%- endfor -%}
  {%- set ns.system = ns.system + '\nIMPORTANT: to use tools, always write exactly this form:\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>{{additional_tool_calls}}<｜tool▁calls▁end｜>\n\nWhere:\n- `tool_call_name` must be the exact name of one of the tools above\n- `tool_call_arguments` must be valid JSON that follows the parameters of that tool\n- several calls stand directly behind each other, with nothing in between\n' -%}
{%- endif -%}
)jinja";

// One call of V3 and R1, and its arguments as the client wrote them.
constexpr std::string_view kFencedCall = R"jinja({%- macro call_text(call) -%}
  {%- set arguments = call['function']['arguments'] -%}
  {{- '<｜tool▁call▁begin｜>' + (call['type'] or 'function') + '<｜tool▁sep｜>' + call['function']['name'] + '\n```json\n' -}}
  {{- arguments if arguments is string else arguments | tojson -}}
  {{- '\n```<｜tool▁call▁end｜>' -}}
{%- endmacro -%}
)jinja";

constexpr std::string_view kV3 = R"jinja(
{{- bos_token + ns.system -}}
{%- for message in messages -%}
  {%- set content = message['content'] -%}
  {%- if message['role'] == 'user' -%}
    {%- set ns.is_tool = false -%}
    {{- '<｜User｜>' + (content or '') -}}
  {%- elif message['role'] == 'assistant' and message['tool_calls'] and not content -%}
    {%- set ns.is_tool = false -%}
    {%- for call in message['tool_calls'] -%}
      {%- if ns.first_call -%}
        {{- '<｜Assistant｜><｜tool▁calls▁begin｜>' + call_text(call) -}}
        {%- set ns.first_call = false -%}
      {%- else -%}
        {{- '\n' + call_text(call) + '<｜tool▁calls▁end｜>' + eos_token -}}
      {%- endif -%}
    {%- endfor -%}
  {%- elif message['role'] == 'assistant' and content is string -%}
    {{- ('<｜tool▁outputs▁end｜>' if ns.is_tool else '<｜Assistant｜>') + content + eos_token -}}
    {%- set ns.is_tool = false -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- set ns.is_tool = false -%}
  {%- elif message['role'] == 'tool' -%}
    {%- set ns.is_tool = true -%}
    {{- ('<｜tool▁outputs▁begin｜>' if ns.first_output else '\n') + '<｜tool▁output▁begin｜>' + (content or '') + '<｜tool▁output▁end｜>' -}}
    {%- set ns.first_output = false -%}
  {%- endif -%}
{%- endfor -%}
{%- if ns.is_tool -%}
  {{- '<｜tool▁outputs▁end｜>' -}}
{%- elif add_generation_prompt -%}
  {{- '<｜Assistant｜>' -}}
{%- endif -%}
)jinja";

// V3-0324 and R1-0528 differ in one thing: the latter drops the reasoning of earlier turns.
constexpr std::string_view kV30324Begin = R"jinja(
{{- bos_token + ns.system -}}
{%- for message in messages -%}
  {%- if message['role'] != 'system' -%}
    {%- set ns.last_user = false -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {%- set ns.is_tool = false -%}
    {%- set ns.last_user = true -%}
    {{- '<｜User｜>' + (message['content'] or '') + '<｜Assistant｜>' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<｜tool▁outputs▁end｜>' if ns.is_tool else '' -}}
    {%- set ns.is_tool = false -%}
    {{- )jinja";

constexpr std::string_view kV30324End = R"jinja( -}}
    {%- if message['tool_calls'] -%}
      {{- '<｜tool▁calls▁begin｜>' -}}
      {%- for call in message['tool_calls'] -%}
        {{- ('' if loop.first else '\n') + call_text(call) -}}
      {%- endfor -%}
      {{- '<｜tool▁calls▁end｜>' -}}
    {%- endif -%}
    {{- eos_token -}}
  {%- elif message['role'] == 'tool' -%}
    {{- ('\n' if ns.is_tool else '<｜tool▁outputs▁begin｜>') + '<｜tool▁output▁begin｜>' + (message['content'] or '') + '<｜tool▁output▁end｜>' -}}
    {%- set ns.is_tool = true -%}
  {%- endif -%}
{%- endfor -%}
{%- if ns.is_tool -%}
  {{- '<｜tool▁outputs▁end｜>' -}}
{%- elif add_generation_prompt and not ns.last_user -%}
  {{- '<｜Assistant｜>' -}}
{%- endif -%}
)jinja";

constexpr std::string_view kWholeContent = "(message['content'] or '')";
constexpr std::string_view kAnswerOnly = "(message['content'] or '').split('</think>')[-1]";

constexpr std::string_view kR1 = R"jinja(
{{- bos_token + ns.system -}}
{%- for message in messages -%}
  {%- set content = message['content'] or '' -%}
  {%- if message['role'] == 'user' -%}
    {%- set ns.is_tool = false -%}
    {{- '<｜User｜>' + content -}}
  {%- elif message['role'] == 'assistant' and message['tool_calls'] -%}
    {%- set ns.is_tool = false -%}
    {%- for call in message['tool_calls'] -%}
      {%- if ns.first_call -%}
        {{- '<｜Assistant｜>' + content + '<｜tool▁calls▁begin｜>' + call_text(call) -}}
        {%- set ns.first_call = false -%}
      {%- else -%}
        {{- '\n' + call_text(call) -}}
      {%- endif -%}
    {%- endfor -%}
    {{- '<｜tool▁calls▁end｜>' + eos_token -}}
  {%- elif message['role'] == 'assistant' -%}
    {%- if ns.is_tool -%}
      {{- '<｜tool▁outputs▁end｜>' + content + eos_token -}}
      {%- set ns.is_tool = false -%}
    {%- else -%}
      {{- '<｜Assistant｜>' + content.split('</think>')[-1] + eos_token -}}
    {%- endif -%}
  {%- elif message['role'] == 'tool' -%}
    {%- set ns.is_tool = true -%}
    {{- ('<｜tool▁outputs▁begin｜>' if ns.first_output else '') + '<｜tool▁output▁begin｜>' + content + '<｜tool▁output▁end｜>' -}}
    {%- set ns.first_output = false -%}
  {%- endif -%}
{%- endfor -%}
{%- if ns.is_tool -%}
  {{- '<｜tool▁outputs▁end｜>' -}}
{%- elif add_generation_prompt -%}
  {{- '<｜Assistant｜><think>\n' -}}
{%- endif -%}
)jinja";

constexpr std::string_view kV31 = R"jinja(
{{- bos_token + ns.system -}}
{%- for message in messages -%}
  {%- set content = message['content'] or '' -%}
  {%- if message['role'] == 'user' -%}
    {%- set ns.is_tool = false -%}
    {%- set ns.after_user = true -%}
    {{- '<｜User｜>' + content -}}
  {%- elif message['role'] == 'assistant' and message['tool_calls'] -%}
    {{- ('<｜Assistant｜></think>' if ns.after_user else '') + content + '<｜tool▁calls▁begin｜>' -}}
    {%- set ns.after_user = false -%}
    {%- set ns.is_tool = false -%}
    {%- for call in message['tool_calls'] -%}
      {%- set arguments = call['function']['arguments'] -%}
      {{- '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' -}}
      {{- arguments if arguments is string else arguments | tojson -}}
      {{- '<｜tool▁call▁end｜>' -}}
    {%- endfor -%}
    {{- '<｜tool▁calls▁end｜>' + eos_token -}}
  {%- elif message['role'] == 'assistant' -%}
    {%- if ns.after_user -%}
      {{- '<｜Assistant｜>' + ('<think>' if message['prefix'] and thinking else '</think>') -}}
    {%- endif -%}
    {%- set ns.after_user = false -%}
    {{- (content if ns.is_tool or '</think>' not in content else content.split('</think>', 1)[1]) + eos_token -}}
    {%- set ns.is_tool = false -%}
  {%- elif message['role'] == 'tool' -%}
    {%- set ns.after_user = false -%}
    {%- set ns.is_tool = true -%}
    {{- '<｜tool▁output▁begin｜>' + content + '<｜tool▁output▁end｜>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.after_user -%}
  {{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') -}}
{%- endif -%}
)jinja";

constexpr std::array kV3Parts{kSystemText, kJsonTools, kFencedCall, kV3};
constexpr std::array kV30324Parts{kSystemText, kJsonTools, kFencedCall, kV30324Begin, kWholeContent, kV30324End};
constexpr std::array kR1Parts{kSystemText, kJsonTools, kFencedCall, kR1};
constexpr std::array kR10528Parts{kSystemText, kJsonTools, kFencedCall, kV30324Begin, kAnswerOnly, kV30324End};
constexpr std::array kV31Parts{kSystemText, kNamedTools, kV31};

constexpr std::array kTemplates{
    BuiltinTemplate{"deepseek-v3", "v3", kV3Parts}, BuiltinTemplate{"deepseek-v3-0324", "v3-0324", kV30324Parts},
    BuiltinTemplate{"deepseek-r1", "r1", kR1Parts}, BuiltinTemplate{"deepseek-r1-0528", "r1-0528", kR10528Parts},
    BuiltinTemplate{"deepseek-v3.1", "v3.1", kV31Parts}};

}  // namespace

std::string BuiltinTemplate::source() const {
  std::string text;
  for (const std::string_view part : parts) text += part;
  return text;
}

std::span<const BuiltinTemplate> builtin_templates() {
  return kTemplates;
}

}  // namespace dsv3
