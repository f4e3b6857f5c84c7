"""What is a format's own: other spellings of its calls, and what no call is."""

from __future__ import annotations

import pytest

from frontend.processing.tool_calls.table import FORMATS
from tests.frontend.processing.tool_calls.reading import Calls, at_every_cut
from tests.frontend.processing.tool_calls.written import ROME, TOOLS

CITY = '{"city": "Rome"}'
_TAGS = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def calls(*cities: str) -> Calls:
    return [("weather", f'{{"city": "{city}"}}') for city in cities]


def parameter(value: str) -> str:
    return f"<parameter=city>\n{value}\n</parameter>\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # The outer tags, or the lines' ends, are left out.
        ("qwen3_coder", f"<function=weather>{parameter('Rome')}</function>", calls("Rome")),
        (
            "qwen3_coder",
            "<tool_call><function=weather><parameter=city>Rome</parameter></function></tool_call>",
            calls("Rome"),
        ),
        # A value holds tags, and its own blanks.
        (
            "qwen3_coder",
            f"<function=weather>\n{parameter('a</parameter> b</tool_call>')}</function>",
            calls("a</parameter> b</tool_call>"),
        ),
        ("qwen3_coder", f"<function=weather>{parameter('  a')}</function>", calls("  a")),
        (
            "glm45",
            "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>",
            calls("Rome"),
        ),
        ("glm45", "<tool_call>now\n</tool_call>", [("now", "{}")]),
        (
            "minimax_m2",
            '<minimax:tool_call><invoke name="weather"><parameter name="city">Rome</parameter>'
            "</invoke></minimax:tool_call>",
            calls("Rome"),
        ),
        ("deepseek_v3", f"{_TAGS[1]}function{_TAGS[2]}weather\n```json\n{CITY}", calls("Rome")),
        ("deepseek_v31", f"{_TAGS[1]}weather{_TAGS[2]}{CITY}", calls("Rome")),
        (
            "kimi_k2",
            "<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|><|tool_call_end|>",
            [("now", "{}")],
        ),
        ("mistral", f"[TOOL_CALLS]weather[ARGS]{CITY}[TOOL_CALLS]now{{}}",
         [*calls("Rome"), ("now", "{}")]),
        ("mistral", f"[TOOL_CALLS]weather[CALL_ID]aB3dE6gH9[ARGS]{CITY}", calls("Rome")),
        ("llama3_json", f'<|python_tag|>{{"name": "weather", "parameters": {CITY}}}',
         calls("Rome")),
        ("llama3_json", f'\n{{"type": "function", "name": "weather", "parameters": {CITY}}}',
         calls("Rome")),
        ("pythonic", '<|python_start|>[weather(city="Rome")]<|python_end|>', calls("Rome")),
        ("pythonic", "[weather(city='it\\'s [', days=-3, c=[1.5, (true, None)], d={'e': null})]",
         [("weather", '{"city": "it\'s [", "days": -3, "c": [1.5, [true, null]], '
           '"d": {"e": null}}')]),
    ],
)  # fmt: skip
def test_other_spellings(name: str, text: str, expected: Calls) -> None:
    content, found = at_every_cut(lambda: FORMATS[name].reader(TOOLS), text)
    assert (content.strip(), found) == ("", expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3_coder", "the tag <tool_call> begins one"),
        ("qwen3_coder", "<function=weather>city</function>"),
        ("qwen3_coder", f"<function=weather>{parameter('Rome')}"),
        ("glm45", "the tag <tool_call> begins a call of some function of yours"),
        ("glm45", "<tool_call>weather<arg_key>city</arg_key>Rome</tool_call>"),
        ("minimax_m2", "<minimax:tool_call>nothing</minimax:tool_call>"),
        ("deepseek_v31", f"{_TAGS[0]} is a tag"),
        ("deepseek_v31", f"{_TAGS[1]}weather{_TAGS[2]}[1]{_TAGS[3]} and so on"),
        ("kimi_k2", "<|tool_call_begin|>call_1<|tool_call_argument_begin|>{}<|tool_call_end|>"),
        ("mistral", "[TOOL_CALLS] is a tag of models that call functions"),
        ("mistral", '[TOOL_CALLS][{"name": "other", "arguments": {}}]'),
        ("llama3_json", '{"city": "Rome"}'),
        ("llama3_json", 'So: {"name": "now", "parameters": {}}'),
        ("llama3_json", '{"a": 1} {"name": "now", "parameters": {}}'),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[now(1)]"),
        ("pythonic", "[now(**{'a': 1})]"),
        ("pythonic", "[now(a=b)]"),
        ("pythonic", "[now(a=1e999)]"),
        ("pythonic", "[now(a='\\ud800')]"),
        ("pythonic", "[now(a=b'x')]"),
        ("pythonic", "[now(a={1: 2})]"),
        ("pythonic", "[now(a=__import__('os'))]"),
        ("pythonic", "[now(a=" + "[" * 300 + "]" * 300 + ")]"),
    ],
)
def test_what_is_no_call_is_content(name: str, text: str) -> None:
    assert at_every_cut(lambda: FORMATS[name].reader(TOOLS), text) == (text, [])


def test_a_list_tells_its_calls_and_what_is_none() -> None:
    other = '{"name": "other", "arguments": {}}'
    text = f'[TOOL_CALLS][{other}, {{"name": "weather", "arguments": {ROME}}}]'
    found = at_every_cut(lambda: FORMATS["mistral"].reader(TOOLS), text)
    assert found == (other, [("weather", ROME)])


def test_a_section_goes_on_behind_what_is_no_call() -> None:
    text = f"{_TAGS[0]}{_TAGS[1]}other{_TAGS[2]}{{}}{_TAGS[3]}{_TAGS[1]}now{_TAGS[2]}{{}}{_TAGS[3]}"
    content, found = at_every_cut(lambda: FORMATS["deepseek_v31"].reader(TOOLS), text)
    assert found == [("now", "{}")]
    assert content == f"{_TAGS[0]}{_TAGS[1]}other{_TAGS[2]}{{}}{_TAGS[3]}"
