"""A language that begins behind a token, each time the output has it; elsewhere any text may stand.

The language's first mask travels with every draw of the free text and holds only behind the token,
so that no draw waits to learn whether it came. Knows nothing of grammars.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from frontend.requests.request import Matcher, TriggeredMask


class TriggeredMatcher:
    """A `frontend.requests.request.Matcher` of free text with such a language in it.

    Args:
        trigger: the token behind which the language begins.
        new_inner: makes a matcher of the language, at its beginning.
    """

    __slots__ = ("_first", "_inner", "_new_inner", "_trigger")

    def __init__(self, trigger: int, new_inner: Callable[[], Matcher]) -> None:
        self._trigger = trigger
        self._new_inner = new_inner
        self._inner: Matcher | None = None
        self._first = TriggeredMask(new_inner().mask(), trigger)

    def mask(self) -> bytes:
        """Tokens that may come next; no bytes: any."""
        return b"" if self._inner is None else self._inner.mask()

    def mask_ahead(self, num_unknown: int) -> TriggeredMask | None:
        """The language's first mask, behind the token, while the text is free."""
        return self._first if self._inner is None and num_unknown == 1 else None

    def accept(self, token_id: int) -> None:
        """Go on past a token.

        Raises:
            RequestError: as the language's matcher.
        """
        if self._inner is not None:
            self._inner.accept(token_id)
            if self._inner.is_stopped:
                self._inner = None
        elif token_id == self._trigger:
            self._inner = self._new_inner()

    def advance(self, token_ids: Sequence[int]) -> int:
        """Go on past the first tokens that are allowed; returns how many.

        Raises:
            RequestError: as the language's matcher.
        """
        for place, token in enumerate(token_ids):
            if self._inner is None:
                self.accept(token)
            elif not self._inner.advance([token]):
                return place
            elif self._inner.is_stopped:
                self._inner = None
        return len(token_ids)

    @property
    def is_stopped(self) -> bool:
        """Free text may always go on."""
        return False
