"""Generated conversations, rendered from each chat template by jinja2 and by us: equal texts, or errors in both; and
the bytes that we call untrusted are the client's, no more and no fewer."""
import copy
import json
import pathlib
import random
import re
import sys

from jinja_reference import Renderer, environment

NUM_CONVERSATIONS = 400
CONTROL = ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜tool▁calls▁begin｜>",
           "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<think>", "</think>", "<｜tool▁outputs▁end｜>", "<｜User", "｜>", "<|EOT|>"]
WORDS = ["hello", "Wörld", "漢字かな", "😀", "\n", "\n\n", " ", "  ", "```json\n{}\n```", "{{ x }}", "{% if %}", "'q'", '"d"', "\\n", "\t",
         "e\u0301", "\u00a0", "\u200b", "</s>", "1,234.5", "a" * 50, "\x7f", "\x01"]
BUILTINS = ["deepseek-v3", "deepseek-v3-0324", "deepseek-r1", "deepseek-r1-0528", "deepseek-v3.1"]


def text(rng, most=6):
    return "".join(rng.choice(CONTROL if rng.random() < 0.25 else WORDS) for _ in range(rng.randint(0, most)))


def name(rng):
    return rng.choice(["get_weather", "search", "f", "run-code_2"])


def call(rng):
    arguments = json.dumps({text(rng, 2): rng.choice([1, 2.5, None, True, text(rng, 3), [1, {"k": text(rng, 1)}]])}, ensure_ascii=rng.random() < 0.5)
    return {"id": "call_1", "type": "function", "function": {"name": name(rng), "arguments": arguments}}


def tool(rng):
    function = {"name": name(rng), "description": text(rng), "parameters": {
        "type": "object", "properties": {text(rng, 1) or "p": {"type": "string", "enum": [text(rng, 2), "é"]}, "n": {"type": "number", "maximum": rng.choice([1, 1.5, 1e30, -0.0, 2 ** 63])}},
        "required": ["n"], "additionalProperties": False}}
    for key in ("description", "parameters"):
        if rng.random() < 0.15:
            del function[key]
    return {"type": "function", "function": function}


def conversation(rng):
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": text(rng)})
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": text(rng)})
        while rng.random() < 0.3:
            message = {"role": "assistant", "content": rng.choice([None, "", text(rng)]), "tool_calls": [call(rng) for _ in range(rng.randint(1, 3))]}
            if rng.random() < 0.15:
                del message["content"]
            messages.append(message)
            messages += [{"role": "tool", "content": text(rng), "tool_call_id": "call_1"} for _ in message["tool_calls"]]
        if rng.random() < 0.7:
            message = {"role": "assistant", "content": text(rng)}
            if rng.random() < 0.3:
                message["content"] = "<think>\n" + text(rng) + "</think>\n\n" + message["content"]
            if rng.random() < 0.1:
                message["tool_calls"] = None
            if rng.random() < 0.1:
                message["content"] = None
            if rng.random() < 0.1:
                message["prefix"] = True
            messages.append(message)
        if rng.random() < 0.1:
            messages.append({"role": "system", "content": text(rng)})
    if rng.random() < 0.5:
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
    tools = [tool(rng) for _ in range(rng.randint(1, 3))] if rng.random() < 0.4 else None
    kwargs = {"thinking": rng.random() < 0.5} if rng.random() < 0.7 else {}
    return messages, tools, kwargs, rng.random() < 0.8


# Letters and signs of clients become private characters, one for one, so that in a second rendering everything of the
# template's can be told from everything of a client's. What decides what a template does stays: white space, what JSON
# escapes, keys and roles, and "</think>", at which templates cut.
def disguise(value, path=()):
    if isinstance(value, dict):
        fixed = path[:1] == ("messages",) or path in (("tools",), ("tools", "function"))
        return {key if fixed or path[-1:] == ("function",) else disguise(key, path + ("key",)): disguise(item, path + (key,)) for key, item in value.items()}
    if isinstance(value, list):
        return [disguise(item, path) for item in value]
    if isinstance(value, str) and path[-1:] not in (("role",),):
        return "</think>".join("".join(chr(0xF0000 + ord(c)) if c.isalnum() and ord(c) < 0xFFFD or c in "<>｜▁|/-_.{}%'`," else c for c in part)
                               for part in value.split("</think>"))
    return value


