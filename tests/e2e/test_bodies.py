"""Random request bodies against the running server: each is answered with 2xx or a 4xx that says why, and nothing leaks."""

import http.client
import json
import random
import re
import threading

import pytest

COUNT = 4000
LEAK = re.compile(r"0x[0-9a-f]{6,}|\.(cpp|h|so)\b|/(src|build|usr|home|proc)/|std::|nlohmann|\[json\.exception", re.I)

WRONG = [None, True, False, 0, 1, -1, 1.5, "", "x", [], {}, [None], {"a": 1}, [[1]], "\u0000", "\ud7ff\U0001f642", 2**31, 2**63, 2**64, -2**63 - 1, 1e300, -0.0, "9" * 300]


class Bodies:
    """Draws bodies: mostly well formed, with one or two fields spoiled. Generations stay short."""

    def __init__(self, seed):
        self.draw = random.Random(seed)

    def number(self, low, high, whole=False):
        if self.draw.random() < 0.8:
            return self.draw.randint(low, high) if whole else self.draw.uniform(low, high)
        span = [low - 1, low, low + 1, (low + high) / 2, high - 1, high, high + 1]
        value = self.draw.choice(span)
        return int(value) if whole else self.draw.choice((value, value + 0.001))

    def text(self):
        kinds = ("x", "What is 2 + 3?", "violin", "naïve 东京 🙂", " " * 5, "<｜User｜>", "</think>", "\t\n\r", "a" * 40, "\u202e\u0301", "{}", "")
        return "".join(self.draw.choice(kinds) for _ in range(self.draw.choice((0, 1, 1, 2, 3))))

    def ids(self):
        ids = [self.draw.choice((0, 1, 2, 4079, 4094, 4095) if self.draw.random() < 0.1 else (5, 100, 2000, 4078))
               for _ in range(self.draw.choice((0, 95, 96, 97) if self.draw.random() < 0.15 else (1, 3, 20, 63, 64, 65, 92)))]
        return ids if self.draw.random() < 0.9 else [*ids, self.draw.choice((4096, -1))]

    def sampling(self):
        return {
            "temperature": self.number(0, 2), "top_p": self.number(0, 1), "top_k": self.draw.choice((-1, 0, 1, 5, 50, 4096, -2, 2**31) if self.draw.random() < 0.3 else (-1, 1, 5)),
            "min_p": self.number(0, 1), "frequency_penalty": self.number(-2, 2), "presence_penalty": self.number(-2, 2),
            "repetition_penalty": self.number(0, 2), "n": self.draw.choice((1, 1, 1, 1, 2, 3, 0, 129)), "ignore_eos": self.draw.random() < 0.5,
            "stop": self.draw.choice(("x", ["a", "b"], ["e", "n ", "東"], "<", "", ["\n"] * 16, ["\n"] * 17, "é" * 128, "é" * 129)),
            "stop_token_ids": self.draw.choice(([1], [], [0, 5], list(range(100, 400)), [4096])), "skip_special_tokens": self.draw.random() < 0.5,
            "logit_bias": self.draw.choice(({"5": 100}, {"4095": -100}, {"1": 50}, {"4085": 60}, {}, {"x": 1}, {"5": 101}, {"-1": 0}, {"5": "a"})),
        }

    def some(self, fields, share):
        return {name: value for name, value in fields.items() if self.draw.random() < share}

    def messages(self):
        def content():
            return self.draw.choice((self.text(), [{"type": "text", "text": self.text()}], [{"type": "image_url"}], None, 5, []))

        roles = ("system", "user", "assistant", "tool", "developer", "function", "USER", "robot")
        out = []
        for _ in range(self.draw.choice((0, 1, 1, 1, 2, 2, 3, 4))):
            message = {"role": self.draw.choice(roles if self.draw.random() < 0.1 else roles[:5]), "content": self.text() if self.draw.random() < 0.85 else content()}
            if self.draw.random() < 0.1:
                message["tool_calls"] = self.draw.choice(([], [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}], [{}], 5))
            if self.draw.random() < 0.1:
                message["reasoning_content"] = self.text()
            out.append(message)
        return out

    def openai(self):
        common = {
            **self.sampling(), "seed": self.draw.choice((0, -1, 42, 2**63 - 1, 2**63)), "stream": self.draw.random() < 0.5, "min_tokens": self.draw.choice((0, 2, 5)),
            "stream_options": self.draw.choice(({"include_usage": True}, {"continuous_usage_stats": True, "include_usage": True}, {}, {"include_usage": 1})),
            "rid": self.draw.choice(("r", "r" * 256, "r" * 257)), "cache_salt": "s", "priority": self.number(-1_000_000, 1_000_000, True),
            "model": self.draw.choice(("tiny", "default", "dsv3-tiny", "other")), "user": "u", "return_token_ids": True, "best_of": self.draw.choice((1, 1, 2)),
        }
        body = self.some(common, 0.12)
        body["max_tokens"] = self.draw.choice((1, 2, 3, 4) if self.draw.random() < 0.85 else (0, 30, 95, 96, 97))
        if self.draw.random() < 0.5:
            body["messages"] = self.messages()
            extra = {
                "logprobs": self.draw.random() < 0.7, "top_logprobs": self.draw.choice((0, 5, 20, 21)), "reasoning_effort": self.draw.choice(("none", "high", "x")),
                "chat_template_kwargs": self.draw.choice(({"thinking": True}, {"thinking": 1}, {"enable_thinking": False}, {"a": {"b": [1]}}, {"messages": []}, {"tools": 5}, {"bos_token": "x"})),
                "tools": self.draw.choice(([], [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}], [{"type": "function", "function": {"name": "f"}}], [{"type": "x"}], [5])),
                "tool_choice": self.draw.choice(("none", "auto", "required", {"type": "function", "function": {"name": "f"}}, {"type": "function"}, "x")),
                "separate_reasoning": self.draw.random() < 0.5, "stream_reasoning": self.draw.random() < 0.5, "parallel_tool_calls": self.draw.random() < 0.5,
                "continue_final_message": self.draw.random() < 0.5, "add_generation_prompt": self.draw.random() < 0.5,
                "response_format": self.draw.choice(({"type": "text"}, {"type": "json_object"}, {"type": "x"}, {})), "input_ids": self.ids(),
                "thinking": self.draw.choice(({"type": "enabled"}, {"type": "x"}, {})), "functions": [{"name": "f"}], "modalities": self.draw.choice((["text"], ["audio"])),
            }
            return "/v1/chat/completions", {**body, **self.some(extra, 0.15)}
        body["prompt"] = self.draw.choice((self.text(), [self.text(), self.text()], self.ids(), [self.ids(), self.ids()]))
        extra = {"echo": self.draw.random() < 0.7, "logprobs": self.draw.choice((0, 5, 20, 21, False, True)), "suffix": self.draw.choice(("", "x")), "add_special_tokens": False}
        return "/v1/completions", {**body, **self.some(extra, 0.2)}

    def native(self):
        params = self.some(self.sampling(), 0.12)
        new = self.draw.choice((0, 1, 3, 4) if self.draw.random() < 0.85 else (30, 95, 96, 97))
        form = self.draw.randrange(3)
        if form == 0:
            params |= {"max_new_tokens": new, **self.some({"min_new_tokens": self.draw.choice((0, 2, 5)), "sampling_seed": 3, "no_stop_trim": True}, 0.2)}
            name, prompt = self.draw.choice((("text", self.text()), ("text", [self.text(), "x"]), ("input_ids", self.ids()), ("input_ids", [self.ids(), [5]])))
            extra = {"return_logprob": True, "logprob_start_len": self.draw.choice((-1, 0, 2, 200)), "top_logprobs_num": self.draw.choice((0, 5, 21)),
                     "stream": self.draw.random() < 0.5, "rid": self.draw.choice(("r", ["r", "q"]))}
            return "/generate", {name: prompt, "sampling_params": self.draw.choice((params, params, params, [params], [params, params])), **self.some(extra, 0.25)}
        if form == 1:
            params |= {"max_new_tokens": new, **self.some({"do_sample": True, "return_details": True, "stop_sequences": self.draw.choice(("x", ["x"], [[5]], [[5, 6]], [[]], [5]))}, 0.2)}
            return self.draw.choice(("/generate", "/generate_stream")), {"inputs": self.draw.choice((self.text(), self.ids())), "parameters": params}
        body = {**params, "max_tokens": new, **self.some({"stream": True, "return_logprob": True, "session_id": self.draw.choice((-1, 0, 7, -2))}, 0.2)}
        return "/generate", {**body, **self.draw.choice(({"prompt": self.text()}, {"input_ids": self.ids()}))}

    def other(self):
        return self.draw.choice((
            ("/tokenize", {"prompt": self.draw.choice((self.text(), [self.text()], 5)), "return_token_strs": True}),
            ("/tokenize", {"messages": self.messages()}),
            ("/detokenize", {"tokens": self.draw.choice((self.ids(), [self.ids()], ["x"], 5))}),
            ("/abort_request", self.draw.choice(({"rid": "r"}, {"session_id": 7}, {}, {"rid": 5}))),
        ))

    def spoil(self, value):
        """Replaces one value somewhere inside by something of any type."""
        if isinstance(value, dict) and value and self.draw.random() < 0.9:
            key = self.draw.choice(list(value))
            return {**value, key: self.spoil(value[key])}
        if isinstance(value, list) and value and self.draw.random() < 0.7:
            at = self.draw.randrange(len(value))
            return value[:at] + [self.spoil(value[at])] + value[at + 1:]
        return self.draw.choice(WRONG)

    def one(self):
        path, body = self.draw.choices((self.openai, self.native, self.other), (60, 30, 10))[0]()
        limits = {"max_tokens", "max_new_tokens", "sampling_params", "parameters"}
        while self.draw.random() < 0.2:
            body = self.spoil(body)
        if isinstance(body, dict) and not limits & set(body):
            body["max_tokens"] = 2
        text = json.dumps(body, ensure_ascii=self.draw.random() < 0.5).encode("utf-8", "surrogatepass")
        if self.draw.random() < 0.03:
            at = self.draw.randrange(len(text))
            text = text[:at] + bytes([self.draw.randrange(256)]) + text[at + self.draw.randrange(3):]
        return path, text


