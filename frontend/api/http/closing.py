"""A transport that closes in order: the client can read the response to a body it is still sending.

Owns how much of such a body is read and dropped, and for how long. Closing at once would reset the
connection, and the reset overtakes the response (RFC 9112, section 9.6). Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_SECONDS = 10.0
LINGER_BYTES = 64 << 20


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
