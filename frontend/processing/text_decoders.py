"""Text of token ids as they come: what each token adds.

Owns the incremental detokenizers, and the bytes that a byte-level token stands for. Knows nothing
of stop strings.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

import tokenizers

MAX_HELD_TOKENS = 8
"""A character has at most four bytes, hence four tokens: more that end in U+FFFD are broken."""


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


def byte_level_bytes(token: str) -> bytes:
    """What a token of a byte-level tokenizer stands for, as tokenizers' ByteLevel decoder has it: a
    token whose characters all stand for bytes is those bytes, any other is its own text in UTF-8.
    """
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode()


class BytePieces(dict[int, str | bytes]):
    """The text or bytes that each token of a byte-level tokenizer adds, looked up on first use."""

    def __init__(self, backend: tokenizers.Tokenizer, keep_special: bool) -> None:
        super().__init__()
        self._backend = backend
        added = backend.get_added_tokens_decoder().values()
        self._hidden = (
            frozenset()
            if keep_special
            else frozenset(token.content for token in added if token.special)
        )

    def __missing__(self, token_id: int) -> str | bytes:
        token = self._backend.id_to_token(token_id)
        if token is None or token in self._hidden:
            piece = b""
        else:
            piece = byte_level_bytes(token)
        self[token_id] = added = complete_text(piece)
        return added


def complete_text(piece: bytes) -> str | bytes:
    """A token's bytes as text when they are whole characters, else as they are."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return piece


class PiecesWith(dict[int, str | bytes]):
    """Pieces of which some tokens have others.

    Args:
        pieces: of all tokens.
        kept: the others.
    """

    def __init__(self, pieces: Mapping[int, str | bytes], kept: Mapping[int, str]) -> None:
        super().__init__(kept)
        self._pieces = pieces

    def __missing__(self, token_id: int) -> str | bytes:
        return self._pieces[token_id]


@dataclasses.dataclass(slots=True)
class ByteDecoder:
    """Detokenizer where each token is a piece of a UTF-8 byte string; exact, O(1) a token.

    Args:
        pieces: what each token id adds, as `complete_text` gives it; "" for what adds no text.
    """

    _pieces: Mapping[int, str | bytes]
    _pending: bytes = b""
    matched: ClassVar[str | None] = None
    num_thought_tokens: ClassVar[int] = 0

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
    num_thought_tokens = 0

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
