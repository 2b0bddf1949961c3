"""Start, idle, shutdown, clients that leave, and memory over thousands of requests."""

import concurrent.futures
import http.client
import json
import random
import select
import signal
import threading
import time

import pytest
import requests

from prompts import COUNT
from rawhttp import Raw, exchange, sse_events
from serving import free_port


def streaming(tokens, prompt=COUNT):
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0}


def ready_seconds(server):
    """From exec until /health says 200, asked every few milliseconds."""
    while True:
        assert server.process.poll() is None, server.log()
        seconds = time.monotonic() - server.started
        assert seconds < 120, server.log()
        try:
            if exchange(server.port, "GET", "/health")[0].status == 200:
                return time.monotonic() - server.started
        except (ConnectionError, AssertionError):
            time.sleep(0.005)


def test_ready_within_two_seconds(serve, sanitized, figure):
    times = []
    for _ in range(3):
        with serve(port=free_port()) as server:
            times.append(ready_seconds(server))
            logged = server.wait_for("ready")["seconds"]
    figure("ready", f"{min(times):.2f} s from exec to /health 200, best of {[round(t, 2) for t in times]}; logged {logged:.2f} s")
    if not sanitized:
        # 2 s is the promise on a quiet machine. The best of three on a busy one may take four times that.
        assert min(times) < 2 * 4, times


def test_idle_uses_no_cpu(serve, sanitized, figure):
    with serve("--mtp-step", 1, "--lookahead", 1) as server:
        with Raw(server.port) as kept, Raw(server.port):
            kept.request("POST", "/v1/completions", {"prompt": COUNT, "max_tokens": 16})
            assert kept.read_answer()[0].status == 200
            server.wait_idle()
            time.sleep(0.3)
            before, start = server.cpu_seconds(), time.monotonic()
            time.sleep(3)
            share = (server.cpu_seconds() - before) / (time.monotonic() - start)
    figure("idle CPU", f"{share:.2%} of one core over 3 s, two connections open")
    assert share < 0.01 or sanitized and share < 0.05


def test_sigterm_under_load(serve):
    """Streams and whole answers that run or wait end as they should, new requests get a 503, exit code 0."""
    with serve("--max-running-requests", 8) as server:
        running = [Raw(server.port) for _ in range(12)]
        whole = Raw(server.port)
        kept = Raw(server.port)  # a connection from before, idle
        try:
            for connection in running:
                connection.request("POST", "/v1/completions", streaming(200))
            whole.request("POST", "/v1/completions", {**streaming(200), "stream": False})
            server.wait_metric("dsv3:num_requests_running", 8)
            server.wait_metric("dsv3:num_requests_waiting", 5)
            kept.request("GET", "/health")
            assert kept.read_answer()[0].status == 200
            server.terminate()
            server.wait_for("drain")
            for connection in (kept, Raw(server.port)):
                connection.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})
                head, body = connection.read_answer()
                assert head.status == 503 and head.get("retry-after"), body
                error = json.loads(body)["error"]
                assert (error["type"], error["code"]) == ("server_error", "not_ready")
            for path, status in (("/health", 503), ("/readyz", 503), ("/health_generate", 503), ("/livez", 200), ("/metrics", 200), ("/v1/models", 200)):
                assert exchange(server.port, "GET", path)[0].status == status, path
            for connection in running:
                assert connection.read_head().status == 200
                chunks = connection.read_chunks()
                assert chunks[-1] == b"data: [DONE]\n\n"
                events = sse_events(chunks)
                assert events[-1]["choices"][0]["finish_reason"] == "length"
            head, body = whole.read_answer()
            assert head.status == 200 and json.loads(body)["usage"]["completion_tokens"] == 200
            assert server.wait_exit(15) == 0
            assert server.events("stop")[0]["clean"] is True
        finally:
            for connection in [*running, whole, kept]:
                connection.close()


def test_drain_time_over_aborts_the_rest(serve):
    with serve("--drain-timeout", 0.5) as server:
        with Raw(server.port) as stream, Raw(server.port) as whole:
            stream.request("POST", "/v1/completions", streaming(8000))
            whole.request("POST", "/v1/completions", {**streaming(8000), "stream": False})
            server.wait_metric("dsv3:num_requests_running", 2)
            start = time.monotonic()
            server.terminate()
            stream.read_head()
            chunks = stream.read_chunks()
            assert chunks[-1] == b"data: [DONE]\n\n"
            last = json.loads(chunks[-2].removeprefix(b"data: "))
            assert "error" in last or last["choices"][0]["finish_reason"] == "abort"
            head, body = whole.read_answer()
            assert head.status == 503 or json.loads(body)["choices"][0]["finish_reason"] == "abort"
            assert server.wait_exit(10) == 0
            assert time.monotonic() - start < 8


def test_second_sigterm_under_load_ends_at_once(serve):
    with serve() as server:
        connections = [Raw(server.port) for _ in range(8)]
        for connection in connections:
            connection.request("POST", "/v1/completions", streaming(8000))
        server.wait_metric("dsv3:num_requests_running", 8)
        server.terminate()
        server.wait_for("drain")
        start = time.monotonic()
        server.terminate()
        assert server.wait_exit(5) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 2
        for connection in connections:
            connection.close()


def leave(server, draw, body):
    """Sends a request in full, reads for a random while, and goes."""
    connection = Raw(server.port)
    connection.request("POST", "/v1/completions", body)
    deadline = time.monotonic() + draw.choice((0, 0.001, 0.01, draw.random() * 0.2))
    while (left := deadline - time.monotonic()) > 0:
        if select.select([connection.socket], [], [], left)[0]:
            connection.fill()
    connection.reset() if draw.random() < 0.5 else connection.close()


