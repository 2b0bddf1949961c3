"""The 450 questions of the evaluation through chat completions at temperature 0: quality, and how often drafts hold."""

import concurrent.futures
import json

import pytest

from prompts import user

SPECULATION = ("--speculative-algorithm", "NEXTN", "--speculative-num-steps", 1)
MODES = {
    # Scores may not fall below the reference's; W8A8 sums in another order than the reference did, which may cost a question.
    "exact": ((), "fp8_weights", 0.0),
    "w8a8": (("--fp8-mode", "w8a8"), "w8a8", 0.01),
}


@pytest.fixture(scope="module")
def questions(golden_folder):
    return [json.loads(line) for line in (golden_folder / "eval.jsonl").read_text().splitlines()]


def answer(server, question):
    body = {"messages": user(question["question"]), "temperature": 0, "max_tokens": 512,
            "chat_template_kwargs": {"thinking": question["thinking"]}}
    return server.ok("/v1/chat/completions", body)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("mode", MODES)
def test_scores(serve, questions, golden_folder, figure, mode):
    flags, reference, slack = MODES[mode]
    want = json.loads((golden_folder / "eval_scores.json").read_text())[reference]
    with serve(*flags, *SPECULATION) as server:
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda question: answer(server, question), questions))
        drafts = server.metric("dsv3:spec_decode_num_drafts_total")
        accepted = server.metric("dsv3:spec_decode_num_accepted_tokens_per_pos_total", position="0")
        server.wait_idle()
    right = {}
    misses = []
    for question, got in zip(questions, answers):
        right.setdefault(question["kind"], []).append(got == question["answer"])
        if got != question["answer"]:
            misses.append(f"{question['question']!r}: wanted {question['answer']!r}, got {got!r}")
    scores = {kind: round(sum(marks) / len(marks), 4) for kind, marks in right.items()}
    acceptance = accepted / drafts
    figure(f"eval {mode}", f"{scores} mtp_acceptance {acceptance:.4f} ({accepted:.0f} of {drafts:.0f})")
    for kind, score in scores.items():
        assert score >= want[kind] - slack, f"{mode} {kind}: {score} < {want[kind]}; misses:\n" + "\n".join(misses[:20])
    assert acceptance >= 0.99, f"{mode}: {accepted} of {drafts} first drafts accepted"
