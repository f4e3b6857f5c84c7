"""Calls as Hermes' and Qwen3's templates teach them: ``<tool_call>{"name": …, "arguments":
{…}}</tool_call>``.

Owns where such a call begins and ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from frontend.processing.stop_strings import num_begun
from frontend.processing.tool_calls.call_objects import read_call
from frontend.processing.tool_calls.events import Event, content, whole_call
from frontend.processing.tool_calls.format import TurnReader
from frontend.processing.tool_calls.json_objects import ObjectScanner
from frontend.processing.tool_calls.tools import Tool

BEGIN, END = "<tool_call>", "</tool_call>"


class Hermes:
    """The format."""

    name = "hermes"

    def reader(self, tools: Mapping[str, Tool], max_calls: int | None = None) -> TurnReader:
        """A reader of one turn."""
        return CallsInText(tools, max_calls)


HERMES = Hermes()


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

    def push(self, text: str) -> list[Event]:
        """Content up to what may be a call, and complete calls."""
        held, self._held = self._held, ""  # a string that one variable alone has grows in place
        held += text
        self._held = held
        del held
        events: list[Event] = []
        self._waits = False
        while self._held and not self._waits:
            events += self._read()
        return events

    def flush(self) -> list[Event]:
        """A call without its end tag is a call when its JSON is complete, else it is content."""
        held, self._held = self._held, ""
        is_whole = self._read == self._in_call and self._scanner.is_done
        call = self._call(held[len(BEGIN) : self._place]) if is_whole else []
        return call or self._content(held)

    def _outside(self) -> list[Event]:
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

    def _before_json(self) -> list[Event]:
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

    def _in_call(self) -> list[Event]:
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

    def _in_no_call(self) -> list[Event]:
        found = self._held.find(END, self._place)
        if found >= 0:
            self._read = self._outside
            return self._told(found + len(END))
        self._waits = True
        told = self._told(len(self._held) - num_begun(self._held, END, self._place))
        self._place = 0
        return told

    def _told(self, end: int) -> list[Event]:
        """What is held up to ``end``, as content."""
        text, self._held = self._held[:end], self._held[end:]
        return self._content(text)

    def _content(self, text: str) -> list[Event]:
        """Content. Blanks behind a call, and later ones before a call, are dropped."""
        if not self.num_calls:
            return content(text)
        text = self._blanks + text
        if self._behind_call:
            text = text.lstrip()
        said = text.rstrip()
        self._blanks = text[len(said) :]
        self._behind_call = self._behind_call and not said
        return content(said)

    def _call(self, text: str) -> list[Event]:
        """The call; none when the text is no call."""
        call = read_call(text, self._names)
        if call is None:
            return []
        self.num_calls += 1
        self._blanks, self._behind_call = "", True
        return whole_call(self.num_calls - 1, *call)
