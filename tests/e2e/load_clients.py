"""How five load generators read answers, rebuilt from the description of each: what they send, what they choke on.

Every reader takes a `requests` session and an address, raises where the tool would count the request as failed or die,
and returns the figures that the tool would compute from."""

import json

PREFIX = "data: "


class Result:
    def __init__(self):
        self.text = ""
        self.output_len = None  # as the tool believes it
        self.events = 0  # what the tool would time
        self.first = None


def body_of(fields):
    """The bytes that aiohttp and requests send for json=fields."""
    return json.dumps(fields).encode()


def post(session, url, fields, **headers):
    return session.post(url, data=body_of(fields), headers={"Content-Type": "application/json", **headers}, stream=True, timeout=120)


def lines_of(answer):
    """sglang's and LMDeploy's loop: stripped lines, blank ones skipped, the prefix removed, [DONE] noted; all else is JSON."""
    assert answer.status_code == 200, (answer.status_code, answer.reason)
    done = False
    seen = False
    for raw in answer.iter_lines(chunk_size=None):
        line = raw.strip().decode("utf-8")
        if not line:
            continue
        assert not done, "a line after [DONE]"
        seen = True
        line = line.removeprefix(PREFIX)
        if line == "[DONE]":
            done = True
            continue
        yield json.loads(line)
    assert seen, "no line at all"


def sglang_completions(session, base, model, prompt, output_len, stream=True):
    fields = {"model": model, "prompt": prompt, "temperature": 0.0, "best_of": 1, "max_tokens": output_len, "stream": stream, "ignore_eos": True}
    out = Result()
    out.output_len = output_len
    for data in lines_of(post(session, base + "/v1/completions", fields)):
        if data["choices"][0]["text"]:
            out.events += 1
            out.text += data["choices"][0]["text"]
            out.output_len = (data.get("usage") or {}).get("completion_tokens", output_len)
    return out


def sglang_chat(session, base, model, prompt, output_len):
    fields = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0, "max_tokens": output_len, "stream": True}
    out = Result()
    out.output_len = output_len
    for data in lines_of(post(session, base + "/v1/chat/completions", fields)):
        if data["choices"][0]["delta"].get("content"):
            out.events += 1
            out.text += data["choices"][0]["delta"]["content"]
        out.output_len = (data.get("usage") or {}).get("completion_tokens", out.output_len)
    return out


def sglang_native(session, base, prompt, output_len):
    fields = {"text": prompt, "sampling_params": {"temperature": 0.0, "max_new_tokens": output_len, "ignore_eos": True}, "stream": True,
              "lora_path": None, "return_logprob": False, "logprob_start_len": -1}
    out = Result()
    last = 0
    for data in lines_of(post(session, base + "/generate", fields)):
        if data["text"]:
            now = data["meta_info"]["completion_tokens"]
            assert now >= last, "completion_tokens fell"
            out.events += now - last
            last, out.text, out.output_len = now, data["text"], now
    return out


def lmdeploy_chat(session, base, model, prompt, output_len):
    """Reads choices[0] of every chunk; always shows a key, if only the word None."""
    fields = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0, "max_completion_tokens": output_len,
              "stream": True, "ignore_eos": True}
    out = Result()
    out.output_len = output_len
    for data in lines_of(post(session, base + "/v1/chat/completions", fields, Authorization="Bearer None")):
        delta = data["choices"][0]["delta"]
        if delta.get("content"):
            out.events += 1
            out.text += delta["content"]
    return out


def vllm_messages(answer):
    """Buffers bytes, splits at LF LF, drops comments, removes the prefix, ends at [DONE]."""
    assert answer.status_code == 200, (answer.status_code, answer.reason)
    buffer = b""
    for piece in answer.iter_content(chunk_size=None):
        buffer += piece
        while b"\n\n" in buffer:
            message, buffer = buffer.split(b"\n\n", 1)
            message = message.decode("utf-8").strip()
            if not message or message.startswith(":"):
                continue
            message = message.removeprefix(PREFIX)
            if message == "[DONE]":
                return
            yield json.loads(message)
    raise AssertionError("no [DONE]")


def vllm(session, base, model, prompt, output_len, chat):
    if chat:
        url = base + "/v1/chat/completions"
        fields = {"model": model, "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
                  "max_completion_tokens": output_len, "stream": True, "stream_options": {"include_usage": True}}
    else:
        url = base + "/v1/completions"
        fields = {"model": model, "prompt": prompt, "repetition_penalty": 1.0, "max_tokens": output_len, "logprobs": None, "stream": True,
                  "stream_options": {"include_usage": True}}
    fields |= {"temperature": 0.0, "ignore_eos": True}
    out = Result()
    for data in vllm_messages(post(session, url, fields, **{"x-request-id": "bench-0"})):
        if data.get("choices"):
            choice = data["choices"][0]
            out.events += 1  # the first one is taken for the first token whatever its text
            if out.first is None:
                out.first = choice
            out.text += (choice["delta"].get("content") if chat else choice.get("text")) or ""
        elif data.get("usage"):
            out.output_len = data["usage"]["completion_tokens"]
    assert out.events, "no chunk at all"
    return out


def lightllm_native(session, base, prompt, output_len):
    """Every non-empty line is one token."""
    fields = {"inputs": prompt, "parameters": {"do_sample": False, "ignore_eos": True, "max_new_tokens": output_len}}
    answer = post(session, base + "/generate_stream", fields)
    if answer.status_code != 200:
        raise AssertionError(answer.json())
    out = Result()
    out.events = out.output_len = sum(1 for line in answer.iter_lines() if line)
    return out


def lightllm_openai(session, base, model, prompt, output_len):
    """Each HTTP chunk, read with at most 8192 bytes, must be one whole event."""
    fields = {"model": model, "prompt": prompt, "n": 1, "ignore_eos": True, "max_tokens": output_len, "stream": True}
    answer = post(session, base + "/v1/completions", fields)
    assert answer.status_code == 200
    out = Result()
    for chunk in answer.iter_content(chunk_size=8192):
        data = chunk.strip()[6:].decode("utf-8")
        if data == "[DONE]":
            continue
        text = json.loads(data)["choices"][0]["text"]
        if text:
            out.events += 1
            out.text += text
    return out


def gsm8k_generate(session, base, prompt, stop):
    """The non-stream call of the few-shot evaluation, with every null that its library sends."""
    fields = {"text": prompt, "sampling_params": {
        "skip_special_tokens": True, "spaces_between_special_tokens": True, "max_new_tokens": 64, "min_new_tokens": 0, "n": 1, "stop": stop,
        "stop_token_ids": None, "stop_regex": None, "temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "frequency_penalty": 0,
        "presence_penalty": 0, "ignore_eos": False, "regex": None, "json_schema": None, "dtype": None}}
    answer = session.post(base + "/generate", json=fields, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["text"], answer.json()["meta_info"]["completion_tokens"]


def lm_eval_loglikelihood(session, base, model, context, continuation):
    """Sum of the continuation's log probabilities and whether greedy decoding would have written it."""
    fields = {"model": model, "prompt": [context + continuation], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = session.post(base + "/v1/completions", json=fields, timeout=120)
    assert answer.status_code == 200, answer.text
    choice = sorted(answer.json()["choices"], key=lambda entry: entry["index"])[0]
    values = choice["logprobs"]["token_logprobs"][len(context):-1]
    tops = choice["logprobs"]["top_logprobs"][len(context):-1]
    assert len(values) == len(continuation)
    return sum(values), all(value == max(top.values()) for value, top in zip(values, tops))
