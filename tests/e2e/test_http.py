"""The wire: framing of streams, keep-alive, request bodies in every form, hostile bytes. All over raw sockets."""

import json
import time

import pytest

from prompts import COUNT, COUNTED, LONG_TEXT, user
from rawhttp import Raw, exchange, sse_events, stream_chunks

CHAT = {"messages": user("Count from 5 to 12."), "temperature": 0}
COMPLETION = {"prompt": COUNT, "max_tokens": 40, "temperature": 0}


def test_chat_stream_byte_for_byte(server):
    head, chunks = stream_chunks(server.port, "/v1/chat/completions", {**CHAT, "stream": True}, [("Accept-Encoding", "gzip, br")])
    assert head.status == 200 and head.reason == "OK"
    assert head.get("content-type") == "text/event-stream; charset=utf-8"
    assert head.get("cache-control") == "no-cache" and head.get("x-accel-buffering") == "no"
    assert head.get("content-length") is None and head.get("content-encoding") is None and head.get("x-request-id")
    assert chunks[-1] == b"data: [DONE]\n\n"
    events = sse_events(chunks)
    assert len(events) == len(chunks) - 1
    assert list(events[0]) == ["id", "object", "created", "model", "system_fingerprint", "choices"]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
    assert events[-1]["choices"][0]["delta"] == {} and events[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(list(event["choices"][0]["delta"]) == ["content"] for event in events[1:-1])
    assert "".join(event["choices"][0]["delta"]["content"] for event in events[1:-1]) == COUNTED
    assert all("usage" not in event for event in events)


def test_completion_stream(server):
    _, chunks = stream_chunks(server.port, "/v1/completions", {**COMPLETION, "stream": True, "stream_options": {"include_usage": True}})
    events = sse_events(chunks)
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 16
    assert all(event["usage"] is None and isinstance(event["choices"][0]["text"], str) for event in events[:-1])
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == COUNTED
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


def test_continuous_usage(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, chunks = stream_chunks(server.port, "/v1/completions", {**COMPLETION, "stream": True, "stream_options": options})
    counts = [event["usage"]["completion_tokens"] for event in sse_events(chunks)]
    assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == 16


def test_unicode_leaves_unescaped(server):
    body = {"prompt": "naïve 东京 🙂", "echo": True, "max_tokens": 1, "temperature": 0}
    _, answer = exchange(server.port, "POST", "/v1/completions", body)
    assert "naïve 东京 🙂".encode() in answer and b"\n" not in answer.strip()


def test_no_body_byte_before_the_first_token(server):
    """A prompt that takes a while: the status comes at admission, the first event only with a token."""
    server.wait_idle()
    ids = [100 + i * 7 % 3900 for i in range(4000)]
    before = server.metric("dsv3:generation_tokens_total")
    with Raw(server.port) as connection:
        connection.request("POST", "/v1/completions", {"prompt": ids, "max_tokens": 2, "ignore_eos": True, "stream": True})
        head = connection.read_head()
        assert head.status == 200
        waits = 0
        while not connection.readable():
            waits += 1
            time.sleep(0.002)
        # The counter is published with the step that made the token, so it is up by the time that bytes arrive.
        deadline = time.monotonic() + 1
        while server.metric("dsv3:generation_tokens_total") == before:
            assert time.monotonic() < deadline, "bytes of the body came before any token was generated"
        chunks = connection.read_chunks()
    assert waits > 1, "the head did not leave before the prompt was done"
    assert chunks[-1] == b"data: [DONE]\n\n" and len(chunks) >= 2


def test_keep_alive_and_close(server):
    with Raw(server.port) as connection:
        for _ in range(3):
            connection.request("POST", "/v1/completions", COMPLETION)
            head, body = connection.read_answer()
            assert head.status == 200 and head.get("connection", "keep-alive") == "keep-alive"
            assert json.loads(body)["choices"][0]["text"] == COUNTED
        connection.request("POST", "/v1/completions", {**COMPLETION, "stream": True})
        connection.read_head()
        assert connection.read_chunks()[-1] == b"data: [DONE]\n\n"
        connection.request("GET", "/health")
        assert connection.read_answer()[0].status == 200
        connection.request("POST", "/v1/completions", {"prompt": 5})
        assert connection.read_answer()[0].status == 400
        connection.request("GET", "/health", headers=[("Connection", "close")])
        head, _ = connection.read_answer()
        assert head.get("connection") == "close" and connection.at_end()


def test_chunked_request_body(server):
    body = json.dumps(COMPLETION).encode()
    for size in (1, 7, len(body)):
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[i:i + size] for i in range(0, len(body), size)))
        with Raw(server.port) as connection:
            connection.request("POST", "/v1/completions", chunks + b"0\r\n\r\n", [("Transfer-Encoding", "chunked")])
            head, answer = connection.read_answer()
            assert head.status == 200 and json.loads(answer)["choices"][0]["text"] == COUNTED


