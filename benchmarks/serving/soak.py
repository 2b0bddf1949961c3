#!/usr/bin/env python3
"""Keeps a server under streaming load for a while and watches that nothing grows. Standard library only.

    benchmarks/serving/soak.py --binary ./dsv3-serve --model tests/data/dsv3-tiny --seconds 60
    benchmarks/serving/soak.py --url http://127.0.0.1:30000 --pid 1234 --seconds 600 --clients 256

Every client streams one completion after the other: a prompt of random token ids of random length, an answer of random
length. Memory and counters are sampled meanwhile; growth is counted from the end of the warm-up (the first quarter, or 10 s) on.
Prints one JSON object. Exit code 0: no request failed, nothing grew, no allocation after ready, a clean end; 1: not so;
77: this build lacks the device."""

import argparse
import asyncio
import concurrent.futures
import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

from server_process import ServerProcess, gpu_memory_mib, metric_sum, parse_metrics


class Histogram:
    """Times by their logarithm, in buckets of 1%: as small after hours as after seconds."""

    def __init__(self):
        self.counts = {}

    def add(self, seconds):
        bucket = round(100 * math.log(max(seconds, 1e-7)))
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    def merge(self, other):
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    def percentile(self, share):
        left = share * sum(self.counts.values())
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return math.exp(bucket / 100)
        return None


