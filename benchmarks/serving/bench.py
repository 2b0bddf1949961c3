#!/usr/bin/env python3
"""Load generator for a running server, or for one that it starts itself. Standard library only.

    benchmarks/serving/bench.py --binary build/release/dsv3-serve --model tests/data/dsv3-tiny
    benchmarks/serving/bench.py --url http://127.0.0.1:30000 --concurrency 1,8,32,128 --input 512 --output 128
    benchmarks/serving/bench.py --url ... --rate 5 --requests 100       # open loop: Poisson arrivals, whatever is running

Closed loop: so many clients, each sends its next request when the last one has ended. Every prompt is of random token ids,
so that nothing is found in the prefix cache; every answer has exactly --output tokens. The baseline of each row is the
server's own count of time spent in forward passes: `in steps` is its share of the wall time, so what is left is
scheduling, tokenising and HTTP. Prints a table and appends one JSON line a row to --results."""

import argparse
import asyncio
import datetime
import json
import os
import pathlib
import platform
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]


def percentile(values, share):
    """By linear interpolation, as numpy does it."""
    values = sorted(values)
    at = share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)


class Request:
    """One streamed completion: when it was sent, when each event came, how many tokens it brought."""

    def __init__(self, prompt, output_tokens):
        self.body = json.dumps({"prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True, "temperature": 0, "stream": True,
                                "stream_options": {"include_usage": True}}).encode()
        self.sent = 0.0
        self.times = []
        self.tokens = 0

    async def run(self, connection):
        reader, writer = connection
        self.sent = time.perf_counter()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%b" % (len(self.body), self.body))
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(head.decode("latin1").split("\r\n", 1)[0])
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            data = (await reader.readexactly(size + 2))[:-2]
            if size == 0:
                break
            if data == b"data: [DONE]\n\n":
                continue
            now = time.perf_counter()
            event = json.loads(data.removeprefix(b"data: "))
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if event["choices"]:
                if event["choices"][0]["finish_reason"] is None or not self.times:
                    self.times.append(now)
            else:
                self.tokens = event["usage"]["completion_tokens"]


class Load:
    def __init__(self, url, args):
        self.host, self.port = url.hostname, url.port or 80
        self.args = args
        self.random = random.Random(args.seed)
        self.done, self.failed = [], []

    def request(self):
        prompt = [self.random.randrange(100, self.args.max_token_id) for _ in range(self.args.input)]
        return Request(prompt, self.args.output)

    async def one(self, request, connection=None):
        own = connection is None
        try:
            if own:
                connection = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
            await request.run(connection)
            self.done.append(request)
        except (OSError, RuntimeError, asyncio.IncompleteReadError) as error:
            self.failed.append(str(error))
        finally:
            if own and connection is not None:
                connection[1].close()

    async def closed(self, clients, count):
        todo = iter([self.request() for _ in range(count)])

        async def client():
            connection = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
            for request in todo:
                await self.one(request, connection)
            connection[1].close()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, rate, count):
        tasks = []
        for request in [self.request() for _ in range(count)]:
            tasks.append(asyncio.create_task(self.one(request)))
            await asyncio.sleep(self.random.expovariate(rate))
        await asyncio.gather(*tasks)


def step_seconds(url):
    """Seconds that the server has spent in forward passes so far, or None for one that does not say."""
    try:
        with urllib.request.urlopen(url.geturl() + "/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("dsv3:step_duration_seconds_sum"):
                    return float(line.rsplit(" ", 1)[1])
    except OSError:
        pass
    return None


def measure(url, args, clients, rate):
    load = Load(url, args)
    asyncio.run(load.closed(1, 1))  # warm-up
    if load.failed:
        sys.exit(f"the server refuses: {load.failed[0]}")
    load.done.clear()
    count = args.requests or max(8, 4 * (clients or 8))
    before, start = step_seconds(url), time.perf_counter()
    asyncio.run(load.open(rate, count) if rate else load.closed(clients, count))
    wall, after = time.perf_counter() - start, step_seconds(url)
    if not load.done:
        sys.exit(f"every request failed: {load.failed[0]}")
    first = [(request.times[0] - request.sent) * 1e3 for request in load.done]
    gaps = [(b - a) * 1e3 for request in load.done for a, b in zip(request.times, request.times[1:])] or [0.0]
    per_token = [(r.times[-1] - r.times[0]) * 1e3 / (r.tokens - 1) for r in load.done if r.tokens > 1] or [0.0]
    tokens = sum(request.tokens for request in load.done)
    return {
        "requests": count, "failed": len(load.failed), "seconds": round(wall, 3),
        "ttft_ms": {"mean": round(statistics.mean(first), 3), "p50": round(percentile(first, 0.5), 3), "p99": round(percentile(first, 0.99), 3)},
        "itl_ms": {"mean": round(statistics.mean(gaps), 3), "p50": round(percentile(gaps, 0.5), 3), "p99": round(percentile(gaps, 0.99), 3)},
        "tpot_ms": {"mean": round(statistics.mean(per_token), 3)},
        "output_tokens_per_s": round(tokens / wall, 1), "input_tokens_per_s": round(len(load.done) * args.input / wall, 1),
        "requests_per_s": round(len(load.done) / wall, 3),
        "in_steps": None if before is None or after is None else round((after - before) / wall, 4),
    }


def machine():
    cpu = platform.processor() or platform.machine()
    memory = 0.0
    try:
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
        for line in open("/proc/meminfo"):
            if line.startswith("MemTotal"):
                memory = int(line.split()[1]) / (1 << 20)
    except OSError:
        pass
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "load_before": round(os.getloadavg()[0], 1)}


