"""Greedy texts and ids of the reference through HTTP, however the work is batched, chunked, cached, drafted or sharded."""

import concurrent.futures
import json

import pytest
from tokenizers import Tokenizer

VARIANTS = {
    "default": (),
    "chunks-of-7": ("--chunked-prefill-size", 7),
    "lookahead": ("--lookahead", 1),
    "mtp-1": ("--speculative-algorithm", "NEXTN", "--speculative-num-steps", 1),
    "mtp-2": ("--speculative-algorithm", "NEXTN", "--speculative-num-steps", 2),
    "mtp-2-chunks-lookahead": ("--mtp-step", 2, "--chunked-prefill-size", 61, "--lookahead", 1),
    "tp-2": ("--tp", 2),
    "tp-8": ("--tp", 8),
    "tp-2-mtp-1": ("--tp", 2, "--mtp-step", 1),
}
MAX_NEW = 64
EOS = 1


@pytest.fixture(scope="module")
def golden(golden_folder):
    cases = json.loads((golden_folder / "golden.json").read_text())
    assert len(cases) == 24
    return cases


@pytest.fixture(scope="module")
def decode(tiny):
    tokenizer = Tokenizer.from_file(tiny + "/tokenizer.json")
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request, serve):
    with serve(*VARIANTS[request.param]) as server:
        server.name = request.param
        yield server


def generate(server, case, **options):
    sampling = {"temperature": 0, "max_new_tokens": MAX_NEW}
    return server.ok("/generate", {"input_ids": case["token_ids"], "sampling_params": sampling, **options})


def complete(server, case):
    body = {"prompt": case["token_ids"], "max_tokens": MAX_NEW, "temperature": 0, "return_token_ids": True}
    return server.ok("/v1/completions", body)["choices"][0]


def wrong(case, got):
    """What to say of a generation that differs: where, and from what."""
    want = case["greedy_ids"]
    at = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), min(len(want), len(got)))
    return f"prompt {case['id']} {case['text'][:60]!r}: token {at} of {len(want)}: wanted {want[at:at + 4]}, got {got[at:at + 4]}"


def test_greedy(variant, golden, decode):
    """One after the other, then 32 at once: the same ids, by both routes, and the same from the prefix cache."""
    faults = []
    for case in golden:
        answer = generate(variant, case)
        if answer["output_ids"] != case["greedy_ids"]:
            faults.append(wrong(case, answer["output_ids"]))
            continue
        meta = answer["meta_info"]
        assert answer["text"] == decode(case["greedy_ids"]), case["id"]
        assert meta["prompt_tokens"] == len(case["token_ids"]) and meta["completion_tokens"] == len(case["greedy_ids"])
        ended = case["greedy_ids"][-1] == EOS
        assert meta["finish_reason"] == ({"type": "stop", "matched": EOS} if ended else {"type": "length", "length": MAX_NEW})
    assert not faults, f"{variant.name}: {len(faults)} of {len(golden)} differ:\n" + "\n".join(faults)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda case: (case, complete(variant, case)), golden + golden[:8]))
    faults = [wrong(case, choice["token_ids"]) for case, choice in answers if choice["token_ids"] != case["greedy_ids"]]
    assert not faults, f"{variant.name}, 32 at once: {len(faults)} differ:\n" + "\n".join(faults)
    for case, choice in answers:
        assert choice["text"] == decode(case["greedy_ids"]) and choice["prompt_token_ids"] == case["token_ids"]

    longest = max(golden, key=lambda case: len(case["token_ids"]))
    again = generate(variant, longest)
    assert again["output_ids"] == longest["greedy_ids"]
    cached = again["meta_info"]["cached_tokens"]
    assert cached % 64 == 0 and len(longest["token_ids"]) - 65 < cached < len(longest["token_ids"])
    variant.wait_idle()


def test_speculation_accepts(variant, golden):
    """Only meaningful after test_greedy, which made the drafts; asked again here so that it stands alone."""
    if "mtp" not in variant.name:
        assert variant.metric("dsv3:spec_decode_num_drafts_total") == 0
        return
    generate(variant, golden[0])
    drafts = variant.metric("dsv3:spec_decode_num_drafts_total")
    accepted = variant.metric("dsv3:spec_decode_num_accepted_tokens_per_pos_total", position="0")
    assert drafts > 0 and accepted / drafts > 0.8, f"{accepted} of {drafts} first drafts accepted"


def test_logprobs_are_the_references(server, golden):
    """The five best of every generated position within 1e-3 of the float32 reference."""
    worst = 0.0
    for case in golden[:12] + golden[-2:]:
        body = {"return_logprob": True, "top_logprobs_num": 5}
        meta = generate(server, case, **body)["meta_info"]
        assert len(meta["output_top_logprobs"]) == len(case["top5_logprobs"]) == len(case["greedy_ids"])
        for mine, theirs in zip(meta["output_top_logprobs"], case["top5_logprobs"]):
            mine = {token: value for value, token, _ in mine}
            for token, value in theirs:
                if token in mine:  # a tie for the fifth place may fall either way
                    worst = max(worst, abs(mine[token] - value))
                else:
                    assert abs(value - min(mine.values())) < 1e-3
    assert worst < 1e-3, f"largest difference {worst}"


def test_prefix_cache_off_gives_the_same(serve, golden):
    longest = max(golden, key=lambda case: len(case["token_ids"]))
    with serve("--disable-radix-cache") as server:
        for _ in range(2):
            answer = generate(server, longest)
            assert answer["output_ids"] == longest["greedy_ids"] and answer["meta_info"]["cached_tokens"] == 0


def test_small_cache(serve, golden):
    """A cache that holds a few requests at a time: all wait their turn and give the same ids."""
    with serve("--max-total-tokens", 1536, "--context-length", 1280) as server:
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda case: (case, generate(server, case)), golden + golden[:8]))
        faults = [wrong(case, answer["output_ids"]) for case, answer in answers if answer["output_ids"] != case["greedy_ids"]]
        assert not faults, "\n".join(faults)
        server.wait_idle()
