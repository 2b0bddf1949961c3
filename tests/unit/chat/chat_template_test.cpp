// The built-in renderings, choosing a template, and continuing a message.
#include "dsv3/api/chat_template.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "fake_tokenizer.h"

namespace dsv3 {
namespace {

struct Request {
  std::string messages;
  std::string tools = "null";
  std::string kwargs = "{}";
  bool generate = true;
  bool resume = false;
};

Result<RenderedPrompt> render(const ChatTemplate& chat_template, const Request& r) {
  const Json messages = *parse_json(r.messages), tools = *parse_json(r.tools), kwargs = *parse_json(r.kwargs);
  return chat_template.render({.messages = messages,
                               .tools = tools,
                               .kwargs = kwargs,
                               .add_generation_prompt = r.generate,
                               .continue_final_message = r.resume});
}

// The rendering in the short notation of the tests: B E U A TCS tcb SEP tce TCE TOS tob toe TOE.
std::string brief(const std::string& name, const Request& r) {
  const auto chat_template = ChatTemplate::builtin(name);
  if (!chat_template.ok()) return chat_template.status().message();
  const auto prompt = render(**chat_template, r);
  if (!prompt.ok()) return prompt.status().message();
  std::string text = prompt->text;
  const std::pair<const char*, const char*> names[] = {{"<｜begin▁of▁sentence｜>", "(B)"},
                                                       {"<｜end▁of▁sentence｜>", "(E)"},
                                                       {"<｜User｜>", "(U)"},
                                                       {"<｜Assistant｜>", "(A)"},
                                                       {"<｜tool▁calls▁begin｜>", "(TCS)"},
                                                       {"<｜tool▁calls▁end｜>", "(TCE)"},
                                                       {"<｜tool▁call▁begin｜>", "(tcb)"},
                                                       {"<｜tool▁call▁end｜>", "(tce)"},
                                                       {"<｜tool▁sep｜>", "(SEP)"},
                                                       {"<｜tool▁outputs▁begin｜>", "(TOS)"},
                                                       {"<｜tool▁outputs▁end｜>", "(TOE)"},
                                                       {"<｜tool▁output▁begin｜>", "(tob)"},
                                                       {"<｜tool▁output▁end｜>", "(toe)"}};
  for (const auto& [token, short_name] : names) {
    for (size_t at = text.find(token); at != std::string::npos; at = text.find(token))
      text.replace(at, std::string(token).size(), short_name);
  }
  return text;
}

const char kSystemUser[] = R"([{"role":"system","content":"S"},{"role":"user","content":"u1"}])";
const char kTwoTurns[] =
    R"([{"role":"user","content":"u1"},{"role":"assistant","content":"r</think>a1"},{"role":"user","content":"u2"}])";
const char kEndsWithAnswer[] = R"([{"role":"user","content":"u1"},{"role":"assistant","content":"a1"}])";
const char kCall[] = R"([{"role":"user","content":"u1"},
  {"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":"{\"k\":1}"}}]},
  {"role":"tool","content":"o1"}])";
const char kTwoCalls[] = R"([{"role":"user","content":"u1"},
  {"role":"assistant","content":"c","tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}},{"type":"function","function":{"name":"g","arguments":"[]"}}]},
  {"role":"tool","content":"o1"},{"role":"tool","content":"o2"},{"role":"assistant","content":"</think>a"},{"role":"user","content":"u2"}])";

TEST(Builtin, DeepseekV3) {
  EXPECT_EQ(brief("deepseek-v3", {kSystemUser}), "(B)S(U)u1(A)");
  EXPECT_EQ(brief("v3", {kTwoTurns}), "(B)(U)u1(A)r</think>a1(E)(U)u2(A)");
  EXPECT_EQ(brief("v3", {kEndsWithAnswer}), "(B)(U)u1(A)a1(E)(A)");
  EXPECT_EQ(brief("v3", {.messages = kEndsWithAnswer, .generate = false}), "(B)(U)u1(A)a1(E)");
  EXPECT_EQ(brief("v3", {kCall}),
            "(B)(U)u1(A)(TCS)(tcb)function(SEP)f\n```json\n{\"k\":1}\n```(tce)(TOS)(tob)o1(toe)(TOE)");
}

