"""The command line of the real binary: exit codes, one-line refusals, plan, start, drain."""

import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import time

import pytest
import requests

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def run(binary, *args, timeout=60):
    return subprocess.run([binary, *args], capture_output=True, text=True, timeout=timeout)


def events(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


class Serving:
    """A running server on a free port. `ready` is its ready event."""

    def __init__(self, binary, *args):
        self.process = subprocess.Popen([binary, "--port", "0", *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.log = ""
        self.ready = self.wait_for("ready")
        self.url = f"http://127.0.0.1:{self.ready['port']}"

    def wait_for(self, event, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.log.splitlines():
                if line.startswith("{") and line.endswith("}") and json.loads(line)["event"] == event:
                    return json.loads(line)
            if select.select([self.process.stderr], [], [], 0.1)[0]:
                chunk = os.read(self.process.stderr.fileno(), 65536).decode()
                if not chunk:
                    break
                self.log += chunk
        raise AssertionError(f"no event {event}: {self.log}")

    def end(self, seconds=20):
        _, rest = self.process.communicate(timeout=seconds)
        self.log += rest.decode()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def test_help_and_version(binary):
    shown = run(binary, "--help")
    assert shown.returncode == 0 and "--model-path" in shown.stdout and shown.stderr == ""
    version = run(binary, "version")
    assert version.returncode == 0 and re.match(r"dsv3-serve \d+\.\d+\.\d+", version.stdout)


@pytest.mark.parametrize(
    "args, part",
    [
        ([], "--model-path"),
        (["/nonexistent"], "--model-path"),
        (["TINY", "--tp", "0"], "1 to 1024"),
        (["TINY", "--tp", "3"], "1, 2, 4, 8"),
        (["TINY", "--tp"], "--tp"),
        (["TINY", "--tensor_paralel_size", "2"], "--tensor-parallel-size"),
        (["TINY", "--context-length", "8193"], "8192"),
        (["TINY", "--device", "cuda"], "--device cpu"),
        (["TINY", "--nnodes", "2"], "--nnodes"),
        (["TINY", "--pp", "2"], "--tp"),
        (["TINY", "--ssl-keyfile", "x"], "TLS"),
        (["TINY", "--page-size", "1"], "64"),
        (["TINY", "--port", "70000"], "0 to 65535"),
        (["TINY", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (["TINY", "--api-key-file", "/nonexistent"], "--api-key-file"),
        (["TINY", "--chat-template", "/nonexistent"], "/nonexistent"),
        (["TINY", "--tokenizer-path", "/nonexistent"], "tokenizer"),
        (["TINY", "--json-model-override-args", "{"], "--json-model-override-args"),
        (["TINY", "--json-model-override-args", '{"num_hidden_layers": -1}'], "num_hidden_layers"),
        (["TINY", "--json-model-override-args", '{"num_hidden_layers": 6, "num_nextn_predict_layers": 0}'], "model.layers.5"),
        (["TINY", "--mem-fraction-static", "0.5", "--gpu-memory-utilization", "0.5"], "--gpu-memory-utilization"),
        (["plan"], "--model-path"),
        (["plan", "TINY", "--ep", "2", "--tp", "2"], "--device cuda"),
    ],
)
def test_refusals_are_one_line_and_exit_2(binary, tiny, args, part):
    shown = run(binary, *[tiny if arg == "TINY" else arg for arg in args])
    assert shown.returncode == 2, shown
    refusal = [line for line in shown.stderr.splitlines() if not line.startswith("{")]
    assert len(refusal) == 1 and refusal[0].startswith("dsv3-serve: "), shown.stderr
    assert part in refusal[0]


def test_model_folder_faults_exit_2(binary, tmp_path):
    assert run(binary, str(tmp_path)).returncode == 2
    (tmp_path / "config.json").write_text("{}")
    shown = run(binary, str(tmp_path))
    assert shown.returncode == 2 and "architectures" in shown.stderr or "model_type" in shown.stderr


def test_plan_of_the_real_model_needs_no_weights(binary):
    config = str(CONFIGS / "models" / "deepseek_v3.json")
    shown = run(binary, "plan", config, "--device", "cuda", "--tp", "8", "--gpu-memory-gib", "139", "--json")
    assert shown.returncode == 0, shown
    plan = json.loads(shown.stdout)
    assert plan["fits"] and sum(plan["bytes_per_rank"].values()) == plan["total_bytes"] <= plan["available_bytes"]
    assert plan["kv_cache"]["bytes_per_token"] == 70272
    assert plan["concurrency"][-1]["context_tokens"] == 163840

    small = run(binary, "plan", config, "--device", "cuda", "--tp", "8", "--gpu-memory-gib", "78")
    assert small.returncode == 3 and "--tp 16" in small.stdout and len(small.stderr.splitlines()) == 1


def test_a_start_that_cannot_fit_exits_3_before_loading(binary, tiny):
    shown = run(binary, tiny, "--max-total-tokens", "100000000000")
    assert shown.returncode == 3, shown
    assert "--max-total-tokens" in shown.stderr and "Memory of one rank" in shown.stdout


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_example_configs_fit(binary, tiny, path):
    """As their first comments say: planned for the models that they are about."""
    models = {"r1-8xh200.toml": "deepseek_r1.json", "v3-2x8xh100.toml": "deepseek_v3.json"}
    model = str(CONFIGS / "models" / models[path.name]) if path.name in models else tiny
    shown = run(binary, "plan", "--config", str(path), "--model-path", model, "--json")
    assert shown.returncode == 0, shown
    assert json.loads(shown.stdout)["fits"]


def test_start_table_and_ready(binary, tiny):
    process = subprocess.Popen([binary, tiny, "--port", "0", "--trust-remote-code", "--trust_remote_code"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        seen = []
        for line in process.stderr:
            seen.append(json.loads(line))
            if seen[-1]["event"] == "ready":
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert [event["event"] for event in seen].count("flag_without_effect") == 1
    assert seen[0]["event"] == "start" and seen[-1]["seconds"] < 60
    for part in ("Memory of one rank", "KV cache", "Limits", "8192 tokens"):
        assert part in out
    assert [event["event"] for event in events(err)] [-2:] == ["drain", "stop"]


def test_port_taken_is_one_line(binary, tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        shown = run(binary, tiny, "--port", str(taken.getsockname()[1]))
    assert shown.returncode == 1
    assert len([line for line in shown.stderr.splitlines() if line.startswith("dsv3-serve: ")]) == 1


def test_sigterm_lets_streams_end_and_refuses_new_ones(binary, tiny):
    with Serving(binary, tiny) as server:
        body = {"prompt": "one two three", "max_tokens": 400, "ignore_eos": True, "stream": True, "temperature": 0}
        stream = requests.post(server.url + "/v1/completions", json=body, stream=True, timeout=60)
        lines = stream.iter_lines()
        assert next(lines).startswith(b"data: ")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("drain")
        refused = requests.post(server.url + "/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=10)
        assert refused.status_code == 503
        rest = [line for line in lines if line.startswith(b"data: ")]
        assert rest[-1] == b"data: [DONE]"
        assert server.end() == 0
        assert events(server.log)[-1]["clean"] is True


def test_no_drain_time_means_a_quick_end(binary, tiny):
    with Serving(binary, tiny, "--drain-timeout", "0") as server:
        body = {"prompt": "one", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        stream = requests.post(server.url + "/v1/completions", json=body, stream=True, timeout=60)
        next(stream.iter_lines())
        start = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.end() == 0
        assert time.monotonic() - start < 4


def test_second_signal_ends_at_once(binary, tiny):
    with Serving(binary, tiny) as server:
        body = {"prompt": "one", "max_tokens": 6000, "ignore_eos": True, "stream": True}
        stream = requests.post(server.url + "/v1/completions", json=body, stream=True, timeout=60)
        next(stream.iter_lines())
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("drain")
        server.process.send_signal(signal.SIGTERM)
        assert server.end(5) == 128 + signal.SIGTERM
