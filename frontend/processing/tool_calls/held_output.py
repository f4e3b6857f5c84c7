"""Reads output that was held to JSON: a list of calls, or the arguments of one."""

from __future__ import annotations

from collections.abc import Collection

from frontend.processing.tool_calls.call_objects import cut_call, read_call
from frontend.processing.tool_calls.events import Arguments, Event, content, whole_call
from frontend.processing.tool_calls.json_objects import ObjectScanner
from frontend.processing.tool_calls.scan import ParsedCall


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

    def push(self, text: str) -> list[Event]:
        """Calls that are complete."""
        events: list[Event] = []
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
                events += self._call(read_call(call, self._names)) or content(call)
                self._scanner = None
        return events

    def flush(self) -> list[Event]:
        """The call that was cut off in its arguments; nothing of one that was cut before."""
        if self._scanner is None:
            return []
        text = "".join(self._parts)
        if self._scanner.is_broken:
            return content(text)
        return [event for call in cut_call(text, self._names) for event in self._call(call)]

    def _call(self, call: ParsedCall | None) -> list[Event]:
        if call is None:
            return []
        self.num_calls += 1
        return whole_call(self.num_calls - 1, call.name, call.arguments)


class NamedCall:
    """The text is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self.num_calls = 0
        self._name = name

    def push(self, text: str) -> list[Event]:
        """The arguments so far, with the name before the first."""
        if not text:
            return []
        if self.num_calls:
            return [Arguments(0, text)]
        self.num_calls = 1
        return whole_call(0, self._name, text)

    def flush(self) -> list[Event]:
        """Nothing was held back."""
        return []
