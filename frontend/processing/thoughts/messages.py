"""Follows an output through the messages of its envelope, token by token.

Owns which tokens are envelope, thoughts or answer. A message that is a call, and what is no
message, are the answer's with their headers. Knows nothing of text or masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from frontend.processing.thoughts.envelope import THOUGHTS, Envelope
from frontend.processing.thoughts.progress import Part
from frontend.processing.thoughts.tags import Place


class MessageProgress:
    """Where one output is; what `ThoughtProgress` is to tags.

    Args:
        opened: tokens of the prompt's last message.

    Attributes:
        place: behind the last token.
        held: tokens of the output that are the answer's, if its part comes next.
        header: tokens of the header that is being read, those of the prompt among them.
        has_thought: thoughts have begun.
        num_tokens: of the thoughts, without their headers and ends.
        num_tags: tokens of these.
    """

    ends_with_answer: ClassVar[bool] = False
    __slots__ = (
        "_is_bare", "_num_new", "envelope", "has_thought", "header", "held", "num_tags",
        "num_tokens", "place",
    )  # fmt: skip

    def __init__(self, envelope: Envelope, opened: Sequence[int]) -> None:
        self.envelope = envelope
        self.place = Place.BETWEEN
        self.held: list[int] = []
        self.header: list[int] = []
        self.has_thought = False
        self.num_tokens = self.num_tags = 0
        self._num_new = 0  # tokens of the header that are the output's
        self._is_bare = False  # the message has no header that was understood
        for token in opened:
            self.push(token)
        self.held = []
        self.num_tokens = self.num_tags = self._num_new = 0

    def push(self, token_id: int) -> Part:
        """Go on past a token."""
        place = self.place
        if place is Place.HEADER:
            return self._read_header(token_id)
        if place is Place.BETWEEN:
            return self._begin(token_id)
        if token_id in self.envelope.end_ids:
            self.place = Place.BETWEEN
            self.num_tags += place is Place.THINKING
            return Part.ANSWER if self._is_bare else Part.TAG
        if place is Place.THINKING:
            self.num_tokens += 1
            return Part.THOUGHT
        return Part.ANSWER

    def _begin(self, token_id: int) -> Part:
        envelope = self.envelope
        self._is_bare = False
        if token_id in envelope.end_ids:
            return Part.TAG
        if token_id not in (envelope.start_id, envelope.channel_id):
            self.place, self._is_bare = Place.ANSWERING, True
            return Part.ANSWER
        self.place = Place.HEADER
        self.header, self.held, self._num_new = [], [], 0
        return self._hold(token_id)

    def _read_header(self, token_id: int) -> Part:
        envelope = self.envelope
        if token_id == envelope.message_id:
            return self._end_header()
        if token_id in envelope.end_ids:
            self.place = Place.BETWEEN
            return Part.ANSWER
        if token_id == envelope.start_id and not self.held:
            return self._begin(token_id)
        if token_id != envelope.start_id and envelope.may_go_on([*self.header, token_id]):
            return self._hold(token_id)
        self.place, self._is_bare = Place.ANSWERING, True
        return Part.ANSWER

    def _end_header(self) -> Part:
        channel = self.envelope.channel_of(self.header)
        if channel is None:
            self._put_recipient_last()
            self.place, self._is_bare = Place.ANSWERING, True
            return Part.ANSWER
        self.held = []
        self.place = Place.ANSWERING
        if channel == THOUGHTS:
            self.place, self.has_thought = Place.THINKING, True
            self.num_tags += self._num_new + 1
        return Part.TAG

    def _hold(self, token_id: int) -> Part:
        self.header.append(token_id)
        self.held.append(token_id)
        self._num_new += 1
        if self.envelope.is_lead(self.header):
            self.held = []
        return Part.HELD

    def _put_recipient_last(self) -> None:
        """Writes a call whose recipient stands before its channel as others are."""
        if self.envelope.channel_id in self.held:
            place = self.held.index(self.envelope.channel_id)
            self.held = self.held[place:] + self.held[:place]