def check_ranges(answer, disguised, where):
    """Every disguised character lies in an untrusted range of the original, every character of a template outside."""
    trusted = bytearray(b"\x01" * len(answer["text"].encode()))
    for begin, end in answer["untrusted"]:
        trusted[begin:end] = bytes(end - begin)
    original = answer["text"]
    assert len(original) == len(disguised), f"{where}: lengths differ, cannot compare"
    keys = {i for found in re.finditer('"(type|function|name|description|parameters)": ', original) for i in range(*found.span())}
    checked = offset = 0
    for before, after in zip(original, disguised):
        size = len(before.encode())
        marks = set(trusted[offset:offset + size])
        offset += size
        if ord(after) >= 0xF0000:
            assert marks == {0}, f"{where}: byte {offset - size} ({before!r}) is the client's, but trusted"
        elif after in "<>｜▁|_" or (after.isalpha() and after.isascii()):
            # Keys of a tool are the client's, but were not disguised, as templates look them up.
            escaped = checked in keys or original[checked - 1:checked] == "\\"  # of a client's control character, in JSON
            inside_tag = escaped or any(original[max(0, i):].startswith("</think>") for i in range(checked - 8, checked + 1))
            assert inside_tag or marks == {1}, f"{where}: byte {offset - size} ({before!r} in {original[checked - 20:checked + 20]!r}) is the template's, but not trusted"
        checked += 1


def main():
    render = Renderer(sys.argv[1])
    data = pathlib.Path(sys.argv[2])
    env = environment()
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    sources = {folder: json.loads((data / folder / "tokenizer_config.json").read_text())["chat_template"] for folder in ("dsv3-tiny", "deepseek-v3-tokenizer")}
    sources |= {builtin: render(source_of=builtin)["source"] for builtin in BUILTINS}
    compiled = {label: env.from_string(source) for label, source in sources.items()}
    same_as_published = 0
    counts = {label: [0, 0, 0] for label in sources}  # texts equal, errors in both, ranges checked
    for seed in range(NUM_CONVERSATIONS):
        messages, tools, kwargs, generate = conversation(random.Random(seed))
        texts = {}
        for label, source in sources.items():
            def reference(m, t):
                return compiled[label].render(messages=copy.deepcopy(m), tools=copy.deepcopy(t), documents=None, add_generation_prompt=generate, bos_token=bos, eos_token=eos, **kwargs)

            def ours(m, t):
                which = {"builtin": label} if label in BUILTINS else {"jinja": source, "bos": bos, "eos": eos}
                return render(messages=m, tools=t, kwargs=kwargs, add_generation_prompt=generate, **which)

            where = f"seed {seed}, {label}"
            answer = ours(messages, tools)
            try:
                want = reference(messages, tools)
            except Exception as error:  # noqa: BLE001: the template refuses these messages; so must we
                assert "error" in answer, f"{where}: jinja2 says {error!r}, we render {answer['text']!r}"
                assert label not in BUILTINS, f"{where}: a built-in template must take every conversation: {error!r}"
                counts[label][1] += 1
                continue
            assert "error" not in answer, f"{where}: {answer['error']}\n{json.dumps(messages, ensure_ascii=False)}"
            assert answer["text"] == want, f"{where}:\n{want!r}\n{answer['text']!r}"
            texts[label] = want
            counts[label][0] += 1
            check_ranges(answer, reference(disguise(messages, ("messages",)), disguise(tools, ("tools",))), where)
            counts[label][2] += 1
        # Our deepseek-v3 is the published one, but for tools and for calls that come with empty instead of null content.
        if tools is None and "deepseek-v3-tokenizer" in texts and not any(m.get("tool_calls") and m["content"] == "" for m in messages):
            assert texts["deepseek-v3"] == texts["deepseek-v3-tokenizer"], f"seed {seed}: {texts}"
            same_as_published += 1
    print(f"deepseek-v3 equals the published template in {same_as_published} conversations")
    for label, (equal, errors, ranges) in counts.items():
        print(f"{label}: {equal} texts equal, {errors} refused by both, {ranges} with exact ranges")


main()
