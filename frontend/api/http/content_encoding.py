"""The encodings that a body may come in: gzip and zlib's deflate.

Knows no bound of the decoded body: it is handed out piece by piece.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from frontend.api.http.errors import HttpError

PIECE_BYTES = 64 << 10
"""Counted and decoded at once; other tasks run before the next piece."""


class Inflater:
    """One stream of zlib's, which holds one decoded piece at a time."""

    def __init__(self, name: str, window_bits: int) -> None:
        self._name, self._stream = name, zlib.decompressobj(window_bits)

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What follows, in pieces of `PIECE_BYTES` at most.

        Raises:
            HttpError: 400; the body is not of its encoding.
        """
        if data and self._stream.eof:
            raise self._invalid()
        decoded = data
        while decoded:
            try:
                decoded = self._stream.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise self._invalid() from error
            yield decoded
            data = self._stream.unconsumed_tail
        if self._stream.unused_data:
            raise self._invalid()

    def finish(self) -> None:
        """Check that nothing is missing.

        Raises:
            HttpError: 400; something is.
        """
        if not self._stream.eof:
            raise self._invalid()

    def _invalid(self) -> HttpError:
        return HttpError(
            400, f"the body is not one whole {self._name} stream", code="invalid_encoding"
        )


# The window bits say which header zlib expects: gzip's or its own.
_WINDOW_BITS: Mapping[str, int] = {
    "gzip": 16 + zlib.MAX_WBITS,
    "x-gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}


def inflater(name: str) -> Inflater:
    """Of a Content-Encoding, in lower case.

    Raises:
        HttpError: 415; it is none that is taken.
    """
    if name not in _WINDOW_BITS:
        raise HttpError(
            415,
            "the body's Content-Encoding is not taken; send it as it is, or by gzip or deflate",
            code="unsupported_encoding",
            headers={"accept-encoding": "gzip, deflate"},
        )
    return Inflater(name, _WINDOW_BITS[name])
