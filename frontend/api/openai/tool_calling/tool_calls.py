"""Reads tool calls from a turn's text as it comes, in the shape of OpenAI's deltas.

Owns where a call begins and ends: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` as
Hermes' and Qwen's templates teach it, or JSON that the output was held to. A call is one delta.
Arguments are the model's own text, and a JSON object.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from typing import Protocol

from frontend.api.openai.response_models import ChatDelta, ChatMessage, ToolCall, ToolCallDelta
from frontend.api.openai.tool_calling.json_objects import ObjectScanner, is_json_object, members
from frontend.processing.stop_strings import num_begun

BEGIN, END = "<tool_call>", "</tool_call>"


class TurnReader(Protocol):
    """Turns the text of one choice into deltas.

    Attributes:
        num_calls: calls that it has found.
    """

    num_calls: int

    def push(self, text: str) -> list[ChatDelta]:
        """Deltas that no later text can change."""
        ...

    def flush(self) -> list[ChatDelta]:
        """Deltas of the text that was held back, at its end."""
        ...


class PlainText:
    """Takes all text as content."""

    num_calls = 0

    def push(self, text: str) -> list[ChatDelta]:
        """The text."""
        return _content(text)

    def flush(self) -> list[ChatDelta]:
        """Nothing was held back."""
        return []


class CallsInText:
    """Separates content from the calls inside it. What turns out to be no call is content.

    A call ends where its JSON object does. After the begin tag of what is no call, no other begin
    tag counts before the next end tag, so that a call which is only quoted is not made; but where
    no JSON follows the begin tag, that was a word in a sentence.

    Args:
        names: functions that may be called.
        max_calls: what comes behind as many is content.
    """

    def __init__(self, names: Collection[str], max_calls: int | None = None) -> None:
        self.num_calls = 0
        self._names = names
        self._max_calls = max_calls
        self._held = ""  # not told yet; in a call from its begin tag on
        self._place = 0  # of ``_held``, up to which it was read
        self._read = self._outside
        self._waits = False  # for more text
        self._scanner = ObjectScanner()
        self._blanks = ""  # content, unless a call comes next
        self._behind_call = False

    def push(self, text: str) -> list[ChatDelta]:
        """Content up to what may be a call, and complete calls."""
        held, self._held = self._held, ""  # a string that one variable alone has grows in place
        held += text
        self._held = held
        del held
        deltas: list[ChatDelta] = []
        self._waits = False
        while self._held and not self._waits:
            deltas += self._read()
        return deltas

    def flush(self) -> list[ChatDelta]:
        """A call without its end tag is a call when its JSON is complete, else it is content."""
        held, self._held = self._held, ""
        is_whole = self._read == self._in_call and self._scanner.is_done
        call = self._call(held[len(BEGIN) : self._place]) if is_whole else []
        return call or self._content(held)

    def _outside(self) -> list[ChatDelta]:
        if self.num_calls == self._max_calls:
            return self._told(len(self._held))
        before, begin, _ = self._held.partition(BEGIN)
        if not begin:
            self._waits = True
            return self._told(len(before) - num_begun(before, BEGIN))
        self._scanner = ObjectScanner()
        told = self._told(len(before))
        self._place = len(BEGIN)
        self._read = self._before_json
        return told

    def _before_json(self) -> list[ChatDelta]:
        rest = self._held[self._place :].lstrip()
        if not rest:
            self._waits = True
        elif rest[0] in '{["<':
            self._place = len(self._held) - len(rest)
            self._read = self._in_call
        else:
            self._read = self._outside
            return self._told(len(BEGIN))
        return []

    def _in_call(self) -> list[ChatDelta]:
        self._place = self._scanner.feed(self._held, self._place)
        rest = self._held[self._place :].lstrip() if self._scanner.is_done else ""
        if self._scanner.is_broken or not END.startswith(rest[: len(END)]):
            self._read = self._in_no_call
            return []
        if len(rest) < len(END):
            self._waits = True
            return []
        end = len(self._held) - len(rest) + len(END)
        call = self._call(self._held[len(BEGIN) : self._place])
        self._read = self._outside
        if not call:
            return self._told(end)
        self._held = self._held[end:]
        return call

    def _in_no_call(self) -> list[ChatDelta]:
        found = self._held.find(END, self._place)
        if found >= 0:
            self._read = self._outside
            return self._told(found + len(END))
        self._waits = True
        told = self._told(len(self._held) - num_begun(self._held, END, self._place))
        self._place = 0
        return told

    def _told(self, end: int) -> list[ChatDelta]:
        """What is held up to ``end``, as content."""
        text, self._held = self._held[:end], self._held[end:]
        return self._content(text)

    def _content(self, text: str) -> list[ChatDelta]:
        """Content. Blanks behind a call, and later ones before a call, are dropped."""
        if not self.num_calls:
            return _content(text)
        text = self._blanks + text
        if self._behind_call:
            text = text.lstrip()
        content = text.rstrip()
        self._blanks = text[len(content) :]
        self._behind_call = self._behind_call and not content
        return _content(content)

    def _call(self, text: str) -> list[ChatDelta]:
        """The call's delta; none when the text is no call."""
        call = _read_call(text, self._names)
        if call is None:
            return []
        self.num_calls += 1
        self._blanks, self._behind_call = "", True
        return [_call_delta(self.num_calls - 1, *call)]


