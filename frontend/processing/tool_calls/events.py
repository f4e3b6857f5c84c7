"""What the text of an assistant's turn says, piece by piece. Every API tells it its own way."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Content, which goes on from the last."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a function.

    Attributes:
        number: counts the turn's calls from 0.
        id: that the model's template takes for the call; empty: it takes any.
    """

    number: int
    name: str
    id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """JSON text of a call's arguments, which goes on from the last of the same call."""

    number: int
    text: str


Event = Text | CallBegun | Arguments


def content(text: str) -> list[Event]:
    """The text as content; nothing of none."""
    return [Text(text)] if text else []


def whole_call(number: int, name: str, arguments: str, call_id: str = "") -> list[Event]:
    """A call with all of its arguments."""
    return [CallBegun(number, name, call_id), Arguments(number, arguments)]
