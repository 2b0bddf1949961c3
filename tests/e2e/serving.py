"""A running dsv3-serve for the tests: start it, read its log and metrics, watch its process, stop it."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import requests

SAMPLE = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


def parse_metrics(text):
    """Prometheus text as {(name, ((label, value), ...)): number}; raises on a line that is neither comment nor sample."""
    out = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = SAMPLE.match(line)
        assert match, f"not a metrics line: {line!r}"
        out[(match[1], tuple(sorted(LABEL.findall(match[2] or ""))))] = float(match[3])
    return out


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """Owns one process. Its stderr goes to a file, so that a full pipe never holds it up."""

    def __init__(self, binary, model, folder, *args, port=0):
        self.args = [str(arg) for arg in args]
        self.log_path = folder / f"server-{time.monotonic_ns()}.log"
        self.started = time.monotonic()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([binary, model, "--port", str(port), *self.args], stdout=subprocess.DEVNULL, stderr=log)
        self.port = port
        self.session = requests.Session()
        self.ended = False  # a test has seen the end of the process and judged it
        if port == 0:
            try:
                self.port = self.wait_for("ready", 120)["port"]
            except BaseException:
                self.kill()
                raise

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def log(self):
        return self.log_path.read_text(errors="replace")

    def events(self, name=None):
        found = [json.loads(line) for line in self.log().splitlines() if line.startswith("{") and line.endswith("}")]
        return [event for event in found if name is None or event["event"] == name]

    def wait_for(self, name, seconds=30):
        deadline = time.monotonic() + seconds
        while True:
            found = self.events(name)
            if found:
                return found[0]
            assert self.process.poll() is None, f"dsv3-serve ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"no event {name} within {seconds} s:\n{self.log()}"
            time.sleep(0.01)

    def get(self, path, **kwargs):
        return self.session.get(self.url + path, timeout=60, **kwargs)

    def post(self, path, body, **kwargs):
        return self.session.post(self.url + path, json=body, timeout=120, **kwargs)

    def ok(self, path, body):
        """The JSON of a POST that must succeed. Each thread has a connection of its own."""
        answer = requests.post(self.url + path, json=body, timeout=120)
        assert answer.status_code == 200, f"{path} {str(body)[:300]} -> {answer.status_code} {answer.text[:500]}"
        return answer.json()

    def metrics(self):
        answer = requests.get(self.url + "/metrics", timeout=60)
        assert answer.status_code == 200, answer.text
        return parse_metrics(answer.text)

    def metric(self, name, **labels):
        """The sum of a metric's samples that carry these labels; 0 when there is none."""
        return sum(value for (sample, have), value in self.metrics().items() if sample == name and labels.items() <= dict(have).items())

    def busy(self):
        """What is not idle: running and waiting requests and blocks held by them. Empty when all is free."""
        metrics = self.metrics()
        found = {}
        for (name, labels), value in metrics.items():
            held = name in ("dsv3:num_requests_running", "dsv3:num_requests_waiting", "dsv3:num_tokens_waiting")
            held = held or (name == "dsv3:kv_blocks" and dict(labels)["state"] == "used")
            if held and value != 0:
                found[name] = value
        return found

    def wait_idle(self, seconds=10):
        """Fails unless nothing runs and no block is held within `seconds`. Returns how long it took."""
        start = time.monotonic()
        while True:
            busy = self.busy()
            if not busy:
                return time.monotonic() - start
            assert time.monotonic() - start < seconds, f"still busy after {seconds} s: {busy}"
            time.sleep(0.01)

    def wait_metric(self, name, want, seconds=20):
        deadline = time.monotonic() + seconds
        while self.metric(name) != want:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)} and not {want} after {seconds} s"
            time.sleep(0.005)

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait_exit(self, seconds=30):
        try:
            code = self.process.wait(timeout=seconds)
            self.ended = True
            return code
        except subprocess.TimeoutExpired:
            raise AssertionError(f"dsv3-serve did not end within {seconds} s:\n{self.log()[-3000:]}") from None

    def kill(self):
        self.session.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self):
        """The end of a test's server: SIGTERM must end it cleanly, whatever the tests did to it before."""
        if self.process.poll() is not None:
            raise AssertionError(f"dsv3-serve ended with {self.process.returncode} during the tests:\n{self.log()[-3000:]}")
        self.terminate()
        try:
            code = self.wait_exit(30)
        finally:
            self.kill()
        assert code == 0, f"dsv3-serve ended with {code} after SIGTERM:\n{self.log()[-3000:]}"
