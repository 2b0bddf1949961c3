"""Sampling options, log probabilities, block borders of the prefix cache, speculation and scheduling, seen from outside."""

import concurrent.futures
import json
import socket
import time

import pytest

from prompts import COUNT, COUNTED, LONG_TEXT, STORY, TOOLS, user
from rawhttp import Raw, sse_events, stream_chunks


@pytest.fixture(scope="module")
def drafting(serve):
    with serve("--mtp-step", 2, "--lookahead", 1) as running:
        yield running


def complete(server, prompt=STORY, **options):
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "return_token_ids": True, **options}
    return server.ok("/v1/completions", body)["choices"][0]


def values(logprobs):
    return [value for value in logprobs["token_logprobs"] if value is not None]


def test_logit_bias(server):
    assert complete(server, logit_bias={"500": 100}, max_tokens=5)["token_ids"] == [500] * 5
    first = complete(server)["token_ids"][0]
    assert first not in complete(server, logit_bias={str(first): -100})["token_ids"]


def test_top_k_one_and_top_p_tiny_are_greedy(server):
    greedy = complete(server)["token_ids"]
    assert complete(server, temperature=2, top_k=1)["token_ids"] == greedy
    assert complete(server, temperature=1, top_p=1e-6)["token_ids"] == greedy
    assert complete(server, temperature=1, min_p=1)["token_ids"] == greedy
    assert complete(server, temperature=1e-7)["token_ids"] == greedy


def test_penalties_break_repetition(server):
    loop = {"prompt": [500] * 8, "logit_bias": {"500": 30}, "max_tokens": 24}
    assert complete(server, **loop)["token_ids"] == [500] * 24
    assert len(set(complete(server, **loop, frequency_penalty=2)["token_ids"])) > 1  # grows beyond the bias
    assert complete(server, **loop, frequency_penalty=0)["token_ids"] == [500] * 24
    story = {"max_tokens": 64, "ignore_eos": True}
    distinct = len(set(complete(server, **story)["token_ids"]))
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 1.5}):
        assert len(set(complete(server, **story, **penalty)["token_ids"])) > distinct, penalty


def test_min_tokens_holds_stops_back(server, drafting):
    for running in (server, drafting):
        early = complete(running, COUNT, max_tokens=40)
        assert len(early["token_ids"]) == 16 and early["finish_reason"] == "stop"
        late = complete(running, COUNT, max_tokens=40, min_tokens=24)
        assert len(late["token_ids"]) >= 24 and 1 not in late["token_ids"][:23]


def test_logprobs_do_not_depend_on_sampling(server):
    """They are of the raw logits: temperature, bias and penalties change what is drawn, not what is reported."""
    plain = complete(server, logprobs=3, max_tokens=1)["logprobs"]
    bent = complete(server, logprobs=3, max_tokens=1, temperature=0.5, top_p=0.9, presence_penalty=1, seed=1)["logprobs"]
    assert list(plain["top_logprobs"][0].values())[:3] == list(bent["top_logprobs"][0].values())[:3]
    forced = complete(server, logprobs=3, max_tokens=1, logit_bias={"500": 100})["logprobs"]
    assert len(forced["top_logprobs"][0]) == 4 and forced["token_logprobs"][0] < min(list(plain["top_logprobs"][0].values())[:3])


@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129, 192])
def test_prompts_at_block_borders_repeat_from_the_cache(server, drafting, length):
    ids = [200 + (i * i * 13 + length) % 3700 for i in range(length)]
    for running in (server, drafting):
        first = complete(running, ids, logprobs=2, echo=True, ignore_eos=True)
        again = complete(running, ids, logprobs=2, echo=True, ignore_eos=True)
        assert again["token_ids"] == first["token_ids"] and again["text"] == first["text"]
        assert values(again["logprobs"]) == pytest.approx(values(first["logprobs"]), abs=1e-4)
        assert len(values(first["logprobs"])) == length - 1 + 16
        # A longer prompt that shares all blocks, and one that differs in its last token.
        assert complete(running, ids + first["token_ids"][:3], ignore_eos=True)["token_ids"][:13] == first["token_ids"][3:]
        other = ids[:-1] + [ids[-1] + 1]
        assert complete(running, other)["token_ids"] == complete(running, other, cache_salt="nobody else")["token_ids"]


def test_prompt_logprobs_of_a_cached_prompt(server):
    """Log probabilities of a prompt that is already in the cache: all there, and the same numbers."""
    cold = complete(server, LONG_TEXT, echo=True, logprobs=1, max_tokens=0)["logprobs"]
    warm = complete(server, LONG_TEXT, echo=True, logprobs=1, max_tokens=0)["logprobs"]
    assert len(cold["tokens"]) == len(warm["tokens"]) > 192
    assert values(warm) == pytest.approx(values(cold), abs=1e-4)


def test_speculation_changes_nothing_that_a_greedy_client_sees(server, drafting):
    cases = [{}, {"stop": [" to"]}, {"logprobs": 3}, {"presence_penalty": 1.5}, {"frequency_penalty": 0.7}, {"repetition_penalty": 1.3},
             {"logit_bias": {"300": 4}}, {"min_tokens": 30}, {"max_tokens": 1}, {"max_tokens": 2}, {"max_tokens": 3}, {"stop_token_ids": [14]}]
    for options in cases:
        for prompt in (STORY, COUNT, "<｜User｜>What is a violin?<｜Assistant｜></think>"):
            asked = {"max_tokens": 48, **options}
            plain, drafted = complete(server, prompt, **asked), complete(drafting, prompt, **asked)
            assert drafted["token_ids"] == plain["token_ids"] and drafted["text"] == plain["text"], (options, prompt)
            assert drafted["finish_reason"] == plain["finish_reason"] and drafted["matched_stop"] == plain["matched_stop"]
            if options.get("logprobs"):
                assert values(drafted["logprobs"]) == pytest.approx(values(plain["logprobs"]), abs=1e-4)
    assert drafting.metric("dsv3:spec_decode_num_accepted_tokens_total") > 100


