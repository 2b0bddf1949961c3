#!/usr/bin/env python3
"""The evaluation's questions through HTTP at temperature 0, against recorded scores. Standard library only.

    benchmarks/serving/eval_http.py --binary ./dsv3-serve --data tests/data --reference w8a8 -- --device cuda

Serves DATA/dsv3-tiny with the flags after --, asks all questions of DATA/dsv3-tiny-golden/eval.jsonl and prints one JSON
object. Exit code 0 if every kind of question scores at least the reference less --slack, and (with drafts) the MTP module's
first drafts are accepted at least --acceptance of the time; 77 if this build lacks the device."""

import argparse
import concurrent.futures
import json
import pathlib
import sys
import tempfile
import time
import urllib.request

from server_process import ServerProcess, metric_sum


def ask(url, question):
    body = {"messages": [{"role": "user", "content": question["question"]}], "temperature": 0, "max_tokens": 512,
            "chat_template_kwargs": {"thinking": question["thinking"]}}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]
    except OSError as error:
        return f"({error})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--data", required=True, help="the folder tests/data")
    parser.add_argument("--reference", default="w8a8", help="which scores of eval_scores.json")
    parser.add_argument("--slack", type=float, default=0.01, help="W8A8 sums in another order than the reference did")
    parser.add_argument("--acceptance", type=float, default=0.99)
    parser.add_argument("--questions", type=int, default=0, help="only so many of them, spread over the kinds; 0: all")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--ready-seconds", type=float, default=120)
    parser.add_argument("--log", help="the server's log")
    parser.add_argument("flags", nargs="*", help="after --: flags of the server")
    args = parser.parse_args()

    golden = pathlib.Path(args.data) / "dsv3-tiny-golden"
    questions = [json.loads(line) for line in (golden / "eval.jsonl").read_text().splitlines()]
    if args.questions:
        questions = questions[:: max(1, len(questions) // args.questions)]
    want = json.loads((golden / "eval_scores.json").read_text())[args.reference]
    log = args.log or tempfile.mkdtemp(prefix="dsv3-eval-") + "/server.log"
    with ServerProcess(args.binary, str(pathlib.Path(args.data) / "dsv3-tiny"), args.flags, log) as server:
        ready = server.wait_ready(args.ready_seconds)
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
            answers = list(pool.map(lambda question: ask(server.url, question), questions))
        seconds = time.monotonic() - start
        faults = []
        try:
            metrics = server.metrics()
        except OSError as error:
            metrics = {}
            faults.append(f"/metrics: {error}")
        code = server.stop()
    marks, misses = {}, []
    for question, answer in zip(questions, answers):
        right = answer == question["answer"]
        marks.setdefault(question["kind"], []).append(right)
        if not right:
            misses.append({"question": question["question"], "wanted": question["answer"], "got": answer})
    scores = {kind: round(sum(of_kind) / len(of_kind), 4) for kind, of_kind in marks.items()}
    drafts = metric_sum(metrics, "dsv3:spec_decode_num_drafts_total")
    accepted = metric_sum(metrics, "dsv3:spec_decode_num_accepted_tokens_per_pos_total", 'position="0"')
    acceptance = round(accepted / drafts, 4) if drafts else None
    # A sample of the questions may hold more of the few that the model does not know.
    slack = args.slack + (0.1 if args.questions else 0)
    faults += [f"{kind}: {score} < {want[kind]}" for kind, score in scores.items() if score < want[kind] - slack]
    if acceptance is not None and acceptance < args.acceptance:
        faults.append(f"acceptance {acceptance} < {args.acceptance}")
    if acceptance is None and any("speculative" in flag or "mtp-step" in flag for flag in args.flags):
        faults.append("no draft was made")
    if code != 0:
        faults.append("it did not end after SIGTERM" if code is None else f"it ended with {code}")
    print(json.dumps({"scores": scores, "mtp_acceptance": acceptance, "questions": len(questions), "seconds": round(seconds, 1),
                      "ready_s": round(ready, 1), "faults": faults, "misses": misses[:20]}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
