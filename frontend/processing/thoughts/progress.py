"""Follows an output through its thoughts, token by token.

Owns when thoughts begin and end, and what of the output belongs to them. Knows nothing of text or
masks.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Protocol

from frontend.processing.thoughts.tags import Place, ThoughtTags


class Part(enum.Enum):
    """What a token belongs to."""

    TAG = enum.auto()
    """A tag, or line ends between the thoughts and the answer."""
    THOUGHT = enum.auto()
    ANSWER = enum.auto()
    HELD = enum.auto()
    """The answer's, if that comes next, as line ends at the beginning are."""


class Progress(Protocol):
    """What decoders need to know of where an output is.

    Attributes:
        place: behind the last token.
        held: tokens that are the answer's, if its part comes next.
        num_tokens: of the thoughts, without tags.
        num_tags: that the output has.
        ends_with_answer: nothing comes behind the answer's first token but more of it.
    """

    ends_with_answer: ClassVar[bool]
    place: Place
    held: list[int]
    num_tokens: int
    num_tags: int

    def push(self, token_id: int) -> Part:
        """Go on past a token."""
        ...


class ThoughtProgress:
    """Where one output is, as tags say it; a `Progress`.

    Args:
        start: where its prompt ended.
        is_constrained: the answer keeps to a language, to which no line ends before it belong: one
            token of them may stand behind the thoughts, none before.
    """

    ends_with_answer: ClassVar[bool] = True
    __slots__ = ("_is_constrained", "held", "num_tags", "num_tokens", "place", "tags")

    def __init__(self, tags: ThoughtTags, start: Place, *, is_constrained: bool) -> None:
        self.tags = tags
        self.place = start
        self.held: list[int] = []
        self.num_tokens = 0
        self.num_tags = 0
        self._is_constrained = is_constrained

    def push(self, token_id: int) -> Part:
        """Go on past a token."""
        tags, place = self.tags, self.place
        if place is Place.ANSWERING:
            return Part.ANSWER
        if place is Place.THINKING:
            if token_id != tags.end_id:
                self.num_tokens += 1
                return Part.THOUGHT
            self.num_tags += 1
            self.place = Place.BEHIND
            return Part.TAG
        if place is Place.BEHIND:
            is_blank = token_id in tags.blank_ids
            if self._is_constrained or not is_blank:
                self.place = Place.ANSWERING
            return Part.TAG if is_blank else Part.ANSWER
        if token_id == tags.begin_id:
            self.num_tags += 1
            self.place = Place.THINKING
            self.held.clear()
            return Part.TAG
        if token_id in tags.blank_ids and not self._is_constrained:
            self.held.append(token_id)
            return Part.HELD
        self.place = Place.ANSWERING
        return Part.ANSWER
