"""Makes text of a growing sequence, token by token, and finds stop strings in it.

Owns the incremental detokenizers and the search for stop strings. Of a tokenizer it knows only
how a token id maps to bytes, or how ids decode. Every decoder here is a `TextDecoder` of
`frontend.requests.request`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping

from frontend.requests.request import TextDecoder

MAX_HELD_TOKENS = 8
"""A character has at most four bytes, hence four tokens: more that end in U+FFFD are broken."""


def complete_text(piece: bytes) -> str | bytes:
    """A token's bytes as text when they are whole characters, else as they are."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return piece


class ByteDecoder:
    """Detokenizer where each token is a piece of a UTF-8 byte string; exact, O(1) a token.

    Args:
        pieces: what each token id adds, as `complete_text` gives it; "" for what adds no text.
    """

    __slots__ = ("_pending", "_pieces")

    matched: str | None = None

    def __init__(self, pieces: Mapping[int, str | bytes]) -> None:
        self._pieces = pieces
        self._pending = b""

    def push(self, token_id: int) -> str:
        """The characters this token completed."""
        piece = self._pieces[token_id]
        if isinstance(piece, str):
            if not self._pending:
                return piece
            piece = piece.encode()
        data = self._pending + piece
        text, num_decoded = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[num_decoded:]
        return text

    def flush(self) -> str:
        """U+FFFD for a character that was never completed."""
        text, self._pending = self._pending.decode(errors="replace"), b""
        return text


class WindowDecoder:
    """Detokenizer for any tokenizer: decodes a window of recent tokens with and without the newest.

    The window begins where text was last given out, one piece back, so that what a token looks
    like at the beginning of a text cancels out. Exact where decoding a longer sequence does not
    change earlier text.

    Args:
        decode: text of some token ids.
    """

    __slots__ = ("_context", "_decode", "_held")

    matched: str | None = None

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """The text this token completed; a text that ends in an incomplete character waits."""
        self._held.append(token_id)
        text = self._new_text()
        if text.endswith("\ufffd") and len(self._held) <= MAX_HELD_TOKENS:
            return ""
        if text:
            self._context, self._held = self._held, []
        return text

    def flush(self) -> str:
        """Text of the tokens that waited."""
        return self._new_text()

    def _new_text(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._held)[len(before) :]


class StopDecoder:
    """Cuts another decoder's text at the first stop string.

    The stop string that is complete first wins; of those complete with the same character, the
    longest. So the outcome does not depend on how the text is cut into tokens. The longest stop
    minus one character is held back, so that nothing of a stop string is given out before it is
    known.

    Args:
        inner: makes the text.
        stops: at least one, none empty.
        include_stop: give out the stop string too.
        min_tokens: number of leading tokens whose text is not searched.
    """

    __slots__ = ("_held", "_hold", "_include_stop", "_inner", "_skip", "_stops", "matched")

    def __init__(
        self,
        inner: TextDecoder,
        stops: tuple[str, ...],
        *,
        include_stop: bool,
        min_tokens: int = 0,
    ) -> None:
        if not stops or not all(stops):
            raise ValueError(f"stop strings {stops!r} must be one or more, none of them empty")
        self.matched: str | None = None
        self._inner = inner
        self._stops = stops
        self._include_stop = include_stop
        self._skip = min_tokens
        self._hold = max(len(stop) for stop in stops) - 1
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is certain not to belong to a stop string; none after one was found."""
        if self.matched is not None:
            return ""
        text = self._inner.push(token_id)
        if self._skip > 0:
            self._skip -= 1
            return text
        return self._search(text)

    def flush(self) -> str:
        """The text held back, searched once more with what the inner decoder held back."""
        if self.matched is not None:
            return ""
        text = self._search(self._inner.flush())
        held, self._held = self._held, ""
        return text + held

    def _search(self, text: str) -> str:
        """Adds ``text``; returns what may be given out now."""
        text = self._held + text
        found = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if found:
            end, start, self.matched = min(found)
            self._held = ""
            return text[: end if self._include_stop else start]
        certain = max(0, len(text) - self._hold)
        self._held = text[certain:]
        return text[:certain]
