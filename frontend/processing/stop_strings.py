"""Finds stop strings in the text of a growing sequence, and among tokens that write no text."""

from __future__ import annotations

from collections.abc import Mapping

from frontend.requests.request import TextDecoder


class StopDecoder:
    """Cuts another decoder's text at the first stop string.

    The stop string that is complete first wins; of those complete with the same character, the
    longest. So the outcome does not depend on how the text is cut into tokens. Held back is the
    longest end of the text with which a stop string begins, and nothing else.

    Args:
        inner: makes the text.
        stops: at least one, none empty.
        include_stop: give out the stop string too.
        min_tokens: number of leading tokens whose text is not searched.
        tokens: stops that are the names of tokens whose text is left out, by id.
    """

    __slots__ = (
        "_begun",
        "_held",
        "_include_stop",
        "_inner",
        "_skip",
        "_stops",
        "_tokens",
        "matched",
    )

    num_thought_tokens = 0

    def __init__(
        self,
        inner: TextDecoder,
        stops: tuple[str, ...],
        *,
        include_stop: bool,
        min_tokens: int = 0,
        tokens: Mapping[int, str] | None = None,
    ) -> None:
        if not stops or not all(stops):
            raise ValueError(f"stop strings {stops!r} must be one or more, none of them empty")
        self.matched: str | None = None
        self._inner = inner
        self._stops = stops
        self._include_stop = include_stop
        self._skip = min_tokens
        self._tokens = tokens or {}
        self._begun = [0] * len(stops)  # characters of each stop with which the text ends
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is certain not to belong to a stop string; none after one was found."""
        if self.matched is not None:
            return ""
        text = self._inner.push(token_id)
        if self._skip > 0:
            self._skip -= 1
            return text
        text = self._search(text)
        stop = self._tokens.get(token_id)
        if stop is None or self.matched is not None:
            return text
        text += self.flush()
        if self.matched is None:
            self.matched = stop
            text += stop if self._include_stop else ""
        return text

    def flush(self) -> str:
        """The text held back, searched once more with what the inner decoder held back."""
        if self.matched is not None:
            return ""
        text = self._search(self._inner.flush())
        held, self._held = self._held, ""
        return text + held

    def _search(self, text: str) -> str:
        """Adds ``text``; returns what may be given out now."""
        num_held = len(self._held)
        text = self._held + text
        found = []
        for place, stop in enumerate(self._stops):
            first = num_held - self._begun[place]  # no occurrence begins before it
            start = text.find(stop, first)
            if start >= 0:
                found.append((start + len(stop), start, stop))
            else:
                self._begun[place] = num_begun(text, stop, first)
        if found:
            end, start, self.matched = min(found)
            self._held = ""
            return text[: end if self._include_stop else start]
        certain = len(text) - max(self._begun)
        self._held = text[certain:]
        return text[:certain]


def num_begun(text: str, word: str, first: int = 0) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``word``, but not all of it.

    Args:
        first: the end that is looked for begins there or later.
    """
    start = text.find(word[0], max(first, len(text) - len(word) + 1))
    while start >= 0 and not word.startswith(text[start:]):
        start = text.find(word[0], start + 1)
    return len(text) - start if start >= 0 else 0
