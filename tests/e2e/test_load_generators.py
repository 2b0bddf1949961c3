"""The calls of five load generators and two evaluations, in their order, read the way that they read."""

import json
import re

import pytest
import requests

import load_clients as clients
from prompts import COUNT, STORY
from rawhttp import exchange

LENGTH = 24


@pytest.fixture
def session():
    with requests.Session() as made:
        yield made


@pytest.fixture(scope="module")
def expected(server):
    body = {"prompt": STORY, "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
    return server.ok("/v1/completions", body)["choices"][0]["text"]


def test_sglang_bench_serving(server, session, expected):
    model = session.get(server.url + "/v1/models").json()["data"][0]["id"]
    assert clients.sglang_completions(session, server.url, model, STORY, min(LENGTH, 32)).text == expected  # its warm-up
    assert session.post(server.url + "/flush_cache").status_code == 200
    got = clients.sglang_completions(session, server.url, model, STORY, LENGTH)
    assert got.text == expected and got.output_len == LENGTH and 1 < got.events <= LENGTH
    whole = clients.sglang_completions(session, server.url, model, STORY, LENGTH, stream=False)
    assert whole.text == expected and whole.output_len == LENGTH
    native = clients.sglang_native(session, server.url, STORY, LENGTH)
    assert native.text == expected and native.output_len == native.events == LENGTH
    chat = clients.sglang_chat(session, server.url, model, "Hello", LENGTH)
    assert chat.text == "Hello! How can I help you today?"
    for path in ("/get_server_info", "/server_info"):
        info = session.get(server.url + path)
        assert info.status_code == 200 and info.json()["internal_states"][0].get("avg_spec_accept_length") is None


def test_vllm_bench_serve(server, session, expected):
    model = session.get(server.url + "/v1/models").json()["data"][0]["id"]
    assert session.get(server.url + "/metrics").status_code == 200
    got = clients.vllm(session, server.url, model, STORY, LENGTH, chat=False)
    assert got.text == expected and got.output_len == LENGTH and got.events <= LENGTH + 1
    chat = clients.vllm(session, server.url, model, "Hello", 10, chat=True)
    assert chat.text.startswith("Hello! How can I help you today?") and chat.output_len == 10
    assert chat.first["delta"] == {"role": "assistant", "content": ""}


def test_lmdeploy_profile_restful_api(server, session):
    model = session.get(server.url + "/v1/models").json()["data"][0]["id"]
    assert clients.lmdeploy_chat(session, server.url, model, "Hello", 10).text.startswith("Hello! How can I help")


@pytest.mark.parametrize("drafts", [0, 2])
def test_lightllm_benchmark_client(server, serve, session, expected, drafts):
    def check(url):
        assert clients.lightllm_native(session, url, STORY, LENGTH).output_len == LENGTH
        got = clients.lightllm_openai(session, url, "whatever", STORY, LENGTH)
        assert got.events > 1

    if drafts == 0:
        body = {"model": "a/tokenizer/path", "prompt": STORY, "n": 1, "ignore_eos": True, "max_tokens": 4, "stream": True}
        assert exchange(server.port, "POST", "/v1/completions", body)[0].status == 404  # the tool's model is its tokenizer's path
    with serve("--accept-any-model", "--mtp-step", drafts) as open_server:
        check(open_server.url)


def test_gsm8k_bench(server, session):
    info = session.get(server.url + "/get_model_info")
    assert info.status_code == 200 and info.json()["model_path"]
    shots = "".join(f"Question: What is {a} + {a + 1}?\nAnswer: {a} + {a + 1} = {2 * a + 1}\n\n" for a in range(5))
    assert len(shots) > 64
    prefill = session.post(server.url + "/generate", json={"text": shots, "sampling_params": {"max_new_tokens": 0}})
    assert prefill.status_code == 200
    for a in range(3, 6):
        stop = ["Question", "Assistant:", "<|separator|>"]
        text, count = clients.gsm8k_generate(session, server.url, shots + f"Question: What is {a} + {a}?\nAnswer:", stop)
        assert 0 < count <= 64 and not any(word in text for word in stop)
        assert isinstance(re.findall(r"\d+", text.replace(",", "")), list)
    assert session.post(server.url + "/flush_cache").status_code == 200


def test_gsm8k_other_backend(server, session):
    fields = {"inputs": COUNT, "parameters": {"temperature": 0, "max_new_tokens": 40, "stop_sequences": [" 9"]}}
    answer = session.post(server.url + "/generate", json=fields)
    assert answer.status_code == 200 and answer.json()["generated_text"][0] == "5 6 7 8"


def test_lm_evaluation_harness(server, session, golden_folder):
    model = session.get(server.url + "/v1/models").json()["data"][0]["id"]
    case = json.loads((golden_folder / "golden.json").read_text())[7]
    right = case["greedy_ids"][:-1]
    total, greedy = clients.lm_eval_loglikelihood(session, server.url, model, case["token_ids"], right)
    assert greedy and -0.5 < total < 0
    worse, greedy = clients.lm_eval_loglikelihood(session, server.url, model, case["token_ids"], [100] + right[1:])
    assert not greedy and worse < total - 3
    # The same numbers by SGLang's route, which its own backend of the harness uses.
    body = {"input_ids": case["token_ids"] + right, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    meta = server.ok("/generate", body)["meta_info"]
    values = [entry[0] for entry in meta["input_token_logprobs"][len(case["token_ids"]):]]
    assert sum(values) == pytest.approx(total, abs=1e-4)
    tops = meta["input_top_logprobs"][len(case["token_ids"]):]
    assert all(value == top[0][0] for value, top in zip(values, tops))
    generated = session.post(server.url + "/v1/completions", json={"model": model, "prompt": case["text"][len("<｜begin▁of▁sentence｜>"):],
                                                                   "max_tokens": 32, "temperature": 0, "stop": ["\n\n"], "seed": 1234})
    assert generated.json()["choices"][0]["text"] == "The capital of France is Paris."