def commit():
    got = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True)
    return got.stdout.strip() or None


def start_server(args):
    """(process, url) of a server of our own on a free port."""
    process = subprocess.Popen([args.binary, args.model, "--port", "0", *args.flags.split()], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("{") and json.loads(line)["event"] == "ready":
            # Read on, or a full pipe would hold the server up.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, f"http://127.0.0.1:{json.loads(line)['port']}"
        if not line.startswith("{"):
            sys.stderr.write(line)
    sys.exit(f"{args.binary} ended with {process.wait()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--binary", default=str(ROOT / "build/release/dsv3-serve"), help="without --url: start this one")
    parser.add_argument("--model", default=str(ROOT / "tests/data/dsv3-tiny"), help="with --binary")
    parser.add_argument("--flags", default="", help="with --binary: further flags of the server, in one string")
    parser.add_argument("--concurrency", default="1,8,32", help="closed loop: numbers of clients, one row each")
    parser.add_argument("--rate", type=float, help="open loop instead: requests per second")
    parser.add_argument("--requests", type=int, help="of each row; default four a client, at least 8")
    parser.add_argument("--input", type=int, default=128, help="prompt tokens")
    parser.add_argument("--output", type=int, default=64, help="generated tokens")
    parser.add_argument("--max-token-id", type=int, default=4000, help="prompts are of ids from 100 to this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", default=str(ROOT / "benchmarks/results/cpu.jsonl"), help="JSON lines are appended here; - for none")
    args = parser.parse_args()

    process = None
    if args.url is None:
        process, args.url = start_server(args)
    url = urllib.parse.urlsplit(args.url.rstrip("/"))
    try:
        with urllib.request.urlopen(url.geturl() + "/version", timeout=30) as answer:
            version = json.load(answer)["version"]
        about = {"bench": "serving", "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit(),
                 "version": version, "machine": machine(), "model": os.path.basename(args.model) if process else None,
                 "flags": args.flags if process else None}
        print(f"{about['machine']['cpu']}, {about['machine']['cores']} cores, load {about['machine']['load_before']}; dsv3-serve {version} {args.flags}")
        print(f"{args.input} tokens in, {args.output} out")
        print(f"{'load':>12} {'requests':>9} {'TTFT p50':>10} {'p99 ms':>9} {'ITL p50':>10} {'p99 ms':>9} {'TPOT ms':>9} {'out tok/s':>10} {'in steps':>9}")
        rows = [(None, args.rate)] if args.rate else [(int(clients), None) for clients in args.concurrency.split(",")]
        for clients, rate in rows:
            row = measure(url, args, clients, rate)
            share = "-" if row["in_steps"] is None else f"{row['in_steps']:.1%}"
            name = f"{rate}/s" if rate else f"{clients} clients"
            print(f"{name:>12} {row['requests']:>9} {row['ttft_ms']['p50']:>10.2f} {row['ttft_ms']['p99']:>9.2f} {row['itl_ms']['p50']:>10.2f} "
                  f"{row['itl_ms']['p99']:>9.2f} {row['tpot_ms']['mean']:>9.2f} {row['output_tokens_per_s']:>10.1f} {share:>9}"
                  + (f"  {row['failed']} FAILED" if row["failed"] else ""), flush=True)
            line = {**about, "load": {"concurrency": clients, "rate": rate, "input_tokens": args.input, "output_tokens": args.output, "seed": args.seed}, **row}
            if args.results != "-":
                pathlib.Path(args.results).parent.mkdir(parents=True, exist_ok=True)
                with open(args.results, "a") as results:
                    results.write(json.dumps(line) + "\n")
    finally:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


if __name__ == "__main__":
    main()
