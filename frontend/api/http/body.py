"""Requests' bodies: read within their bounds, and parsed, long ones in turns.

Owns which types are taken, the bounds of each body and of all together, which bodies
a web page could have sent behind its user's back, and what JSON is taken. Knows no parameter.

The parser holds up every stream while it runs, 0.1 µs for a number and 0.4 µs for an empty list, so
that values are counted while a body arrives and too many are refused before they are parsed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from frontend.api.http.content_encoding import PIECE_BYTES, Inflater, inflater
from frontend.api.http.errors import HttpError
from frontend.bounds import (
    MAX_BODIES_BYTES,
    MAX_BODY_BYTES,
    MAX_JSON_CONTAINERS,
    MAX_JSON_VALUES,
    MAX_NUMBER_CHARS,
    UNCOUNTED_BODY_BYTES,
)
from frontend.errors import invalid_field
from frontend.processing.threads import TURN_LENGTH, Turns

# A body that is not complete after this is refused.
BODY_SECONDS = 30.0
RETRY_SECONDS = 1

_CLOSE = {"connection": "close"}
# What `curl -d` says of JSON, and what clients written by hand say.
_CARELESS_TYPES = frozenset({"", "application/x-www-form-urlencoded"})
# Browsers set them, and let no page change them.
_BROWSERS_HEADERS = ("origin", "sec-fetch-site")


_R = TypeVar("_R")


class Budget:
    """Bytes that the bodies under way hold together.

    Attributes:
        used: now, without the first `UNCOUNTED_BODY_BYTES` of each.
    """

    def __init__(self) -> None:
        self.used = 0


class _Share:
    """One body's part of a budget; `free` gives it back."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._counted = budget, 0

    def grow(self, size: int) -> None:
        """Count the body as ``size`` bytes.

        Raises:
            HttpError: 503; all bodies together are too large.
        """
        more = max(0, size - UNCOUNTED_BODY_BYTES) - self._counted
        if more > 0 and self._budget.used + more > MAX_BODIES_BYTES:
            raise _too_many()
        self._budget.used += more
        self._counted += more

    def free(self) -> None:
        """Count nothing of it any more."""
        self._budget.used -= self._counted
        self._counted = 0


class Uploads:
    """Reads bodies; every API of the port has the same."""

    def __init__(self) -> None:
        self._budget, self._turns = Budget(), Turns()

    async def read(self, request: Request, function: Callable[[dict[str, Any]], _R]) -> _R:
        """What ``function`` makes of a body's JSON object, which may hold up the loop where that
        is long.

        Raises:
            HttpError, ClientDisconnect: see `read_body`.
            RequestError: the body is no JSON object, or ``function`` refuses it.
        """
        body = await read_body(request, self._budget)

        def made(body: bytes) -> _R:
            try:
                return function(parse_object(body))
            except RecursionError as error:  # JSON that can just be parsed may be too deep to write
                raise invalid_field("body", "is nested too deep; send flatter JSON") from error

        if len(body) <= TURN_LENGTH:
            return made(body)
        return await self._turns.run(made, body)


async def read_body(request: Request, budget: Budget) -> bytes:
    """The body, decoded.

    Raises:
        HttpError: 413 past `MAX_BODY_BYTES`, sent or decoded; 408 past `BODY_SECONDS`; 415 of a
            type or an encoding that is not taken; 400 where it is not of its encoding; 503 while
            the bodies under way hold too much.
        ClientDisconnect: the client left before the body's end.
    """
    _check_type(request.headers)
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    decoder = None if encoding in ("", "identity") else inflater(encoding)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise _too_large(f"is larger than {MAX_BODY_BYTES} bytes")
    share = _Share(budget)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(request, decoder, share)
    except TimeoutError as error:
        raise _refusal(
            408,
            f"the body did not arrive within {BODY_SECONDS:g} s; send it again",
            "request_timeout",
            _CLOSE,
        ) from error
    finally:
        share.free()


