"""One HTTP connection: uvicorn's, with the bounds and the manners that it lacks.

Owns how many connections there may be, how long one may take to send a request's header, and what
becomes of a client that has ended its own side. It extends uvicorn's protocol for h11, the slower
of its parsers: httptools lets a header grow without end. Knows nothing of what is served:
`frontend.api.openai.generation` aborts the request of a client that leaves.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from frontend.api.asgi import FILLER
from frontend.api.http.closing import LingeringTransport
from frontend.api.http.parser import Parser

MAX_CONNECTIONS = 4096
# From a connection's beginning, or its last response, to a request's complete header.
HEADER_SECONDS = 20.0
# Between two looks at whether a client that ended its side is still there.
FIRST_PROBE_SECONDS = 0.02
MAX_PROBE_SECONDS = 10.0


class BoundedConnection(H11Protocol):
    """Closes itself when there are too many connections, or when no request arrives."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = self._parser = Parser()
        self._closing: LingeringTransport | None = None
        self._has_ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and wait for its first request."""
        self._closing = LingeringTransport(transport, self._is_owed, self.loop)
        super().connection_made(self._closing)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take data, which may be less than a header."""
        assert self._closing is not None
        if self._closing.lingers:
            self._closing.drop(len(data))
            return
        super().data_received(data)
        self._watch()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Go on with the response when the client has ended its side and may still read.

        A client that has left looks the same, until it is sent something: `_probe`.
        """
        cycle = self.cycle
        is_answered = cycle is None or cycle.response_complete or cycle.more_body
        if is_answered or self.transport.is_closing() or not self.transport.can_write_eof():
            return None
        if cycle.scope["http_version"] == "1.0" and not cycle.response_started:
            return None  # knows no interim responses
        self._has_ended = True
        self._probe(FIRST_PROBE_SECONDS)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_timer()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if self._closing is not None:
            self._closing.lost()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Take the next request, unless there will be none."""
        super().on_response_complete()
        if self._has_ended and self.cycle.response_complete:
            self.transport.close()

    def shutdown(self) -> None:
        """Close when the response under way is complete."""
        if self.transport.is_closing():
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, and close; a response that has begun cannot be ended well."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        status, message = self._parser.refusal
        head = (
            b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n"
        )
        text = message.encode()
        self.transport.write(head % (status, STATUS_PHRASES[status], len(text)) + text)
        self.transport.close()

    def _is_owed(self) -> bool:
        """Whether the client may be sending what nobody will read."""
        if self._has_ended:
            return False
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR) or bool(
            self.conn.trailing_data[0]
        )

    def _probe(self, seconds: float) -> None:
        """Send what changes no response: a client that has left resets the connection over it."""
        if self.cycle.response_complete or self.transport.is_closing():
            return
        event: h11.Event | None = None
        if not self.cycle.response_started:
            event = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        elif FILLER in self.cycle.scope["state"] and not self.flow.write_paused:
            event = h11.Data(data=self.cycle.scope["state"][FILLER])
        if event is not None:
            self.transport.write(self.conn.send(event) or b"")
        self._probe_timer = self.loop.call_later(
            seconds, self._probe, min(2 * seconds, MAX_PROBE_SECONDS)
        )

    def _watch(self) -> None:
        """Run the timer exactly while a request's header is incomplete."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
