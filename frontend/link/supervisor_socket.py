"""The frontend's end of the socket to the supervisor that started it.

Reports when the service is ready, and learns when the workers have ended for good. Knows nothing of
processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Sequence


class Supervision:
    """The socket, or nothing where nobody supervises this process.

    Args:
        descriptor: of a connected stream socket, which is taken over; None: there is no supervisor.

    Attributes:
        workers_ended: set when no workers will come any more.

    Raises:
        OSError: the descriptor is no socket.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.workers_ended = asyncio.Event()
        self._socket: socket.socket | None = None
        if descriptor is not None:
            self._socket = socket.socket(fileno=descriptor)
            self._socket.setblocking(False)
            asyncio.get_running_loop().add_reader(self._socket, self._hear)

    def say_ready(self, flags: Sequence[str]) -> None:
        """Report that the service is ready now.

        Args:
            flags: words of a command line with which another frontend listens where this one does.
        """
        message = {"ready_at": time.monotonic(), "flags": list(flags)}
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """Hear no more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _hear(self) -> None:
        """The supervisor closes its end when the workers will not come back."""
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            if not self._socket.recv(1):
                self.workers_ended.set()
                asyncio.get_running_loop().remove_reader(self._socket)