async def _read(request: Request, decoder: Inflater | None, share: _Share) -> bytes:
    pieces, num_sent, size, values = [], 0, 0, _ValueCounter()
    async for chunk in request.stream():
        num_sent += len(chunk)
        for piece in _pieces(chunk) if decoder is None else decoder.decode(chunk):
            size += len(piece)
            if max(num_sent, size) > MAX_BODY_BYTES:
                raise _too_large(f"is larger than {MAX_BODY_BYTES} bytes")
            share.grow(size)
            values.add(piece)
            pieces.append(piece)
            if len(piece) == PIECE_BYTES:
                await asyncio.sleep(0)
    if decoder is not None:
        decoder.finish()
    return b"".join(pieces)


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))


class _ValueCounter:
    """Counts what JSON holds, as it comes in pieces; what strings hold does not count."""

    def __init__(self) -> None:
        self._num_containers = self._num_values = 0
        self._is_in_string = self._is_escaped = False

    def add(self, piece: bytes) -> None:
        """Count on.

        Raises:
            HttpError: 413; there are too many, or a number is too long.
        """
        if self._is_escaped:
            piece = piece[1:]
        # What is left of backslashes and quotes are the ends of strings, and an escape at the end.
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        self._is_escaped = piece.endswith(b"\\")
        parts = piece.split(b'"')
        outside = b" ".join(parts[self._is_in_string :: 2])
        self._is_in_string ^= len(parts) % 2 == 0
        num_containers = outside.count(b"[") + outside.count(b"{")
        self._num_containers += num_containers
        self._num_values += num_containers + outside.count(b",")
        if self._num_containers > MAX_JSON_CONTAINERS:
            raise _too_large(f"has more than {MAX_JSON_CONTAINERS} lists and objects")
        if self._num_values > MAX_JSON_VALUES:
            raise _too_large(f"has more than {MAX_JSON_VALUES} values")
        if _LONG_NUMBER in outside.translate(_DIGITS_AS_ZEROS):
            raise _too_large(f"has a number of more than {MAX_NUMBER_CHARS} digits")


_DIGITS_AS_ZEROS = bytes(ord("0") if chr(byte).isdecimal() else byte for byte in range(256))
_LONG_NUMBER = b"0" * (MAX_NUMBER_CHARS + 1)


def _check_type(headers: Mapping[str, str]) -> None:
    """Refuses what is not said to be JSON.

    A browser asks the server before it sends a page's JSON to another origin (a preflight), but
    sends forms, plain text and bodies of no type at once.

    Raises:
        HttpError: 415.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return
    if kind in _CARELESS_TYPES and not any(name in headers for name in _BROWSERS_HEADERS):
        return
    raise _refusal(
        415,
        "the body's Content-Type is not JSON's; send `content-type: application/json`",
        "unsupported_media_type",
        {"accept": "application/json"},
    )


def _too_large(complaint: str) -> HttpError:
    return _refusal(413, f"the body {complaint}; send less", "body_too_large", _CLOSE)


def _too_many() -> HttpError:
    return HttpError(
        503,
        f"requests that are being sent hold {MAX_BODIES_BYTES} bytes; try again in a moment",
        code="bodies_full",
        headers={"retry-after": str(RETRY_SECONDS), **_CLOSE},
    )


def _refusal(
    status: int, message: str, code: str, headers: Mapping[str, str] | None = None
) -> HttpError:
    return HttpError(status, message, code=code, headers=headers)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        RequestError: it is no JSON object, or holds text that is no Unicode.
    """
    try:
        # `json.loads` would guess at UTF-16, in which values are not counted, and take surrogates.
        values = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        # One byte is found ten times faster than three.
        if b"\\" in body and (b"\\ud" in body or b"\\uD" in body):
            json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise invalid_field("body", "is not valid JSON; send one object, in UTF-8") from error
    if not isinstance(values, dict):
        raise invalid_field("body", "is not a JSON object; send one")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