@pytest.mark.parametrize("flags", [(), ("--mtp-step", 2, "--lookahead", 1)], ids=["plain", "mtp-lookahead"])
def test_clients_that_leave_free_their_work(serve, flags, figure):
    with serve(*flags) as server:
        total = sum(value for (name, _), value in server.metrics().items() if name == "dsv3:kv_blocks")
        draw = random.Random(1)
        rounds = []
        for i in range(100):
            long_prompt = draw.random() < 0.2
            prompt = [draw.randrange(100, 4000) for _ in range(1500)] if long_prompt else COUNT
            body = {**streaming(6000, prompt), "stream": draw.random() < 0.5, "n": draw.choice((1, 1, 1, 3))}
            rounds.append((random.Random(i), body))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda entry: leave(server, *entry), rounds))
        seconds = server.wait_idle(10)
        figure(f"free after the last of 100 departures {' '.join(map(str, flags))}", f"{seconds:.2f} s")
        blocks = {dict(labels)["state"]: value for (name, labels), value in server.metrics().items() if name == "dsv3:kv_blocks"}
        assert blocks["used"] == 0 and sum(blocks.values()) == total
        assert exchange(server.port, "POST", "/flush_cache")[0].status == 200
        assert server.metric("dsv3:kv_blocks", state="free") == total
        generated = server.metric("dsv3:generation_tokens_total")
        time.sleep(0.3)
        assert server.metric("dsv3:generation_tokens_total") == generated, "tokens are made for clients that left"
        assert server.metric("dsv3:requests_failed_total") == 0
        assert server.ok("/v1/completions", {"prompt": COUNT, "max_tokens": 40, "temperature": 0})["choices"][0]["text"] == "5 6 7 8 9 10 11 12"


def test_one_client_that_leaves_is_noticed_within_a_second(serve):
    with serve() as server:
        for stream in (True, False):
            aborted = server.metric("dsv3:requests_aborted_total")
            connection = Raw(server.port)
            connection.request("POST", "/v1/completions", {**streaming(8000), "stream": stream})
            server.wait_metric("dsv3:num_requests_running", 1)
            connection.close()
            server.wait_idle(2)
            assert server.metric("dsv3:requests_aborted_total") == aborted + 1


def test_memory_does_not_grow(serve, sanitized, figure):
    """5,000 short requests, 16 at a time, a third of them streams: resident memory after the first 500 against the end."""
    with serve() as server:
        count = 5000 if not sanitized else 1000
        numbers = iter(range(count))
        lock = threading.Lock()
        faults = []

        def work(end):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            while True:
                with lock:
                    i = next(numbers, None)
                    if i is None or i >= end:
                        break
                body = {"max_tokens": 2 + i % 7, "temperature": i % 2, "stream": i % 3 == 0}
                if i % 4:
                    path, body = "/v1/completions", {**body, "prompt": [5 + i % 4000], "logprobs": i % 3}
                else:
                    path, body = "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": f"{i} + {i % 7} ="}]}
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    faults.append((answer.status, text[:200]))
            connection.close()

        def run(end):
            threads = [threading.Thread(target=work, args=(end,)) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        start = time.monotonic()
        run(500)
        server.wait_idle()
        warm = server.rss_bytes()
        run(count)
        server.wait_idle()
        seconds = time.monotonic() - start
        end = server.rss_bytes()
        assert not faults, faults[:3]
        grown = (end - warm) / (1 << 20)
        figure("RSS", f"{warm / (1 << 20):.1f} MiB after 500 requests, {end / (1 << 20):.1f} MiB after {count}: {grown:+.2f} MiB ({end / warm - 1:+.2%}); {count / seconds:.0f} requests/s")
        if not sanitized:
            assert end - warm < 8 << 20 and end < warm * 1.03


def test_memory_of_huge_bodies_is_given_back(serve, sanitized):
    """Parsing some megabytes of JSON takes many times its size, on whichever thread: nothing of it stays."""
    body = {"messages": [{"role": "user", "content": "x"}] * 120_000, "max_tokens": 1}
    with serve() as server:
        start = server.rss_bytes()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            heads = list(pool.map(lambda _: exchange(server.port, "POST", "/v1/chat/completions", body)[0], range(8)))
        assert [head.status for head in heads] == [400] * 8
        deadline = time.monotonic() + 10
        while server.rss_bytes() - start > 64 << 20 and not sanitized:
            assert time.monotonic() < deadline, f"{(server.rss_bytes() - start) >> 20} MiB kept after eight large bodies"
            time.sleep(0.1)


def test_many_failed_requests_leave_nothing(serve, sanitized):
    """Refused requests, broken connections and unknown routes: no growth, no connection left."""
    with serve() as server:
        def broken(i):
            kind = i % 4
            if kind == 0:
                requests.post(server.url + "/v1/completions", json={"prompt": i}, timeout=30)
            elif kind == 1:
                requests.get(server.url + f"/nowhere/{i}", timeout=30)
            elif kind == 2:
                with Raw(server.port) as connection:
                    connection.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)
            else:
                with Raw(server.port) as connection:
                    connection.send(bytes([i % 256]) * 50)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(broken, range(400)))
            warm = server.rss_bytes()
            list(pool.map(broken, range(1600)))
        server.wait_idle()
        if not sanitized:
            assert server.rss_bytes() - warm < 4 << 20