def check_answer(status, kind, data):
    """What is wrong with an answer, or nothing."""
    if not (200 <= status < 300 or 400 <= status < 500):
        return "neither 2xx nor 4xx"
    text = data.decode("utf-8")  # every byte of every answer is valid UTF-8
    if kind.startswith("text/event-stream"):
        for event in text.split("\n\n"):
            payload = event.removeprefix("data:").strip()
            if payload and payload != "[DONE]":
                json.loads(payload)
        return None
    if kind.startswith("text/plain"):
        return None
    answer = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))
    if status < 400:
        return None
    message = answer.get("message") or answer["error"]["message"]
    if len(message) < 8 or len(message) > 1000:
        return "a message that says nothing, or too much"
    if LEAK.search(message):
        return "the message tells of internals"
    return None


@pytest.mark.parametrize("seed", [1])
def test_random_bodies(serve, seed, figure, sanitized):
    with serve("--context-length", 96, "--served-model-name", "tiny", "--max-running-requests", 16, "--mtp-step", 1) as server:
        pid = server.process.pid
        blocks = sum(value for (name, _), value in server.metrics().items() if name == "dsv3:kv_blocks")
        bodies = Bodies(seed)
        cases = [bodies.one() for _ in range(COUNT if not sanitized else COUNT // 4)]
        todo = iter(enumerate(cases))
        lock = threading.Lock()
        faults, statuses = [], {}

        def work():
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            while True:
                with lock:
                    i, (path, body) = next(todo, (None, (None, None)))
                if i is None or len(faults) > 10:
                    break
                try:
                    connection.request("POST", path, body, {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    data = answer.read()
                    wrong = check_answer(answer.status, answer.headers["Content-Type"], data)
                    status = answer.status
                except Exception as error:  # judged below, with the body that brought it about
                    wrong, status, data = f"{type(error).__name__}: {error}", "-", b""
                    connection.close()
                with lock:
                    statuses[status] = statuses.get(status, 0) + 1
                    if wrong:
                        faults.append(f"case {i} of seed {seed}: {wrong}\n  {path} {body[:400]!r}\n  {status} {data[:400]!r}")
            connection.close()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.process.poll() is None, "the server died:\n" + server.log()[-3000:] + "\n".join(faults)
        assert not faults, "\n".join(faults)
        server.wait_idle()
        assert server.process.pid == pid
        assert sum(value for (name, _), value in server.metrics().items() if name == "dsv3:kv_blocks") == blocks
        assert server.metric("dsv3:requests_failed_total") == 0
        figure("random bodies", f"{sum(statuses.values())}: {dict(sorted(statuses.items()))}")
        assert statuses.get(200, 0) > len(cases) / 5, f"the generator draws too few good bodies: {statuses}"
