"""The routes of SGLang, LightLLM, LMDeploy and vLLM beside OpenAI's, and what operators ask: health, info, metrics."""

import json
import threading
import time

import pytest

from prompts import COUNT, COUNTED, LONG_TEXT, STORY, user
from rawhttp import Raw, exchange, sse_events, stream_chunks
from serving import parse_metrics

SGLANG = {"text": COUNT, "sampling_params": {"temperature": 0, "max_new_tokens": 40}}
LIGHTLLM = {"inputs": COUNT, "parameters": {"max_new_tokens": 40}}
LMDEPLOY = {"prompt": COUNT, "max_tokens": 40, "temperature": 0}


# -- SGLang -----------------------------------------------------------------------------------------


def test_sglang_whole(server):
    answer = server.ok("/generate", SGLANG)
    assert answer["text"] == COUNTED and len(answer["output_ids"]) == 16
    meta = answer["meta_info"]
    assert meta["completion_tokens"] == 16 and meta["prompt_tokens"] == 12 and meta["cached_tokens"] == 0
    assert meta["finish_reason"] == {"type": "stop", "matched": 1} and meta["id"] and meta["e2e_latency"] > 0
    # Reaching the limit, with the limit; PUT as well.
    head, cut = exchange(server.port, "PUT", "/generate", {**SGLANG, "sampling_params": {"temperature": 0, "max_new_tokens": 3}})
    assert head.status == 200 and json.loads(cut)["meta_info"]["finish_reason"] == {"type": "length", "length": 3}


