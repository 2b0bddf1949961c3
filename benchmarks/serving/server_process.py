"""A dsv3-serve that a script starts, watches and ends. Standard library only."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

SAMPLE = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? (\S+)$")
NOT_IN_THIS_BUILD = 77  # exit code of a script that finds that the binary lacks what it measures


class ServerProcess:
    """Owns one process. Its stderr goes to a file, so that a full pipe never holds it up."""

    def __init__(self, binary, model, flags, log_path):
        self.log_path = str(log_path)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the server ends with the script
        os.makedirs(os.path.dirname(os.path.abspath(self.log_path)), exist_ok=True)
        self.started = time.monotonic()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([binary, model, "--port", "0", *flags], stdout=log, stderr=log)
        self.url = None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log(self):
        with open(self.log_path, errors="replace") as log:
            return log.read()

    def events(self, name):
        found = []
        for line in self.log().splitlines():
            if line.startswith("{") and line.endswith("}"):
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found

    def wait_ready(self, seconds):
        """Seconds until the server was ready. Ends the script if it does not get there: 77 if the build has no such device."""
        while True:
            ready = self.events("ready")
            if ready:
                self.url = f"http://127.0.0.1:{ready[0]['port']}"
                return time.monotonic() - self.started
            code = self.process.poll()
            if code is not None:
                log = self.log()
                sys.stderr.write(log[-3000:])
                if "no CUDA backend" in log:
                    print("not in this build: no CUDA backend")
                    sys.exit(NOT_IN_THIS_BUILD)
                sys.exit(f"dsv3-serve ended with {code} before it was ready: {last_line(log)}")
            if time.monotonic() - self.started > seconds:
                self.process.kill()
                sys.stderr.write(self.log()[-3000:])
                sys.exit(f"dsv3-serve was not ready within {seconds:.0f} s")
            time.sleep(0.05)

    def metrics(self):
        """{(name, labels as text): value}"""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as answer:
            return parse_metrics(answer.read().decode())

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, seconds=60):
        """SIGTERM; the exit code, or None if the process had to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""


def parse_metrics(text):
    out = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else SAMPLE.match(line)
        if match:
            out[(match[1], match[2] or "")] = float(match[3])
    return out


def metric_sum(metrics, name, label=""):
    return sum(value for (sample, labels), value in metrics.items() if sample == name and label in labels)


def gpu_memory_mib():
    """Used memory of all GPUs together, or None where there is no nvidia-smi."""
    try:
        got = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True,
                             timeout=20, check=True)
        return sum(int(line) for line in got.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
