// Every flag of dsv3-serve with the words of SGLang, vLLM, LMDeploy, LightLLM and TensorRT-LLM for it, in the order of
// the help text.
#include "flags.h"

#include <algorithm>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "dsv3/base/json.h"

namespace dsv3 {
namespace {

using Arity = FlagTable::Arity;
using Values = FlagTable::Values;
using Dtype = std::optional<KvDType>;
template <class T>
using Words = std::vector<std::pair<std::string, T>>;

void add_model_flags(FlagTable& t, ServerOptions& o) {
  t.group("Model");
  t.text("model-path,model,model-dir", "DIR", "folder with config.json, tokenizer and safetensors; also without a flag", &o.model_path);
  t.text("tokenizer-path,tokenizer", "DIR", "folder with tokenizer.json, if not the model's", &o.tokenizer_path);
  t.text("served-model-name,model-name", "NAME", "the model's id in the API; default: the model path", &o.api.served_model_name);
  t.text("chat-template", "FILE|NAME", "Jinja file, or deepseek-v3, deepseek-v3-0324, deepseek-r1, deepseek-r1-0528, deepseek-v3.1",
         &o.chat_template);
  t.choice("load-format", "auto|safetensors|dummy", "dummy: seeded random weights, no files",
           Words<bool>{{"auto", false}, {"safetensors", false}, {"dummy", true}}, &o.dummy_weights);
  t.text("json-model-override-args,hf-overrides", "JSON", "fields that replace those of config.json", &o.model_override_json);
  t.choice("quantization,quant-type,model-format", "auto|fp8", "how weights are stored; auto reads it from each tensor",
           Words<std::string>{{"auto", "auto"}, {"fp8", "fp8"}, {"vllm-fp8w8a8-b128", "fp8"}, {"triton-fp8w8a8-block128", "fp8"}},
           &o.quantization);
  t.integer("context-length,max-model-len,session-len,max-req-total-len,max-seq-len", "N",
            "longest prompt + output in tokens; default: the model's", &o.context_tokens, 16, 1 << 24);
}

void add_device_flags(FlagTable& t, ServerOptions& o, FlagValues& v) {
  t.group("Device and layout");
  t.choice("device", "auto|cpu|cuda", "auto: cuda if the build has it and the machine a Hopper GPU, else cpu",
           Words<std::string>{{"auto", "auto"}, {"cpu", "cpu"}, {"cuda", "cuda"}}, &v.device);
  t.integer("cpu-threads", "N", "threads of the CPU backend; default: one per core", &o.cpu_threads, 1, 1024);
  t.choice("fp8-mode", "exact|w8a8", "w8a8 (default on GPUs): FP8 weights times FP8 activations; exact (on CPUs): activations are not rounded",
           Words<bool>{{"exact", false}, {"w8a8", true}}, &o.fp8_w8a8);
  t.integer("tp,tp-size,tensor-parallel-size", "N", "ranks in all; divides the model's heads", &o.layout.tp, 1, 1024);
  t.integer("dp,dp-size,data-parallel-size", "N", "attention groups among the ranks (plan --device cuda)", &o.layout.dp, 1, 1024);
  t.integer("ep,ep-size", "N", "groups of whole experts among the ranks (plan --device cuda)", &o.layout.ep, 1, 1024);
  t.on("enable-expert-parallel", "the same as --ep equal to --tp", &v.expert_parallel);
  t.on("enable-dp-attention,enable-attention-dp", "said by --dp already", &v.dp_attention);
  t.integer("nnodes", "N", "machines (plan --device cuda)", &o.layout.nnodes, 1, 1024);
  t.integer("node-rank,data-parallel-start-rank", "N", "which of them this one is", &v.node_rank, 0, 1023);
  t.on("deterministic,enable-deterministic-inference", "the same bits for a request alone or among others; CPUs always do so", &v.deterministic);
  t.add("disable-cuda-graph,enforce-eager,eager-mode,disable-cudagraph", "", "GPUs: launch decode steps kernel by kernel", Arity::kSwitch,
        [&o, &v](const std::string& flag, const Values& values) -> Status {
          DSV3_ASSIGN(const bool off, parse_switch(flag, values.back()));
          o.cuda_graphs = !off;
          v.graph_flags.push_back(flag);
          return {};
        });
  t.add("cuda-graph-bs,cudagraph-capture-sizes,cudagraph-capture-batch-sizes", "N...", "GPUs: decode batch sizes captured as CUDA graphs",
        Arity::kMany, [&o, &v](const std::string& flag, const Values& values) -> Status {
          for (const std::string& value : values) {
            DSV3_ASSIGN(const int64_t batch, parse_integer(flag, value, 1, 65536));
            o.cuda_graph_batches.push_back(static_cast<int32_t>(batch));
          }
          v.graph_flags.push_back(flag);
          return {};
        });
  t.add("cuda-graph-max-bs,graph-max-batch-size", "N", "GPUs: the largest of them; default: --max-running-requests", Arity::kOne,
        [&o, &v](const std::string& flag, const Values& values) -> Status {
          DSV3_ASSIGN(const int64_t batch, parse_integer(flag, values.back(), 1, 65536));
          o.cuda_graph_max_batch = static_cast<int32_t>(batch);
          v.graph_flags.push_back(flag);
          return {};
        });
  t.number("gpu-memory-gib", "GIB", "plan --device cuda: usable memory of one GPU, 78 for H100, 139 for H200; default 78",
           &o.gpu_memory_gib, 1, 4096);
}

void add_fraction(FlagTable& t, FlagValues& v, const char* names, const char* help, CacheRule rule) {
  t.add(names, "F", help, Arity::kOne, [&v, rule](const std::string& flag, const Values& values) -> Status {
    DSV3_ASSIGN(const double fraction, parse_number(flag, values.back(), 0.01, 1.0));
    v.fractions.push_back({flag, rule, fraction});
    return {};
  });
}

void add_memory_flags(FlagTable& t, ServerOptions& o, FlagValues& v) {
  t.group("Memory and limits");
  add_fraction(t, v, "mem-fraction-static,mem-fraction", "weights + KV cache, as a fraction of all memory", CacheRule::kStaticFraction);
  add_fraction(t, v, "gpu-memory-utilization", "everything, as a fraction of all memory", CacheRule::kEngineFraction);
  add_fraction(t, v, "cache-max-entry-count", "KV cache, as a fraction of what the weights leave", CacheRule::kFreeAfterWeights);
  add_fraction(t, v, "kv-cache-free-gpu-memory-fraction", "KV cache, as a fraction of what all else leaves", CacheRule::kFreeAfterLoad);
  t.integer("max-total-tokens,max-total-token-num", "N", "KV cache in tokens; with a fraction: at most", &o.max_total_tokens, 64, int64_t{1} << 40);
  t.integer("num-gpu-blocks-override", "N", "KV cache in blocks of 64 tokens", &v.num_blocks, 1, int64_t{1} << 34);
  t.choice("kv-cache-dtype", "auto|float32|bfloat16|fp8", "auto: float32 on CPUs, bfloat16 on GPUs",
           Words<Dtype>{{"auto", {}}, {"float32", KvDType::kF32}, {"fp32", KvDType::kF32}, {"bfloat16", KvDType::kBF16},
                        {"bf16", KvDType::kBF16}, {"fp8", KvDType::kFp8}, {"fp8-e4m3", KvDType::kFp8}},
           &o.kv_dtype);
  t.choice("quant-policy", "0|fp8", "LMDeploy's word for --kv-cache-dtype", Words<Dtype>{{"0", {}}, {"fp8", KvDType::kFp8}}, &o.kv_dtype);
  t.choice("mode", "triton_fp8kv", "LightLLM's word for --kv-cache-dtype fp8", Words<Dtype>{{"triton-fp8kv", KvDType::kFp8}}, &o.kv_dtype);
  t.choice("page-size,block-size,cache-block-seq-len,tokens-per-block", "64", "tokens of a KV block; 64 is the only size",
           Words<std::string>{{"64", ""}}, &v.ignored);
  t.on("disable-radix-cache,no-enable-prefix-caching,disable-dynamic-prompt-cache,disable-prefix-cache", "no reuse of cached prefixes", &v.disable_prefix);
  t.on("enable-prefix-caching,enable-prefix-cache,enable-block-reuse", "reuse cached prefixes; the default", &v.enable_prefix);
  t.integer("max-running-requests,max-num-seqs,max-batch-size,running-max-req-size", "N",
            "sequences that run at once; default 64 on CPUs, 256 on GPUs", &o.max_running_requests, 1, 65536);
  t.integer("max-queued-requests,max-concurrent-requests", "N", "waiting requests; one more gets a 429; default 1024",
            &o.engine.max_queued_requests, 1, 1'000'000);
  t.integer("max-queued-tokens", "N", "their prompt tokens together; default 4000000", &o.engine.max_queued_tokens, 1, int64_t{1} << 40);
  t.add("chunked-prefill-size,max-prefill-tokens,max-num-batched-tokens,max-prefill-token-num,batch-max-tokens,max-num-tokens", "N",
        "prompt tokens of one step; -1: whole prompts; default 2048, on GPUs 8192", Arity::kOne,
        [&v](const std::string& flag, const Values& values) -> Status {
          if (values.back() == "-1") {
            v.chunked_prefill = -1;
            return {};
          }
          DSV3_ASSIGN(v.chunked_prefill, parse_integer(flag, values.back(), 1, 1 << 20));
          return {};
        });
  t.integer("lookahead", "0|1", "1 (default on GPUs): plan a step while the one before runs; 0 on CPUs", &v.lookahead, 0, 1);
  t.choice("schedule-policy", "fcfs|priority", "both: higher `priority` first, then first come, first served",
           Words<std::string>{{"fcfs", ""}, {"priority", ""}}, &v.ignored);
  t.seconds("watchdog-timeout", "a step older than this makes the server unhealthy; default 30", &o.engine.step_timeout_us, 1, 86400);
  t.add("random-seed,seed", "N", "seed of --load-format dummy; requests bring their own", Arity::kOne,
        [&o](const std::string& flag, const Values& values) -> Status {
          DSV3_ASSIGN(const int64_t seed, parse_integer(flag, values.back(), 0, INT64_MAX));
          o.random_seed = static_cast<uint64_t>(seed);
          return {};
        });
}

void add_speculation_flags(FlagTable& t, FlagValues& v) {
  t.group("Speculative decoding (MTP)");
  t.choice("speculative-algorithm", "NEXTN|EAGLE|none", "NEXTN, EAGLE: draft with the model's own MTP module; default none",
           Words<std::string>{{"none", "none"}, {"nextn", "mtp"}, {"eagle", "mtp"}, {"mtp", "mtp"}, {"deepseek-mtp", "mtp"}},
           &v.speculative);
  t.integer("speculative-num-steps,num-speculative-tokens", "K", "drafts a step; default 1", &v.num_steps, 0, 8);
  t.integer("mtp-step", "K", "drafts a step; above 0 turns drafting on by itself", &v.mtp_step, 0, 8);
  t.choice("mtp-mode", "deepseekv3|none", "LightLLM's word for --speculative-algorithm",
           Words<std::string>{{"deepseekv3", "mtp"}, {"none", "none"}}, &v.speculative);
  t.integer("speculative-num-draft-tokens", "K+1", "SGLang's count of steps + 1", &v.draft_tokens, 1, 9);
  t.choice("speculative-eagle-topk", "1", "drafts are one chain", Words<std::string>{{"1", ""}}, &v.ignored);
  t.add("speculative-config", "JSON", "vLLM's form: {\"method\": \"mtp\", \"num_speculative_tokens\": K}", Arity::kOne,
        [&v](const std::string& flag, const Values& values) -> Status {
          const auto json = parse_json(values.back(), {4, 4096, 64});
          if (!json.ok() || !json->is_object()) return flag_error(flag, "must be a JSON object such as {\"method\": \"mtp\", \"num_speculative_tokens\": 1}");
          for (const auto& [key, value] : json->items()) {
            if (key == "method" && value.is_string()) {
              const std::string method = normal_word(value.get<std::string>());
              if (method != "mtp" && method != "deepseek-mtp") return flag_error(flag, "method '" + printable(method) + "' is not built here, allowed: mtp");
              v.speculative = "mtp";
            } else if (key == "num_speculative_tokens" && value.is_number_integer()) {
              if (value < 0 || value > 8) return flag_error(flag, "num_speculative_tokens is out of range, allowed 0 to 8");
              v.config_steps = value.get<int64_t>();
            } else {
              return flag_error(flag, "'" + printable(key) + "' is not known here or of the wrong type, allowed: method, num_speculative_tokens");
            }
          }
          return {};
        });
}

void add_server_flags(FlagTable& t, ServerOptions& o, FlagValues& v) {
  t.group("HTTP server");
  t.text("host,server-name", "ADDRESS", "address to listen on; default 127.0.0.1", &o.server.host);
  t.integer("port,server-port", "N", "port; 0: any free one; default 30000", &o.server.port, 0, 65535);
  t.add("api-key,api-keys", "KEY", "a key that clients must show; repeat for more; `ps` shows it, a file does not", Arity::kRepeated,
        [&o](const std::string&, const Values& values) -> Status {
          o.server.api_keys.insert(o.server.api_keys.end(), values.begin(), values.end());
          return {};
        });
  t.text("api-key-file", "FILE", "keys, one a line", &v.key_file);
  t.integer("max-connections", "N", "open connections; default 4096", &o.server.max_connections, 1, 1'000'000);
  t.integer("max-body-bytes", "N", "of one request; default 33554432", &o.server.max_body_bytes, 1024, int64_t{1} << 30);
  t.integer("max-header-bytes", "N", "of one request; default 32768", &o.server.max_header_bytes, 1024, 1 << 20);
  t.seconds("idle-timeout", "of a kept-alive connection; default 75", &o.server.idle_timeout_us, 1, 86400);
  t.integer("request-threads", "N", "threads that parse and tokenise; default 4", &o.server.request_threads, 1, 256);
  t.on("cors", "let web pages of any origin call the API", &o.server.cors);
  t.seconds("request-timeout", "deadline of every request; 0: none; default 0", &o.api.request_timeout_us, 0, 604800);
  t.seconds("drain-timeout,shutdown-timeout", "how long SIGTERM lets running requests end; default 120", &o.drain_timeout_us, 0, 86400);
  t.add("metrics-compat", "vllm,sglang", "repeat metrics under these systems' names", Arity::kRepeated,
        [&o](const std::string& flag, const Values& values) -> Status {
          for (const std::string& value : values) {
            for (size_t begin = 0; begin <= value.size();) {
              const size_t end = std::min(value.find(',', begin), value.size());
              const std::string word = normal_word(value.substr(begin, end - begin));
              if (word != "vllm" && word != "sglang") return flag_error(flag, fmt::format("'{}' is not known, allowed: vllm, sglang", printable(word)));
              auto& list = o.server.metrics_compat;
              if (std::find(list.begin(), list.end(), word) == list.end()) list.push_back(word);
              begin = end + 1;
            }
          }
          return {};
        });
}

void add_api_flags(FlagTable& t, ServerOptions& o, FlagValues& v) {
  t.group("API");
  t.choice("reasoning-parser", "NAME", "split <think> from the answer: deepseek-r1, deepseek-r1-0528, deepseek-v3.1, none",
           Words<std::string>{{"deepseek-r1", "deepseek-r1"}, {"deepseek-r1-0528", "deepseek-r1-0528"}, {"deepseek-v3.1", "deepseek-v3.1"},
                              {"deepseek-v31", "deepseek-v3.1"}, {"deepseek-v3", "deepseek-v3.1"}, {"none", ""}},
           &o.api.reasoning_parser);
  t.choice("tool-call-parser,tool-parser", "NAME", "tool calls are read from token ids, always: deepseekv3, deepseekv31",
           Words<std::string>{{"deepseekv3", ""}, {"deepseek-v3", ""}, {"deepseekv31", ""}, {"deepseek-v31", ""}, {"deepseek-v3.1", ""}},
           &v.ignored);
  t.choice("sampling-defaults", "openai|model", "model: those of generation_config.json; default openai",
           Words<bool>{{"openai", false}, {"model", true}}, &o.api.sampling_defaults_from_model);
  t.on("default-thinking", "v3.1: think unless a request says otherwise", &o.api.default_thinking);
  t.choice("reasoning-field", "reasoning_content|both", "both: repeat it as `reasoning`",
           Words<bool>{{"reasoning-content", false}, {"both", true}}, &o.api.reasoning_field_both);
  t.on("strict-fields", "unknown request fields are a 400", &o.api.strict_fields);
  t.on("accept-any-model", "do not check the request's `model`", &o.api.accept_any_model);
}

void add_other_flags(FlagTable& t, ServerOptions& o) {
  t.group("Operation");
  t.text("config", "FILE", "TOML file of flags; the command line beats it", &o.config_path);
  t.choice("log-level", "debug|info|warn|error|off", "one JSON line an event, on stderr; default info",
           Words<LogLevel>{{"debug", LogLevel::kDebug}, {"info", LogLevel::kInfo}, {"warn", LogLevel::kWarn},
                           {"warning", LogLevel::kWarn}, {"error", LogLevel::kError}, {"critical", LogLevel::kError}, {"off", LogLevel::kOff}},
           &o.log_level);
  t.on("log-requests,enable-log-requests", "put prompts into the log", &o.api.log_requests);
  t.on("json", "plan: print JSON", &o.plan_as_json);
}

FlagTable::Apply integers(std::vector<int32_t>* out, int64_t max) {
  return [out, max](const std::string& flag, const Values& values) -> Status {
    out->clear();
    for (const std::string& value : values) {
      DSV3_ASSIGN(const int64_t number, parse_integer(flag, value, 1, max));
      out->push_back(static_cast<int32_t>(number));
    }
    return {};
  };
}

void add_bench_flags(FlagTable& t, ServerOptions& o) {
  t.group("bench-layer");
  t.add("batches", "N...", "decode batch sizes; default 1 32 128", Arity::kMany, integers(&o.bench.batches, 1024));
  t.add("prefills", "N...", "prompt lengths; default 128 1024 4096", Arity::kMany, integers(&o.bench.prefills, 65536));
  t.integer("bench-context", "N", "cached tokens of each decoding sequence; default 2048", &o.bench.context, 1, 131072);
  t.integer("slice-of-tp", "N", "measure what one of N tensor-parallel ranks computes; default 1", &o.bench.slice_of_tp, 1, 128);
  t.integer("moe-layers", "N", "layers with experts of the truncated model; default 5", &o.bench.moe_layers, 2, 61);
  t.text("out", "FILE", "append JSON lines", &o.bench.out);
  t.text("bench-commit", "SHA", "named in them", &o.bench.commit);
}

void add_words_without_effect(FlagTable& t, ServerOptions& o) {
  auto* notes = &o.notes;
  t.group("Accepted, without effect (said once at start)");
  t.no_effect("trust-remote-code", Arity::kSwitch, "no code of the checkpoint is ever run", notes);
  t.no_effect("dtype,data-type", Arity::kOne, "activations are float32 on CPUs and BF16 on GPUs; weights stay as they are stored", notes);
  t.no_effect("attention-backend,backend", Arity::kOne, "there is one implementation of each device", notes);
  t.no_effect("enable-metrics", Arity::kSwitch, "/metrics is always there", notes);
  t.no_effect("disable-metrics", Arity::kSwitch, "/metrics stays: it costs nothing until it is read", notes);
  t.no_effect("enable-auto-tool-choice", Arity::kSwitch, "tool calls are parsed whenever a request brings tools", notes);
  t.no_effect("enable-chunked-prefill,enable-mixed-chunk", Arity::kSwitch, "prompts are always chunked and share steps with decoding", notes);
  t.no_effect("enable-priority-scheduling", Arity::kSwitch, "a request's `priority` is always looked at", notes);
  t.no_effect("enable-cache-report,enable-prompt-tokens-details", Arity::kSwitch, "usage always tells cached tokens", notes);
  t.no_effect("disable-overlap-schedule", Arity::kSwitch, "--lookahead is the switch here", notes);
  t.no_effect("disable-log-requests,disable-log-stats", Arity::kSwitch, "prompts are logged only with --log-requests", notes);
  t.no_effect("skip-server-warmup", Arity::kSwitch, "nothing is compiled; on GPUs a second or two of steps and graph capture stay, so that nothing is allocated later", notes);
}

void add_words_of_later(FlagTable& t) {
  t.group("Known, but refused: not in this version");
  t.refused("pp,pp-size,pipeline-parallel-size", Arity::kOne, "there is no pipeline parallelism; use --tp", {"1"});
  t.refused("dist-init-addr,master-addr,data-parallel-address,nccl-host,nccl-port,dist-timeout", Arity::kOne,
            "this version serves on one machine; leave it out");
  t.refused("enable-two-batch-overlap,enable-single-batch-overlap,enable-dbo,enable-microbatch,"
            "enable-prefill-microbatch-overlap,enable-decode-microbatch-overlap",
            Arity::kSwitch, "overlap of two batches needs expert parallelism on GPUs, which this version does not have");
  t.refused("moe-a2a-backend,all2all-backend,deepep-mode", Arity::kOne, "there is no expert exchange in this version; leave it out", {"none"});
  t.refused("enable-eplb", Arity::kSwitch, "expert balancing needs --ep, which this version only plans");
  t.refused("eplb-config,ep-redundancy-expert-config-path,ep-dispatch-algorithm", Arity::kOne,
            "expert balancing needs --ep, which this version only plans");
  t.refused("ep-num-redundant-experts", Arity::kOne, "expert balancing needs --ep, which this version only plans", {"0"});
  t.refused("disaggregation-mode,run-mode,role,server-role", Arity::kOne, "prefill and decode are not split in this version; leave it out",
            {"null", "none", "normal", "hybrid"});
  t.refused("pd-master-ip,pd-master-port,config-server-host,config-server-port,proxy-url,kv-transfer-config", Arity::kOne,
            "prefill and decode are not split in this version; leave it out");
  t.refused("ssl-keyfile,ssl-certfile,ssl-ca-certs", Arity::kOne, "there is no TLS in this version; put a TLS proxy in front of --host 127.0.0.1");
  t.refused("ssl", Arity::kSwitch, "there is no TLS in this version; put a TLS proxy in front of --host 127.0.0.1");
  t.refused("grammar-backend,guided-decoding-backend,output-constraint-mode", Arity::kOne,
            "there is no constrained output in this version; leave it out", {"none"});
  t.refused("enable-hierarchical-cache", Arity::kSwitch, "the KV cache has one tier in this version; leave it out");
}

}  // namespace

void add_flags(FlagTable& table, ServerOptions& options, FlagValues& values) {
  add_model_flags(table, options);
  add_device_flags(table, options, values);
  add_memory_flags(table, options, values);
  add_speculation_flags(table, values);
  add_server_flags(table, options, values);
  add_api_flags(table, options, values);
  add_other_flags(table, options);
  add_bench_flags(table, options);
  add_words_without_effect(table, options);
  add_words_of_later(table);
}

}  // namespace dsv3
