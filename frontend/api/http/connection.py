"""One HTTP connection: uvicorn's, with the bounds and the manners that it lacks.

Owns how many connections there may be, how long one may take to send a request's header and how
large that may be, what becomes of a client that has ended its own side, and that a connection
closes in order: closing at once would reset it, and the reset overtakes the response (RFC 9112,
section 9.6). It extends uvicorn's protocol for h11, the slower of its parsers: httptools lets a
header grow without end. Knows nothing of what is served: `frontend.api.openai.generation` aborts
the request of a client that leaves.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from frontend.api.asgi import FILLER

MAX_CONNECTIONS = 4096
# From a connection's beginning, or its last response, to a request's complete header.
HEADER_SECONDS = 20.0
# Between two looks at whether a client that ended its side is still there.
FIRST_PROBE_SECONDS = 0.02
MAX_PROBE_SECONDS = 10.0
MAX_HEADER_BYTES = 32 << 10
# Of a body whose client has its response already, so much is read and dropped, for so long.
LINGER_SECONDS = 10.0
LINGER_BYTES = 64 << 20
# Slower than clients send, so that what nobody wants leaves time for others.
LINGER_BYTES_PER_SECOND = 16 << 20

_URL = re.compile(rb"(?i)https?://([^/?#]*)([^#]*)")


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


class Parser(h11.Connection):
    """The server's side of one connection.

    Attributes:
        refusal: status and message for the client, once `next_event` has raised.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self.refusal: tuple[int, str] = (400, "this is no valid HTTP request")

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event.

        Raises:
            h11.RemoteProtocolError: the client does not speak HTTP; `refusal` says it.
        """
        waiting = self._num_waiting() if self.their_state is h11.IDLE else 0
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                self.refusal = (431, f"the header is larger than {MAX_HEADER_BYTES} bytes")
            elif error.error_status_hint != 400:
                self.refusal = (error.error_status_hint, str(error))
            raise
        if isinstance(event, h11.Request):
            self._check(event, waiting - self._num_waiting())
            event = self._in_origin_form(event)
        return event

    def _num_waiting(self) -> int:
        return len(self.trailing_data[0])

    def _check(self, request: h11.Request, num_bytes: int) -> None:
        names = {name for name, _ in request.headers}
        if num_bytes > MAX_HEADER_BYTES:
            self.refusal = (431, f"the header is larger than {MAX_HEADER_BYTES} bytes")
        elif {b"transfer-encoding", b"content-length"} <= names:  # RFC 9112, section 6.3
            self.refusal = (400, "a request has Content-Length or Transfer-Encoding, not both")
        else:
            return
        raise h11.RemoteProtocolError(self.refusal[1], error_status_hint=self.refusal[0])

    def _in_origin_form(self, request: h11.Request) -> h11.Request:
        """The request with a path as target; a whole URL's host is its Host (RFC 9112, 3.2.2)."""
        url = _URL.match(request.target)
        if url is None:
            return request
        if not url[1]:
            self.refusal = (400, "the request's URL has no host")
            raise h11.RemoteProtocolError(self.refusal[1])
        return h11.Request(
            method=request.method,
            target=url[2] if url[2].startswith(b"/") else b"/" + url[2],
            headers=[(b"host", url[1]), *(each for each in request.headers if each[0] != b"host")],
            http_version=request.http_version,
        )


class LingeringTransport(asyncio.Transport):
    """Another transport, whose `close` lets the client finish.

    Args:
        inner: the connection.
        is_owed: whether the client may be sending still.

    Attributes:
        lingers: it is closed, but what still arrives is to be given to `drop`.
    """

    def __init__(
        self,
        inner: asyncio.Transport,
        is_owed: Callable[[], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__()
        self._inner, self._is_owed, self._loop = inner, is_owed, loop
        self._timer: asyncio.TimerHandle | None = None
        self._num_dropped = 0
        self.lingers = False

    def close(self) -> None:
        """Send what is written, and close when the client has ended, or is too long about it."""
        if self.is_closing():
            return
        if not self._is_owed():
            self._inner.close()
            return
        self.lingers = True
        if self._inner.can_write_eof():
            self._inner.write_eof()
        self._inner.resume_reading()
        self._timer = self._loop.call_later(LINGER_SECONDS, self._inner.abort)

    def drop(self, num_bytes: int) -> None:
        """Count bytes that came after `close`."""
        self._num_dropped += num_bytes
        if self._num_dropped > LINGER_BYTES:
            self._inner.abort()
            return
        self._inner.pause_reading()
        self._loop.call_later(num_bytes / LINGER_BYTES_PER_SECOND, self._read_on)

    def _read_on(self) -> None:
        if not self._inner.is_closing():
            self._inner.resume_reading()

    def lost(self) -> None:
        """Wait for nothing any more: the connection is closed."""
        if self._timer is not None:
            self._timer.cancel()

    def write(self, data: Any) -> None:
        """Send bytes, unless it is closed."""
        if not self.lingers:
            self._inner.write(data)

    def abort(self) -> None:
        """Close at once."""
        self._inner.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self.lingers or self._inner.is_closing()

    def can_write_eof(self) -> bool:
        """Whether each side can end alone, which TLS does not know."""
        return self._inner.can_write_eof()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio has it."""
        return self._inner.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read nothing for now; what is dropped is read."""
        if not self.lingers:
            self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._inner.resume_reading()
