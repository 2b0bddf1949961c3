#!/usr/bin/env python3
"""Runs a GoogleTest binary suite by suite, each in a process of its own, so that one crash, hang or sticky device error
costs one suite and not the rest. A suite that ends so is run again test by test, to name the test.

    scripts/gtest_isolated.py BINARY --out DIR [--filter F] [--suite-seconds 120] [--seconds 600] [--jobs 1] [-- WRAPPER WORDS...]

Words after -- go before the binary (compute-sanitizer and its flags). A test under a wrapper fails if the wrapper's exit
code is not 0. With several jobs, so many processes run beside each other, of one test each. Prints failures with the end of their output, and `N passed, N failed, N skipped` last. Exit code 1 if any
failed or no time was left for some, 77 if all were skipped."""

import argparse
import concurrent.futures
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree


class Run:
    def __init__(self, args, wrapper):
        self.args, self.wrapper = args, wrapper
        self.deadline = time.monotonic() + args.seconds
        self.passed, self.skipped, self.failed, self.not_run = 0, 0, [], []
        self.log = open(os.path.join(args.out, f"{args.name}.log"), "w", errors="replace")
        self.lock = threading.Lock()  # of the counts, the log and the groups
        self.numbers = itertools.count()
        self.groups = set()  # of processes that run
        signal.signal(signal.SIGTERM, self.end)

    def end(self, *_):
        for group in list(self.groups):
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                pass
        os._exit(143)

    def left(self):
        return self.deadline - time.monotonic()

    def tests(self):
        """{suite: [test, ...]} of the filter."""
        listed = subprocess.run([self.args.binary, "--gtest_list_tests", f"--gtest_filter={self.args.filter}"], capture_output=True, text=True,
                                timeout=60)
        suites, suite = {}, None
        for line in listed.stdout.splitlines():
            name = line.split("#")[0].strip()
            if not line.startswith(" ") and name.endswith("."):
                suite = name
                suites[suite] = []
            elif line.startswith("  ") and suite:
                suites[suite].append(name)
        if not suites:
            sys.exit(f"{self.args.binary} lists no test: {(listed.stderr or listed.stdout)[-500:]}")
        return suites

    def process(self, names, seconds):
        """(exit code, output, cases of the XML or None) of a run of these tests."""
        xml = os.path.join(self.args.out, f"{self.args.name}.{next(self.numbers)}.part.xml")
        command = [*self.wrapper, self.args.binary, f"--gtest_filter={':'.join(names)}", f"--gtest_output=xml:{xml}", "--gtest_brief=1"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                   start_new_session=True)
        self.groups.add(process.pid)
        try:
            output, _ = process.communicate(timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the group that it leads: a wrapper's child too
            output, _ = process.communicate()
            code = 124
        self.groups.discard(process.pid)
        with self.lock:
            self.log.write(f"== {names[0]}{' ...' if len(names) > 1 else ''}: exit code {code}\n{output}\n")
            self.log.flush()
        try:
            cases = list(ElementTree.parse(xml).getroot().iter("testcase"))
            os.remove(xml)
        except (OSError, ElementTree.ParseError):
            cases = None
        return code, output, cases

    def failure(self, name, code, output):
        self.failed.append(name)
        why = "no end within its time" if code == 124 else f"signal {-code}" if code < 0 else f"exit code {code}"
        print(f"FAILED {name} ({why})\n{output.strip()[-1500:]}", flush=True)

    def suite(self, suite, tests):
        names = [suite + test for test in tests]
        limit = min(self.args.suite_seconds, self.left())
        code, output, cases = self.process(names, limit)
        broken = [case for case in cases or [] if case.find("failure") is not None]
        sticky = cases is None or code not in (0, 1) or (broken and ("CUDA error" in output or "illegal" in output or "launch failure" in output))
        if sticky and len(names) > 1:
            for name in names[: self.args.singles]:
                if self.left() < 5:
                    self.not_run.append(name)
                    continue
                code, output, cases = self.process([name], min(self.args.suite_seconds / 3, self.left()))
                self.judge([name], code, output, cases)
            self.not_run += names[self.args.singles:]
        else:
            self.judge(names, code, output, cases)

    def judge(self, names, code, output, cases):
        with self.lock:
            self.count(names, code, output, cases)

    def count(self, names, code, output, cases):
        if "terminated before first instrumented API call" in output and cases is not None:
            code = 0  # compute-sanitizer's word for a test that never called the GPU
        if cases is None:
            self.failure(names[0] if len(names) == 1 else names[0] + " ...", code, output)
            return
        before = len(self.failed)
        for case in cases:
            if case.find("failure") is not None:
                self.failure(f"{case.get('classname')}.{case.get('name')}", code, "\n".join(f.text or "" for f in case.iter("failure")))
            elif case.find("skipped") is not None or case.get("status") == "notrun" or case.get("result") == "skipped":
                self.skipped += 1
            else:
                self.passed += 1
        if code != 0 and len(self.failed) == before:
            self.failure(names[0] + (" ..." if len(names) > 1 else ""), code, output)

    def run(self, suite, names):
        if self.left() < 5:
            with self.lock:
                self.not_run += [suite + name for name in names]
        else:
            self.suite(suite, names)

    def all(self):
        parts = []
        for suite, tests in self.tests().items():
            names = [test for test in tests if not test.startswith("DISABLED_")]
            parts += [(suite, [name]) for name in names] if self.args.jobs > 1 else [(suite, names)] if names else []
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            for done in [pool.submit(self.run, *part) for part in parts]:
                done.result()
        for name in self.not_run[:20]:
            print(f"NOT RUN {name}")
        print(f"{self.passed} passed, {len(self.failed)} failed, {self.skipped} skipped" + (f", {len(self.not_run)} not run" if self.not_run else ""))
        if self.failed or self.not_run:
            return 1
        return 0 if self.passed else 77


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--out", required=True, help="folder for the log")
    parser.add_argument("--name", default="gtest", help="of the log")
    parser.add_argument("--filter", default="*")
    parser.add_argument("--suite-seconds", type=float, default=120)
    parser.add_argument("--seconds", type=float, default=600, help="in all")
    parser.add_argument("--jobs", type=int, default=1, help="processes beside each other")
    parser.add_argument("--singles", type=int, default=40, help="tests of a broken suite that are run one by one")
    words = sys.argv[1:]
    wrapper = words[words.index("--") + 1:] if "--" in words else []
    args = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    os.makedirs(args.out, exist_ok=True)
    return Run(args, wrapper).all()


if __name__ == "__main__":
    sys.exit(main())
