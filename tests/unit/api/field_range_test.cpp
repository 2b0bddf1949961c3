// Every field with a type and a range, generated: missing, null, wrong types, min-1, min, max, max+1, huge.
#include "fakes.h"

namespace dsv3::test {
namespace {

constexpr double kNone = 1e308;

struct Field {
  const char* name;
  enum Kind { kInt, kNumber, kBool, kString, kObject, kArray } kind;
  double min = kNone, max = kNone;  ///< allowed ends
  double step = 1;                  ///< how far outside is outside
};

Json wrong_types(const Field& field) {
  Json all = Json::parse(R"(["text",true,7,7.5,{"odd":1},[[]]])");
  Json out = Json::array();
  for (const auto& value : all) {
    const bool right = (field.kind == Field::kInt && value.is_number_integer()) ||
                       (field.kind == Field::kNumber && value.is_number()) ||
                       (field.kind == Field::kBool && value.is_boolean()) ||
                       (field.kind == Field::kString && value.is_string()) ||
                       (field.kind == Field::kObject && value.is_object()) ||
                       (field.kind == Field::kArray && value.is_array());
    if (!right) out.push_back(value);
  }
  return out;
}

Json number(const Field& field, double value) {
  return field.kind == Field::kInt ? Json(static_cast<int64_t>(value)) : Json(value);
}

/// `place` puts the field's value into a body.
void check(Harness& h, const std::string& path, const Field& field, const std::string& shown,
           const std::function<Json(const Json&)>& place) {
  const auto send = [&](const Json& value) { return h.post(path, place(value)); };
  const auto expect_ok = [&](const Json& value) {
    const auto exchange = send(value);
    EXPECT_EQ(exchange->response.status, 200) << path << " " << field.name << "=" << value << " " << exchange->response.body;
  };
  const auto expect_fault = [&](const Json& value, const char* code) {
    const auto exchange = send(value);
    EXPECT_EQ(exchange->response.status, 400) << path << " " << field.name << "=" << value;
    EXPECT_NE(exchange->response.body.find(shown), std::string::npos) << exchange->response.body;
    const Json body = exchange->json();
    if (code != nullptr && body.contains("error") && body["error"].contains("code")) {
      EXPECT_EQ(body["error"]["code"], code) << field.name << "=" << value;
    }
  };
  expect_ok(nullptr);
  for (const auto& value : wrong_types(field)) expect_fault(value, "invalid_type");
  if (field.kind == Field::kBool) {
    expect_ok(false);
    return;
  }
  if (field.min != kNone) {
    expect_ok(number(field, field.min));
    expect_fault(number(field, field.min - field.step), "invalid_value");
    expect_fault(Json(-1e300), "invalid_value");
    expect_fault(Json(-1e18), "invalid_value");
  }
  if (field.max != kNone) {
    expect_ok(number(field, field.max));
    expect_fault(number(field, field.max + field.step), "invalid_value");
    expect_fault(Json(1e300), "invalid_value");
    expect_fault(Json(18446744073709551615ull), "invalid_value");
  }
}

const Field kShared[] = {{"temperature", Field::kNumber, 0, 2, 0.001},
                         {"top_p", Field::kNumber, 0, 1, 0.001},
                         {"top_k", Field::kInt, -1, 2147483647},
                         {"min_p", Field::kNumber, 0, 1, 0.001},
                         {"repetition_penalty", Field::kNumber, 0.001, 2, 0.001},
                         {"frequency_penalty", Field::kNumber, -2, 2, 0.001},
                         {"presence_penalty", Field::kNumber, -2, 2, 0.001},
                         {"n", Field::kInt, 1, 128},
                         {"seed", Field::kInt},
                         {"priority", Field::kInt, -1000000, 1000000},
                         {"stream", Field::kBool},
                         {"ignore_eos", Field::kBool},
                         {"skip_special_tokens", Field::kBool},
                         {"no_stop_trim", Field::kBool},
                         {"include_stop_str_in_output", Field::kBool},
                         {"return_token_ids", Field::kBool},
                         {"logit_bias", Field::kObject},
                         {"stop_token_ids", Field::kArray},
                         {"stream_options", Field::kObject},
                         {"response_format", Field::kObject},
                         {"model", Field::kString},
                         {"rid", Field::kString},
                         {"request_id", Field::kString},
                         {"cache_salt", Field::kString}};

TEST(FieldRange, Chat) {
  Harness h;
  h.engine.tokens_per_update = 100;
  std::vector<Field> fields(std::begin(kShared), std::end(kShared));
  fields.insert(fields.end(), {{"max_tokens", Field::kInt, 1},
                               {"max_completion_tokens", Field::kInt, 1},
                               {"logprobs", Field::kBool},
                               {"parallel_tool_calls", Field::kBool},
                               {"continue_final_message", Field::kBool},
                               {"add_generation_prompt", Field::kBool},
                               {"separate_reasoning", Field::kBool},
                               {"stream_reasoning", Field::kBool},
                               {"tools", Field::kArray},
                               {"functions", Field::kArray},
                               {"modalities", Field::kArray},
                               {"input_ids", Field::kArray},
                               {"chat_template_kwargs", Field::kObject},
                               {"thinking", Field::kObject},
                               {"reasoning", Field::kObject},
                               {"reasoning_effort", Field::kString}});
  for (const auto& field : fields) {
    if (std::string_view(field.name) == "n") h.engine.output = {};
    check(h, "/v1/chat/completions", field, field.name, [&](const Json& value) {
      Json body = user_chat();
      body[field.name] = value;
      return body;
    });
  }
  check(h, "/v1/chat/completions", {"top_logprobs", Field::kInt, 0, 20}, "top_logprobs", [](const Json& value) {
    Json body = user_chat();
    body["logprobs"] = true;
    body["top_logprobs"] = value;
    return body;
  });
}

TEST(FieldRange, Completions) {
  Harness h;
  h.engine.output = {};
  std::vector<Field> fields(std::begin(kShared), std::end(kShared));
  fields.insert(fields.end(), {{"max_tokens", Field::kInt, 0}, {"echo", Field::kBool}, {"add_special_tokens", Field::kBool}});
  for (const auto& field : fields) {
    check(h, "/v1/completions", field, field.name, [&](const Json& value) {
      Json body = {{"prompt", "x"}};
      body[field.name] = value;
      return body;
    });
  }
  for (const auto& [value, status] : std::initializer_list<std::pair<Json, int>>{
           {0, 200}, {20, 200}, {21, 400}, {-1, 400}, {false, 200}, {true, 400}, {"1", 400}, {1.5, 400}}) {
    EXPECT_EQ(h.post("/v1/completions", {{"prompt", "x"}, {"logprobs", value}})->response.status, status) << value;
  }
}

TEST(FieldRange, Sglang) {
  Harness h;
  h.engine.output = {};
  const Field fields[] = {{"max_new_tokens", Field::kInt, 0},
                          {"min_new_tokens", Field::kInt, 0},
                          {"temperature", Field::kNumber, 0},
                          {"top_p", Field::kNumber, 0.001, 1, 0.001},
                          {"top_k", Field::kInt, -1, 2147483647},
                          {"min_p", Field::kNumber, 0, 1, 0.001},
                          {"frequency_penalty", Field::kNumber, -2, 2, 0.001},
                          {"presence_penalty", Field::kNumber, -2, 2, 0.001},
                          {"repetition_penalty", Field::kNumber, 0.001, 2, 0.001},
                          {"n", Field::kInt, 1, 128},
                          {"sampling_seed", Field::kInt},
                          {"ignore_eos", Field::kBool},
                          {"no_stop_trim", Field::kBool},
                          {"logit_bias", Field::kObject},
                          {"stop_token_ids", Field::kArray}};
  for (const auto& field : fields) {
    check(h, "/generate", field, std::string("sampling_params.") + field.name, [&](const Json& value) {
      Json body = {{"text", "x"}};
      body["sampling_params"][field.name] = value;
      return body;
    });
  }
}

TEST(FieldRange, Lightllm) {
  Harness h;
  h.engine.output = {};
  const Field fields[] = {{"max_new_tokens", Field::kInt, 1},
                          {"min_new_tokens", Field::kInt, 1},
                          {"temperature", Field::kNumber, 0},
                          {"top_p", Field::kNumber, 0.001, 1, 0.001},
                          {"top_k", Field::kInt, -1, 2147483647},
                          {"presence_penalty", Field::kNumber, 0, 2, 0.001},
                          {"frequency_penalty", Field::kNumber, 0, 2, 0.001},
                          {"repetition_penalty", Field::kNumber, 1, 100, 0.001},
                          {"exponential_decay_length_penalty", Field::kNumber, 1, 1, 0.001},
                          {"n", Field::kInt, 1, 128},
                          {"do_sample", Field::kBool},
                          {"ignore_eos", Field::kBool},
                          {"return_details", Field::kBool}};
  for (const auto& field : fields) {
    check(h, "/generate", field, std::string("parameters.") + field.name, [&](const Json& value) {
      Json body = {{"inputs", "x"}};
      body["parameters"][field.name] = value;
      return body;
    });
  }
}

TEST(FieldRange, StopStrings) {
  Harness h;
  const std::tuple<Json, int, const char*> cases[] = {
      {"x", 200, ""},
      {Json::array(), 200, ""},
      {std::vector<std::string>(16, "x"), 200, ""},
      {std::vector<std::string>(17, "x"), 400, "stop"},
      {"", 400, "stop"},
      {Json::array({"a", ""}), 400, "stop[1]"},
      {Json::array({"a", 5}), 400, "stop[1]"},
      {5, 400, "stop"},
      {Json::object(), 400, "stop"},
      {std::string(256, 'x'), 200, ""},
      {std::string(257, 'x'), 400, "stop"}};
  for (const auto& [stop, status, param] : cases) {
    Json body = user_chat();
    body["stop"] = stop;
    const auto exchange = h.post("/v1/chat/completions", body);
    EXPECT_EQ(exchange->response.status, status) << stop;
    if (status == 400) {
      EXPECT_EQ(openai_error(*exchange)["param"], param);
    }
  }
}

TEST(FieldRange, LogitBiasKeys) {
  Harness h;
  for (const char* good : {R"({"0":0})", R"({"299":100})", R"({"5":-100})"}) {
    Json body = user_chat();
    body["logit_bias"] = Json::parse(good);
    EXPECT_EQ(h.post("/v1/chat/completions", body)->response.status, 200) << good;
  }
  for (const char* bad : {R"({"300":0})", R"({"-1":0})", R"({"":0})", R"({"a":0})", R"({"1x":0})", R"({" 1":0})",
                          R"({"01":0})", R"({"99999999999999999999":0})", R"({"1":101})", R"({"1":-100.5})", R"({"1":"x"})",
                          R"({"1":null})"}) {
    Json body = user_chat();
    body["logit_bias"] = Json::parse(bad);
    const auto exchange = h.post("/v1/chat/completions", body);
    EXPECT_EQ(exchange->response.status, 400) << bad;
    EXPECT_TRUE(openai_error(*exchange)["param"].get<std::string>().starts_with("logit_bias")) << bad;
  }
}

}  // namespace
}  // namespace dsv3::test
