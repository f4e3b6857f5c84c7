"""A listener whose connections begin with a TLS handshake: each is counted from the start, and the
handshake is bounded in time.

asyncio's own server gives a minute to a handshake, and makes nothing before it that could be
counted. Knows nothing of HTTP: its caller makes the protocols.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sized

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
_RETRY_SECONDS = 1.0


class EncryptedListener:
    """Accepts connections, and gives each a protocol once it is encrypted.

    Args:
        listener: a socket that listens.
        context: the certificate.
        connections: those that are encrypted and open.
        max_connections: of these and the ones in a handshake together; the rest are closed.
        make: a new connection's protocol.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        connections: Sized,
        max_connections: Callable[[], int],
        make: Callable[[], asyncio.Protocol],
    ) -> None:
        self._listener = listener.dup()  # open until the event loop looks at it no more
        self._context, self._make = context, make
        self._connections, self._max_connections = connections, max_connections
        self.handshakes: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())
        self._accepting.add_done_callback(lambda _: self._listener.close())

    def close(self) -> None:
        """Accept no more; handshakes are given up."""
        for task in (self._accepting, *self.handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until everything that `close` ended is over."""
        await asyncio.gather(self._accepting, *self.handshakes, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # of descriptors there are too few
                logger.error("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if len(self._connections) + len(self.handshakes) >= self._max_connections():
                connection.close()
            else:
                task = loop.create_task(self._encrypt(connection))
                self.handshakes.add(task)
                task.add_done_callback(self.handshakes.discard)
            await asyncio.sleep(0)  # an accept that need not wait gives nobody else a turn

    async def _encrypt(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._make, connection,
                ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )  # fmt: skip
        except OSError as error:  # no TLS, no certificate of the client, too slow, or gone
            logger.debug("no handshake: %s", error)
