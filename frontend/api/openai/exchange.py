"""One HTTP request and its response, over ASGI.

Owns the body's bounds, the order of what is sent, and noticing that the client has left. Knows no
path and no parameter.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from frontend.api.openai.errors import Headers, HttpError
from frontend.bounds import MAX_BODY_BYTES

# A body that is not whole after this is not waited for.
BODY_SECONDS = 30.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class ClientGoneError(Exception):
    """Nobody reads the response any more."""


class Exchange:
    """Reads one request, writes one response.

    Attributes:
        method, path: of the request line.
        request_id: the client's x-request-id where it is a good one, else a new one; sent back.
        is_started: the response's status has been sent.
    """

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        client = scope.get("client")
        self.peer = f"{client[0]}:{client[1]}" if client else ""
        given = self.header(b"x-request-id") or ""
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.is_started = False

    def header(self, name: bytes) -> str | None:
        """A header's value; None when it was not sent."""
        return self._headers.get(name)

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            HttpError: 413 past `MAX_BODY_BYTES`, 408 past `BODY_SECONDS`.
            ClientGoneError: it never ended.
        """
        length = self.header(b"content-length")
        if length is not None and length.isdecimal() and int(length) > MAX_BODY_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read()
        except TimeoutError as error:
            raise HttpError(
                408,
                "invalid_request_error",
                f"the body did not arrive within {BODY_SECONDS:g} s; send it again",
                code="request_timeout",
                headers=[(b"connection", b"close")],
            ) from error

    async def _read(self) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def until_gone(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``, which is cancelled when the client leaves. The body must have been read.

        Raises:
            ClientGoneError: it left.
        """
        task, gone = asyncio.create_task(work), asyncio.create_task(self._gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGoneError
            task.result()
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self, body: dict[str, Any], status: int = 200, headers: Headers | None = None
    ) -> None:
        """Send a whole JSON response."""
        data = json.dumps(body, ensure_ascii=False).encode()
        await self.answer_bytes(data, b"application/json", status, headers)

    async def answer_bytes(
        self,
        data: bytes,
        content_type: bytes,
        status: int = 200,
        headers: Headers | None = None,
    ) -> None:
        """Send a whole response."""
        length = (b"content-length", b"%d" % len(data))
        await self._start(status, [(b"content-type", content_type), length, *(headers or [])])
        await self._send({"type": "http.response.body", "body": data})

    async def begin_events(self) -> None:
        """Send the head of a response of server-sent events."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._start(200, headers)

    async def write_events(self, events: list[dict[str, Any]]) -> None:
        """Send some events in one write; waits while the client's buffers are full."""
        body = b"".join(
            b"data: %b\n\n" % json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
            for event in events
        )
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_events(self, last: bytes = b"") -> None:
        """Send what comes last, and end the response."""
        await self._send({"type": "http.response.body", "body": last})

    async def _start(self, status: int, headers: Headers) -> None:
        self.is_started = True
        sent = [*headers, (b"x-request-id", self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": sent})


def _too_large() -> HttpError:
    return HttpError(
        413,
        "invalid_request_error",
        f"the body is larger than {MAX_BODY_BYTES} bytes; send less",
        code="body_too_large",
        headers=[(b"connection", b"close")],
    )
