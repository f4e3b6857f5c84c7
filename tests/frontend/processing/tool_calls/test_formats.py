"""What holds for every format: cuts, malformed text, unknown functions, text around calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.processing.tool_calls.call_reader import CallReader
from frontend.processing.tool_calls.events import CallBegun, Text
from frontend.processing.tool_calls.format import TurnReader
from frontend.processing.tool_calls.table import FORMATS
from tests.frontend.processing.tool_calls.reading import Calls, at_every_cut, read, tools_of
from tests.frontend.processing.tool_calls.written import ROME, TOOLS, WRITTEN

BOTH = [("weather", ROME), ("now", "{}")]


def of(name: str, max_calls: int | None = None) -> Callable[[], TurnReader]:
    return lambda: FORMATS[name].reader(TOOLS, max_calls)


def at_each(name: str, text: str) -> tuple[str, Calls]:
    return at_every_cut(of(name), text)


def test_every_format_is_written() -> None:
    assert set(WRITTEN) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_calls_are_read_at_every_cut(name: str) -> None:
    written = WRITTEN[name]
    assert at_each(name, written.before + written.several) == (written.before, BOTH)


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_begins_an_event_of_its_own_with_its_id(name: str) -> None:
    reader, written = of(name)(), WRITTEN[name]
    events = reader.push(written.several) + reader.flush()
    begun = [event for event in events if isinstance(event, CallBegun)]
    assert [event.number for event in begun] == [0, 1]
    for event, known in zip(begun, written.ids, strict=True):
        assert event.id == known or (name == "mistral" and len(event.id) == 9)


@pytest.mark.parametrize("name", FORMATS)
def test_blanks_around_calls_are_dropped_and_text_behind_is_content(name: str) -> None:
    written = WRITTEN[name]
    text = f"{written.before}{written.one}\n\n and so on"
    assert at_each(name, text) == (f"{written.before}and so on", BOTH[:1])


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_of_an_unknown_function_is_content(name: str) -> None:
    text = WRITTEN[name].one
    assert at_every_cut(lambda: FORMATS[name].reader(tools_of("other")), text) == (text, [])


@pytest.mark.parametrize("name", FORMATS)
def test_what_follows_as_many_calls_as_may_be_is_content(name: str) -> None:
    content, calls = read(of(name, 1)(), [WRITTEN[name].several])
    assert calls == BOTH[:1]
    assert "now" in content


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_is_cut_off_is_a_call_or_content_whole(name: str) -> None:
    """A stream that ends within it loses no character."""
    text = WRITTEN[name].one
    for end in range(len(text)):
        content, calls = read(of(name)(), [*text[:end]])
        assert (content, calls) == (text[:end], []) or (content, calls) == ("", BOTH[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_text_is_lost_and_no_cut_matters(name: str, data: st.DataObject) -> None:
    written = WRITTEN[name]
    piece = st.sampled_from([*written.parts, written.one, "a", " ", "\n", "<", "é"])
    text = "".join(data.draw(st.lists(piece, max_size=12)))
    content, calls = at_each(name, text)
    if not calls:
        assert content == text
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("name", FORMATS)
def test_a_mutilated_call_is_content(name: str) -> None:
    """Each character left out in turn: no error, and what is told is a call or all of the text."""
    text = WRITTEN[name].one
    for place in range(len(text)):
        broken = text[:place] + text[place + 1 :]
        content, calls = read(of(name)(), [broken])
        if not calls:
            assert content == broken
        for _, arguments in calls:
            json.loads(arguments)


@pytest.mark.parametrize("name", FORMATS)
def test_text_is_told_at_once(name: str) -> None:
    reader = of(name)()
    assert reader.push("It is 3 o'clock, ") == [Text("It is 3 o'clock, ")]
    assert reader.push("more") == [Text("more")]


def seconds(name: str, text: str) -> float:
    reader = of(name)()
    start = time.thread_time()
    for place in range(0, len(text), 4):
        reader.push(text[place : place + 4])
    reader.flush()
    return time.thread_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["long", "blanks", "unended", "tags"])
def test_reading_is_linear(name: str, kind: str) -> None:
    """Four times the text takes about four times the CPU time, not sixteen times."""
    written = WRITTEN[name]

    def text(size: int) -> str:
        match kind:
            case "long":
                return written.one.replace("Rome", "Rome " * size)
            case "blanks":
                return written.one + " " * 5 * size + written.one
            case "unended":
                return written.one[:-10] + "x" * 5 * size
            case _:
                return "".join(written.parts) * (size // 8)

    few, many = (min(seconds(name, text(size)) for _ in range(3)) for size in (4000, 16000))
    assert many < 9 * few, (few, many)


def test_readers_are_of_one_kind() -> None:
    assert all(isinstance(of(name)(), CallReader) for name in FORMATS)
