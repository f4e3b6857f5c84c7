"""Reads whole texts, and the same texts cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from frontend.processing.tool_calls.events import Arguments, CallBegun, Event, Text
from frontend.processing.tool_calls.format import TurnReader
from frontend.processing.tool_calls.tools import Tool


def tools_of(*names: str) -> dict[str, Tool]:
    """Functions with any arguments."""
    return {name: Tool(name=name, parameters={}, sent={}, field="") for name in names}


Calls = list[tuple[str, str]]


def told(events: Iterable[Event]) -> tuple[str, Calls]:
    """Content, and the name and arguments of each call."""
    content, calls = "", Calls()
    for event in events:
        match event:
            case Text(text):
                content += text
            case CallBegun(number, name):
                assert number == len(calls)
                calls.append((name, ""))
            case Arguments(number, text):
                name, so_far = calls[number]
                calls[number] = name, so_far + text
    return content, calls


def read(reader: TurnReader, parts: list[str]) -> tuple[str, Calls]:
    """What a reader makes of a text in parts."""
    found = told([event for part in parts for event in reader.push(part)] + reader.flush())
    assert reader.num_calls == len(found[1])
    return found


def at_every_cut(make: Callable[[], TurnReader], text: str) -> tuple[str, Calls]:
    """What is read, which is the same wherever the text is cut in two, and in single characters."""
    whole = read(make(), [text])
    assert read(make(), [*text]) == whole
    for cut in range(1, len(text)):
        assert read(make(), [text[:cut], text[cut:]]) == whole, text[:cut]
    return whole
