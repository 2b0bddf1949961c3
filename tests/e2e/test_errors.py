"""The error table: one request per row, status, type, code and param; limits of context, queue and keys; other shapes."""

import json
import re

import pytest

from prompts import user
from rawhttp import Raw, exchange

LEAK = re.compile(r"0x[0-9a-f]{6,}|\.(cpp|h|so)\b|line \d+ of|/(src|build|usr|home|proc)/|std::|nlohmann|exception", re.I)
BAD = "invalid_request_error"


def refused(port, path, body, method="POST", headers=()):
    head, answer = exchange(port, method, path, body, headers)
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str) and len(error["message"]) > 5 and not LEAK.search(error["message"]), error
    assert head.get("x-request-id") and head.get("content-type") == "application/json"
    return head, error


def chat(**fields):
    return {"messages": user("Hello"), "max_tokens": 2, **fields}


ROWS = [
    # path, body, status, type, code, param
    ("/v1/chat/completions", b"{", 400, BAD, None, None),
    ("/v1/completions", b"[1]", 400, BAD, None, None),
    ("/v1/chat/completions", {"max_tokens": 2}, 400, BAD, "missing_required_parameter", "messages"),
    ("/v1/chat/completions", {"messages": [{"content": "x"}]}, 400, BAD, "missing_required_parameter", "messages[0].role"),
    ("/v1/completions", {}, 400, BAD, "missing_required_parameter", "prompt"),
    ("/v1/completions", {"prompt": None}, 400, BAD, "missing_required_parameter", "prompt"),
    ("/v1/chat/completions", {"messages": "x"}, 400, BAD, "invalid_type", "messages"),
    ("/v1/chat/completions", chat(messages=[{"role": "user", "content": 5}]), 400, BAD, "invalid_type", "messages[0].content"),
    ("/v1/chat/completions", chat(temperature="hot"), 400, BAD, "invalid_type", "temperature"),
    ("/v1/chat/completions", chat(stream="yes"), 400, BAD, "invalid_type", "stream"),
    ("/v1/completions", {"prompt": "x", "max_tokens": 1.5}, 400, BAD, "invalid_type", "max_tokens"),
    ("/v1/completions", {"prompt": "x", "max_tokens": True}, 400, BAD, "invalid_type", "max_tokens"),
    ("/v1/chat/completions", chat(temperature=-0.1), 400, BAD, "invalid_value", "temperature"),
    ("/v1/chat/completions", chat(top_p=1.1), 400, BAD, "invalid_value", "top_p"),
    ("/v1/chat/completions", chat(n=0), 400, BAD, "invalid_value", "n"),
    ("/v1/chat/completions", chat(n=129), 400, BAD, "invalid_value", "n"),
    ("/v1/chat/completions", chat(n=2**63), 400, BAD, "invalid_value", "n"),
    ("/v1/chat/completions", chat(max_tokens=-1), 400, BAD, "invalid_value", "max_tokens"),
    ("/v1/chat/completions", chat(presence_penalty=2.5), 400, BAD, "invalid_value", "presence_penalty"),
    ("/v1/chat/completions", chat(top_logprobs=21, logprobs=True), 400, BAD, "invalid_value", "top_logprobs"),
    ("/v1/chat/completions", chat(top_logprobs=2), 400, BAD, "invalid_value", "top_logprobs"),
    ("/v1/chat/completions", chat(reasoning_effort="huge"), 400, BAD, "invalid_value", "reasoning_effort"),
    ("/v1/chat/completions", chat(messages=[{"role": "robot", "content": "x"}]), 400, BAD, "invalid_value", "messages[0].role"),
    ("/v1/chat/completions", chat(stop=["a", ""]), 400, BAD, "invalid_value", "stop[1]"),
    ("/v1/chat/completions", chat(logit_bias={"x": 1}), 400, BAD, "invalid_value", "logit_bias"),
    ("/v1/chat/completions", {"messages": []}, 400, BAD, "invalid_value", "messages"),
    ("/v1/completions", {"prompt": []}, 400, BAD, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": [[]]}, 400, BAD, "invalid_value", "prompt[0]"),
    ("/v1/completions", {"prompt": [5, 4096]}, 400, BAD, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": [-1]}, 400, BAD, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": [2**40]}, 400, BAD, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": "x", "max_tokens": 8192}, 400, BAD, "context_length_exceeded", "prompt"),
    ("/v1/completions", {"prompt": [5] * 8192, "max_tokens": 1}, 400, BAD, "context_length_exceeded", "prompt"),
    ("/v1/chat/completions", chat(max_tokens=10**6), 400, BAD, "context_length_exceeded", "messages"),
    ("/v1/completions", {"prompt": "x", "best_of": 2}, 400, BAD, "unsupported_parameter", "best_of"),
    ("/v1/completions", {"prompt": "x", "suffix": "y"}, 400, BAD, "unsupported_parameter", "suffix"),
    ("/v1/chat/completions", chat(audio={"voice": "x"}), 400, BAD, "unsupported_parameter", "audio"),
    ("/v1/chat/completions", chat(modalities=["text", "audio"]), 400, BAD, "unsupported_parameter", "modalities"),
    ("/v1/chat/completions", chat(return_hidden_states=True), 400, BAD, "unsupported_parameter", "return_hidden_states"),
    ("/v1/chat/completions", chat(lora_path="x"), 400, BAD, "unsupported_parameter", "lora_path"),
    ("/v1/chat/completions", chat(response_format={"type": "xml"}), 400, BAD, "invalid_value", "response_format.type"),
    ("/v1/chat/completions", chat(tools=[{"type": "function", "function": {"name": "a b"}}]), 400, BAD, "invalid_value", "tools[0].function.name"),
    ("/v1/chat/completions", chat(continue_final_message=True), 400, BAD, "invalid_value", "continue_final_message"),
    ("/v1/chat/completions", chat(model="other"), 404, BAD, "model_not_found", "model"),
]


@pytest.mark.parametrize("path, body, status, kind, code, param", ROWS, ids=[f"{row[5]}-{row[4]}-{i}" for i, row in enumerate(ROWS)])
def test_table(server, path, body, status, kind, code, param):
    head, error = refused(server.port, path, body)
    assert (head.status, error["type"], error["code"], error["param"]) == (status, kind, code, param), error
    if param is not None:
        assert re.split(r"[.\[]", param)[0] in error["message"], "the message does not name the field"
    # Without the prefix, and for a stream, the answer is the same.
    assert exchange(server.port, "POST", path.removeprefix("/v1"), body)[0].status == status
    if isinstance(body, dict) and "stream" not in body:
        streamed, again = refused(server.port, path, {**body, "stream": True})
        assert streamed.status == status and again == error


def test_image_part_is_unsupported(server):
    part = {"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}
    head, error = refused(server.port, "/v1/chat/completions", chat(messages=[{"role": "user", "content": [part]}]))
    assert head.status == 400 and error["code"] == "unsupported_parameter" and error["param"].startswith("messages[0].content[0]")


@pytest.mark.parametrize("field", ["tool_choice", "response_format"])
def test_constrained_decoding_is_refused_or_real(server, field):
    """Best effort is not an answer: either the option is refused as unsupported, or its promise holds."""
    option = {"tool_choice": "required", "response_format": {"type": "json_object"}}[field]
    tools = [{"type": "function", "function": {"name": "f", "description": "x", "parameters": {"type": "object", "properties": {}}}}]
    head, answer = exchange(server.port, "POST", "/v1/chat/completions", chat(tools=tools, **{field: option, "max_tokens": 64}))
    answer = json.loads(answer)
    if head.status == 400:
        assert answer["error"]["code"] == "unsupported_parameter" and answer["error"]["param"] == field
        return
    choice = answer["choices"][0]
    if field == "tool_choice":
        assert choice["finish_reason"] in ("tool_calls", "length")
    elif choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_routes_and_methods(server):
    for path in ("/nowhere", "/v1", "/v1/chat", "/v1/chat/completions/x", "/../etc/passwd", "/%2e%2e/x", "/v1/models/nothing", "/favicon.ico"):
        head, error = refused(server.port, path, None, "GET")
        assert head.status == 404 and error["type"] == BAD and error["param"] in (None, "model"), path
    for method, path, allowed in (("GET", "/v1/chat/completions", "POST"), ("PUT", "/v1/completions", "POST"), ("DELETE", "/v1/models", "GET"),
                                  ("POST", "/health", "GET"), ("PATCH", "/v1/completions", "POST"), ("POST", "/metrics", "GET")):
        head, answer = exchange(server.port, method, path, b"{}")
        assert head.status == 405 and allowed in head.get("allow"), (method, path, head.status)
        assert json.loads(answer)["error"]["type"] == BAD


def test_content_type(server):
    body = b'{"prompt": "x", "max_tokens": 1}'
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON;x=y"):
        assert exchange(server.port, "POST", "/v1/completions", body, [("Content-Type", kind)])[0].status == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        head, _ = refused(server.port, "/v1/completions", body, headers=[("Content-Type", kind)])
        assert head.status in (400, 415)


def test_unknown_fields_nulls_and_neutral_values_are_accepted(server):
    nulls = ["temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "stream", "stream_options", "tools", "tool_choice",
             "logit_bias", "response_format", "user", "presence_penalty", "lora_path", "session_params", "rid", "model", "max_completion_tokens"]
    body = {**dict.fromkeys(nulls), **chat(best_of=1, unknown_field={"a": [1]}, stream_options={"include_usage": True})}
    assert exchange(server.port, "POST", "/v1/chat/completions", body)[0].status == 200
    neutral = {"prompt": "x", "max_tokens": 1, "best_of": 1, "suffix": None, "logprobs": False, "top_k": -1, "min_p": 0, "repetition_penalty": 1.0}
    assert exchange(server.port, "POST", "/v1/completions", neutral)[0].status == 200


def test_native_routes_have_the_error_shape_of_their_peers(server):
    head, answer = exchange(server.port, "POST", "/generate", {"text": "x", "sampling_params": {"temperature": -1}})
    assert head.status == 400 and list(json.loads(answer)) == ["error"] and "sampling_params.temperature" in json.loads(answer)["error"]["message"]
    head, answer = exchange(server.port, "POST", "/generate", {"inputs": "x", "parameters": {"max_new_tokens": 0}})
    assert head.status == 400 and list(json.loads(answer)) == ["message"] and "max_new_tokens" in json.loads(answer)["message"]
    head, answer = exchange(server.port, "POST", "/generate_stream", {"inputs": "x", "parameters": {"top_p": 0}})
    assert head.status == 400 and list(json.loads(answer)) == ["message"]
    head, answer = exchange(server.port, "POST", "/generate", {"prompt": "x", "top_p": 2})
    answer = json.loads(answer)
    assert head.status == 400 and answer["object"] == "error" and answer["code"] == 400 and answer["param"] == "top_p"
    head, answer = exchange(server.port, "POST", "/generate", {"question": "x"})
    assert head.status == 400 and all(key in json.loads(answer)["error"]["message"] for key in ("text", "inputs", "prompt"))


# -- limits of a small server -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(serve):
    """Context of 256, a body of 4 KiB, one running and two waiting requests, two keys, stop after a deadline."""
    with serve("--context-length", 256, "--max-body-bytes", 4096, "--served-model-name", "tiny") as server:
        yield server


@pytest.mark.parametrize("prompt, new, status", [(255, 1, 200), (256, 1, 400), (257, 1, 400), (200, 55, 200), (200, 56, 200), (200, 57, 400), (1, 255, 200), (1, 256, 400)])
def test_context_limit_exactly(small, prompt, new, status):
    ids = [5] * prompt
    head, answer = exchange(small.port, "POST", "/v1/completions", {"prompt": ids, "max_tokens": new, "ignore_eos": True})
    assert head.status == status, answer
    if status == 200:
        usage = json.loads(answer)["usage"]
        assert usage["prompt_tokens"] == prompt and usage["completion_tokens"] == new and usage["total_tokens"] <= 256
    else:
        assert json.loads(answer)["error"]["code"] == "context_length_exceeded"
    native = {"input_ids": ids, "sampling_params": {"max_new_tokens": new, "ignore_eos": True}}
    assert exchange(small.port, "POST", "/generate", native)[0].status == status


def test_context_limit_without_max_tokens(small):
    for prompt, new in ((254, 2), (255, 1)):
        body = {"input_ids": [5] * prompt, "ignore_eos": True}
        answer = small.ok("/v1/chat/completions", body)
        assert answer["usage"]["completion_tokens"] == new and answer["choices"][0]["finish_reason"] == "length"
    assert exchange(small.port, "POST", "/v1/chat/completions", {"input_ids": [5] * 256})[0].status == 400
    prefill = {"input_ids": [5] * 256, "sampling_params": {"max_new_tokens": 0}}
    assert small.ok("/generate", prefill)["text"] == ""
    small.wait_idle()


def test_body_limit_exactly(small):
    body = json.dumps({"prompt": "x", "max_tokens": 1, "user": ""}).encode()
    fits = body.replace(b'"user": ""', b'"user": "' + b"u" * (4096 - len(body)) + b'"')
    assert len(fits) == 4096 and exchange(small.port, "POST", "/v1/completions", fits)[0].status == 200
    over = fits.replace(b'"u', b'"uu')
    with Raw(small.port) as connection:
        connection.request("POST", "/v1/completions", over)
        head, answer = connection.read_answer()
        assert head.status == 413 and json.loads(answer)["error"]["type"] == BAD
    with Raw(small.port) as connection:  # the same without an announced length
        chunked = b"".join(b"400\r\n" + b"x" * 1024 + b"\r\n" for _ in range(5))
        connection.request("POST", "/v1/completions", chunked, [("Transfer-Encoding", "chunked")])
        assert connection.read_head().status == 413


def test_served_model_name(small):
    listed = json.loads(exchange(small.port, "GET", "/v1/models")[1])["data"][0]
    assert listed["id"] == "tiny" and listed["max_model_len"] == 256
    for name, status in (("tiny", 200), ("dsv3-tiny", 200), ("default", 200), ("Tiny", 404), ("", 404)):
        assert exchange(small.port, "POST", "/v1/completions", {"model": name, "prompt": "x", "max_tokens": 1})[0].status == status, name


def test_queue_full_is_429(serve):
    with serve("--max-running-requests", 1, "--max-queued-requests", 2) as server:
        long = {"prompt": "x", "max_tokens": 8000, "ignore_eos": True, "stream": True}
        with Raw(server.port) as running, Raw(server.port) as first, Raw(server.port) as second:
            running.request("POST", "/v1/completions", long)
            server.wait_metric("dsv3:num_requests_running", 1)
            first.request("POST", "/v1/completions", long)
            second.request("POST", "/v1/completions", long)
            server.wait_metric("dsv3:num_requests_waiting", 2)
            for stream in (False, True):
                head, error = refused(server.port, "/v1/completions", {**long, "stream": stream})
                assert head.status == 429 and head.get("retry-after") == "1"
                assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert exchange(server.port, "GET", "/health")[0].status == 200
            assert server.metric("dsv3:requests_rejected_total") == 2
        server.wait_idle()  # all three clients have left
        assert exchange(server.port, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})[0].status == 200


def test_keys(serve, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("second-key\n\nthird-key\n")
    with serve("--api-key", "first-key", "--api-key-file", keys) as server:
        body = {"prompt": "x", "max_tokens": 1}
        for key in ("Bearer first-key", "bearer second-key", "Bearer third-key"):
            assert exchange(server.port, "POST", "/v1/completions", body, [("Authorization", key)])[0].status == 200
        for headers in ([], [("Authorization", "Bearer None")], [("Authorization", "Bearer first-ke")], [("Authorization", "Bearer first-keyy")],
                        [("Authorization", "Basic first-key")], [("Authorization", "Bearer ")], [("x-api-key", "first-key")]):
            for path, method in (("/v1/completions", "POST"), ("/generate", "POST"), ("/v1/models", "GET"), ("/flush_cache", "POST"), ("/nowhere", "GET")):
                head, error = refused(server.port, path, body if method == "POST" else None, method, headers)
                assert head.status == 401 and error["code"] == "invalid_api_key" and error["type"] == BAD, (headers, path)
                assert "first" not in error["message"]
        assert exchange(server.port, "GET", "/health")[0].status == 200
        assert exchange(server.port, "GET", "/metrics")[0].status == 200
        assert "first-key" not in server.log() and "second-key" not in server.log()


def test_without_keys_authorization_is_ignored(server):
    for value in ("Bearer None", "Bearer", "garbage", ""):
        body = {"prompt": "x", "max_tokens": 1}
        assert exchange(server.port, "POST", "/v1/completions", body, [("Authorization", value)])[0].status == 200


def test_deadline_fails_the_stream_with_an_event(serve):
    """An error after the stream began: an error event, then [DONE]; before it began: its own status."""
    with serve("--request-timeout", 1) as server:
        body = {"prompt": "x", "max_tokens": 8000, "ignore_eos": True}
        with Raw(server.port) as connection:
            connection.request("POST", "/v1/completions", {**body, "stream": True})
            assert connection.read_head().status == 200
            chunks = connection.read_chunks()
        assert chunks[-1] == b"data: [DONE]\n\n"
        error = json.loads(chunks[-2].removeprefix(b"data: "))["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["type"] == "server_error" and error["message"]
        head, error = refused(server.port, "/v1/completions", body)
        assert head.status == 503 and head.get("retry-after")
        server.wait_idle()


def test_strict_fields(serve):
    with serve("--strict-fields") as server:
        head, error = refused(server.port, "/v1/completions", {"prompt": "x", "max_tokens": 1, "temprature": 1})
        assert head.status == 400 and error["param"] == "temprature"
        assert exchange(server.port, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1, "temperature": 1})[0].status == 200
