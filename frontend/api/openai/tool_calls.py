"""Reading tool calls from a turn's text as it comes, in the shape of OpenAI's deltas.

Owns where a call begins and ends: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` as
Hermes' and Qwen's templates teach it, or JSON that the output was held to. A call is told whole.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Protocol

BEGIN, END = "<tool_call>", "</tool_call>"

ChoiceDelta = dict[str, Any]


class TurnReader(Protocol):
    """Turns the text of one choice into deltas; one per choice.

    Attributes:
        num_calls: how many calls it has told.
    """

    num_calls: int

    def push(self, text: str) -> list[ChoiceDelta]:
        """Deltas that are certain after this text."""
        ...

    def flush(self) -> list[ChoiceDelta]:
        """What was held back, at the end of the text."""
        ...


class PlainText:
    """Tells everything as content."""

    num_calls = 0

    def push(self, text: str) -> list[ChoiceDelta]:
        """The text."""
        return _content(text)

    def flush(self) -> list[ChoiceDelta]:
        """Nothing was held back."""
        return []


class CallsInText:
    """Tells content, and the calls inside it. What is no call after all is told as content."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""  # begins with BEGIN, or may become it
        self._blanks = ""  # content, if any follows before a call does
        self._behind_call = False

    def push(self, text: str) -> list[ChoiceDelta]:
        """Content up to what may be a call, and whole calls."""
        self._held += text
        deltas: list[ChoiceDelta] = []
        while self._held:
            before, begin, rest = self._held.partition(BEGIN)
            if not begin:
                keep = _overlap(before, BEGIN)
                deltas += self._say(before[: len(before) - keep])
                self._held = before[len(before) - keep :]
                break
            deltas += self._say(before)
            call, end, after = rest.partition(END)
            if not end:
                self._held = begin + rest
                break
            deltas += self._call(call) or self._say(begin + call + end)
            self._held = after
        return deltas

    def flush(self) -> list[ChoiceDelta]:
        """A call without its end is told as a call when it is whole, else as content."""
        held, self._held = self._held, ""
        return self._call(held.removeprefix(BEGIN)) or self._say(held)

    def _say(self, text: str) -> list[ChoiceDelta]:
        """Content; blanks behind a call, and from then on those before one, are none."""
        if not self.num_calls:
            return _content(text)
        text = self._blanks + text
        if self._behind_call:
            text = text.lstrip()
        said = text.rstrip()
        self._blanks = text[len(said) :]
        self._behind_call = self._behind_call and not said
        return _content(said)

    def _call(self, text: str) -> list[ChoiceDelta]:
        """A call's delta; none when the text is no call."""
        delta = _whole_call(self.num_calls, _parsed(text))
        self.num_calls += len(delta)
        if delta:
            self._blanks, self._behind_call = "", True
        return delta


class ListOfCalls:
    """Reads a JSON list of calls, which the output was held to, at its end."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._text = ""

    def push(self, text: str) -> list[ChoiceDelta]:
        """Nothing yet."""
        self._text += text
        return []

    def flush(self) -> list[ChoiceDelta]:
        """All calls; the text itself when it was cut off."""
        calls = _parsed(self._text)
        if not isinstance(calls, list):
            return _content(self._text)
        deltas = [_whole_call(index, call) for index, call in enumerate(calls)]
        self.num_calls = sum(map(len, deltas))
        return [delta for each in deltas for delta in each]


class NamedCall:
    """The text is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self.num_calls = 0
        self._name = name

    def push(self, text: str) -> list[ChoiceDelta]:
        """The arguments so far, with the name before the first."""
        if not text:
            return []
        if self.num_calls:
            return [{"tool_calls": [{"index": 0, "function": {"arguments": text}}]}]
        self.num_calls = 1
        return [_call_delta(0, self._name, text)]

    def flush(self) -> list[ChoiceDelta]:
        """Nothing was held back."""
        return []


def _content(text: str) -> list[ChoiceDelta]:
    return [{"content": text}] if text else []


def _parsed(text: str) -> Any:
    """What a JSON text says; None when it is none, or cannot be sent on: a model may write the
    escape of half a surrogate pair."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _whole_call(index: int, call: Any) -> list[ChoiceDelta]:
    """The delta of one call; none when it has no name."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return []
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return [_call_delta(index, call["name"], arguments)]


def _call_delta(index: int, name: str, arguments: str) -> ChoiceDelta:
    function = {"name": name, "arguments": arguments}
    call_id = f"call_{uuid.uuid4().hex[:24]}"
    call = {"index": index, "id": call_id, "type": "function", "function": function}
    return {"tool_calls": [call]}


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` with which ``word`` begins."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