TEST(Builtin, DeepseekV30324) {
  EXPECT_EQ(brief("deepseek-v3-0324", {kSystemUser}), "(B)S(U)u1(A)");
  EXPECT_EQ(brief("v3-0324", {.messages = kSystemUser, .generate = false}), "(B)S(U)u1(A)");
  EXPECT_EQ(brief("v3-0324", {kEndsWithAnswer}), "(B)(U)u1(A)a1(E)(A)");
  EXPECT_EQ(brief("v3-0324", {kCall}),
            "(B)(U)u1(A)(TCS)(tcb)function(SEP)f\n```json\n{\"k\":1}\n```(tce)(TCE)(E)(TOS)(tob)o1(toe)(TOE)");
  EXPECT_EQ(
      brief("v3-0324", {kTwoCalls}),
      "(B)(U)u1(A)c(TCS)(tcb)function(SEP)f\n```json\n{}\n```(tce)\n(tcb)function(SEP)g\n```json\n[]\n```(tce)(TCE)(E)"
      "(TOS)(tob)o1(toe)\n(tob)o2(toe)(TOE)</think>a(E)(U)u2(A)");
}

TEST(Builtin, DeepseekR1) {
  EXPECT_EQ(brief("deepseek-r1", {kSystemUser}), "(B)S(U)u1(A)<think>\n");
  EXPECT_EQ(brief("r1", {kTwoTurns}), "(B)(U)u1(A)a1(E)(U)u2(A)<think>\n");
  EXPECT_EQ(
      brief("r1", {kTwoCalls}),
      "(B)(U)u1(A)c(TCS)(tcb)function(SEP)f\n```json\n{}\n```(tce)\n(tcb)function(SEP)g\n```json\n[]\n```(tce)(TCE)(E)"
      "(TOS)(tob)o1(toe)(tob)o2(toe)(TOE)</think>a(E)(U)u2(A)<think>\n");
  EXPECT_EQ(brief("r1", {kCall}),
            "(B)(U)u1(A)(TCS)(tcb)function(SEP)f\n```json\n{\"k\":1}\n```(tce)(TCE)(E)(TOS)(tob)o1(toe)(TOE)");
}

TEST(Builtin, DeepseekR10528) {
  EXPECT_EQ(brief("deepseek-r1-0528", {kSystemUser}), "(B)S(U)u1(A)");
  EXPECT_EQ(brief("r1-0528", {kTwoTurns}), "(B)(U)u1(A)a1(E)(U)u2(A)");
  EXPECT_EQ(
      brief("r1-0528", {kTwoCalls}),
      "(B)(U)u1(A)c(TCS)(tcb)function(SEP)f\n```json\n{}\n```(tce)\n(tcb)function(SEP)g\n```json\n[]\n```(tce)(TCE)(E)"
      "(TOS)(tob)o1(toe)\n(tob)o2(toe)(TOE)a(E)(U)u2(A)");
}

TEST(Builtin, DeepseekV31) {
  const std::string on = R"({"thinking":true})";
  EXPECT_EQ(brief("deepseek-v3.1", {kSystemUser}), "(B)S(U)u1(A)</think>");
  EXPECT_EQ(brief("v3.1", {.messages = kSystemUser, .kwargs = on}), "(B)S(U)u1(A)<think>");
  EXPECT_EQ(brief("v3.1", {kTwoTurns}), "(B)(U)u1(A)</think>a1(E)(U)u2(A)</think>");
  EXPECT_EQ(brief("v3.1", {.messages = kTwoTurns, .kwargs = on}), "(B)(U)u1(A)</think>a1(E)(U)u2(A)<think>");
  for (const std::string& kwargs : {std::string("{}"), on}) {
    EXPECT_EQ(brief("v3.1", {.messages = kCall, .kwargs = kwargs}),
              "(B)(U)u1(A)</think>(TCS)(tcb)f(SEP){\"k\":1}(tce)(TCE)(E)(tob)o1(toe)");
    EXPECT_EQ(brief("v3.1", {.messages = kEndsWithAnswer, .kwargs = kwargs}), "(B)(U)u1(A)</think>a1(E)");
  }
  EXPECT_EQ(brief("v3.1", {kTwoCalls}),
            "(B)(U)u1(A)</think>c(TCS)(tcb)f(SEP){}(tce)(tcb)g(SEP)[](tce)(TCE)(E)(tob)o1(toe)(tob)o2(toe)</"
            "think>a(E)(U)u2(A)</think>");
}

