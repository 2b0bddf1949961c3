"""Requests whose answers the small model knows by heart, and small helpers around them."""

GREEDY = {"temperature": 0}
THINK = {"chat_template_kwargs": {"thinking": True}}


def user(text):
    return [{"role": "user", "content": text}]


def tool(name, about, argument):
    schema = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


WEATHER = tool("get_weather", "Get the weather of a city.", "city")
TIME = tool("get_time", "Get the local time of a city.", "city")
TOOLS = [WEATHER, TIME]

# Prompts as the chat template renders them, for routes without one. BOS is added by the server.
COUNT = "<｜User｜>Count from 5 to 12.<｜Assistant｜></think>"
COUNTED = "5 6 7 8 9 10 11 12"
STORY = "Once upon a time, there was a rabbit named"

# Long enough for whole blocks of 64 tokens, which is what the prefix cache keeps.
LONG_TEXT = " ".join(f"The code of the {color} {animal} is {1000 + 37 * i}." for i, (color, animal) in enumerate(
    (color, animal) for color in ("red", "blue", "green", "white") for animal in ("cat", "dog", "fox", "bear", "owl")))
