"""Calls in the text of a turn: where they end, what their arguments are, what is content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.processing.tool_calls.formats.hermes import BEGIN, END, HERMES
from frontend.processing.tool_calls.held_output import ListOfCalls
from frontend.processing.tool_calls.json_objects import ObjectScanner
from tests.frontend.processing.tool_calls.reading import at_every_cut, read, tools_of

NAMES = ("get", "now")
TOOLS = tools_of(*NAMES)


def call(arguments: str, name: str = "get") -> str:
    return f'{BEGIN}{{"name": "{name}", "arguments": {arguments}}}{END}'


def in_text(text: str) -> tuple[str, list[tuple[str, str]]]:
    return at_every_cut(lambda: HERMES.reader(TOOLS), text)


ARGUMENTS = [
    '{"s": "a</tool_call>b"}',
    '{"s": "<tool_call>{\\"name\\": \\"get\\"}</tool_call>"}',
    '{"x": 1e999, "y": 1.10, "z": 1E2}',
    '{"a": 1, "a": 2}',
    '{"q": "\\"}\\\\", "l": [[], {}, [{"b": null}], -0.5, true]}',
    '{ \n"s" :\t"é\\u00e9\\ud83d" }',
    f'{{"n": {"9" * 5000}}}',
    "{}",
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_are_the_models_own_text(arguments: str) -> None:
    if len(arguments) < 1000:
        assert in_text(f"Look:\n{call(arguments)}") == ("Look:\n", [("get", arguments)])
    assert read(HERMES.reader(TOOLS), [call(arguments)]) == ("", [("get", arguments)])


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (call("null"), "{}"),
        (f'{BEGIN}{{"name": "get"}}{END}', "{}"),
        (f'{BEGIN}{{"name": "get", "parameters": {{"a": 1.0}}}}{END}', '{"a": 1.0}'),
        (f'{BEGIN}{{"arguments": {{"n": 2, "m": 2}}, "name": "get"}}{END}', '{"n": 2, "m": 2}'),
        (call('"{\\"a\\": 1.0}"'), '{"a": 1.0}'),
        (f'{BEGIN}\n{{"name": "get", "arguments": {{}}}}', "{}"),
        (f'{BEGIN}\n{{"name": "get", "arguments": {{}}}}\n</tool', "{}"),
    ],
)
def test_other_spellings_of_a_call(text: str, arguments: str) -> None:
    assert in_text(text) == ("", [("get", arguments)])


NO_CALLS = [
    call('{"s": "a\nb"}'),
    call("{}}"),
    call("[1]"),
    call("5"),
    call('"text"'),
    call('"[1]"'),
    call('{"x": NaN}'),
    call('{"x": -Infinity}'),
    call('{"x": 01}'),
    call('{"x": "\\x"}'),
    call("{bad"),
    call("{}", name="other"),
    f'{BEGIN}[{{"name": "get", "arguments": {{}}}}]{END}',
    f'{BEGIN}{{"name": "get", "arguments": {{}}}} and {END} so on',
    f"{BEGIN}{END}",
    f'{BEGIN}{{"name": 5}}{END}',
    f"{BEGIN}\n<function=get>\n</function>\n{END}",
    f"the tag {BEGIN} begins one",
    f"{BEGIN} ",
    BEGIN + '{"a":' * 3000,
    call('{"s": "\n' + call("{}").replace('"', '\\"') + '"}'),  # broken, and it quotes another
    f"{BEGIN}{{bad {call('{}')}",
]


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_content(text: str) -> None:
    if len(text) < 1000:
        assert in_text(text) == (text, [])
    assert read(HERMES.reader(TOOLS), [text]) == (text, [])


def test_a_call_behind_what_is_none_is_made() -> None:
    for text in (f"`{BEGIN}` begins one. ", call("{bad"), call("{}}")):
        assert in_text(text + call("{}")) == (text, [("get", "{}")])


def test_only_as_many_calls_as_may_be_made() -> None:
    text = call("{}") + call("{}", name="now")
    found = at_every_cut(lambda: HERMES.reader(TOOLS, max_calls=1), text)
    assert found == (call("{}", name="now"), [("get", "{}")])


PIECES = st.sampled_from(
    ["a", " ", "\n", "<", BEGIN, END, "{", "}", "[", '"', "\\", ":", ",", "1", "NaN", "</",
     '{"name": "get"', '"arguments": {', '"s": "', call('{"s": "</tool_call>"}'), call("{}}")]
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=12))
def test_no_text_is_lost_and_no_cut_matters(pieces: list[str]) -> None:
    text = "".join(pieces)
    content, calls = in_text(text)
    if not calls:
        assert content == text
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


# ---- a list of calls, which the output was held to ----


def test_each_call_of_a_list_is_told_at_its_end() -> None:
    reader = ListOfCalls(NAMES)
    assert reader.push('[\n{"name":"now","arguments":{"a":"]}"}}') != []
    assert reader.push(',{"name":"get","arg') == []
    assert reader.push('uments":{}}') != []
    assert reader.push(" ]") == reader.flush() == []
    assert reader.num_calls == 2


WHOLE = '[\t{"name": "now", "arguments": {"a": "}, {"}},\n{"name":"get","arguments":{"b":[1.0]}}]'


@pytest.mark.parametrize("end", range(len(WHOLE) + 1))
def test_a_list_that_is_cut_has_its_whole_calls_and_the_beginning_of_one(end: int) -> None:
    expected = []
    for name, arguments in (("now", '{"a": "}, {"}'), ("get", '{"b":[1.0]}')):
        begin = WHOLE.index(arguments)
        if end > begin:
            expected.append((name, WHOLE[begin : min(end, begin + len(arguments))]))
    assert at_every_cut(lambda: ListOfCalls(NAMES), WHOLE[:end]) == ("", expected)


# ---- the scanner ----

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
).filter(lambda value: "Infinity" not in json.dumps(value))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    value=st.dictionaries(st.text(max_size=3), _JSON, max_size=3),
    indent=st.sampled_from([None, 1]),
    cut=st.integers(0, 200),
)
def test_an_object_ends_where_it_ends(value: Any, indent: int | None, cut: int) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=bool(indent))
    scanner = ObjectScanner()
    assert scanner.feed(text[:cut]) == min(cut, len(text))
    assert scanner.is_done == (cut >= len(text))
    assert scanner.feed(text[cut:] + "}") == max(0, len(text) - cut)
    assert scanner.is_done
    assert not scanner.is_broken


@settings(max_examples=300, deadline=None)
@given(st.text('{}[]",: 01.e-tru\\n', max_size=12).map(lambda text: "{" + text))
def test_what_is_json_is_not_broken(text: str) -> None:
    scanner = ObjectScanner()
    end = scanner.feed(text)
    try:
        value, length = json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError:
        return
    assert isinstance(value, dict)
    assert (scanner.is_done, end) == (True, length)
