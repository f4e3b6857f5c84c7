"""Reads tool calls from a turn's text as it comes, in the shape of OpenAI's deltas.

Owns where a call begins and ends: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` as
Hermes' and Qwen's templates teach it, or JSON that the output was held to. A call is one delta.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from frontend.api.openai.response_models import ChatDelta, ChatMessage, ToolCall, ToolCallDelta

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
    """Separates content from the calls inside it. What turns out to be no call is content."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""  # begins with BEGIN, or may become it
        self._blanks = ""  # content, unless a call comes next
        self._behind_call = False

    def push(self, text: str) -> list[ChatDelta]:
        """Content up to what may be a call, and complete calls."""
        self._held += text
        deltas: list[ChatDelta] = []
        while self._held:
            before, begin, rest = self._held.partition(BEGIN)
            if not begin:
                keep = _overlap(before, BEGIN)
                deltas += self._content(before[: len(before) - keep])
                self._held = before[len(before) - keep :]
                break
            deltas += self._content(before)
            call, end, after = rest.partition(END)
            if not end:
                self._held = begin + rest
                break
            deltas += self._call(call) or self._content(begin + call + end)
            self._held = after
        return deltas

    def flush(self) -> list[ChatDelta]:
        """A call without its end tag is a call when its JSON is complete, else it is content."""
        held, self._held = self._held, ""
        return self._call(held.removeprefix(BEGIN)) or self._content(held)

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

    def push(self, text: str) -> list[ChatDelta]:
        """Nothing yet."""
        self._text += text
        return []

    def flush(self) -> list[ChatDelta]:
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


def _parsed(text: str) -> Any:
    """The value of a JSON text; None when it is no JSON, or cannot be sent: a model may write the
    escape of half a surrogate pair."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _whole_call(index: int, call: Any) -> list[ChatDelta]:
    """The delta of one call; none when it has no name."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return []
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return [_call_delta(index, call["name"], arguments)]


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


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` with which ``word`` begins."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
