// Every word of the command line, its aliases, ranges, and combinations without sense.
#include "dsv3/kernels/cuda/cuda_ops.h"
#include "options.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

namespace dsv3 {
namespace {

const std::string kTiny = DSV3_TEST_DATA "/dsv3-tiny";

std::vector<std::string> words(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

Result<ServerOptions> parse(const std::string& line, bool with_model = true) {
  std::vector<std::string> args = words(line);
  if (with_model) args.insert(args.begin() + (!args.empty() && args[0] == "plan" ? 1 : 0), {"--model-path", kTiny});
  return parse_options(args);
}

ServerOptions good(const std::string& line) {
  auto options = parse(line);
  EXPECT_TRUE(options.ok()) << line << ": " << options.status().message();
  return options.ok() ? *options : ServerOptions{};
}

/// The message of a refusal: one line that names `flag`.
std::string bad(const std::string& line, const std::string& flag) {
  const auto options = parse(line);
  EXPECT_FALSE(options.ok()) << line;
  const std::string message = options.status().message();
  EXPECT_NE(message.find(flag), std::string::npos) << line << ": " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_LT(message.size(), 500u);
  return message;
}

ModelConfig tiny() {
  ModelConfig c;
  c.model_type = "deepseek_v3";
  c.vocab_size = 4096;
  c.hidden_size = 384;
  c.intermediate_size = 1024;
  c.moe_intermediate_size = 128;
  c.num_hidden_layers = 4;
  c.num_nextn_predict_layers = 1;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = 8;
  c.q_lora_rank = 128;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.n_routed_experts = 16;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 4;
  c.max_position_embeddings = 8192;
  c.fp8 = true;
  return c;
}

TEST(Options, DefaultsAndModelPath) {
  const ServerOptions o = good("");
  EXPECT_EQ(o.command, Command::kServe);
  EXPECT_EQ(o.model_path, kTiny);
  EXPECT_EQ(o.tokenizer_path, kTiny);
  EXPECT_EQ(o.api.model_path, kTiny);
  EXPECT_EQ(o.server.host, "127.0.0.1");
  EXPECT_EQ(o.server.port, 30000);
  EXPECT_EQ(o.backend, Backend::kCpu);
  EXPECT_TRUE(o.engine.prefix_cache);
  EXPECT_EQ(o.engine.num_drafts, 0);
  EXPECT_TRUE(o.notes.empty());
  for (const char* form : {"", "--model-path ", "--model ", "--model_dir ", "serve ", "serve --model="}) {
    const std::string separator = std::string(form).ends_with('=') ? "" : " ";
    const auto options = parse(form + separator + kTiny + "/", false);
    ASSERT_TRUE(options.ok()) << form << options.status().message();
    EXPECT_EQ(options->model_path, kTiny);
  }
  EXPECT_EQ(parse("plan " + kTiny, false)->command, Command::kPlan);
  EXPECT_TRUE(parse("plan " + kTiny + "/config.json", false).ok());
  EXPECT_FALSE(parse(kTiny + "/config.json", false).ok());
}

TEST(Options, ModelPathFaults) {
  for (const char* line : {"", "/nonexistent/model", "--model-path /nonexistent", "--tp 1", "--model-path="}) {
    const auto options = parse(line, false);
    ASSERT_FALSE(options.ok()) << line;
    EXPECT_NE(options.status().message().find("--model-path"), std::string::npos) << options.status().message();
  }
  bad(kTiny + "/..", "--model-path");  // two different ones
  EXPECT_NE(parse(kTiny + " again", false).status().message().find("one too many"), std::string::npos);
  EXPECT_NE(parse("--tp 1 plan", false).status().message().find("goes first"), std::string::npos);
  EXPECT_FALSE(parse_options({"--model-path", ""}).ok());
  EXPECT_FALSE(parse_options({""}).ok());
  EXPECT_FALSE(parse_options({std::string("a\0b", 3)}).ok());
}

TEST(Options, HelpAndVersion) {
  for (const char* line : {"--help", "-h", "plan --help", "--tp nonsense --help", "help"}) EXPECT_EQ(parse(line, false)->command, Command::kHelp);
  for (const char* line : {"--version", "version"}) EXPECT_EQ(parse(line, false)->command, Command::kVersion);
  EXPECT_FALSE(parse("version --tp 1", false).ok());
  const std::string help = help_text();
  for (const char* part : {"--model-path", "--tensor-parallel-size", "Memory and limits", "--api-key-file", "--pipeline-parallel-size"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part;
  }
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 120u) << line;
}

TEST(Options, EveryAliasMeansTheSame) {
  using Get = std::function<int64_t(const ServerOptions&)>;
  struct Row { std::string names, value; int64_t want; Get get; };
  const std::vector<Row> rows = {
      {"--tp --tp-size --tp_size --tensor-parallel-size -tp", "8", 8, [](auto& o) { return o.layout.tp; }},
      {"--context-length --max-model-len --session-len --max_req_total_len --max_seq_len", "4096", 4096, [](auto& o) { return o.context_tokens; }},
      {"--max-running-requests --max-num-seqs --max-batch-size --max_batch_size --running_max_req_size", "7", 7, [](auto& o) { return o.max_running_requests; }},
      {"--max-queued-requests --max-concurrent-requests", "9", 9, [](auto& o) { return o.engine.max_queued_requests; }},
      {"--chunked-prefill-size --chunked_prefill_size --max-prefill-tokens --max-num-batched-tokens --max-prefill-token-num --batch_max_tokens --max_num_tokens",
       "512", 512, [](auto& o) { return o.engine.chunked_prefill_tokens; }},
      {"--max-total-tokens --max_total_token_num", "65536", 65536, [](auto& o) { return o.max_total_tokens; }},
      {"--num-gpu-blocks-override", "10", 640, [](auto& o) { return o.max_total_tokens; }},
      {"--port --server-port", "0", 0, [](auto& o) { return o.server.port; }},
      {"--drain-timeout --shutdown-timeout", "1.5", 1500000, [](auto& o) { return o.drain_timeout_us; }},
      {"--random-seed --seed", "42", 42, [](auto& o) { return static_cast<int64_t>(*o.random_seed); }},
      {"--speculative-num-steps --num-speculative-tokens", "3 --speculative-algorithm NEXTN", 3, [](auto& o) { return o.engine.num_drafts; }},
      {"--mtp-step --mtp_step", "2", 2, [](auto& o) { return o.engine.num_drafts; }},
      {"--speculative-algorithm", "EAGLE", 1, [](auto& o) { return o.engine.num_drafts; }},
      {"--mtp_mode", "deepseekv3", 1, [](auto& o) { return o.engine.num_drafts; }},
      {"--page-size --block-size --cache-block-seq-len --tokens_per_block", "64", 0, [](auto&) { return 0; }},
      {"--cpu-threads", "3", 3, [](auto& o) { return o.cpu_threads; }},
      {"--max-queued-tokens", "1000", 1000, [](auto& o) { return o.engine.max_queued_tokens; }},
      {"--fp8-mode", "w8a8", 1, [](auto& o) { return o.fp8_w8a8.value_or(false); }},
      {"--load-format", "dummy", 1, [](auto& o) { return o.dummy_weights; }},
      {"--watchdog-timeout", "60", 60000000, [](auto& o) { return o.engine.step_timeout_us; }},
      {"--lookahead", "1", 1, [](auto& o) { return o.engine.lookahead; }},
  };
  for (const Row& row : rows) {
    for (const std::string& name : words(row.names)) {
      EXPECT_EQ(row.get(good(name + " " + row.value)), row.want) << name;
      EXPECT_EQ(row.get(good(name + "=" + row.value)), row.want) << name;
    }
  }
}

TEST(Options, TextAliasesAndSwitches) {
  for (const char* name : {"--served-model-name", "--model-name", "--served_model_name"}) EXPECT_EQ(good(std::string(name) + " m").api.served_model_name, "m");
  for (const char* name : {"--host", "--server-name"}) EXPECT_EQ(good(std::string(name) + " 0.0.0.0").server.host, "0.0.0.0");
  for (const char* name : {"--tokenizer-path", "--tokenizer"}) EXPECT_EQ(good(std::string(name) + " /t").tokenizer_path, "/t");
  for (const char* name : {"--disable-radix-cache", "--no-enable-prefix-caching", "--disable_dynamic_prompt_cache"}) {
    EXPECT_FALSE(good(name).engine.prefix_cache) << name;
    EXPECT_TRUE(good(std::string(name) + "=false").engine.prefix_cache) << name;
    bad(std::string(name) + " --enable-prefix-caching", "--enable-prefix-caching");
  }
  for (const char* name : {"--log-requests", "--enable-log-requests"}) EXPECT_TRUE(good(name).api.log_requests);
  EXPECT_TRUE(good("--strict-fields").api.strict_fields);
  EXPECT_TRUE(good("--default-thinking").api.default_thinking);
  EXPECT_TRUE(good("--sampling-defaults model").api.sampling_defaults_from_model);
  EXPECT_EQ(good("--reasoning-parser deepseek_r1").api.reasoning_parser, "deepseek-r1");
  EXPECT_EQ(good("--reasoning-parser deepseek-v31").api.reasoning_parser, "deepseek-v3.1");
  for (const char* name : {"deepseekv3", "deepseek_v3", "deepseekv31", "deepseek_v31"}) good(std::string("--tool-call-parser ") + name);
  EXPECT_EQ(good("--log-level WARNING").log_level, LogLevel::kWarn);
  const std::vector<std::string> both = {"vllm", "sglang"};
  EXPECT_EQ(good("--metrics-compat vllm,sglang,vllm").server.metrics_compat, both);
  EXPECT_EQ(good("--metrics-compat vllm --metrics-compat sglang").server.metrics_compat, both);
  EXPECT_EQ(good("--quantization vllm-fp8w8a8-b128").quantization, "fp8");
}

TEST(Options, FractionsKeepTheirOwnMeaning) {
  const std::vector<std::pair<std::string, CacheRule>> rows = {
      {"--mem-fraction-static", CacheRule::kStaticFraction},     {"--mem_fraction", CacheRule::kStaticFraction},
      {"--gpu-memory-utilization", CacheRule::kEngineFraction},  {"--cache-max-entry-count", CacheRule::kFreeAfterWeights},
      {"--kv_cache_free_gpu_memory_fraction", CacheRule::kFreeAfterLoad}};
  for (const auto& [name, rule] : rows) {
    const ServerOptions o = good(name + " 0.8");
    EXPECT_EQ(o.cache_rule, rule) << name;
    EXPECT_DOUBLE_EQ(o.cache_fraction, 0.8);
    for (const char* value : {"0", "1.1", "-1", "nan", "inf", "1e999", "0.5x", "x"}) bad(name + " " + value, "0.01 to 1");
  }
  bad("--mem-fraction-static 0.8 --gpu-memory-utilization 0.8", "--gpu-memory-utilization");
  bad("--num-gpu-blocks-override 10 --max-total-tokens 640", "--num-gpu-blocks-override");
}

TEST(Options, RangesAreChecked) {
  for (const char* flag : {"--tp", "--dp", "--ep", "--port", "--context-length", "--max-running-requests", "--max-queued-requests", "--max-queued-tokens",
                           "--max-total-tokens", "--cpu-threads", "--nnodes", "--node-rank", "--chunked-prefill-size", "--mtp-step", "--max-connections",
                           "--max-body-bytes", "--max-header-bytes", "--request-threads", "--drain-timeout", "--request-timeout", "--random-seed",
                           "--speculative-num-steps", "--speculative-num-draft-tokens", "--lookahead", "--num-gpu-blocks-override", "--gpu-memory-gib"}) {
    for (const char* value : {"-2", "99999999999999999999", "9223372036854775807999", "x", "1x", "0x10", "--tp", "1e5x", "nan"}) {
      const std::string message = bad(std::string(flag) + " " + value, flag);
      EXPECT_NE(message.find(" to "), std::string::npos) << message;
    }
    bad(flag, flag);  // without a value
    bad(std::string(flag) + "=", flag);
  }
  bad("--port 65536", "0 to 65535");
  bad("--tp 0", "1 to 1024");
  bad("--chunked-prefill-size 0", "1 to 1048576");
  bad("--page-size 16", "allowed: 64");
  bad("--speculative-eagle-topk 4", "allowed: 1");
}

TEST(Options, WordsAreChecked) {
  for (const char* flag : {"--device", "--load-format", "--fp8-mode", "--kv-cache-dtype", "--quantization", "--sampling-defaults", "--log-level",
                           "--reasoning-parser", "--tool-call-parser", "--speculative-algorithm", "--schedule-policy", "--metrics-compat", "--mtp-mode",
                           "--quant-policy", "--mode", "--reasoning-field"}) {
    bad(std::string(flag) + " nonsense", "allowed: ");
    bad(std::string(flag) + " \x1b[31m", flag);
    bad(flag, flag);
  }
  EXPECT_EQ(bad("--log-level \x1b[31m\x01", "--log-level").find('\x1b'), std::string::npos);
}

TEST(Options, UnknownFlagsGetAHint) {
  EXPECT_NE(bad("--tensor-paralel-size 8", "--tensor-paralel-size").find("did you mean --tensor-parallel-size?"), std::string::npos);
  EXPECT_NE(bad("--contxt_length=8", "--contxt").find("did you mean --context-length?"), std::string::npos);
  EXPECT_EQ(bad("--zzzzzzzzzzzzzz", "--zzzzzzzzzzzzzz").find("did you mean"), std::string::npos);
  bad("-x", "-x");
  bad("--" + std::string(5000, 'a'), "is not a flag");
  bad("---tp 8", "is not a flag");
}

TEST(Options, WithoutEffectIsAcceptedAndSaid) {
  for (const char* line : {"--trust-remote-code", "--trust_remote_code", "--device cpu --disable-cuda-graph", "--device cpu --enforce-eager", "--enable-metrics", "--disable-metrics",
                           "--dtype bfloat16", "--device cpu --cuda-graph-bs 1 2 4 8", "--device cpu --cuda-graph-max-bs 16", "--device cpu --deterministic", "--enable-auto-tool-choice", "--enable-mixed-chunk"}) {
    const ServerOptions o = good(line);
    ASSERT_EQ(o.notes.size(), 1u) << line;
    EXPECT_EQ(o.notes[0].rfind("--", 0), 0u);
  }
}

TEST(Options, NotInThisVersionIsRefusedWithWhatWorks) {
  if (cuda_devices().empty()) bad("--device cuda", "--device cpu");
  bad("--nnodes 2", "--nnodes");
  bad("--ep 2 --tp 2", "--ep");
  bad("--tp 8 --enable-expert-parallel", "--ep");
  bad("--dp 2 --tp 2 --enable-dp-attention", "--dp");
  bad("--pp 2", "--tp");
  bad("--dist-init-addr 10.0.0.1:5000", "--dist-init-addr");
  bad("--enable-eplb", "--enable-eplb");
  bad("--enable-two-batch-overlap", "two-batch");
  bad("--disaggregation-mode prefill", "--disaggregation-mode");
  bad("--run_mode pd_master", "--disaggregation-mode");
  bad("--ssl-keyfile k --ssl-certfile c", "TLS");
  bad("--grammar-backend xgrammar", "--grammar-backend");
  bad("--kv-cache-dtype fp8", "float32");
  bad("--quant-policy fp8", "float32");
  bad("--mode triton_fp8kv", "float32");
  bad("--gpu-memory-gib 80", "--gpu-memory-gib");
  good("--pp 1 --dp 1 --ep 1 --nnodes 1 --node-rank 0 --disaggregation-mode null --run_mode normal --role Hybrid");
  good("plan --device cuda --tp 16 --ep 16 --dp 16 --nnodes 2 --kv-cache-dtype fp8 --gpu-memory-gib 139");
}

TEST(Options, CombinationsWithoutSense) {
  bad("--node-rank 1", "--node-rank");
  bad("plan --device cuda --enable-dp-attention --tp 8", "--dp");
  bad("plan --device cuda --tp 8 --ep 4 --enable-expert-parallel", "--enable-expert-parallel");
  bad("plan --device cuda --kv-cache-dtype float32", "bfloat16, fp8");
  bad("--speculative-num-steps 2", "--speculative-algorithm NEXTN");
  bad("--speculative-algorithm none --mtp-step 1", "none");
  bad("--speculative-algorithm NEXTN --speculative-num-steps 2 --mtp-step 3", "--mtp-step");
  bad("--speculative-algorithm NEXTN --speculative-num-steps 2 --speculative-num-draft-tokens 2", "(3)");
  bad("--speculative-num-draft-tokens 2", "NEXTN");
  bad("--json", "plan");
  EXPECT_EQ(good("--speculative-algorithm NEXTN --speculative-num-steps 2 --speculative-num-draft-tokens 3 --speculative-eagle-topk 1").engine.num_drafts, 2);
  EXPECT_EQ(good("--mtp-step 0").engine.num_drafts, 0);
}

TEST(Options, JsonValues) {
  const auto with = [](const std::string& flag, const std::string& value) { return parse_options({kTiny, flag, value}); };
  EXPECT_EQ(with("--speculative-config", R"({"method": "deepseek_mtp", "num_speculative_tokens": 2})")->engine.num_drafts, 2);
  EXPECT_EQ(with("--speculative-config", R"({"method": "mtp"})")->engine.num_drafts, 1);
  for (const char* value : {"", "{", "[]", R"({"method": "eagle3"})", R"({"num_speculative_tokens": 99999999999999999999})", R"({"method": 1})", R"({"x": 1})"}) {
    EXPECT_EQ(with("--speculative-config", value).status().param(), "--speculative-config") << value;
  }
  EXPECT_EQ(with("--json-model-override-args", R"({"num_hidden_layers": 2})")->model_override_json, R"({"num_hidden_layers": 2})");
  for (const char* value : {"{", "[1]", "3", "{\"a\":1,\"a\":2}"}) EXPECT_EQ(with("--json-model-override-args", value).status().param(), "--json-model-override-args");
}

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("dsv3_options_test_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  std::filesystem::path folder_;
};

TEST_F(Files, ConfigFileGivesFlagsAndTheCommandLineBeatsIt) {
  const std::string path = write("x.toml", "# a server\nmodel-path = \"" + kTiny + "\"\n[layout]\ntp_size = 4\nmax-running-requests = 1_0\n"
                                           "disable-radix-cache = true\nstrict_fields = false\napi-key = [\"a#1\", 'b']\nmem-fraction-static = 0.5\nmetrics-compat = [\"vllm\"]\n");
  const auto options = parse_options({"--config", path, "--tp", "2"});
  ASSERT_TRUE(options.ok()) << options.status().message();
  EXPECT_EQ(options->layout.tp, 2);
  EXPECT_EQ(options->model_path, kTiny);
  EXPECT_EQ(options->max_running_requests, 10);
  EXPECT_FALSE(options->engine.prefix_cache);
  EXPECT_FALSE(options->api.strict_fields);
  EXPECT_EQ(options->server.api_keys, (std::vector<std::string>{"a#1", "b"}));
  EXPECT_DOUBLE_EQ(options->cache_fraction, 0.5);
}

TEST_F(Files, ConfigFaultsAreOneLine) {
  const auto message = [&](const std::string& text) {
    const auto options = parse_options({kTiny, "--config", write("bad.toml", text)});
    EXPECT_FALSE(options.ok()) << text;
    EXPECT_EQ(options.status().message().find('\n'), std::string::npos);
    return options.status().message();
  };
  EXPECT_NE(message("tpp = 8").find("did you mean tp?"), std::string::npos);
  EXPECT_NE(message("tp = 8\nport = eight").find("line 2"), std::string::npos);
  EXPECT_NE(message("port = \"eight\"").find("--port"), std::string::npos);
  EXPECT_NE(message("config = \"other.toml\"").find("config"), std::string::npos);
  EXPECT_NE(message("tp = 0").find("1 to 1024"), std::string::npos);
  EXPECT_NE(message("device = \"tpu\"").find("cuda"), std::string::npos);
  message("disable-radix-cache = 5");
  message("strict-fields = \"maybe\"");
  message(std::string(2 << 20, '#'));
  for (const std::string& path : {std::string("/nonexistent.toml"), folder_.string(), std::string("")}) {
    const auto options = parse_options({kTiny, "--config", path});
    EXPECT_FALSE(options.ok()) << path;
    EXPECT_EQ(options.status().message().find('\n'), std::string::npos);
  }
}

TEST_F(Files, ApiKeys) {
  EXPECT_EQ(good("--api-key a --api-key b").server.api_keys, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(good("--api-key --a_b").server.api_keys, (std::vector<std::string>{"--a_b"}));
  const std::string path = write("keys", "# mine\nk1\r\n\nk2  \n");
  EXPECT_EQ(good("--api-key-file " + path).server.api_keys, (std::vector<std::string>{"k1", "k2"}));
  EXPECT_EQ(parse_options({kTiny, "--api-key", ""}).status().param(), "--api-key");
  EXPECT_EQ(parse_options({kTiny, "--api-key", "secret key"}).status().message().find("secret"), std::string::npos);
  bad("--api-key-file " + write("empty", "# none\n"), "--api-key-file");
  bad("--api-key-file " + folder_.string(), "--api-key-file");
  bad("--api-key-file /nonexistent", "--api-key-file");
  bad("--api-key-file /dev/zero", "--api-key-file");
}

TEST(Options, ArgumentsOfAnyShapeAreSurvived) {
  const std::vector<std::string> parts = {"--", "-", "", "--tp", "-tp", "--tp=", "=", "--=8", "8", "--config", "/dev/null", "--a.b", "--tp.x", "{}", "[1,2]",
                                          "--api-key", "plan", "--disable-radix-cache=[]", "--disable-radix-cache", "++", "--cuda-graph-bs", "'", "\"", "\\",
                                          "\xff\xfe", "-h8", "--no-", "!tp", kTiny};
  uint64_t state = 7;
  for (int round = 0; round < 500; ++round) {
    std::vector<std::string> args;
    for (int i = 0; i < 5; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      args.push_back(parts[(state >> 33) % parts.size()]);
    }
    const auto options = parse_options(args);
    if (!options.ok()) {
      EXPECT_EQ(options.status().message().find('\n'), std::string::npos) << options.status().message();
    }
  }
}

TEST(Settle, FillsDefaultsFromTheModel) {
  ServerOptions o = good("");
  const auto request = settle(o, tiny(), int64_t{8} << 30);
  ASSERT_TRUE(request.ok()) << request.status().message();
  EXPECT_EQ(request->context_tokens, 8192);
  EXPECT_EQ(request->max_slots, 64);
  EXPECT_EQ(request->kv_dtype, KvDType::kF32);
  EXPECT_EQ(o.engine.max_running_requests, 64);
  EXPECT_EQ(o.engine.chunked_prefill_tokens, 2048);
  EXPECT_FALSE(request->mtp);
  const auto plan = plan_memory(tiny(), *request);
  ASSERT_TRUE(plan.ok());
  EXPECT_TRUE(plan->fits) << format_plan(*plan);
}

TEST(Settle, ChunksAreAtMostTheContext) {
  ServerOptions whole = good("--chunked-prefill-size -1");
  ASSERT_TRUE(settle(whole, tiny(), 1 << 30).ok());
  EXPECT_EQ(whole.engine.chunked_prefill_tokens, 8192);
  ServerOptions shorter = good("--context-length 1024");
  ASSERT_TRUE(settle(shorter, tiny(), 1 << 30).ok());
  EXPECT_EQ(shorter.engine.chunked_prefill_tokens, 1024);
}

TEST(Settle, RefusesWhatTheModelCannot) {
  const auto refused = [](const std::string& line, const ModelConfig& config, const std::string& flag) {
    ServerOptions o = good(line);
    const auto request = settle(o, config, int64_t{8} << 30);
    ASSERT_FALSE(request.ok()) << line;
    EXPECT_EQ(request.status().param(), flag) << request.status().message();
  };
  refused("--tp 3", tiny(), "--tp");
  refused("--tp 16", tiny(), "--tp");
  refused("--context-length 8193", tiny(), "--context-length");
  ModelConfig plain = tiny();
  plain.num_nextn_predict_layers = 0;
  plain.fp8 = false;
  refused("--mtp-step 1", plain, "--speculative-algorithm");
  refused("--quantization fp8", plain, "--quantization");
}

}  // namespace
}  // namespace dsv3
