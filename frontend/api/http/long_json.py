"""JSON that is too long to be made at once, and how long a whole answer may be.

Knows nothing of what it says.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

from starlette.types import Receive, Scope, Send

from frontend.bounds import MAX_ANSWER_BYTES
from frontend.errors import answer_too_large

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_PIECE_BYTES = 64 << 10


class AnswerSize:
    """Bytes of an answer that is no stream."""

    def __init__(self) -> None:
        self._num_bytes = 0

    def count(self, num_bytes: int) -> None:
        """Count some more.

        Raises:
            RequestError: INVALID_ARGUMENT; they are above `MAX_ANSWER_BYTES`.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_ANSWER_BYTES:
            raise answer_too_large(MAX_ANSWER_BYTES)


class JsonArray:
    """A long array of an answer, kept as JSON: it is encoded as it grows, and other tasks of the
    loop can run between. Objects would take ten times the memory.
    """

    def __init__(self, size: AnswerSize) -> None:
        self.pieces: list[bytes] = []
        self._size = size

    def extend(self, values: Sequence[object]) -> None:
        """Add values at the end.

        Raises:
            RequestError: the answer has become too large.
        """
        if values:
            self.add(encode(values).encode()[1:-1])

    def add(self, piece: bytes) -> None:
        """Add values that are encoded, with commas between them.

        Raises:
            RequestError: the answer has become too large.
        """
        self._size.count(len(piece))
        self.pieces.append(piece)


def encoded(value: object) -> bytes:
    """JSON of a value that may hold JsonArrays, at once."""
    try:
        return encode(value).encode()
    except TypeError:  # it holds one
        return b"".join(_parts_of(value))


@dataclasses.dataclass(frozen=True, slots=True)
class JsonText:
    """A value of an answer that is JSON already, and is sent as it is."""

    text: str


class LongJSONResponse:
    """Sends an object with JsonArrays in pieces, as the client takes them."""

    def __init__(self, content: Mapping[str, object]) -> None:
        self._parts = [*_parts_of(content)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = sum(map(len, self._parts))
        headers = [
            (b"content-length", b"%d" % length),
            (b"content-type", b"application/json"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        piece = bytearray()
        for part in self._parts:
            piece += part
            if len(piece) > _PIECE_BYTES:
                await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
                piece.clear()
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": bytes(piece)})


def _parts_of(value: object) -> Iterator[bytes]:
    """JSON of a value that may hold JsonArrays and JsonTexts."""
    match value:
        case JsonArray():
            yield b"["
            for number, piece in enumerate(value.pieces):
                if number:
                    yield b","
                yield piece
            yield b"]"
        case JsonText():
            yield value.text.encode()
        case Mapping():
            for number, (key, each) in enumerate(value.items()):
                yield b"%b%b:" % (b"," if number else b"{", encode(key).encode())
                yield from _parts_of(each)
            yield b"}" if value else b"{}"
        case list():
            for number, each in enumerate(value):
                yield b"," if number else b"["
                yield from _parts_of(each)
            yield b"]" if value else b"[]"
        case _:
            yield encode(value).encode()