class ListOfCalls:
    """Reads a JSON list of calls, which the output was held to, each at its end.

    Args:
        names: functions that may be called.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.num_calls = 0
        self._names = names
        self._parts: list[str] = []  # of a call, from its first brace on
        self._scanner: ObjectScanner | None = None

    def push(self, text: str) -> list[ChatDelta]:
        """Calls that are complete."""
        deltas: list[ChatDelta] = []
        while text:
            if self._scanner is None:
                text = text.lstrip("[], \t\r\n")
                self._scanner, self._parts = (ObjectScanner() if text else None), []
                continue
            end = self._scanner.feed(text)
            if self._scanner.is_broken:  # the output was not held to a list
                end = len(text)
            self._parts.append(text[:end])
            text = text[end:]
            if self._scanner.is_done:
                call = "".join(self._parts)
                deltas += self._call(_read_call(call, self._names)) or _content(call)
                self._scanner = None
        return deltas

    def flush(self) -> list[ChatDelta]:
        """The call that was cut off in its arguments; nothing of one that was cut before."""
        if self._scanner is None:
            return []
        text = "".join(self._parts)
        if self._scanner.is_broken:
            return _content(text)
        return self._call(_cut_call(text, self._names))

    def _call(self, call: tuple[str, str] | None) -> list[ChatDelta]:
        if call is None:
            return []
        self.num_calls += 1
        return [_call_delta(self.num_calls - 1, *call)]


class NamedCall:
    """The text is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self.num_calls = 0
        self._name = name

    def push(self, text: str) -> list[ChatDelta]:
        """The arguments so far, with the name before the first."""
        if not text:
            return []
        if self.num_calls:
            return [{"tool_calls": [{"index": 0, "function": {"arguments": text}}]}]
        self.num_calls = 1
        return [_call_delta(0, self._name, text)]

    def flush(self) -> list[ChatDelta]:
        """Nothing was held back."""
        return []


def _content(text: str) -> list[ChatDelta]:
    return [{"content": text}] if text else []


def _read_call(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """Name and arguments of a call, from its JSON; None when it is none."""
    text = text.strip(" \t\r\n")
    if not is_json_object(text):
        return None
    found, _ = members(text)
    name = _string(found.get("name", "")) or ""
    arguments = found.get("arguments", found.get("parameters", "{}"))
    if arguments.startswith('"'):  # JSON in a string, as OpenAI's own calls have it
        arguments = _string(arguments) or ""
    elif arguments == "null":
        arguments = "{}"
    return (name, arguments) if name in names and is_json_object(arguments) else None


def _cut_call(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """Name and arguments, as far as they came, of a call that was cut off."""
    found, cut = members(text)
    name = _string(found.get("name", "")) or ""
    if cut is not None and cut[0] == "arguments":
        found["arguments"] = cut[1]
    return (name, found["arguments"]) if name in names and "arguments" in found else None


def _string(text: str) -> str | None:
    """The string that a JSON text is; None when it is none, or half of a surrogate pair."""
    if not text.startswith('"'):
        return None
    value: str = json.loads(text)
    return value if value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value) else None


def _call_delta(index: int, name: str, arguments: str) -> ChatDelta:
    call_id = f"call_{uuid.uuid4().hex[:24]}"
    call: ToolCallDelta = {
        "index": index,
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    return {"tool_calls": [call]}


def whole_message(deltas: Sequence[ChatDelta]) -> ChatMessage:
    """The assistant's turn, from all deltas of a reader that was given the whole text."""
    content = "".join(delta.get("content", "") for delta in deltas)
    calls: list[ToolCall] = [
        {
            "id": call["id"],
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            },
        }
        for delta in deltas
        for call in delta.get("tool_calls", ())
    ]
    message: ChatMessage = {"role": "assistant", "content": content, "refusal": None}
    return {**message, "content": content or None, "tool_calls": calls} if calls else message