def test_expect_continue(server):
    body = json.dumps(COMPLETION).encode()
    with Raw(server.port) as connection:
        connection.request("POST", "/v1/completions", headers=[("Expect", "100-continue"), ("Content-Length", len(body)),
                                                               ("Content-Type", "application/json")])
        assert connection.read_head().status == 100
        connection.send(body)
        head, answer = connection.read_answer()
        assert head.status == 200 and json.loads(answer)["choices"][0]["text"] == COUNTED


def test_request_byte_by_byte(server):
    body = json.dumps({"prompt": COUNT, "max_tokens": 1}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with Raw(server.port) as connection:
        for i in range(len(request)):
            connection.send(request[i:i + 1])
        assert connection.read_answer()[0].status == 200


def test_pipelined_requests_are_answered_in_order(server):
    with Raw(server.port) as connection:
        for count in (3, 1, 2):
            connection.request("POST", "/v1/completions", {**COMPLETION, "max_tokens": count, "ignore_eos": True})
        connection.request("POST", "/v1/completions", {**COMPLETION, "stream": True})
        connection.request("GET", "/v1/models")
        for count in (3, 1, 2):
            assert json.loads(connection.read_answer()[1])["usage"]["completion_tokens"] == count
        assert connection.read_head().status == 200
        assert connection.read_chunks()[-1] == b"data: [DONE]\n\n"
        assert json.loads(connection.read_answer()[1])["object"] == "list"


def test_request_id_is_echoed_or_made(server):
    for path, method in (("/health", "GET"), ("/nowhere", "GET"), ("/v1/completions", "POST")):
        head, _ = exchange(server.port, method, path, b"{" if method == "POST" else None, [("x-request-id", "mine-1")])
        assert head.get("x-request-id") == "mine-1"
    made = {exchange(server.port, "GET", "/health")[0].get("x-request-id") for _ in range(3)}
    assert len(made) == 3 and None not in made
    hostile, _ = exchange(server.port, "GET", "/health", headers=[("x-request-id", "x" * 5000)])
    assert hostile.get("x-request-id") and len(hostile.get("x-request-id")) <= 128


def test_http_1_0_gets_a_plain_stream(server):
    body = json.dumps({**COMPLETION, "stream": True}).encode()
    with Raw(server.port) as connection:
        connection.send(b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = connection.read_head()
        assert head.get("transfer-encoding") is None and head.get("connection") == "close"
        while connection.fill():
            pass
        assert connection.buffer.endswith(b"\n\ndata: [DONE]\n\n")


def test_head_and_options(server):
    head, _ = None, None
    with Raw(server.port) as connection:
        connection.request("HEAD", "/health")
        head = connection.read_head()
        assert head.status == 200 and int(head.get("content-length")) > 0
        connection.request("GET", "/health")  # nothing of a body came before
        assert connection.read_answer()[0].status == 200


@pytest.mark.parametrize(
    "name, body",
    [
        ("lone surrogate", b'{"prompt": "\\ud800", "max_tokens": 1}'),
        ("reversed surrogates", b'{"prompt": "\\udc00\\ud800", "max_tokens": 1}'),
        ("lone surrogate in a key", b'{"\\udfff": 1, "prompt": "x"}'),
        ("invalid UTF-8", b'{"prompt": "\xff\xfe"}'),
        ("overlong UTF-8", b'{"prompt": "\xc0\xaf"}'),
        ("surrogate in UTF-8", b'{"prompt": "\xed\xa0\x80"}'),
        ("nesting of 65", b'{"prompt": "x", "metadata": ' + b"[" * 65 + b"]" * 65 + b"}"),
        ("nesting without end", b"[" * 1_000_000),
        ("objects without end", b'{"a":' * 200_000),
        ("NaN", b'{"prompt": "x", "temperature": NaN}'),
        ("Infinity", b'{"prompt": "x", "temperature": Infinity}'),
        ("overflow", b'{"prompt": "x", "temperature": 1e999}'),
        ("long number", b'{"prompt": "x", "temperature": ' + b"9" * 1_000_000 + b"}"),
        ("duplicate key", b'{"prompt": "x", "prompt": "y"}'),
        ("trailing bytes", b'{"prompt": "x"} {}'),
        ("trailing comma", b'{"prompt": "x",}'),
        ("comment", b'{"prompt": /* */ "x"}'),
        ("control character in a string", b'{"prompt": "a\nb"}'),
        ("BOM", b'\xef\xbb\xbf{"prompt": 5}'),
        ("empty", b""),
        ("a list", b"[]"),
        ("a string", b'"prompt"'),
        ("null", b"null"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_json_is_a_400(server, name, body):
    head, answer = exchange(server.port, "POST", "/v1/completions", body)
    assert head.status == 400, (name, head.status, answer[:200])
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error" and error["message"]


def test_nul_in_a_string_is_text(server):
    head, answer = exchange(server.port, "POST", "/v1/completions", b'{"prompt": "a\\u0000b", "echo": true, "max_tokens": 0}')
    assert head.status == 200 and json.loads(answer)["choices"][0]["text"] == "a\0b"


def test_ten_megabytes(server):
    """A body of 10 MB is read and answered: too long for the context, but not for the server."""
    head, answer = exchange(server.port, "POST", "/v1/completions", {"prompt": "violin " * 1_430_000, "max_tokens": 1})
    assert head.status == 400 and json.loads(answer)["error"]["code"] == "context_length_exceeded"
    padded = {"prompt": "x", "max_tokens": 1, "metadata": {"padding": "y" * 10_000_000}}
    assert exchange(server.port, "POST", "/v1/completions", padded)[0].status == 200


def test_body_over_the_limit_is_refused_before_it_is_read(server):
    with Raw(server.port) as connection:
        connection.request("POST", "/v1/completions", headers=[("Content-Length", 10**12), ("Content-Type", "application/json")])
        head = connection.read_head()
        error = json.loads(connection.read_exactly(int(head.get("content-length"))))["error"]
        assert head.status == 413 and error["type"] == "invalid_request_error" and error["code"] is None
        assert connection.at_end()


@pytest.mark.parametrize(
    "data, statuses",
    [
        (b"GET /health HTTP/1.1\nHost: x\n\n", {400}),
        (b"GET /health HTTP/1.1\r\n\r\n", {400}),
        (b"GET  /health HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
        (b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n", {505}),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", {400}),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", {400}),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n{}", {400}),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", {400}),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", {400, 501}),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", {415}),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n", {400}),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", {400}),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", {400}),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 40_000 + b"\r\n\r\n", {431}),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 1000 + b"\r\n", {431}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x5a" * 64, {400}),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else "",
)
def test_malformed_http_is_refused_and_closed(server, data, statuses):
    with Raw(server.port) as connection:
        connection.send(data)
        head = connection.read_head()
        assert head.status in statuses
        connection.read_exactly(int(head.get("content-length", "0")))
        assert head.get("connection") == "close" and connection.at_end()


def test_many_connections_at_once(server):
    """Load generators open all connections first; with a small prompt each, all must be served."""
    connections = []
    try:
        for _ in range(400):
            connections.append(Raw(server.port))
        for connection in connections:
            connection.request("POST", "/v1/completions", {"prompt": [100], "max_tokens": 1, "temperature": 0})
        for connection in connections:
            assert connection.read_answer()[0].status == 200
    finally:
        for connection in connections:
            connection.close()
    server.wait_idle()


def test_streams_equal_whole_answers_with_stops_over_borders(server):
    """Many stop strings over token and character borders: stream and whole answer agree, and never show the stop."""
    for stop in (["e co"], ["7."], ["\n"], ["of the", "zzz"], ["code of the red dog"], ["1", "9", "is"]):
        body = {"prompt": LONG_TEXT, "max_tokens": 32, "temperature": 0, "stop": stop, "ignore_eos": True}
        _, answer = exchange(server.port, "POST", "/v1/completions", body)
        whole = json.loads(answer)["choices"][0]
        events = sse_events(stream_chunks(server.port, "/v1/completions", {**body, "stream": True})[1])
        assert "".join(event["choices"][0]["text"] for event in events) == whole["text"]
        assert events[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
        assert not any(text in whole["text"] for text in stop)
