"""What an output in an envelope keeps to: a language in its answer, and a number of tokens within
its thoughts.

A language of the whole answer stands in a message of the final channel, whose header is forced; one
that begins with <|channel|>, as that of calls does, says its header itself. A language behind the
trigger <|channel|> follows all headers; one behind another trigger, the answer's texts. Knows
nothing of text.
"""

from __future__ import annotations

from collections.abc import Sequence

from frontend.processing.thoughts.masks import mask_of, union, without
from frontend.processing.thoughts.messages import MessageProgress
from frontend.processing.thoughts.tags import Place
from frontend.requests.request import FREE, Matcher, TriggeredMask


class MessageMatcher:
    """A `frontend.requests.request.Matcher` around another.

    Args:
        progress: of this output, before its first token.
        inner: what the answer keeps to; None: any.
        is_whole: all of the answer does, not only what stands behind a trigger.
        budget: tokens of the thoughts, headers not counted, after which they are ended; None: any.
        num_bytes: size of a mask.
    """

    __slots__ = (
        "_budget", "_end", "_final", "_follows_headers", "_inner", "_is_entered", "_is_whole",
        "_num_bytes", "_opening", "_progress", "_thoughts",
    )  # fmt: skip

    def __init__(
        self,
        progress: MessageProgress,
        inner: Matcher | None,
        *,
        is_whole: bool,
        budget: int | None,
        num_bytes: int,
    ) -> None:
        envelope = progress.envelope
        channel = mask_of([envelope.channel_id], num_bytes)
        self._progress = progress
        self._inner = inner
        self._is_whole = is_whole and inner is not None
        self._budget = budget
        self._num_bytes = num_bytes
        self._end = mask_of([envelope.end_id], num_bytes)
        self._opening = TriggeredMask(mask_of([envelope.start_id], num_bytes), envelope.end_id)
        self._thoughts = (*envelope.thoughts_ids, envelope.message_id)
        self._final: tuple[int, ...] = (*envelope.final_ids, envelope.message_id)
        self._follows_headers = False
        self._is_entered = self._is_whole and progress.place is Place.ANSWERING
        if inner is None or self._is_entered:
            return
        if not self._is_whole:
            ahead = inner.mask_ahead(1)
            self._follows_headers = ahead is not None and ahead.trigger == envelope.channel_id
        elif inner.mask() == channel:
            inner.accept(envelope.channel_id)
            self._final = ()

    def mask(self) -> bytes:
        """Tokens that may come next; no bytes: any."""
        place = self._progress.place
        own = b"" if self._inner is None else self._inner.mask()
        if self._is_entered:
            return own
        if place is Place.THINKING:
            return self._end if self._is_spent(0) else b""
        if place is Place.ANSWERING:
            return own
        if place is Place.BETWEEN:
            return self._opening.bits if self._is_whole else b""
        return self._header_mask(own)

    def mask_ahead(self, num_unknown: int) -> TriggeredMask | None:
        """What narrows a draw behind tokens that are not known yet; None: it must wait."""
        place = self._progress.place
        if self._is_entered or place is Place.ANSWERING:
            return FREE if self._inner is None else self._inner.mask_ahead(num_unknown)
        if place is not Place.THINKING or self._is_spent(num_unknown):
            return None
        if not self._is_whole:
            return FREE
        return self._opening if num_unknown == 1 else None

    def accept(self, token_id: int) -> None:
        """Go on past a token.

        Raises:
            RequestError: as the inner matcher.
        """
        inner, place = self._inner, self._progress.place
        if self._is_entered and inner is not None:
            inner.accept(token_id)
            return
        enters = self._is_whole and not self._final and self._leaves_thoughts(token_id)
        self._progress.push(token_id)
        follows = self._follows_headers and place is not Place.THINKING
        tells = not self._is_whole and place is Place.ANSWERING
        if inner is not None and (enters or follows or tells):
            inner.accept(token_id)
        self._is_entered = enters or (self._is_whole and self._progress.place is Place.ANSWERING)

    def advance(self, token_ids: Sequence[int]) -> int:
        """Go on past the first tokens that are allowed; returns how many.

        Raises:
            RequestError: as the inner matcher.
        """
        for place, token in enumerate(token_ids):
            if self._is_entered and self._inner is not None:
                return place + self._inner.advance(token_ids[place:])
            mask = self.mask()
            if mask and not mask[token >> 3] >> (token & 7) & 1:
                return place
            self.accept(token)
        return len(token_ids)

    @property
    def is_stopped(self) -> bool:
        """Whether the answer's language has ended."""
        return self._is_entered and self._inner is not None and self._inner.is_stopped

    def _header_mask(self, own: bytes) -> bytes:
        """Tokens that go on with a header.

        Args:
            own: what the inner matcher allows.
        """
        envelope, header = self._progress.envelope, self._progress.header
        if envelope.channel_id not in header:
            return self._lead_mask(header)
        named = header[header.index(envelope.channel_id) + 1 :]
        if self._is_whole:
            return self._channel_mask(named, own)
        own = own if self._follows_headers else b""
        if named or not (self._progress.has_thought and self._is_spent(0)):
            return own
        return without(own, self._thoughts[0], self._num_bytes)

    def _lead_mask(self, header: list[int]) -> bytes:
        """Tokens that go on with a header before its channel."""
        envelope = self._progress.envelope
        lead = [envelope.start_id, *envelope.role_ids, envelope.channel_id]
        is_lead = len(header) < len(lead) and header == lead[: len(header)]
        # Behind <|start|> alone a draw may have been sent before that was known.
        is_forced = self._is_whole or (self._follows_headers and len(header) > 1)
        return self._bits(lead[len(header)]) if is_lead and is_forced else b""

    def _channel_mask(self, named: list[int], own: bytes) -> bytes:
        """Tokens that go on with a channel, of an answer that keeps to a language."""
        ways = [self._final] if self._progress.has_thought else [self._thoughts, self._final]
        nexts = [way[len(named)] for way in ways if way and [*way[: len(named)]] == named]
        if not self._final and not named:
            return union(own, self._bits(*nexts))
        return self._bits(*nexts or [self._progress.envelope.message_id])

    def _leaves_thoughts(self, token_id: int) -> bool:
        """Whether a token in a header makes its channel another than that of the thoughts."""
        progress, channel_id = self._progress, self._progress.envelope.channel_id
        if progress.place is not Place.HEADER or channel_id not in progress.header:
            return False
        named = [*progress.header[progress.header.index(channel_id) + 1 :], token_id]
        return named != [*self._thoughts[: len(named)]]

    def _bits(self, *token_ids: int) -> bytes:
        return mask_of(token_ids, self._num_bytes)

    def _is_spent(self, num_unknown: int) -> bool:
        """Whether a draw behind tokens that are not known yet may be one too many."""
        return self._budget is not None and self._progress.num_tokens + num_unknown >= self._budget
