"""What models write: two calls in each format, and texts of which formats are made."""

from __future__ import annotations

import dataclasses

from frontend.processing.tool_calls.tools import Tool

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
TOOLS = {name: Tool(name=name, parameters=SCHEMA, sent={}, field="") for name in ("weather", "now")}
ROME = '{"city": "Rome", "days": 3}'
"""Arguments of the first call; the second has none."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A format's two calls.

    Attributes:
        before: text that comes before them, where the format lets any come.
        one: the first call, whole and alone.
        several: both calls.
        ids: of the calls, where the format has them.
        parts: what texts of this format are made of.
    """

    one: str
    several: str
    parts: tuple[str, ...]
    before: str = "Look: "
    ids: tuple[str, str] = ("", "")


def _xml(city: str, days: str) -> str:
    return (
        "<tool_call>\n<function=weather>\n"
        f"<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n{days}\n</parameter>\n"
        "</function>\n</tool_call>"
    )


def _invoke(name: str, inner: str = "") -> str:
    return f'<invoke name="{name}">\n{inner}</invoke>\n'


_MINIMAX = _invoke(
    "weather",
    '<parameter name="city">Rome</parameter>\n<parameter name="days">3</parameter>\n',
)
_DEEPSEEK = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_KIMI = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def _v3(name: str, arguments: str) -> str:
    said = f"function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```"
    return f"{_CALL[0]}{said}{_CALL[1]}"


def _v31(name: str, arguments: str) -> str:
    return f"{_CALL[0]}{name}<｜tool▁sep｜>{arguments}{_CALL[1]}"


def _kimi(call_id: str, arguments: str) -> str:
    return f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def _hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def _harmony(name: str, arguments: str) -> str:
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{header}{arguments}<|call|>"


_GLM = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
_MISTRAL = f'[{{"name": "weather", "arguments": {ROME}, "id": "aB3dE6gH9"}}'
_LLAMA = f'{{"name": "weather", "parameters": {ROME}}}'
_JSON = ("{", "}", '"', "\\", ",", ":", '{"name": "now"', '"arguments": {', "NaN")

WRITTEN = {
    "hermes": Written(
        one=_hermes("weather", ROME),
        several=f"{_hermes('weather', ROME)}\n{_hermes('now', '{}')}",
        parts=("<tool_call>", "</tool_call>", *_JSON),
    ),
    "qwen3_coder": Written(
        one=_xml("Rome", "3"),
        several=f"{_xml('Rome', '3')}\n<function=now>\n</function>",
        parts=(
            "<tool_call>", "</tool_call>", "<function=weather>", "<function=other>", "</function>",
            "<parameter=city>", "</parameter>", ">",
        ),
    ),
    "deepseek_v3": Written(
        one=f"{_DEEPSEEK[0]}{_v3('weather', ROME)}{_DEEPSEEK[1]}",
        several=f"{_DEEPSEEK[0]}{_v3('weather', ROME)}\n{_v3('now', '{}')}{_DEEPSEEK[1]}",
        parts=(*_DEEPSEEK, *_CALL, "<｜tool▁sep｜>", "function", "now", "```json", "```", *_JSON),
    ),
    "deepseek_v31": Written(
        one=f"{_DEEPSEEK[0]}{_v31('weather', ROME)}{_DEEPSEEK[1]}",
        several=f"{_DEEPSEEK[0]}{_v31('weather', ROME)}{_v31('now', '{}')}{_DEEPSEEK[1]}",
        parts=(*_DEEPSEEK, *_CALL, "<｜tool▁sep｜>", "now", *_JSON),
    ),
    "glm45": Written(
        one=_GLM,
        several=f"{_GLM}\n<tool_call>now</tool_call>",
        parts=(
            "<tool_call>", "</tool_call>", "weather", "other", "<arg_key>", "</arg_key>",
            "<arg_value>", "</arg_value>",
        ),
    ),
    "kimi_k2": Written(
        one=f"{_KIMI[0]}{_kimi('functions.weather:0', ROME)}{_KIMI[1]}",
        several=f"{_KIMI[0]}{_kimi('functions.weather:0', ROME)}{_kimi('functions.now:1', '{}')}"
        f"{_KIMI[1]}",
        parts=(
            *_KIMI, "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
            "functions.now:0", *_JSON,
        ),
        ids=("functions.weather:0", "functions.now:1"),
    ),
    "mistral": Written(
        one=f"[TOOL_CALLS] {_MISTRAL}]",
        several=f'[TOOL_CALLS] {_MISTRAL}, {{"name": "now", "arguments": {{}}}}]',
        parts=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[", "]", "now", "other", *_JSON),
        ids=("aB3dE6gH9", ""),
    ),
    "llama3_json": Written(
        one=_LLAMA,
        several=f'{_LLAMA}; {{"name": "now", "parameters": {{}}}}',
        parts=("<|python_tag|>", ";", *_JSON),
        before="",
    ),
    "pythonic": Written(
        one='[weather(city="Rome", days=3)]',
        several="[weather(city='Rome', days=3),\n now()]<|python_end|>",
        parts=("[", "]", "(", ")", "now", "other", "a=", '"', "'", "\\", "<|python_start|>", "{"),
        before="",
    ),
    "harmony": Written(
        one=_harmony("weather", ROME),
        several=f"{_harmony('weather', ROME)}<|start|>assistant{_harmony('now', '{}')}",
        parts=(
            "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|end|>",
            "<|start|>assistant", "commentary", " to=functions.now", " to=functions.other", " json",
            *_JSON,
        ),
    ),
    "minimax_m2": Written(
        one=f"<minimax:tool_call>\n{_MINIMAX}</minimax:tool_call>",
        several=f"<minimax:tool_call>\n{_MINIMAX}{_invoke('now')}</minimax:tool_call>",
        parts=(
            "<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="now">', "</invoke>",
            '<invoke name="other">', '<parameter name="city">', "</parameter>", '">',
        ),
    ),
}  # fmt: skip