TEST(Builtin, JoinsSystemMessagesInFront) {
  const std::string messages =
      R"([{"role":"user","content":"u"},{"role":"system","content":"one"},{"role":"system","content":"two"}])";
  for (const char* name : {"v3", "v3-0324", "r1", "r1-0528", "v3.1"}) {
    EXPECT_EQ(brief(name, {messages}).substr(0, 15), "(B)one\n\ntwo(U)u") << name;
  }
}

TEST(Builtin, DescribesTools) {
  const std::string tools =
      R"([{"type":"function","function":{"name":"f","description":"Does it.","parameters":{"type":"object","properties":{"é":{"type":"string"}}}}},
                                {"type":"function","function":{"name":"bare"}}])";
  for (const char* name : {"v3", "v3-0324", "r1", "r1-0528"}) {
    const std::string text = brief(name, {.messages = kSystemUser, .tools = tools});
    EXPECT_EQ(text.substr(0, 6), "(B)S\n\n") << name;
    EXPECT_NE(text.find("(TCS)(tcb)function(SEP)FUNCTION_NAME\n```json\n"), std::string::npos) << text;
    EXPECT_NE(
        text.find("## Tools\n\n### Function\n\n```json\n{\"type\": \"function\", \"function\": {\"name\": \"f\", "
                  "\"description\": \"Does it.\", "
                  "\"parameters\": {\"type\": \"object\", \"properties\": {\"é\": {\"type\": \"string\"}}}}}\n```\n"),
        std::string::npos)
        << text;
  }
  const std::string text = brief("v3.1", {.messages = kSystemUser, .tools = tools});
  EXPECT_NE(text.find("(B)S\n\n## Tools\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\n### f\nDescription: Does it.\n\nParameters: {\"type\": \"object\", \"properties\": {\"é\": "
                      "{\"type\": \"string\"}}}\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("\n### bare\nDescription: \n\nParameters: {\"type\": \"object\", \"properties\": {}}\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("(TCS)(tcb)tool_call_name(SEP)tool_call_arguments(tce){{additional_tool_calls}}(TCE)"),
            std::string::npos)
      << text;
}

TEST(Builtin, TakesArgumentsThatAreAnObject) {
  const std::string messages =
      R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":[1,"é"]}}}]}])";
  for (const char* name : {"v3", "v3-0324", "r1", "r1-0528", "v3.1"}) {
    EXPECT_NE(brief(name, {messages}).find("{\"a\": [1, \"é\"]}"), std::string::npos) << name;
  }
}

TEST(Builtin, NamesAreListedAndUnknownOnesRefused) {
  EXPECT_EQ(ChatTemplate::builtin_names().size(), 5u);
  for (const std::string& name : ChatTemplate::builtin_names()) EXPECT_TRUE(ChatTemplate::builtin(name).ok());
  const auto unknown = ChatTemplate::builtin("v4");
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.status().message().find("deepseek-r1-0528"), std::string::npos);
}

TEST(ContinueFinalMessage, EndsWithTheContent) {
  const auto ends = [](const std::string& last, const char* name) {
    return brief(name,
                 {.messages = R"([{"role":"user","content":"u"},{"role":"assistant",)" + last + "}]", .resume = true});
  };
  EXPECT_EQ(ends(R"("content":"Once upon")", "v3"), "(B)(U)u(A)Once upon");
  EXPECT_EQ(ends(R"("content":"Once upon a ")", "v3-0324"), "(B)(U)u(A)Once upon a ");
  EXPECT_EQ(ends(R"("content":"")", "v3.1"), "(B)(U)u(A)</think>");
  EXPECT_EQ(ends(R"("content":null)", "v3.1"), "(B)(U)u(A)</think>");
  EXPECT_EQ(ends(R"("content":"x x ")", "v3.1"), "(B)(U)u(A)</think>x x ");
  EXPECT_EQ(ends(R"("content":"thought</think>x")", "r1"), "(B)(U)u(A)x");
  EXPECT_EQ(ends(R"("content":"thought</think>")", "r1"), "(B)(U)u(A)");
  EXPECT_EQ(
      brief("v3.1", {.messages = R"([{"role":"user","content":"u"},{"role":"assistant","content":"so","prefix":true}])",
                     .kwargs = R"({"thinking":true})",
                     .resume = true}),
      "(B)(U)u(A)<think>so");
}

