"""A chat's stream as turns: what each sample thinks, says and calls, and how its turn ends.

Owns which events a message of the service becomes. Every API that has turns tells these its own
way. Knows no API and no form of calls.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple

from frontend.processing.tool_calls.events import Arguments, CallBegun, Event, Text
from frontend.processing.tool_calls.format import TurnReader
from switchyard.v1 import inference_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """The first event."""

    message: pb.GenerateStarted


@dataclasses.dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the thoughts, which goes on from the last; of a delta it is the first."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """The end of a sample's turn.

    Attributes:
        reason: a FinishReason.
        num_calls: calls that it made.
        stop_text: the stop string that ended it; empty: something else did.
    """

    reason: int
    num_calls: int
    stop_text: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class TurnDelta:
    """What one message of the service adds to one sample's turn.

    Attributes:
        index: which sample.
        is_first: of the sample's.
        message: its new tokens and their log-probabilities.
        events: what they say; none where they may still become one thing or another.
        ended: None: the turn goes on.
    """

    index: int
    is_first: bool
    message: pb.Delta
    events: Sequence[Reasoning | Event]
    ended: Ended | None


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """The last event."""

    usage: pb.Usage


TurnEvent = Started | TurnDelta | Finished


async def turn_events(
    stream: AsyncGenerator[pb.GenerateResponse, None], new_reader: Callable[[], TurnReader]
) -> AsyncGenerator[TurnEvent, None]:
    """What the stream of `Service.chat` says. Closing it closes the stream.

    Args:
        new_reader: makes a reader of one turn's text; see `ToolUse.reader`.

    Raises:
        RequestError: as the stream.
    """
    readers: dict[int, TurnReader] = {}
    async with contextlib.aclosing(stream):
        async for event in stream:
            if event.HasField("delta"):
                delta = event.delta
                is_first = delta.index not in readers
                if is_first:
                    readers[delta.index] = new_reader()
                yield _turn_delta(delta, is_first, readers[delta.index])
            elif event.HasField("started"):
                yield Started(event.started)
            else:
                yield Finished(event.finished.usage)


def _turn_delta(delta: pb.Delta, is_first: bool, reader: TurnReader) -> TurnDelta:
    events: list[Reasoning | Event] = []
    if delta.reasoning:
        events.append(Reasoning(delta.reasoning))
    events += reader.push(delta.text)
    ended = None
    if delta.finish_reason != pb.FINISH_REASON_UNSPECIFIED:
        events += reader.flush()
        ended = Ended(delta.finish_reason, reader.num_calls, delta.stop_text)
    return TurnDelta(delta.index, is_first, delta, events, ended)


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A whole call.

    Attributes:
        id: see `CallBegun`.
        arguments: JSON text.
    """

    name: str
    id: str
    arguments: str


class _Texts(NamedTuple):
    """Pieces of what is one text."""

    kind: type[Reasoning | Text]
    texts: list[str]


class WholeTurn:
    """One sample's turn, put together from its deltas; it keeps no tokens.

    Attributes:
        ended: None before the last delta.
    """

    def __init__(self) -> None:
        self.ended: Ended | None = None
        self._parts: list[_Texts | CallBegun] = []  # thoughts and content in pieces, and calls
        self._arguments: dict[int, list[str]] = {}

    def add(self, delta: TurnDelta) -> None:
        """Go on with the sample's next delta."""
        self.ended = delta.ended
        for event in delta.events:
            match event:
                case Reasoning(text) | Text(text):
                    last = self._parts[-1] if self._parts else None
                    if not isinstance(last, _Texts) or last.kind is not type(event):
                        last = _Texts(type(event), [])
                        self._parts.append(last)
                    last.texts.append(text)
                case CallBegun(number):
                    self._parts.append(event)
                    self._arguments[number] = []
                case Arguments(number, text):
                    self._arguments[number].append(text)

    @property
    def reasoning(self) -> str:
        """All of its thoughts."""
        return "".join(part.text for part in self.pieces if isinstance(part, Reasoning))

    @property
    def parts(self) -> list[Text | Call]:
        """What it says and calls, in order."""
        return [part for part in self.pieces if not isinstance(part, Reasoning)]

    @property
    def pieces(self) -> list[Reasoning | Text | Call]:
        """What it thinks, says and calls, in order; texts of a kind beside each other are one."""
        return [
            part.kind("".join(part.texts)) if isinstance(part, _Texts) else self._call(part)
            for part in self._parts
        ]

    @property
    def content(self) -> str:
        """All that it says."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def calls(self) -> list[Call]:
        """All that it calls."""
        return [part for part in self.parts if isinstance(part, Call)]

    def _call(self, begun: CallBegun) -> Call:
        return Call(begun.name, begun.id, "".join(self._arguments[begun.number]))
