"""The scripts around the server: tables of benchmarks, tests in processes of their own, checkpoints of random weights, load."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROW = {"gpu": "H100", "date": "2026-01-02", "commit": "abc", "kernel": "gemm", "shape": "m 1 | n 2", "us": 6.0, "tflops": 4.6, "gbps": 2329,
       "limit_us": 4.5, "of_limit": 0.75, "baseline": "cuBLASLt", "baseline_us": 9.0, "peer": "", "peer_us": 0, "spread": 0.012}


def script(path, *args):
    return subprocess.run([sys.executable, str(ROOT / path), *map(str, args)], capture_output=True, text=True, timeout=120)


def test_bench_table(tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "README.md"
    other = {"bench": "serving", "seconds": 1}  # another benchmark's row
    minimal = {"kernel": "norm", "shape": "m 8", "us": 2.5}
    rows.write_text("\n".join(json.dumps(row) for row in (ROW | {"us": 99.0}, other, minimal, ROW)) + "\n\n")
    got = script("scripts/bench-table", "--out", out, rows)
    assert got.returncode == 0, got.stderr
    text = out.read_text()
    assert "| m 1 \\| n 2 | 6.00 | 4.6 | 2329 | 4.50 | 75% | 1.50 (cuBLASLt) | - | 1.2% |" in text.splitlines()
    assert "| m 8 | 2.50 | - | - | - | - | - | - | - |" in text.splitlines()
    assert "99" not in text
    written = out.stat().st_mtime_ns
    assert script("scripts/bench-table", "--out", out, rows).returncode == 0
    assert out.read_text() == text and out.stat().st_mtime_ns == written
    assert "2 rows, of limit: median 75%" in script("scripts/bench-table", "--summary", rows).stdout


FAKE_GTEST = """#!/usr/bin/env python3
import os, signal, sys, time
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
names = ["Good.A", "Good.B", "Crash.A", "Crash.B", "Hang.A"]
if "--gtest_list_tests" in sys.argv:
    print("Running main()\\nGood.\\n  A\\n  B\\nCrash.\\n  A\\n  B  # with a comment\\nHang.\\n  A")
    sys.exit(0)
chosen = flags["gtest_filter"].split(":")
if "Crash.B" in chosen:
    os.kill(os.getpid(), signal.SIGSEGV)
if "Hang.A" in chosen:
    time.sleep(60)
cases = "".join(f'<testcase classname="{n.split(".")[0]}" name="{n.split(".")[1]}"/>' for n in chosen)
open(flags["gtest_output"].removeprefix("xml:"), "w").write(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
"""


def test_one_crash_or_hang_costs_one_test(tmp_path):
    fake = tmp_path / "fake_test"
    fake.write_text(FAKE_GTEST)
    fake.chmod(0o755)
    got = script("scripts/gtest_isolated.py", fake, "--out", tmp_path, "--suite-seconds", 1)
    lines = got.stdout.splitlines()
    assert got.returncode == 1, got.stderr
    assert lines[-1] == "3 passed, 2 failed, 0 skipped"
    assert "FAILED Crash.B (signal 11)" in lines
    assert "FAILED Hang.A (no end within its time)" in lines


def test_made_checkpoint_is_served(binary, tiny, tmp_path):
    got = script("benchmarks/weights/make_checkpoint.py", "--config", f"{tiny}/config.json", "--layers", 2, "--tokenizer", tiny, "--out", tmp_path / "made")
    assert got.returncode == 0, got.stderr
    got = script("benchmarks/serving/load_rate.py", "--binary", binary, "--model", tmp_path / "made", "--log", tmp_path / "log", "--", "--device", "cpu")
    assert got.returncode == 0, got.stderr
    assert json.loads(got.stdout)["bytes"] > 1 << 20


def test_soak(binary, tiny, tmp_path):
    # A build with a sanitizer keeps freed memory for a while: growth is not what this looks at.
    got = script("benchmarks/serving/soak.py", "--binary", binary, "--model", tiny, "--seconds", 2, "--clients", 4, "--output", "4-8", "--rss-slack-mib", 4096,
                 "--log", tmp_path / "log", "--", "--device", "cpu", "--max-total-tokens", 8192)
    result = json.loads(got.stdout)
    assert got.returncode == 0, result
    assert result["requests"] > 0 and result["errors"] == 0 and result["tokens"] > 0 and result["faults"] == []