class Load:
    """Some of the clients, in one process."""

    def __init__(self, url, args, clients, seed):
        self.clients = clients
        parts = urllib.parse.urlsplit(url)
        self.host, self.port = parts.hostname, parts.port or 80
        self.args = args
        self.random = random.Random(seed)
        self.requests = self.tokens = 0
        self.errors, self.error_examples = 0, set()
        self.gaps, self.first = Histogram(), Histogram()

    def body(self):
        pick, args = self.random, self.args
        prompt = [pick.randrange(100, args.max_token_id) for _ in range(pick.randint(*args.input))]
        return json.dumps({"prompt": prompt, "max_tokens": pick.randint(*args.output), "ignore_eos": True, "temperature": pick.choice((0, 1)),
                           "stream": True, "stream_options": {"include_usage": True}}).encode()

    async def one(self, reader, writer):
        body = self.body()
        sent = before = time.perf_counter()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(head.decode("latin1").split("\r\n", 1)[0])
        events, usage = 0, None
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            data = (await reader.readexactly(size + 2))[:-2]
            if size == 0:
                break
            if not data.startswith(b"data: ") or data.startswith(b"data: [DONE]"):
                continue
            event = json.loads(data[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if not event["choices"]:
                usage = event["usage"]["completion_tokens"]
                continue
            now = time.perf_counter()
            if events == 0:
                self.first.add(now - sent)
            else:
                self.gaps.add(now - before)
            before = now
            events += 1
        if usage is None:
            raise RuntimeError("the stream ended without usage")
        self.tokens += usage

    async def client(self, until):
        connection = None
        while time.monotonic() < until:
            try:
                if connection is None:
                    connection = await asyncio.wait_for(asyncio.open_connection(self.host, self.port, limit=1 << 24), 30)
                self.requests += 1
                await asyncio.wait_for(self.one(*connection), self.args.request_seconds)
            except (OSError, RuntimeError, ValueError, KeyError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                self.errors += 1
                if len(self.error_examples) < 5:
                    self.error_examples.add(f"{type(error).__name__}: {error}"[:300])
                if connection is not None:
                    connection[1].close()
                connection = None
                await asyncio.sleep(0.5)
        if connection is not None:
            connection[1].close()

    async def run(self):
        until = time.monotonic() + self.args.seconds
        await asyncio.gather(*(self.client(until) for _ in range(self.clients)))


def run_load(url, args, clients, seed):
    load = Load(url, args, clients, seed)
    asyncio.run(load.run())
    return load


def run_all(url, args):
    """The clients of all processes together: one Python process reads some ten thousand events a second and no more."""
    processes = max(1, min(8, (os.cpu_count() or 1) // 2, args.clients // 16))
    shares = [args.clients // processes + (i < args.clients % processes) for i in range(processes)]
    if processes == 1:
        return run_load(url, args, args.clients, args.seed)
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(run_load, url, args, share, args.seed + i) for i, share in enumerate(shares)]
        loads = [job.result() for job in jobs]
    load = loads[0]
    for other in loads[1:]:
        load.requests += other.requests
        load.tokens += other.tokens
        load.errors += other.errors
        load.error_examples |= other.error_examples
        load.gaps.merge(other.gaps)
        load.first.merge(other.first)
    return load


def rss_bytes(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


class Watch(threading.Thread):
    """Samples memory every two seconds, in a thread: nvidia-smi takes its time."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.samples, self.end = pid, [], threading.Event()

    def run(self):
        start = time.monotonic()
        while not self.end.is_set():
            try:
                rss = rss_bytes(self.pid) if self.pid else None
            except (OSError, StopIteration):
                rss = None
            self.samples.append((time.monotonic() - start, rss, gpu_memory_mib()))
            self.end.wait(2)

    def first_and_last(self, column, seconds):
        """The largest value in the warm-up, and in the last quarter of the time."""
        warm_up = max(seconds / 4, min(10, seconds / 2))
        warm = [sample[column] for sample in self.samples if sample[0] <= warm_up and sample[column] is not None]
        late = [sample[column] for sample in self.samples if sample[0] >= seconds * 3 / 4 and sample[column] is not None]
        return (max(warm), max(late)) if warm and late else (None, None)


def metrics_of(url):
    with urllib.request.urlopen(url + "/metrics", timeout=30) as answer:
        return parse_metrics(answer.read().decode())


def allocations_after_ready(metrics):
    """What the server counts of device and host allocations since it was ready; None if it does not count them."""
    found = [value for (name, _), value in metrics.items() if "alloc" in name and "ready" in name]
    return sum(found) if found else None


def soak(url, pid, args):
    watch = Watch(pid)
    watch.start()
    start = time.monotonic()
    load = run_all(url, args)
    wall = time.monotonic() - start
    time.sleep(0.5)
    watch.end.set()
    watch.join(30)
    metrics = metrics_of(url)
    rss, gpu = watch.first_and_last(1, args.seconds), watch.first_and_last(2, args.seconds)
    running = metric_sum(metrics, "dsv3:num_requests_running") + metric_sum(metrics, "dsv3:num_requests_waiting")
    result = {
        "requests": load.requests, "errors": load.errors, "error_examples": sorted(load.error_examples)[:5], "seconds": round(wall, 1),
        "clients": args.clients, "tokens": load.tokens, "tokens_per_s": round(load.tokens / wall, 1),
        "ttft_ms_p50": ms(load.first.percentile(0.5)), "ttft_ms_p99": ms(load.first.percentile(0.99)),
        "itl_ms_p50": ms(load.gaps.percentile(0.5)), "itl_ms_p99": ms(load.gaps.percentile(0.99)),
        "rss_first_mib": mib(rss[0]), "rss_last_mib": mib(rss[1]), "gpu_first_mib": gpu[0], "gpu_last_mib": gpu[1],
        "allocations_after_ready": allocations_after_ready(metrics), "left_running": running,
    }
    faults = []
    if load.errors:
        faults.append(f"{load.errors} requests failed")
    if not load.tokens:
        faults.append("no token came")
    if rss[0] is not None and rss[1] > rss[0] * 1.02 + args.rss_slack_mib * (1 << 20):
        faults.append(f"host memory grew from {mib(rss[0])} to {mib(rss[1])} MiB")
    if gpu[0] is not None and gpu[1] > gpu[0] + 16:
        faults.append(f"GPU memory grew from {gpu[0]} to {gpu[1]} MiB")
    if result["allocations_after_ready"]:
        faults.append(f"{result['allocations_after_ready']:.0f} allocations after ready")
    if running:
        faults.append(f"{running:.0f} requests left in the server")
    result["faults"] = faults
    return result


def ms(seconds):
    return None if seconds is None else round(seconds * 1e3, 2)


def mib(count):
    return None if count is None else round(count / (1 << 20), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--pid", type=int, help="with --url: its process, to watch its memory")
    parser.add_argument("--binary", help="without --url: start this dsv3-serve")
    parser.add_argument("--model", help="with --binary")
    parser.add_argument("--ready-seconds", type=float, default=300, help="with --binary: how long it may take to be ready")
    parser.add_argument("--log", help="with --binary: the server's log")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--input", default="16-512", help="prompt tokens, FROM-TO")
    parser.add_argument("--output", default="16-256", help="generated tokens, FROM-TO")
    parser.add_argument("--max-token-id", type=int, default=4000, help="prompts are of ids from 100 to this one")
    parser.add_argument("--request-seconds", type=float, default=120, help="a request that takes longer counts as failed")
    parser.add_argument("--rss-slack-mib", type=float, default=64, help="growth of host memory that is not a fault, beside 2%%")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("flags", nargs="*", help="after --: further flags of the server")
    args = parser.parse_args()
    args.input = tuple(int(number) for number in args.input.split("-"))
    args.output = tuple(int(number) for number in args.output.split("-"))
    if (args.url is None) == (args.binary is None) or (args.binary and not args.model):
        parser.error("give --url, or --binary and --model")

    if args.url:
        result = soak(args.url.rstrip("/"), args.pid, args)
    else:
        log = args.log or tempfile.mkdtemp(prefix="dsv3-soak-") + "/server.log"
        with ServerProcess(args.binary, args.model, args.flags, log) as server:
            ready = server.wait_ready(args.ready_seconds)
            try:
                result = soak(server.url, server.process.pid, args)
            except OSError as error:  # the server is gone
                result = {"faults": [f"the server does not answer: {error}"]}
            result["ready_s"] = round(ready, 1)
            code = server.stop()
            if code != 0:
                result["faults"].append("it did not end after SIGTERM" if code is None else f"it ended with {code}")
    print(json.dumps(result))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