def test_sglang_stream_is_cumulative(server):
    head, chunks = stream_chunks(server.port, "/generate", {**SGLANG, "stream": True})
    assert head.get("content-type").startswith("text/event-stream") and chunks[-1] == b"data: [DONE]\n\n"
    events = sse_events(chunks)
    for before, after in zip(events, events[1:]):
        assert after["text"].startswith(before["text"]) and after["output_ids"][:len(before["output_ids"])] == before["output_ids"]
        assert after["meta_info"]["completion_tokens"] == len(after["output_ids"]) > 0
        assert before["meta_info"]["finish_reason"] is None
    assert events[-1]["text"] == COUNTED and events[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": 1}
    assert len({event["meta_info"]["id"] for event in events}) == 1


def test_sglang_batches_and_n(server):
    batch = server.ok("/generate", {"text": [COUNT, STORY], "sampling_params": [{"temperature": 0, "max_new_tokens": 40},
                                                                               {"temperature": 0, "max_new_tokens": 4}]})
    assert [len(entry["output_ids"]) for entry in batch] == [16, 4] and batch[0]["text"] == COUNTED
    ids = server.ok("/tokenize", {"prompt": COUNT})["tokens"]
    assert [entry["text"] for entry in server.ok("/generate", {**SGLANG, "text": None, "input_ids": [ids, ids]})] == [COUNTED] * 2
    drawn = {"text": STORY, "sampling_params": {"temperature": 1, "n": 3, "max_new_tokens": 12, "sampling_seed": 5}}
    three = server.ok("/generate", drawn)
    assert len(three) == 3 and len({entry["text"] for entry in three}) > 1
    assert [entry["text"] for entry in server.ok("/generate", drawn)] == [entry["text"] for entry in three]
    events = sse_events(stream_chunks(server.port, "/generate", {**drawn, "stream": True})[1])
    last = {event["index"]: event["text"] for event in events}
    assert [last[i] for i in range(3)] == [entry["text"] for entry in three]


def test_sglang_prefill_only(server):
    text = LONG_TEXT + " prefill only"
    empty = server.ok("/generate", {"text": text, "sampling_params": {"max_new_tokens": 0}})
    assert empty["text"] == "" and empty["output_ids"] == [] and empty["meta_info"]["completion_tokens"] == 0
    warm = server.ok("/generate", {"text": text, "sampling_params": {"max_new_tokens": 2}})
    assert warm["meta_info"]["cached_tokens"] >= 192


def test_sglang_stops(server):
    params = {"temperature": 0, "max_new_tokens": 40, "stop": [" 9", "zzz"]}
    cut = server.ok("/generate", {"text": COUNT, "sampling_params": params})
    assert cut["text"] == "5 6 7 8" and cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": " 9"}
    kept = server.ok("/generate", {"text": COUNT, "sampling_params": {**params, "no_stop_trim": True}})
    assert kept["text"] == "5 6 7 8 9"
    whole = server.ok("/generate", SGLANG)
    by_id = server.ok("/generate", {"text": COUNT, "sampling_params": {"temperature": 0, "stop_token_ids": [whole["output_ids"][4]]}})
    assert by_id["output_ids"] == whole["output_ids"][:5]
    assert by_id["meta_info"]["finish_reason"] == {"type": "stop", "matched": whole["output_ids"][4]}


def test_sglang_logprobs(server):
    body = {**SGLANG, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 3, "return_text_in_logprobs": True}
    meta = server.ok("/generate", body)["meta_info"]
    prompt = server.ok("/tokenize", {"prompt": COUNT})["tokens"]
    assert [entry[1] for entry in meta["input_token_logprobs"]] == prompt
    assert meta["input_token_logprobs"][0][0] is None and all(entry[0] <= 0 for entry in meta["input_token_logprobs"][1:])
    assert len(meta["output_token_logprobs"]) == len(meta["output_top_logprobs"]) == 16
    for (value, token, text), top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"]):
        assert isinstance(text, str) and len(top) == 3 and [value, token, text] == top[0]
    only_outputs = server.ok("/generate", {**SGLANG, "return_logprob": True})["meta_info"]
    assert only_outputs["input_token_logprobs"] == [] and len(only_outputs["output_token_logprobs"]) == 16
    assert only_outputs["output_token_logprobs"][0][2] is None


def test_sglang_info(server, tiny):
    info = json.loads(exchange(server.port, "GET", "/get_model_info")[1])
    assert info["model_path"] == tiny and info["is_generation"] is True and info["tokenizer_path"]
    assert info == json.loads(exchange(server.port, "GET", "/model_info")[1])
    for path in ("/get_server_info", "/server_info"):
        head, body = exchange(server.port, "GET", path)
        answer = json.loads(body)
        assert head.status == 200 and isinstance(answer["internal_states"], list) and answer["internal_states"] and answer["version"]


def test_flush_cache(server):
    body = {"text": LONG_TEXT + " flushed", "sampling_params": {"max_new_tokens": 1}}
    server.ok("/generate", body)
    assert server.ok("/generate", body)["meta_info"]["cached_tokens"] >= 192
    assert exchange(server.port, "POST", "/flush_cache")[0].status == 200
    assert server.metric("dsv3:kv_blocks", state="cached") == 0
    assert server.ok("/generate", body)["meta_info"]["cached_tokens"] == 0
    assert exchange(server.port, "GET", "/flush_cache")[0].status == 200
    with Raw(server.port) as running:
        running.request("POST", "/generate", {"text": "x", "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}, "stream": True})
        running.read_head()
        server.wait_metric("dsv3:num_requests_running", 1)
        assert exchange(server.port, "POST", "/flush_cache")[0].status == 400
    server.wait_idle()


def test_abort_request(server):
    long = {"temperature": 0, "max_new_tokens": 6000, "ignore_eos": True}
    with Raw(server.port) as running, Raw(server.port) as streaming:
        running.request("POST", "/generate", {"text": "x", "rid": "abort-me", "sampling_params": long})
        streaming.request("POST", "/v1/completions", {"prompt": "y", "max_tokens": 6000, "ignore_eos": True, "stream": True, "rid": "and-me"})
        server.wait_metric("dsv3:num_requests_running", 2)
        duplicate = exchange(server.port, "POST", "/generate", {"text": "x", "rid": "abort-me"})
        assert duplicate[0].status == 400 and "rid" in json.loads(duplicate[1])["error"]["message"]
        assert exchange(server.port, "POST", "/abort_request", {"rid": "nobody"})[0].status == 200
        assert exchange(server.port, "POST", "/abort_request", {"rid": "abort-me"})[0].status == 200
        answer = json.loads(running.read_answer()[1])
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
        assert exchange(server.port, "POST", "/abort_request", {"abort_all": True})[0].status == 200
        streaming.read_head()
        events = sse_events(streaming.read_chunks())
        assert events[-1]["choices"][0]["finish_reason"] == "abort"
    server.wait_idle()


# -- LightLLM ---------------------------------------------------------------------------------------


def test_lightllm_whole(server):
    answer = server.ok("/generate", LIGHTLLM)
    assert answer == {"generated_text": [COUNTED], "count_output_tokens": 16, "finish_reason": "stop", "prompt_tokens": 12}
    default = server.ok("/generate", {"inputs": STORY, "parameters": {}})
    assert default["count_output_tokens"] == 16 and default["finish_reason"] == "length"
    two = server.ok("/generate", {"inputs": STORY, "parameters": {"do_sample": True, "n": 2, "max_new_tokens": 4}})
    assert len(two["generated_text"]) == 2 and two["count_output_tokens"] == [4, 4] and two["finish_reason"] == ["length"] * 2
    details = server.ok("/generate", {"inputs": COUNT, "parameters": {"max_new_tokens": 40, "return_details": True}})
    assert len(details["tokens"]) == 16 and {"id", "text", "logprob", "special"} <= set(details["tokens"][0])


@pytest.mark.parametrize("drafts", [0, 2])
def test_lightllm_stream_has_one_line_per_token(serve, server, drafts):
    def check(port):
        head, chunks = stream_chunks(port, "/generate_stream", LIGHTLLM)
        assert head.get("content-type").startswith("text/event-stream")
        events = sse_events(chunks, b"data:")
        assert len(events) == len(chunks) == 16  # one a token, no [DONE]
        assert [event["token"]["count_output_tokens"] for event in events] == list(range(1, 17))
        assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == COUNTED
        assert [event["finished"] for event in events] == [False] * 15 + [True]
        assert events[-1]["finish_reason"] == "stop" and events[-1]["token"]["id"] == 1 and events[-1]["token"]["special"]
        assert all(event["generated_text"] is None and event["token"]["prompt_tokens"] == 12 for event in events)

    if drafts == 0:
        return check(server.port)
    with serve("--mtp-step", drafts) as speculating:
        check(speculating.port)
        assert speculating.metric("dsv3:spec_decode_num_accepted_tokens_total") > 0


def test_lightllm_root(server):
    assert server.ok("/", LIGHTLLM)["generated_text"] == [COUNTED]
    assert len(sse_events(stream_chunks(server.port, "/", {**LIGHTLLM, "stream": True})[1], b"data:")) == 16


def test_lightllm_stop_sequences(server):
    for stop in (" 9", [" 9"], [[999999 % 4096]]):
        answer = server.ok("/generate", {"inputs": COUNT, "parameters": {"max_new_tokens": 40, "stop_sequences": stop}})
        assert answer["generated_text"][0] == ("5 6 7 8" if stop in (" 9", [" 9"]) else COUNTED)


# -- LMDeploy ---------------------------------------------------------------------------------------


def test_lmdeploy_whole_and_incremental_stream(server):
    whole = server.ok("/generate", LMDEPLOY)
    assert whole["text"] == COUNTED and len(whole["output_ids"]) == 16
    assert whole["meta_info"]["finish_reason"] == {"type": "stop"} and whole["meta_info"]["completion_tokens"] == 16
    chunks = stream_chunks(server.port, "/generate", {**LMDEPLOY, "stream": True})[1]
    assert chunks[-1] == b"data: [DONE]\n\n"
    events = sse_events(chunks)
    assert "".join(event["text"] for event in events) == COUNTED
    assert [i for event in events for i in event["output_ids"]] == whole["output_ids"]
    assert events[-1]["meta_info"]["finish_reason"] == {"type": "stop"} and events[0]["meta_info"]["finish_reason"] is None
    ids = server.ok("/tokenize", {"prompt": COUNT})["tokens"]
    assert server.ok("/generate", {**LMDEPLOY, "prompt": None, "input_ids": ids})["text"] == COUNTED


# -- vLLM's and shared ------------------------------------------------------------------------------


def test_tokenize_and_detokenize(server):
    text = "naïve 东京 🙂\n\tx"
    answer = server.ok("/tokenize", {"prompt": text, "return_token_strs": True})
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) and answer["tokens"][0] == 0
    assert answer["max_model_len"] == 8192
    bare = server.ok("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert bare["tokens"] == answer["tokens"][1:]
    for tokens in (bare["tokens"], answer["tokens"]):
        back = server.ok("/detokenize", {"tokens": tokens})
        assert back["text"] == back["prompt"] == text
    batch = server.ok("/tokenize", {"prompt": [text, "x"]})
    assert batch["tokens"][0] == answer["tokens"] and batch["count"] == [answer["count"], 2]
    assert server.ok("/detokenize", {"tokens": batch["tokens"]})["text"] == [text, "x"]
    chat = server.ok("/tokenize", {"messages": user("Hello")})
    assert chat["count"] == 5


def test_chat_template_is_the_references(server, golden_folder, tiny):
    """Conversations rendered by transformers, tokenised there as one text: the same ids from our messages."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tiny + "/tokenizer.json")
    for case in json.loads((golden_folder / "chat_template.json").read_text()):
        body = {"messages": case["messages"], "chat_template_kwargs": {"thinking": case["thinking"]}}
        if "tools" in case:
            body["tools"] = case["tools"]
        assert server.ok("/tokenize", body)["tokens"] == tokenizer.encode(case["text"], add_special_tokens=False).ids


def test_health_and_version(server):
    head, body = exchange(server.port, "GET", "/health")
    assert head.status == 200 and head.get("content-type") == "application/json" and json.loads(body)["status"] == "healthy"
    head, body = exchange(server.port, "GET", "/version")
    assert head.status == 200 and json.loads(body)["version"]


@pytest.mark.parametrize("method, path", [("GET", "/health_generate"), ("GET", "/healthz"), ("GET", "/liveness"), ("GET", "/readiness"),
                                          ("GET", "/livez"), ("GET", "/readyz"), ("GET", "/ping"), ("POST", "/reset_prefix_cache")])
def test_probes_of_the_peers(server, method, path):
    server.wait_idle()
    before = server.metric("dsv3:generation_tokens_total")
    assert exchange(server.port, method, path, None if method == "GET" else b"{}")[0].status == 200
    assert server.metric("dsv3:generation_tokens_total") - before == (1 if path == "/health_generate" else 0)


# -- metrics ----------------------------------------------------------------------------------------


def test_metrics_parse_count_and_never_fall(server):
    def scrape():
        head, body = exchange(server.port, "GET", "/metrics")
        assert head.status == 200 and head.get("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        kinds = dict(line.split(" ")[2:4] for line in body.decode().splitlines() if line.startswith("# TYPE "))
        return kinds, parse_metrics(body.decode())

    server.wait_idle()
    kinds, before = scrape()
    assert kinds and set(kinds.values()) <= {"counter", "gauge", "histogram"}
    server.ok("/v1/completions", {"prompt": COUNT, "max_tokens": 40, "temperature": 0, "n": 2})
    server.wait_idle()
    _, after = scrape()
    for (name, labels), value in before.items():
        base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        if kinds.get(name) == "counter" or kinds.get(base) == "histogram":
            assert after[name, labels] >= value, f"{name}{labels} fell from {value} to {after[name, labels]}"

    def grew(name, **labels):
        def total(samples):
            return sum(value for (n, have), value in samples.items() if n == name and labels.items() <= dict(have).items())
        return total(after) - total(before)

    assert grew("dsv3:generation_tokens_total") == 32 and grew("dsv3:requests_total") == 1
    assert grew("dsv3:request_success_total", finished_reason="stop") >= 1
    assert grew("dsv3:time_to_first_token_seconds_count") >= 1 and grew("dsv3:e2e_request_latency_seconds_count") == 1
    blocks = {dict(labels)["state"]: value for (name, labels), value in after.items() if name == "dsv3:kv_blocks"}
    total = [float(dict(labels)["num_gpu_blocks"]) for (name, labels), _ in after.items() if name == "dsv3:cache_config_info"]
    assert blocks["used"] == 0 and [sum(blocks.values())] == total


def test_metrics_under_the_peers_names(serve):
    with serve("--metrics-compat", "vllm,sglang", "--mtp-step", 1) as server:
        server.ok("/v1/completions", {"prompt": COUNT, "max_tokens": 40, "temperature": 0})
        names = {name for name, _ in server.metrics()}
    assert {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total", "vllm:request_success_total",
            "vllm:time_to_first_token_seconds_bucket", "vllm:spec_decode_num_drafts_total", "vllm:spec_decode_num_draft_tokens_total",
            "vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_per_pos_total",
            "sglang:num_running_reqs", "sglang:token_usage", "sglang:generation_tokens_total"} <= names


def test_metrics_answer_while_long_prompts_are_read(server):
    """Scrapes wait for no request: none takes long while four prompts of thousands of tokens are prefilled."""
    server.wait_idle()
    stop, times = threading.Event(), []

    def scrape():
        while not stop.is_set():
            start = time.monotonic()
            assert exchange(server.port, "GET", "/metrics")[0].status == 200
            assert exchange(server.port, "GET", "/health")[0].status == 200
            times.append(time.monotonic() - start)

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        threads = [threading.Thread(target=server.ok, args=("/generate", {"input_ids": [(7 * i + k) % 4000 + 3 for i in range(1500)],
                                                                          "sampling_params": {"max_new_tokens": 1}})) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        scraper.join()
    assert len(times) > 3 and max(times) < 2, f"{len(times)} scrapes, the slowest took {max(times):.2f} s"
