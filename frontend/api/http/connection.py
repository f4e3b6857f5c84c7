"""One HTTP connection: uvicorn's, with the bounds that it lacks.

Owns how many connections there may be, and how long one may take to send a request's header. It
extends uvicorn's protocol for h11, the slower of its parsers: httptools lets a header grow without
end, and h11 bounds it (`h11_max_incomplete_event_size`). Knows nothing of what is served:
`frontend.api.openai.generation` aborts the request of a client that leaves.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 4096
# From a connection's beginning, or its last response, to a request's complete header.
HEADER_SECONDS = 20.0


class BoundedConnection(H11Protocol):
    """Closes itself when there are too many connections, or when no request arrives."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and wait for its first request."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take data, which may be less than a header."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_timer()
        super().connection_lost(exc)

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
