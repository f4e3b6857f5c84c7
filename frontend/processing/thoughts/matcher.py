"""What an output with thoughts keeps to: a language behind them, and a number of tokens within.

The language's first mask travels with the draws of the thoughts and holds only behind their end, so
that no draw waits to learn whether they ended. Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Sequence

from frontend.processing.thoughts.masks import mask_of, union
from frontend.processing.thoughts.progress import Part, ThoughtProgress
from frontend.processing.thoughts.tags import Place
from frontend.requests.request import FREE, Matcher, TriggeredMask


class ThoughtMatcher:
    """A `frontend.requests.request.Matcher` around another.

    Args:
        progress: of this output, before its first token.
        inner: what the answer keeps to; None: any.
        budget: tokens of the thoughts, tags not counted, after which they are ended; None: any.
        num_bytes: size of a mask.
    """

    __slots__ = ("_begin", "_blanks", "_budget", "_end", "_inner", "_opening", "_progress")

    def __init__(
        self,
        progress: ThoughtProgress,
        inner: Matcher | None,
        *,
        budget: int | None,
        num_bytes: int,
    ) -> None:
        tags = progress.tags
        self._progress = progress
        self._inner = inner
        self._budget = budget
        self._begin = mask_of([tags.begin_id], num_bytes)
        self._end = mask_of([tags.end_id], num_bytes)
        self._blanks = mask_of(tags.blank_ids, num_bytes)
        first = b"" if inner is None else inner.mask()
        self._opening = TriggeredMask(union(first, self._blanks), tags.end_id)

    def mask(self) -> bytes:
        """Tokens that may come next; no bytes: any."""
        place = self._progress.place
        if place is Place.THINKING:
            return self._end if self._is_spent(0) else b""
        own = b"" if self._inner is None else self._inner.mask()
        if place is Place.BEHIND:
            return union(own, self._blanks)
        return union(own, self._begin) if place is Place.OPEN else own

    def mask_ahead(self, num_unknown: int) -> TriggeredMask | None:
        """What narrows a draw behind tokens that are not known yet; None: it must wait."""
        if self._progress.place is not Place.THINKING:
            is_spent = self._progress.place is Place.OPEN and self._is_spent(num_unknown)
            inner = FREE if self._inner is None else self._inner.mask_ahead(num_unknown)
            return None if is_spent else inner
        if self._is_spent(num_unknown):
            return None
        if not self._opening.bits:
            return FREE
        return self._opening if num_unknown == 1 else None

    def accept(self, token_id: int) -> None:
        """Go on past a token.

        Raises:
            RequestError: as the inner matcher.
        """
        if self._progress.push(token_id) in _ANSWERS and self._inner is not None:
            self._inner.accept(token_id)

    def advance(self, token_ids: Sequence[int]) -> int:
        """Go on past the first tokens that are allowed; returns how many.

        Raises:
            RequestError: as the inner matcher.
        """
        for place, token in enumerate(token_ids):
            is_thinking = self._progress.place is Place.THINKING
            if is_thinking and self._is_spent(0) and token != self._progress.tags.end_id:
                return place
            if self._progress.push(token) is Part.ANSWER:
                inner = self._inner
                return len(token_ids) if inner is None else place + inner.advance(token_ids[place:])
        return len(token_ids)

    @property
    def is_stopped(self) -> bool:
        """Whether the answer's language has ended."""
        answers = self._progress.place is Place.ANSWERING
        return answers and self._inner is not None and self._inner.is_stopped

    def _is_spent(self, num_unknown: int) -> bool:
        """Whether a draw behind tokens that are not known yet may be one too many."""
        return self._budget is not None and self._progress.num_tokens + num_unknown >= self._budget


_ANSWERS = {Part.ANSWER, Part.HELD}