TEST(ContinueFinalMessage, FollowsATemplateThatTrims) {
  const auto trims = ChatTemplate::compile("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}END", "", "");
  const auto prompt = render(
      **trims, {.messages = R"([{"role":"user","content":"a"},{"role":"assistant","content":"b  "}])", .resume = true});
  ASSERT_TRUE(prompt.ok()) << prompt.status().message();
  EXPECT_EQ(prompt->text, "[a][b");
  EXPECT_EQ(prompt->untrusted, (std::vector<ByteRange>{{1, 2}, {4, 5}}));
}

TEST(ContinueFinalMessage, RefusesWhatCannotBeContinued) {
  const auto hides = ChatTemplate::compile("nothing of it", "", "");
  EXPECT_EQ(render(**hides, {.messages = kEndsWithAnswer, .resume = true}).status().code(), Code::kInvalidArgument);
  const auto shows = ChatTemplate::builtin("v3");
  EXPECT_FALSE(render(**shows, {.messages = "[]", .resume = true}).ok());
  EXPECT_FALSE(render(**shows, {.messages = R"([{"role":"assistant","content":[1]}])", .resume = true}).ok());
}

class Load : public testing::Test {
 protected:
  Load() : dir_(std::filesystem::temp_directory_path() / ("dsv3_chat_template_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(dir_);
  }
  ~Load() override { std::filesystem::remove_all(dir_); }

  void write(const std::string& name, const std::string& text) { std::ofstream(dir_ / name) << text; }
  std::string load(const std::string& override_name = "") {
    const auto loaded = ChatTemplate::load(dir_.string(), override_name, FakeTokenizer(), &chosen_);
    if (!loaded.ok()) return loaded.status().message();
    const auto prompt = render(**loaded, {R"([{"role":"user","content":"hi"}])"});
    return prompt.ok() ? prompt->text : prompt.status().message();
  }

  const std::filesystem::path dir_;
  std::string chosen_;
};

TEST_F(Load, PrefersTheOverrideThenTheFilesThenABuiltin) {
  EXPECT_EQ(load(), "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>");
  EXPECT_EQ(chosen_, "deepseek-v3");
  write("tokenizer_config.json", R"({"chat_template":"{{ bos_token }}config"})");
  EXPECT_EQ(load(), "<｜begin▁of▁sentence｜>config");
  EXPECT_EQ(chosen_, "tokenizer_config.json");
  write("tokenizer_config.json",
        R"({"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"listed"}]})");
  EXPECT_EQ(load(), "listed");
  write("chat_template.jinja", "{{ messages[0].content }}{{ eos_token }}");
  EXPECT_EQ(load(), "hi<｜end▁of▁sentence｜>");
  EXPECT_EQ(chosen_, "chat_template.jinja");
  EXPECT_EQ(load("v3.1"), "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜></think>");
  EXPECT_EQ(chosen_, "deepseek-v3.1");
  write("own.txt", "own\n");
  EXPECT_EQ(load((dir_ / "own.txt").string()), "own");
}

TEST_F(Load, SaysWhatIsWrong) {
  EXPECT_NE(load("v9").find("neither a file nor one of deepseek-v3"), std::string::npos);
  write("chat_template.jinja", "a\n{% if %}");
  EXPECT_NE(load().find("line 2"), std::string::npos) << load();
  EXPECT_NE(load().find("chat_template.jinja; --chat-template"), std::string::npos) << load();
  std::filesystem::remove(dir_ / "chat_template.jinja");
  write("tokenizer_config.json", R"({"chat_template":[{"name":"x","template":"t"}]})");
  EXPECT_NE(load().find("without a template named \"default\""), std::string::npos);
  write("tokenizer_config.json", R"({"chat_template":5})");
  EXPECT_NE(load().find("must be a string or a list"), std::string::npos);
  write("tokenizer_config.json", "{");
  EXPECT_NE(load().find("tokenizer_config.json"), std::string::npos);
  write("tokenizer_config.json", R"({"chat_template":null})");
  EXPECT_EQ(load(), "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>");
}

}  // namespace
}  // namespace dsv3
