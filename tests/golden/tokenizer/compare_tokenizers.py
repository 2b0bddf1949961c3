#!/usr/bin/env python3
"""Compares our tokenizer with the Hugging Face `tokenizers` package: ids of texts, and texts of ids.

    python tests/golden/tokenizer/compare_tokenizers.py [--cli build/release/tests/golden/tokenizer/tokenize_cli]

Prints `N equal, M different` for each tokenizer file, the first differences in full with a line that repeats each,
and exits with 1 if there is one.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time

import tokenizers

from corpus import Corpus

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
DATA = os.path.join(ROOT, "tests", "data")
MAX_SHOWN = 5

# Added tokens that overlap each other, in both of the reference's passes (tokens that are not normalized go first).
OVERLAPPING = [("<a>", True), ("<a>b", True), ("a>b<", False), ("b<a", True), ("<a>bc", False), ("xqy", True),
               ("qyz", False), ("xqyz", True), ("zqzqz", False), ("zqz", True), ("é｜è", True), ("中文字", False), ("文", True),
               ("a b", True), (" ", False), ("\n\n", True), ("1234567", True), ("4567890", False)]


def overlapping_file(folder):
    """The tiny tokenizer with OVERLAPPING in place of its own added tokens past the vocabulary."""
    with open(os.path.join(DATA, "dsv3-tiny", "tokenizer.json"), encoding="utf-8") as file:
        data = json.load(file)
    vocab = data["model"]["vocab"]
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < len(vocab)]
    for content, normalized in OVERLAPPING:
        if content in vocab:
            raise SystemExit(f"{content!r} is a word of the tiny vocabulary; choose another")
        data["added_tokens"].append({
            "id": len(vocab) + sum(token["id"] >= len(vocab) for token in data["added_tokens"]), "content": content,
            "single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": False})
    path = os.path.join(folder, "tokenizer.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file)
    return path


def run_cli(cli, path, mode, records):
    sent = b"".join(struct.pack("<I", len(record)) + record for record in records)
    answer = subprocess.run([cli, path, mode], input=sent, stdout=subprocess.PIPE, check=True).stdout
    at, out = 0, []
    while at < len(answer):
        (size,) = struct.unpack_from("<I", answer, at)
        out.append(answer[at + 4:at + 4 + size])
        at += 4 + size
    if len(out) != len(records):
        raise SystemExit(f"{cli} answered {len(out)} of {len(records)} records")
    return out


def unpack_ids(record):
    return list(struct.unpack(f"<{len(record) // 4}i", record))


def first_difference(ours, reference):
    at = next((i for i, (a, b) in enumerate(zip(ours, reference)) if a != b), min(len(ours), len(reference)))
    return f"at {at}: ours {ours[at:at + 12]}, reference {reference[at:at + 12]}"


class Comparison:
    def __init__(self, name, path, args):
        self.name, self.path, self.args = name, path, args
        self.reference = tokenizers.Tokenizer.from_file(path)
        added = [token.content for _, token in sorted(self.reference.get_added_tokens_decoder().items())]
        corpus = Corpus(args.seed, added)
        # Classes of characters do not depend on the vocabulary: one file is enough for all of them.
        self.texts = list(corpus.texts(with_every_code_point=name == "deepseek-v3"))
        self.id_lists = list(corpus.id_lists(self.reference.get_vocab_size()))
        self.equal = self.different = 0

    def report(self, kind, index, given, ours, reference):
        if ours == reference:
            self.equal += 1
            return
        self.different += 1
        if self.different > MAX_SHOWN and self.args.only is None:
            return
        print(f"--- {self.name} {kind} #{index}\n  given     {given!r}\n  ours      {ours!r}\n  reference {reference!r}")
        print(f"  {first_difference(ours, reference)}")
        print(f"  rerun: {sys.executable} {os.path.relpath(__file__)} --cli {self.args.cli} --seed {self.args.seed} "
              f"--file {self.name} --only {index}")

    def chosen(self, items, base):
        return [(base + i, item) for i, item in enumerate(items) if self.args.only in (None, base + i)]

    def run(self):
        texts = self.chosen(self.texts, 0)
        given = [text if isinstance(text, bytes) else text.encode() for _, (_, text) in texts]
        ours = run_cli(self.args.cli, self.path, "encode", given)
        # A broken byte is replaced before the reference sees it: Python does so by the same rule of Unicode.
        encodings = self.reference.encode_batch_fast([data.decode("utf-8", "replace") for data in given],
                                                     add_special_tokens=False)
        for (index, (kind, text)), record, encoding in zip(texts, ours, encodings):
            self.report(kind, index, text, unpack_ids(record), encoding.ids)

        lists = self.chosen(self.id_lists, len(self.texts))
        ours = run_cli(self.args.cli, self.path, "decode", [struct.pack(f"<{len(ids)}i", *ids) for _, ids in lists])
        decoded = self.reference.decode_batch([ids for _, ids in lists], skip_special_tokens=False)
        for (index, ids), record, text in zip(lists, ours, decoded):
            self.report("decode", index, ids, record.decode(), text)
        return self.different == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cli", default=os.path.join(ROOT, "build/release/tests/golden/tokenizer/tokenize_cli"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", choices=["deepseek-v3", "tiny", "overlapping"], help="compare this one only")
    parser.add_argument("--only", type=int, metavar="INDEX", help="compare this item only")
    args = parser.parse_args()

    good = True
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "deepseek-v3": os.path.join(DATA, "deepseek-v3-tokenizer", "tokenizer.json"),
            "tiny": os.path.join(DATA, "dsv3-tiny", "tokenizer.json"),
            "overlapping": overlapping_file(folder),
        }
        for name, path in files.items():
            if args.file not in (None, name):
                continue
            begin = time.monotonic()
            comparison = Comparison(name, path, args)
            good = comparison.run() and good
            print(f"{name}: {comparison.equal} equal, {comparison.different} different "
                  f"({time.monotonic() - begin:.1f} s)", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
