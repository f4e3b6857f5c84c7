"""One HTTP listener in the running event loop.

Owns the socket, uvicorn's options and the order of stopping. Knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from frontend.api.http import connection
from frontend.api.http.connection import BoundedConnection
from frontend.api.http.encrypted import EncryptedListener
from frontend.config import join_address

# Longer than load balancers keep an idle connection, so that they close it first.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 1024


class _Server(uvicorn.Server):
    """Leaves signals to the process, and handshakes to a listener that bounds them."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        if self._tls is None:
            await super().startup(sockets)
            return
        assert sockets is not None
        self.servers = [
            EncryptedListener(  # type: ignore[misc]
                each,
                self._tls,
                self.server_state.connections,
                lambda: connection.MAX_CONNECTIONS,
                self._protocol,
            )
            for each in sockets
        ]
        self.started = True

    def _protocol(self) -> BoundedConnection:
        return BoundedConnection(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Listens for HTTP.

    Args:
        app: answers the requests.
        host, port: the address; port 0 takes a free one.
        tls: the listener's context; None: no encryption.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, tls: ssl.SSLContext | None = None
    ) -> None:
        self._host, self._port = host, port
        self._server = _Server(
            uvicorn.Config(
                app,
                http=BoundedConnection,
                ws="none",
                loop="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="critical",  # the app writes what is worth a line
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ),
            tls,
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen.

        Returns:
            The port.

        Raises:
            OSError: the address is taken, or is not this machine's.
        """
        address = join_address(self._host, self._port)
        try:
            listener = await self._bind()
        except OSError as error:
            raise OSError(
                f"cannot listen on {address}: {error.strerror}; "
                "pass another --host or --http-port, or --no-http"
            ) from error
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        return int(listener.getsockname()[1])

    async def _bind(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(BACKLOG)  # from now on connections wait instead of being refused
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    async def stop(self, grace: float) -> None:
        """Close the listener, give responses under way ``grace`` seconds, then end them."""
        if self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = grace  # type: ignore[assignment]
        self._server.should_exit = True
        await self._serving
        self._serving = None