def test_seeds_hold_under_load_with_speculation(drafting):
    def drawn(seed):
        return complete(drafting, temperature=1.2, seed=seed, max_tokens=32)["token_ids"]

    alone = [drawn(seed) for seed in range(6)]
    assert len({tuple(ids) for ids in alone}) > 3
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        noise = [pool.submit(complete, drafting, LONG_TEXT[i:], temperature=1, max_tokens=24) for i in range(10)]
        assert list(pool.map(drawn, range(6))) == alone
        for future in noise:
            future.result()


def test_stream_equals_whole_for_every_option(server, drafting):
    cases = [{"n": 3, "temperature": 1.3, "seed": 4}, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"stop": ["e", "zz"]}, {"stop": " the", "include_stop_str_in_output": True},
             {"temperature": 2, "seed": 8, "ignore_eos": True, "skip_special_tokens": False}]
    for running in (server, drafting):
        for options in cases:
            body = {"prompt": STORY, "max_tokens": 24, "temperature": 0, **options}
            whole = running.ok("/v1/completions", body)["choices"]
            events = sse_events(stream_chunks(running.port, "/v1/completions", {**body, "stream": True})[1])
            for choice in whole:
                mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
                assert "".join(part["text"] for part in mine) == choice["text"], options
                assert mine[-1]["finish_reason"] == choice["finish_reason"] and mine[-1]["matched_stop"] == choice["matched_stop"]
                if choice["logprobs"] is not None:
                    for field in ("tokens", "token_logprobs", "text_offset"):
                        assert [x for part in mine if part["logprobs"] for x in part["logprobs"][field]] == choice["logprobs"][field]


def test_tools_stream_with_speculation_as_without(server, drafting):
    body = {"messages": user("What is the weather in Rome?"), "tools": TOOLS, "temperature": 0}

    def calls(running):
        choice = running.ok("/v1/chat/completions", body)["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        return [(call["function"]["name"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]

    def streamed(running):
        out = []
        for event in sse_events(stream_chunks(running.port, "/v1/chat/completions", {**body, "stream": True})[1]):
            for call in event["choices"][0]["delta"].get("tool_calls", []):
                if "id" in call:
                    out.append([call["function"]["name"], ""])
                out[call["index"]][1] += call["function"]["arguments"]
        return [tuple(call) for call in out]

    assert calls(server) == calls(drafting) == streamed(server) == streamed(drafting)


def test_priority_overtakes_the_queue(serve):
    with serve("--max-running-requests", 1) as server:
        with Raw(server.port) as running, concurrent.futures.ThreadPoolExecutor(3) as pool:
            running.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True})
            server.wait_metric("dsv3:num_requests_running", 1)
            order = []

            def ask(priority):
                complete(server, priority=priority, max_tokens=4)
                order.append(priority)

            futures = []
            for waiting, priority in enumerate((0, 0, 5), 1):
                futures.append(pool.submit(ask, priority))
                server.wait_metric("dsv3:num_requests_waiting", waiting)
            for future in futures:
                future.result()
        assert order[0] == 5


def test_long_answers_of_huge_events_reach_a_client_that_reads(server):
    """Prompt log probabilities make one event of some megabytes; no buffer limit may take its reader for a slow one."""
    ids = [100 + i * 7 % 3900 for i in range(2500)]
    body = {"prompt": ids, "max_tokens": 3, "ignore_eos": True, "echo": True, "logprobs": 20, "stream": True, "temperature": 0}
    _, chunks = stream_chunks(server.port, "/v1/completions", body)
    assert max(map(len, chunks)) > 1 << 20 and chunks[-1] == b"data: [DONE]\n\n"
    assert sum(len(event["choices"][0]["logprobs"]["tokens"]) for event in sse_events(chunks) if event["choices"][0]["logprobs"]) == len(ids) + 3
    native = {"input_ids": ids, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 20, "stream": True,
              "sampling_params": {"max_new_tokens": 3, "ignore_eos": True, "temperature": 0}}
    events = sse_events(stream_chunks(server.port, "/generate", native)[1])
    assert len(events[-1]["meta_info"]["input_top_logprobs"]) == len(ids)


def test_a_client_that_does_not_read_is_given_up(server):
    """Its stream ends when too much waits for it, long before the answer would, and others go on."""
    server.wait_idle()
    aborted = server.metric("dsv3:requests_aborted_total")
    slow = socket.socket()
    try:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        body = json.dumps({"prompt": "x", "max_tokens": 4000, "n": 16, "ignore_eos": True, "logprobs": 20, "stream": True}).encode()
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        server.wait_metric("dsv3:num_requests_running", 16)
        assert complete(server, COUNT, max_tokens=40)["text"] == COUNTED
        start = time.monotonic()
        server.wait_idle(60)
        assert server.metric("dsv3:requests_aborted_total") > aborted
        assert time.monotonic() - start < 40
    finally:
        slow.close()
